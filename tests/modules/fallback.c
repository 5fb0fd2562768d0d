// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "fallback": a machine that does not know re-registration, one whose
 * instructions fail for what state the function is in, and recoveries that are
 * no stricter than the C driver's.
 */
#define pr_fmt(fmt) "fallback: " fmt

#include <linux/module.h>
#include <linux/sizes.h>

#include "iommu_test.h"

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];
static void *left;

/* What a machine may say to an operation that it does not know */
static const u8 for_good[] = { 16, 20, 24, 28 };

static int begin(void)
{
	inject_reset();
	return test_pair_claim_mapped(pair, fn, &queue);
}

static void end(void)
{
	inject_reset();
	/* What was learned is forgotten. */
	admin_stop(fn);
	test_detach(&pair[0]);
	test_reset(fn);
	test_pair_release(pair);
	free_page((unsigned long)left);
	left = NULL;
}

static const struct test_setup two_domains = { begin, end };

static struct iommu_domain *current_domain(void)
{
	return iommu_get_domain_for_dev(&fn->pdev->dev);
}

static unsigned int asked_for(unsigned int operation)
{
	struct inject_counts counts;

	inject_counts(&counts);
	return counts.operations[operation];
}

static void no_reregistration(u8 status)
{
	inject_refuse_as(fn, BIT(FC_REREGISTER), 1, status);
}

/* Attached, with DMA and with flushes */
static int expect_on(struct test_domain *dom)
{
	int ret = test_domain_start(dom, &queue);

	return ret ? ret : test_expect_running(dom);
}

static int attach_without(u8 status)
{
	struct test_domain *other = &pair[1];
	int ret;

	no_reregistration(status);
	ret = test_replace(&pair[0]);
	if (ret)
		return test_fail("status %u: attach: error %d", status, ret);
	page_poison(other->data);
	ret = expect_on(&pair[0]);
	if (!ret && !page_is_poison(other->data))
		ret = test_fail("another domain's page was written to");
	return ret;
}

static int test_first_attach(void)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(for_good); i++) {
		inject_reset();
		admin_stop(fn);
		test_detach(&pair[0]);
		ret = test_reset(fn);
		if (!ret)
			ret = attach_without(for_good[i]);
	}
	return ret;
}

/* From the empty table, which is registered */
static int test_from_blocked(void)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(for_good); i++) {
		inject_reset();
		if (test_replace(&pair[1]))
			return test_fail("attach failed");
		test_detach(&pair[1]);
		ret = attach_without(for_good[i]);
		admin_stop(fn);
		inject_reset();
		test_detach(&pair[0]);
		if (!ret)
			ret = test_reset(fn);
	}
	return ret;
}

static int test_block(void)
{
	u64 table;
	int ret;

	if (test_replace(&pair[0]))
		return test_fail("attach failed");
	ret = expect_on(&pair[0]);
	if (ret)
		return ret;
	admin_stop(fn);
	/* What is registered is known from here on. */
	inject_reset();
	if (test_replace(&pair[1]) || test_replace(&pair[0]))
		return test_fail("attach failed");
	table = inject_table();
	no_reregistration(20);
	test_detach(&pair[0]);
	if (inject_table() == table || (!inject_table() && !asked_for(FC_DEREGISTER)))
		return test_fail("the function was not blocked");
	ret = test_domain_renew(&pair[0], &left);
	if (!ret)
		ret = test_expect_blocked(&pair[0], &queue, left);
	inject_reset();
	if (!ret)
		ret = test_domain_map(&pair[0], &queue);
	return ret;
}

/* There and back again, on a machine that has never known it */
static int test_without_for_long(void)
{
	unsigned int i;
	int ret = test_reset(fn);

	for (i = 0; !ret && i < 5; i++) {
		ret = attach_without(20);
		admin_stop(fn);
		test_detach(&pair[0]);
		if (!ret)
			ret = test_expect_blocked(&pair[0], &queue, pair[0].data);
	}
	return ret;
}

static int test_learned_once(void)
{
	int ret = test_reset(fn);

	if (!ret)
		ret = attach_without(20);
	if (!ret && !asked_for(FC_REREGISTER))
		ret = test_skip("this driver does not re-register here");
	if (ret)
		return ret;
	admin_stop(fn);
	no_reregistration(20);
	test_detach(&pair[0]);
	if (test_replace(&pair[0]))
		return test_fail("attach failed");
	if (asked_for(FC_REREGISTER))
		return test_fail("asked again for what the machine does not know");
	inject_reset();
	/* The machine may be another one after a reset. */
	ret = test_reset(fn);
	if (!ret && (test_replace(&pair[1]) || test_replace(&pair[0])))
		ret = test_fail("attach failed");
	if (!ret && !asked_for(FC_REREGISTER))
		ret = test_fail("a reset does not make it forget");
	return ret ? ret : expect_on(&pair[0]);
}

/* Another function knows nothing of it. */
static int test_per_function(void)
{
	struct test_function *second = test_function(1);
	struct test_domain view = pair[1];
	int ret;

	if (!second)
		return test_skip("there is no second NVMe function");
	ret = test_reset(fn);
	if (!ret)
		ret = attach_without(20);
	if (!ret)
		ret = test_claim(second);
	if (ret)
		return ret;
	view.fn = second;
	inject_reset();
	if (test_replace(&view))
		ret = test_fail("attach of the second function failed");
	if (!ret && !asked_for(FC_REREGISTER))
		ret = test_fail("the second function pays for the first one");
	test_detach(&view);
	test_release(second);
	return ret;
}

static int test_both_refused(void)
{
	int ret = test_reset(fn), failed;

	/* What other tests made it learn is forgotten. */
	if (ret)
		return ret;
	if (test_replace(&pair[0]))
		return test_fail("attach failed");
	ret = expect_on(&pair[0]);
	if (ret)
		return ret;
	inject_refuse_as(fn, BIT(FC_REGISTER) | BIT(FC_REREGISTER), 1, 20);
	failed = test_replace(&pair[1]);
	inject_reset();
	if (!failed)
		return test_fail("the machine refused, the attach says that it succeeded");
	ret = test_expect_running(&pair[0]);
	if (!ret && test_replace(&pair[1]))
		ret = test_fail("the attach fails when it is not refused");
	return ret ? ret : test_expect_running(&pair[1]);
}

/* Answers that say what state the function is in: the attach counts, and a
 * reset registers what was attached.
 */
static const struct {
	u8 cc;
	u8 status;
} states[] = {
	{ 1, 4 }, { 1, 8 }, { 1, 12 }, { 1, 40 }, { 3, 0 },
};

static int attach_in_state(u8 cc, u8 status, bool fresh)
{
	int ret = fresh ? test_reset(fn) : 0;

	if (!fresh && test_replace(&pair[1]))
		return test_fail("attach failed");
	inject_refuse_as(fn, FC_ALL_TABLES, cc, status);
	if (!ret)
		ret = test_replace(&pair[0]);
	if (ret)
		ret = test_fail("cc %u, status %u: attach: error %d", cc, status, ret);
	else if (!inject_refused())
		ret = test_fail("the attach asked for nothing that could be refused");
	else if (current_domain() != pair[0].domain)
		ret = test_fail("the core has another domain");
	inject_reset();
	if (!ret)
		ret = test_reset(fn);
	if (!ret)
		ret = expect_on(&pair[0]);
	admin_stop(fn);
	test_detach(&pair[0]);
	return ret;
}

static int in_each_state(bool fresh)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(states); i++)
		ret = attach_in_state(states[i].cc, states[i].status, fresh);
	return ret;
}

static int test_states_first(void)
{
	return in_each_state(true);
}

static int test_states_later(void)
{
	return in_each_state(false);
}

/* A reset whose refresh is refused */
static int test_reset_refresh(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	u64 table;
	int ret;

	if (test_replace(&pair[0]))
		return test_fail("attach failed");
	inject_reset();
	if (test_replace(&pair[1]) || test_replace(&pair[0]))
		return test_fail("attach failed");
	table = inject_table();
	inject_refuse_refresh(fn, -EIO, 1000);
	ret = pci_reset_function(fn->pdev);
	if (!inject_refused())
		ret = test_skip("this driver refreshes nothing at a reset");
	else if (ret)
		ret = test_fail("reset: error %d where only a refresh was refused", ret);
	else if (!zdev_enabled(zdev))
		ret = test_fail("the function is disabled");
	else if (inject_table() != table)
		ret = test_fail("table %#llx is registered, not %#llx", inject_table(), table);
	inject_reset();
	if (ret != TEST_SKIPPED && test_reset(fn))
		return test_fail("the function cannot be reset any more");
	return ret ? ret : expect_on(&pair[0]);
}

/* Recovery without a reset: what was asked for meanwhile */

static int recover(bool missed, struct inject_counts *counts)
{
	int ret;

	if (test_replace(&pair[0]))
		return test_fail("attach failed");
	fn->keeps_state = true;
	device_lock(&fn->pdev->dev);
	ret = expect_on(&pair[0]);
	if (!ret)
		ret = test_break(fn);
	if (missed) {
		test_unmap_page(&pair[0], data_iova(fn));
		if (!ret)
			ret = test_map_page(&pair[0], data_iova(fn), pair[0].data);
	}
	inject_reset();
	device_unlock(&fn->pdev->dev);
	if (!ret)
		ret = test_wait_recovery(fn);
	fn->keeps_state = false;
	atomic_set(&fn->errors, 0);
	inject_counts(counts);
	inject_reset();
	if (!ret && atomic_read(&fn->resets))
		ret = test_fail("the function was reset");
	return ret;
}

static int test_recovery_of_nothing(void)
{
	struct inject_counts counts;
	int ret = recover(false, &counts);
	unsigned int registrations = counts.operations[FC_REGISTER] +
		counts.operations[FC_REREGISTER];

	if (!ret && (registrations || counts.refreshes))
		ret = test_fail("%u registrations, %u refreshes, and nothing was missed",
				registrations, counts.refreshes);
	return ret ? ret : expect_on(&pair[0]);
}

static int test_recovery_of_unmap(void)
{
	struct inject_counts counts;
	int ret = recover(true, &counts);
	unsigned int registrations = counts.operations[FC_REGISTER] +
		counts.operations[FC_REREGISTER];

	if (!ret && (!registrations || !counts.refreshes))
		ret = test_fail("%u registrations, %u refreshes, and an unmap was missed",
				registrations, counts.refreshes);
	return ret ? ret : expect_on(&pair[0]);
}

static const struct test_case cases[] = {
	{ "no re-registration: the first attach", test_first_attach, &two_domains },
	{ "no re-registration: attach from blocked", test_from_blocked, &two_domains },
	{ "no re-registration: block", test_block, &two_domains },
	{ "no re-registration: attach and block, again and again", test_without_for_long,
	  &two_domains },
	{ "no re-registration: learned once, until a reset", test_learned_once,
	  &two_domains },
	{ "no re-registration: learned for one function", test_per_function, &two_domains },
	{ "no registration of either kind: it stays where it was", test_both_refused,
	  &two_domains },
	{ "first attach in each state of a function", test_states_first, &two_domains },
	{ "attach in each state of a function", test_states_later, &two_domains },
	{ "reset: a refused refresh leaves the function enabled", test_reset_refresh,
	  &two_domains },
	{ "recovery in which nothing was missed", test_recovery_of_nothing, &two_domains },
	{ "recovery in which an unmap was missed", test_recovery_of_unmap, &two_domains },
	{}
};

TEST_SUITE(fallback, cases, &fn, &queue);
MODULE_DESCRIPTION("Tests of machines that know or grant less");
MODULE_LICENSE("GPL");
