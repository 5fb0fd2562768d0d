// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "transitions": the instructions and their order, from each state of a
 * function to every other one; what a recovery without a reset and a reset
 * restore; and unmaps at each step of a transition.
 *
 * This file defines the states, how to enter them, and how to check them.
 *
 * The emulator offers no function that may skip translation. The tests of
 * identity make one look as if it may, and a registration of identity does not
 * reach the machine. So these tests show the instructions, not that DMA works.
 */
#include <linux/sizes.h>

#include "transitions.h"

struct test_function *fn;
struct test_queue queue;
struct test_domain pair[2];
u64 tables[2];

/* The table of blocked functions */
static u64 empty_table;

const char *const state_names[] = {
	[UNREGISTERED] = "blocked, not registered",
	[EMPTY] = "blocked, empty table",
	[IDENTITY] = "identity",
	[PAGING_A] = "paging A",
	[PAGING_B] = "paging B",
	[FORCED] = "blocked by force",
};

/* Going to a state */

int go_to(enum state state)
{
	struct iommu_domain *identity;
	int ret;

	switch (state) {
	case FORCED:
		ret = test_replace(&pair[1]);
		inject_refuse(fn, FC_ATTACH);
		test_detach(&pair[1]);
		inject_reset();
		return ret;
	case THERE_AND_BACK:
		ret = test_replace(&pair[1]);
		return ret ? ret : test_replace(&pair[0]);
	case UNREGISTERED:
		test_detach(&pair[0]);
		return test_reset(fn);
	case RESET:
		return test_reset(fn);
	case EMPTY:
		test_detach(&pair[0]);
		return 0;
	case IDENTITY:
		identity = test_identity_domain(fn);
		return IS_ERR(identity) ? PTR_ERR(identity) :
					  test_replace_by_identity(fn, identity);
	default:
		return test_replace(&pair[state - PAGING_A]);
	}
}

int start_from(enum state state)
{
	int ret = 0;

	/*
	 * The empty table is registered after something was attached. For
	 * identity, a registered table is needed, which can be replaced.
	 */
	if (state == EMPTY || state == IDENTITY)
		ret = go_to(PAGING_B);
	if (!ret)
		ret = go_to(state);
	return ret ? test_fail("entering %s: error %d", state_names[state], ret) : 0;
}

/* Attaches the attached domain again, which the core does not do. */
int attach_again(void)
{
	struct iommu_domain *domain = test_current(fn);

	return domain->ops->attach_dev(domain, &fn->pdev->dev, domain);
}

/* The instructions as text */

static const char *name_of(u64 table)
{
	if (!table)
		return "identity";
	if (table == empty_table)
		return "empty";
	if (table == tables[0])
		return "A";
	return table == tables[1] ? "B" : "something else";
}

/* Whether it covers at least all that is mapped in each domain */
static bool covers_mapped(const struct inject_step *step)
{
	return step->start <= sq_iova(fn) &&
		step->start + step->size >= data_iova(fn) + PAGE_SIZE;
}

/* Several refreshes of all that is mapped count as one. */
static bool is_repeated(const struct inject_step *step)
{
	return !step[-1].operation && !step->operation && !step[-1].refused &&
		!step->refused && covers_mapped(step - 1) && covers_mapped(step);
}

static int add_step(char *text, size_t size, const struct inject_step *step)
{
	const char *refused = step->refused ? " refused" : "";

	switch (step->operation) {
	case FC_REGISTER:
		return scnprintf(text, size, "REG %s%s", name_of(step->table), refused);
	case FC_REREGISTER:
		return scnprintf(text, size, "REREG %s%s", name_of(step->table), refused);
	case FC_DEREGISTER:
		return scnprintf(text, size, "DEREG%s", refused);
	default:
		return scnprintf(text, size, "refresh%s%s",
				 covers_mapped(step) ? "" : " of a part", refused);
	}
}

int expect_asked(const char *expected)
{
	static struct inject_step steps[INJECT_STEPS];
	unsigned int i, count = inject_steps(steps);
	char text[256] = "";
	size_t used = 0;

	for (i = 0; i < count; i++) {
		if (i && is_repeated(&steps[i]))
			continue;
		if (i)
			used += scnprintf(text + used, sizeof(text) - used, ", ");
		used += add_step(text + used, sizeof(text) - used, &steps[i]);
	}
	if (strcmp(text, expected))
		return test_fail("issued: \"%s\", not \"%s\"", text, expected);
	return 0;
}

/* Two domains with mappings, whose tables are known */

static int find_tables(void)
{
	unsigned int i;
	int ret;

	inject_reset();
	for (i = 0; i < ARRAY_SIZE(pair); i++) {
		ret = test_attach(&pair[i]);
		if (ret)
			return ret;
		tables[i] = inject_table();
	}
	test_detach(&pair[0]);
	empty_table = inject_table();
	if (!tables[0] || tables[0] == tables[1] || !empty_table ||
	    empty_table == tables[1])
		return test_fail("tables %#llx and %#llx, and %#llx when blocked",
				 tables[0], tables[1], empty_table);
	return 0;
}

static void end(void)
{
	test_pair_release(pair);
	inject_offer_identity(fn, false);
}

static int begin(void)
{
	int ret = test_pair_claim_mapped(pair, fn, &queue);

	if (ret)
		return ret;
	ret = find_tables();
	if (ret)
		end();
	return ret;
}

static int begin_with_identity(void)
{
	int ret = begin();

	if (!ret)
		inject_offer_identity(fn, true);
	return ret;
}

const struct test_setup two_domains = { begin, end };
const struct test_setup with_identity = { begin_with_identity, end };

/* Checks of the state */

/* Flushes of a domain that the function left must not refresh it. */
static int expect_left(struct test_domain *dom)
{
	unsigned int before = inject_counts().refreshes;
	int ret;

	ret = iommu_map(dom->domain, data_iova(fn) + SZ_1M, virt_to_phys(dom->data),
			PAGE_SIZE, IOMMU_READ, GFP_KERNEL);
	if (ret)
		return test_fail("map: error %d", ret);
	iommu_unmap(dom->domain, data_iova(fn) + SZ_1M, PAGE_SIZE);
	if (inject_counts().refreshes != before)
		return test_fail("a flush of a domain that is not attached refreshed the function");
	return 0;
}

static int expect_identity(void)
{
	int ret;

	if (test_current(fn) != test_identity_domain(fn))
		return test_fail("the core has another domain than identity attached");
	ret = expect_left(&pair[0]);
	return ret ? ret : expect_left(&pair[1]);
}

int expect_state(enum state state)
{
	struct test_domain *other = &pair[state == PAGING_A];
	int ret;

	switch (state) {
	case UNREGISTERED:
	case EMPTY:
		return test_expect_blocked(&pair[0], &queue, pair[0].data);
	case IDENTITY:
		return expect_identity();
	default:
		page_poison(other->data);
		ret = expect_left(other);
		if (!ret)
			ret = test_expect_on(&pair[state - PAGING_A], &queue);
		if (!ret && !page_is_poison(other->data))
			ret = test_fail("the other domain's page was written to");
		return ret;
	}
}

static const struct test_case cases[] = {
	{ .list = attach_cases },
	{ .list = recovery_cases },
	{ .list = moment_cases },
	{}
};

TEST_SUITE(transitions, "Tests of the instructions for each transition", cases, &fn, &queue);
