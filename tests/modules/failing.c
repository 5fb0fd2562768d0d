// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "failing": every allocation of a call fails in turn, the first, the
 * second, and so on, until the call needs no more. A call that fails must
 * return -ENOMEM and leave everything unchanged.
 */
#define pr_fmt(fmt) "failing: " fmt

#include <linux/scatterlist.h>
#include <linux/sizes.h>

#include "iommu_test.h"

/* No memory is accessed, so any address will do; no large page fits it. */
#define PHYS	(NO_MEMORY + SZ_256M + SZ_4K)
/* No call here makes more allocations. */
#define MOST	2000

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];

/**
 * struct failing_call - a call that allocates
 * @prepare: called before each call; returns 0 or a failed test
 * @run: makes the call; returns 0 or its error
 * @undo: undoes a successful call; returns 0, or a failed test if the call was
 *	incomplete
 * @check: called after a failed call; returns 0 or a failed test
 * @may_need_none: whether the call may succeed without any allocation
 */
struct failing_call {
	int (*prepare)(void);
	int (*run)(void);
	int (*undo)(void);
	int (*check)(void);
	bool may_need_none;
};

#ifdef CONFIG_FAULT_INJECTION

/* Returns whether the call got to this allocation, which then failed. */
static bool run_failing(const struct failing_call *call, unsigned int nth, int *ret)
{
	unsigned int left;

	current->fail_nth = nth;
	*ret = call->run();
	left = current->fail_nth;
	current->fail_nth = 0;
	return !left;
}

static int check_failed(const struct failing_call *call, unsigned int nth, int ret)
{
	if (ret != -ENOMEM)
		return test_fail("allocation %u failed: error %d, not %d", nth, ret, -ENOMEM);
	ret = call->check();
	if (ret)
		pr_info("this was after allocation %u failed\n", nth);
	return ret;
}

/* A call may succeed although an allocation failed, but not every time. */
static int fail_each(const struct failing_call *call)
{
	unsigned int nth, failed = 0;
	int ret;

	for (nth = 1; nth < MOST; nth++) {
		ret = call->prepare();
		if (ret)
			return ret;
		if (!run_failing(call, nth, &ret))
			break;
		if (ret) {
			failed++;
			ret = check_failed(call, nth, ret);
		} else {
			ret = call->undo();
		}
		if (ret)
			return ret;
	}
	if (nth == MOST)
		return test_fail("the call makes too many allocations");
	if (ret)
		return test_fail("no allocation failed, but the call did: error %d", ret);
	ret = call->undo();
	if (ret)
		return ret;
	pr_info("%u allocations, the call failed without %u of them\n", nth - 1, failed);
	if (!failed && !call->may_need_none)
		return test_fail("the call never failed");
	return 0;
}

#else

static int fail_each(const struct failing_call *call)
{
	return test_skip("the kernel has no CONFIG_FAULT_INJECTION");
}

#endif

static int nothing(void)
{
	return 0;
}

/* Allocating a domain */

static struct iommu_domain *domain;

static int alloc_domain(void)
{
	domain = iommu_paging_domain_alloc(&fn->pdev->dev);
	return PTR_ERR_OR_ZERO(domain);
}

static int free_domain(void)
{
	iommu_domain_free(domain);
	return 0;
}

static int test_domains(void)
{
	static const struct failing_call call = {
		nothing, alloc_domain, free_domain, nothing
	};

	return fail_each(&call);
}

/* Maps on a new domain, which does not have any tables to reuse */

static size_t size;

static int map(void)
{
	return iommu_map(domain, fn->first, PHYS, size, RW, GFP_KERNEL);
}

static int unmap_at(dma_addr_t iova)
{
	size_t done = iommu_unmap(domain, iova, size);

	if (done != size)
		return test_fail("%zu bytes were mapped, not %zu", done, size);
	return free_domain();
}

static int unmap(void)
{
	return unmap_at(fn->first);
}

static int new_domain(void)
{
	return alloc_domain() ? test_fail("no domain") : 0;
}

/* Nothing is mapped, and nothing prevents another map. */
static int check_nothing(void)
{
	dma_addr_t iova;
	int ret;

	for (iova = fn->first; iova < fn->first + size; iova += SZ_4K)
		if (iommu_iova_to_phys(domain, iova))
			return test_fail("%pad is mapped after the map failed", &iova);
	ret = map();
	if (ret)
		return test_fail("map after a failed map: error %d", ret);
	return unmap();
}

static int fail_maps(size_t bytes)
{
	static const struct failing_call call = { new_domain, map, unmap, check_nothing };

	size = bytes;
	return fail_each(&call);
}

TEST_CALL(page, fail_maps(SZ_4K))
TEST_CALL(run_of_pages, fail_maps(SZ_16M + SZ_64K))

/* Segments far apart in memory, mapped across the end of a region */
static struct scatterlist segments[3];

static int map_segments(void)
{
	ssize_t done = iommu_map_sg(domain, fn->first + SZ_2G - SZ_1M, segments,
				    ARRAY_SIZE(segments), RW, GFP_KERNEL);

	if (done < 0)
		return done;
	return done == size ? 0 : -EIO;
}

static int unmap_segments(void)
{
	return unmap_at(fn->first + SZ_2G - SZ_1M);
}

static int check_no_segments(void)
{
	dma_addr_t iova = fn->first + SZ_2G - SZ_1M;
	size_t at;

	for (at = 0; at < size; at += SZ_4K)
		if (iommu_iova_to_phys(domain, iova + at))
			return test_fail("segments are mapped after the map failed");
	return free_domain();
}

static int test_segments(void)
{
	static const struct failing_call call = {
		new_domain, map_segments, unmap_segments, check_no_segments
	};
	unsigned int i;

	sg_init_table(segments, ARRAY_SIZE(segments));
	for (i = 0; i < ARRAY_SIZE(segments); i++) {
		unsigned long pfn = PHYS_PFN(NO_MEMORY + SZ_64M * (i + 1));

		sg_set_page(&segments[i], pfn_to_page(pfn), SZ_1M, 0);
	}
	size = ARRAY_SIZE(segments) * SZ_1M;
	return fail_each(&call);
}

/* Attaching: after a failure the function still works on its old domain */

TEST_SETUP(two_domains, test_pair_claim_mapped(pair, fn, &queue), test_pair_release(pair));

static int attach(void)
{
	return test_replace(&pair[1]);
}

static int attach_back(void)
{
	return test_attach(&pair[0]);
}

static int check_stays(void)
{
	return test_expect_running(&pair[0]);
}

static int test_replaces(void)
{
	static const struct failing_call call = {
		nothing, attach, attach_back, check_stays, true
	};
	int ret = test_start_on(&pair[0], &queue);

	return ret ? ret : fail_each(&call);
}

static int detach(void)
{
	test_detach(&pair[1]);
	return 0;
}

static int check_blocked(void)
{
	return test_expect_blocked(&pair[1], &queue, pair[1].data);
}

static int test_first_attach(void)
{
	static const struct failing_call call = {
		nothing, attach, detach, check_blocked, true
	};

	return fail_each(&call);
}

/* A domain that grows for another function with a larger window. It stays large. */

static struct test_domain wide;

static int new_mapped(void)
{
	int ret = new_domain();

	size = SZ_4K;
	if (!ret && map())
		ret = test_fail("a page cannot be mapped");
	return ret;
}

static int attach_deep(void)
{
	wide.domain = domain;
	return test_replace(&wide);
}

static int check_widened(bool widened)
{
	phys_addr_t phys = iommu_iova_to_phys(domain, fn->first);
	bool reaches = domain->geometry.aperture_end >= wide.fn->last;

	if (reaches != widened)
		return test_fail("the aperture ends at %pad", &domain->geometry.aperture_end);
	if (phys != PHYS)
		return test_fail("the page is at %pa", &phys);
	return unmap();
}

static int detach_deep(void)
{
	test_detach(&wide);
	return check_widened(true);
}

static int check_narrow(void)
{
	return check_widened(false);
}

static int test_widen(void)
{
	static const struct failing_call call = {
		new_mapped, attach_deep, detach_deep, check_narrow
	};
	int ret = new_domain();
	bool grows;

	if (ret)
		return ret;
	wide.fn = test_function(1);
	grows = wide.fn && wide.fn->last > domain->geometry.aperture_end;
	free_domain();
	if (!grows)
		return test_skip("no second function needs a deeper table");
	ret = test_claim(wide.fn);
	if (ret)
		return ret;
	ret = fail_each(&call);
	test_release(wide.fn);
	return ret;
}

static const struct test_case cases[] = {
	{ "making a domain", test_domains },
	{ "map of a page", test_page },
	{ "map of many pages", test_run_of_pages },
	{ "map of segments, over the end of a region", test_segments },
	{ "the first attach", test_first_attach, &two_domains },
	{ "replacing a domain that is in use", test_replaces, &two_domains },
	{ "widening a domain", test_widen },
	{}
};

TEST_SUITE(failing, "Every allocation of a call fails in turn", cases, &fn, &queue);
