// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "fallback": a machine that does not support re-registration, one whose
 * instructions fail because of the state of the function, and resets that are
 * no stricter than those of the C driver.
 */
#include "iommu_test.h"

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];
static void *left;

/* Statuses that a machine may return for an unsupported operation */
static const u8 for_good[] = { 16, 20, 24, 28 };

static int begin(void)
{
	return test_pair_claim_mapped(pair, fn, &queue);
}

static void end(void)
{
	inject_reset();
	/* A reset makes the driver forget what it learned. */
	admin_stop(fn);
	test_detach(&pair[0]);
	test_reset(fn);
	test_pair_release(pair);
	free_page((unsigned long)left);
	left = NULL;
}

static const struct test_setup two_domains = { begin, end };

static unsigned int asked_for(unsigned int operation)
{
	return inject_counts().operations[operation];
}

static void no_reregistration(u8 status)
{
	inject_refuse_as(fn, BIT(FC_REREGISTER), 1, status);
}

/* Attaches the first domain, and returns which table it has. */
static int attach_first(u64 *table)
{
	int ret = test_attach(&pair[0]);

	inject_reset();
	if (!ret)
		ret = test_attach(&pair[1]);
	if (!ret)
		ret = test_attach(&pair[0]);
	*table = inject_table();
	return ret;
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
	ret = test_expect_on(&pair[0], &queue);
	if (!ret && !page_is_poison(other->data))
		ret = test_fail("the other domain's page was written to");
	return ret;
}

/*
 * Resets the function and attaches the first domain. After this the driver
 * knows that the machine refuses re-registration.
 */
static int learn_refusal(void)
{
	int ret = test_reset(fn);

	if (!ret)
		ret = attach_without(20);
	if (!ret && !asked_for(FC_REREGISTER))
		ret = test_skip("this driver does not re-register here");
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

/* From blocked: the empty table is registered */
static int test_from_blocked(void)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(for_good); i++) {
		inject_reset();
		ret = test_attach(&pair[1]);
		test_detach(&pair[1]);
		if (!ret)
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
	int ret = attach_first(&table);

	if (!ret)
		ret = test_expect_on(&pair[0], &queue);
	if (ret)
		return ret;
	admin_stop(fn);
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

/* Attach and block in turn, on a machine that has never supported it */
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
	int ret = learn_refusal();

	if (ret)
		return ret;
	admin_stop(fn);
	no_reregistration(20);
	test_detach(&pair[0]);
	ret = test_attach(&pair[0]);
	if (!ret && asked_for(FC_REREGISTER))
		ret = test_fail("the driver tried an unsupported re-registration again");
	inject_reset();
	/* The machine may be a different one after a reset. */
	if (!ret)
		ret = test_reset(fn);
	if (!ret)
		ret = test_attach(&pair[1]);
	if (!ret)
		ret = test_attach(&pair[0]);
	if (!ret && !asked_for(FC_REREGISTER))
		ret = test_fail("the driver does not try again after a reset");
	return ret ? ret : test_expect_on(&pair[0], &queue);
}

/* What is learned for one function does not apply to another. */
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
	ret = test_attach(&view);
	if (!ret && !asked_for(FC_REREGISTER))
		ret = test_fail("the second function is not re-registered either");
	test_detach(&view);
	test_release(second);
	return ret;
}

/* To identity and back: the table is deregistered in between */
static int test_identity(void)
{
	struct iommu_domain *identity = test_identity_domain(fn);
	int ret;

	if (IS_ERR(identity))
		return test_skip("this function must translate");
	ret = test_reset(fn);
	if (!ret)
		ret = attach_without(20);
	if (ret)
		return ret;
	admin_stop(fn);
	ret = test_replace_by_identity(fn, identity);
	if (ret)
		return test_fail("to identity: error %d", ret);
	ret = test_replace(&pair[0]);
	if (ret)
		return test_fail("from identity: error %d", ret);
	return test_expect_on(&pair[0], &queue);
}

static int test_both_refused(void)
{
	/* The driver forgets what it learned in other tests. */
	int ret = test_reset(fn), failed;

	if (!ret)
		ret = test_attach(&pair[0]);
	if (!ret)
		ret = test_expect_on(&pair[0], &queue);
	if (ret)
		return ret;
	inject_refuse_as(fn, FC_ATTACH, 1, 20);
	failed = test_replace(&pair[1]);
	inject_reset();
	if (!failed)
		return test_fail("the attach succeeded although the machine refused");
	ret = test_expect_running(&pair[0]);
	if (!ret && test_replace(&pair[1]))
		ret = test_fail("the attach fails although it is not refused");
	return ret ? ret : test_expect_running(&pair[1]);
}

static void refuse_refreshes(void)
{
	inject_refuse_refresh(fn, -ENOMEM, 1000);
}

/*
 * The machine refuses the new table after the old one was deregistered. The old
 * table is registered again, but there are no resources to refresh its
 * mappings: a machine that shadows tables does not know them until a later
 * refresh.
 */
static int test_put_back_without_resources(void)
{
	u64 table;
	int ret = learn_refusal(), failed;

	if (ret)
		return ret;
	table = inject_table();
	inject_refuse_as(fn, BIT(FC_REREGISTER) | BIT(FC_REGISTER), 1, 20);
	/* After the deregistration and the refused registration */
	ret = inject_pause_start(fn, 2, refuse_refreshes);
	if (ret)
		return ret;
	failed = test_replace(&pair[1]);
	if (!inject_pause_end())
		ret = test_fail("the old table was not registered again");
	else if (!failed)
		ret = test_fail("the attach succeeded although the machine refused");
	else if (!inject_refused())
		ret = test_fail("the mappings of the old table were not refreshed");
	else if (inject_table() != table || test_current(fn) != pair[0].domain)
		ret = test_fail("table %#llx is registered, not %#llx", inject_table(), table);
	inject_reset();
	if (!ret)
		ret = test_reset(fn);
	return ret ? ret : test_expect_on(&pair[0], &queue);
}

/* A refused refresh does not mean that re-registration is refused. */
static int test_refresh_teaches_nothing(void)
{
	u64 table;
	int ret = test_reset(fn);

	if (!ret)
		ret = attach_first(&table);
	if (!ret && !asked_for(FC_REREGISTER))
		ret = test_skip("this driver does not re-register here");
	if (!ret)
		ret = test_expect_on(&pair[0], &queue);
	if (ret)
		return ret;
	admin_stop(fn);
	inject_refuse_refresh(fn, -EIO, 1000);
	test_detach(&pair[0]);
	if (!inject_refused())
		ret = test_fail("blocking refreshed nothing");
	inject_reset();
	if (!ret)
		ret = test_attach(&pair[0]);
	if (!ret && !asked_for(FC_REREGISTER))
		ret = test_fail("a refused refresh made the driver stop re-registering");
	return ret ? ret : test_expect_on(&pair[0], &queue);
}

/*
 * An attach that ended between two instructions, because the function was in a
 * state in which it does no DMA: nothing is left to deregister.
 */
static int test_nothing_to_deregister(void)
{
	int ret = learn_refusal();

	if (ret)
		return ret;
	admin_stop(fn);
	inject_refuse_as(fn, FC_ATTACH, 1, 4);
	ret = test_replace(&pair[1]);
	if (ret)
		ret = test_fail("attach: error %d", ret);
	else if (asked_for(FC_DEREGISTER) != 1)
		ret = test_fail("the attach issued %u deregistrations", asked_for(FC_DEREGISTER));
	inject_reset();
	test_detach(&pair[1]);
	if (!ret && asked_for(FC_DEREGISTER))
		ret = test_fail("a function without a table was deregistered");
	if (!ret)
		ret = test_reset(fn);
	if (!ret)
		ret = test_attach(&pair[0]);
	return ret ? ret : test_expect_on(&pair[0], &queue);
}

/*
 * Results that report the state of the function: the attach succeeds, and a
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
	int ret = fresh ? test_reset(fn) : test_attach(&pair[1]);

	inject_refuse_as(fn, FC_ALL_TABLES, cc, status);
	if (!ret)
		ret = test_replace(&pair[0]);
	if (ret)
		ret = test_fail("cc %u, status %u: attach: error %d", cc, status, ret);
	else if (!inject_refused())
		ret = test_fail("the attach issued no instruction that could be refused");
	else if (test_current(fn) != pair[0].domain)
		ret = test_fail("the core has another domain attached");
	inject_reset();
	if (!ret)
		ret = test_reset(fn);
	if (!ret)
		ret = test_expect_on(&pair[0], &queue);
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

TEST_CALL(states_first, in_each_state(true))
TEST_CALL(states_later, in_each_state(false))

/* A reset whose refresh is refused */
static int test_reset_refresh(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	u64 table;
	int ret = attach_first(&table);

	if (ret)
		return ret;
	inject_refuse_refresh(fn, -EIO, 1000);
	ret = pci_reset_function(fn->pdev);
	if (!inject_refused())
		ret = test_skip("this driver refreshes nothing at a reset");
	else if (ret)
		ret = test_fail("reset: error %d although only a refresh was refused", ret);
	else if (!zdev_enabled(zdev))
		ret = test_fail("the function is disabled");
	else if (inject_table() != table)
		ret = test_fail("table %#llx is registered, not %#llx", inject_table(), table);
	inject_reset();
	if (ret != TEST_SKIPPED && test_reset(fn))
		return test_fail("the function can no longer be reset");
	return ret ? ret : test_expect_on(&pair[0], &queue);
}

/*
 * Recovers the function without a reset, and checks whether this issues any
 * instructions. An attach may have been refused before.
 */
static int expect_asked(bool missed, bool refused)
{
	struct inject_counts counts;
	unsigned int registrations;
	int ret = test_attach(&pair[0]);

	if (!ret)
		ret = test_expect_on(&pair[0], &queue);
	if (ret)
		return ret;
	fn->keeps_state = true;
	ret = test_break(fn);
	if (missed) {
		test_unmap_page(&pair[0], data_iova(fn));
		if (!ret)
			ret = test_map_page(&pair[0], data_iova(fn), pair[0].data);
	}
	if (!ret && refused) {
		inject_refuse(fn, FC_ATTACH);
		if (!test_replace(&pair[1]))
			ret = test_fail("the attach succeeded although the machine refused");
	}
	inject_reset();
	ret = test_recover(fn, ret);
	fn->keeps_state = false;
	counts = inject_counts();
	inject_reset();
	registrations = counts.operations[FC_REGISTER] + counts.operations[FC_REREGISTER];
	if (!ret && atomic_read(&fn->resets))
		ret = test_fail("the function was reset");
	if (!ret && (!registrations == missed || !counts.refreshes == missed))
		ret = test_fail("%u registrations, %u refreshes although %s was missed",
				registrations, counts.refreshes, missed ? "an unmap" : "nothing");
	return ret ? ret : test_expect_on(&pair[0], &queue);
}

TEST_CALL(recovery_of_nothing, expect_asked(false, false))
TEST_CALL(recovery_of_unmap, expect_asked(true, false))
TEST_CALL(recovery_after_refusal, expect_asked(true, true))

static const struct test_case cases[] = {
	{ "no re-registration: the first attach", test_first_attach, &two_domains },
	{ "no re-registration: attach from blocked", test_from_blocked, &two_domains },
	{ "no re-registration: block", test_block, &two_domains },
	{ "no re-registration: attach and block, again and again", test_without_for_long,
	  &two_domains },
	{ "no re-registration: learned once, until a reset", test_learned_once,
	  &two_domains },
	{ "no re-registration: learned for one function", test_per_function, &two_domains },
	{ "no re-registration: identity", test_identity, &two_domains },
	{ "no registration of either kind: it stays where it was", test_both_refused,
	  &two_domains },
	{ "no re-registration: no resources for what is put back",
	  test_put_back_without_resources, &two_domains },
	{ "no re-registration: nothing to deregister", test_nothing_to_deregister,
	  &two_domains },
	{ "a refused refresh is not a refused re-registration", test_refresh_teaches_nothing,
	  &two_domains },
	{ "first attach in each state of a function", test_states_first, &two_domains },
	{ "attach in each state of a function", test_states_later, &two_domains },
	{ "reset: a refused refresh leaves the function enabled", test_reset_refresh,
	  &two_domains },
	{ "recovery in which nothing was missed", test_recovery_of_nothing, &two_domains },
	{ "recovery in which an unmap was missed", test_recovery_of_unmap, &two_domains },
	{ "recovery in which an unmap was missed, before a refused attach",
	  test_recovery_after_refusal, &two_domains },
	{}
};

TEST_SUITE(fallback, "Tests of machines that support less, or refuse more", cases, &fn, &queue);
