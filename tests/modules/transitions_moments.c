// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "transitions": a complete map and a complete unmap on A, at each step
 * of a transition.
 */
#include <linux/sizes.h>

#include "transitions.h"

static void *extra_page;
static unsigned int hits;
static u64 table_then;
static int job_result;

static dma_addr_t extra_iova(void)
{
	return data_iova(fn) + SZ_2M;
}

static void unmap_and_map(void)
{
	struct inject_counts before = inject_counts();

	job_result = iommu_unmap(pair[0].domain, data_iova(fn), PAGE_SIZE) == PAGE_SIZE ?
		0 : -EIO;
	hits = inject_counts().refreshes - before.refreshes;
	table_then = before.table;
	if (!job_result)
		job_result = test_map_page(&pair[0], extra_iova(), extra_page);
}

/*
 * If it is on A, the function reaches what was mapped, not what was unmapped.
 */
static int expect_mapped_now(void)
{
	int ret;

	if (test_current(fn) != pair[0].domain)
		return 0;
	ret = test_domain_start(&pair[0], &queue);
	if (ret)
		return ret;
	if (admin_check(fn, extra_iova(), extra_page))
		return test_fail("the function does not reach what was mapped");
	return test_expect_gone(&pair[0], &queue, pair[0].data, data_iova(fn));
}

/* As long as A's table is registered, an unmap on A must refresh it. */
static int expect_flushed_then(bool must_not_hit)
{
	if (job_result)
		return test_fail("unmap or map: error %d", job_result);
	if (table_then == tables[0] && !hits)
		return test_fail("the unmap was not flushed although A's table was registered");
	if (hits && must_not_hit)
		return test_fail("a flush refreshed a function that is about to stop translating");
	if (atomic_read(&fn->errors))
		return test_fail("a flush refreshed the function at a wrong time");
	return 0;
}

static int undo(void)
{
	int ret;

	inject_reset();
	test_unmap_page(&pair[0], extra_iova());
	ret = test_map_page(&pair[0], data_iova(fn), pair[0].data);
	return ret ? test_fail("map: error %d", ret) : 0;
}

/*
 * Runs the job at a moment of the transition. To identity, before the last of
 * three instructions, which ends translation, flushes must already skip the
 * function. Returns 1 if the transition has no such moment.
 */
static int interrupt_at(unsigned int moment, enum state from, enum state to)
{
	int reached, ret = start_from(from);

	if (ret)
		return ret;
	/* Attaching again shows which table is registered. A reset drops it. */
	inject_reset();
	if (from == PAGING_A && to != RESET)
		ret = attach_again();
	if (!ret)
		ret = inject_pause_start(fn, moment, unmap_and_map);
	if (ret)
		return ret;
	ret = go_to(to);
	reached = inject_pause_end();
	if (ret)
		return test_fail("moment %u: error %d", moment, ret);
	if (!reached)
		return 1;
	ret = expect_flushed_then(to == IDENTITY && moment == 2);
	if (!ret)
		ret = expect_mapped_now();
	admin_stop(fn);
	return ret ? ret : undo();
}

static int interrupt(enum state from, enum state to, unsigned int moments)
{
	unsigned int moment = 0;
	int ret;

	extra_page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!extra_page)
		return -ENOMEM;
	do {
		ret = interrupt_at(moment, from, to);
	} while (!ret && ++moment);
	if (ret == 1)
		ret = moment == moments ? 0 :
			test_fail("there were %u moments, not %u", moment, moments);
	inject_reset();
	admin_stop(fn);
	test_unmap_page(&pair[0], extra_iova());
	free_page((unsigned long)extra_page);
	return ret;
}

/*
 * A function that needs a deeper table is attached to B when B's table is
 * registered but not yet refreshed.
 */
static struct test_domain deep;

static void widen(void)
{
	job_result = test_replace(&deep);
}

/*
 * The driver still knows what is registered: a replace only refreshes what is
 * mapped, not the window.
 */
static int expect_known(void)
{
	static struct inject_step steps[INJECT_STEPS];
	unsigned int i, count;
	u64 bytes = 0;
	int ret;

	inject_reset();
	inject_record(fn);
	ret = go_to(PAGING_A);
	count = inject_steps(steps);
	inject_reset();
	for (i = 0; i < count; i++)
		bytes += steps[i].operation ? 0 : steps[i].size;
	if (!ret && bytes > SZ_64M)
		ret = test_fail("%llu MiB were refreshed for a few pages", bytes / SZ_1M);
	return ret;
}

static int test_beside_widening(void)
{
	int ret;

	deep = pair[1];
	deep.fn = test_function(1);
	if (!deep.fn || deep.fn->last <= pair[1].domain->geometry.aperture_end)
		return test_skip("no second function needs a deeper table");
	ret = start_from(PAGING_A);
	if (!ret)
		ret = test_claim(deep.fn);
	if (ret)
		return ret;
	ret = inject_pause_start(fn, 1, widen);
	if (!ret) {
		ret = go_to(PAGING_B);
		if (!inject_pause_end())
			ret = test_fail("the replace was not held up");
	}
	if (!ret && job_result)
		ret = test_fail("attach of the second function: error %d", job_result);
	if (!ret)
		ret = expect_known();
	test_detach(&deep);
	test_release(deep.fn);
	return ret ? ret : expect_state(PAGING_A);
}

TEST_CALL(beside_first_attach, interrupt(UNREGISTERED, PAGING_A, 3))
TEST_CALL(beside_attach, interrupt(EMPTY, PAGING_A, 2))
/* The machine refused the empty table, and no table is registered. */
TEST_CALL(beside_attach_after_force, interrupt(FORCED, PAGING_A, 3))
TEST_CALL(beside_replace_from, interrupt(PAGING_B, PAGING_A, 2))
TEST_CALL(beside_replace_to, interrupt(PAGING_A, PAGING_B, 2))
TEST_CALL(beside_there_and_back, interrupt(PAGING_A, THERE_AND_BACK, 4))
TEST_CALL(beside_block, interrupt(PAGING_A, EMPTY, 2))
TEST_CALL(beside_identity, interrupt(PAGING_A, IDENTITY, 3))
TEST_CALL(beside_reset, interrupt(PAGING_A, RESET, 3))

const struct test_case moment_cases[] = {
	{ "unmap beside the first attach", test_beside_first_attach, &two_domains },
	{ "unmap beside an attach", test_beside_attach, &two_domains },
	{ "unmap beside an attach after a refused block", test_beside_attach_after_force,
	  &two_domains },
	{ "unmap beside an attach from another domain", test_beside_replace_from, &two_domains },
	{ "unmap beside an attach to another domain", test_beside_replace_to, &two_domains },
	{ "unmap beside an attach there and back", test_beside_there_and_back, &two_domains },
	{ "unmap beside block", test_beside_block, &two_domains },
	{ "unmap beside identity", test_beside_identity, &with_identity },
	{ "unmap beside a reset", test_beside_reset, &two_domains },
	{ "a deeper function joins beside an attach", test_beside_widening, &two_domains },
	{}
};
