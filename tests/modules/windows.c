// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "windows": one domain and two functions with different windows. The
 * emulator must be started with such functions.
 */
#include <linux/sizes.h>

#include "iommu_test.h"

#define FUNCTIONS 2
#define REMAPS 100

static struct test_function *functions[FUNCTIONS];
static struct test_queue queues[FUNCTIONS];
/* One domain, described for each function */
static struct test_domain views[FUNCTIONS];

static dma_addr_t common_first(void)
{
	return max(functions[0]->first, functions[1]->first);
}

static dma_addr_t common_last(void)
{
	return min(functions[0]->last, functions[1]->last);
}

/* Above the middle of the IOVAs that both reach */
static dma_addr_t queue_iova(unsigned int i, unsigned int page)
{
	dma_addr_t middle = common_first() + (common_last() - common_first()) / 2;

	return PAGE_ALIGN(middle) + SZ_1M + i * SZ_16K + page * PAGE_SIZE;
}

static int start(unsigned int i)
{
	return admin_start(functions[i], queues[i].sq, queue_iova(i, 0),
			   queues[i].cq, queue_iova(i, 1));
}

static int expect_hit(unsigned int i, dma_addr_t iova)
{
	int ret = admin_check(functions[i], iova, views[0].data);

	return ret ? test_fail("function %u does not reach %pad, which is mapped", i, &iova) : 0;
}

/*
 * DMA below the window causes an error event. Above it, the emulator drops what
 * is written, and the command succeeds. In both cases the function works
 * afterwards.
 */
static int expect_out_of_reach(unsigned int i, dma_addr_t iova)
{
	struct test_function *fn = functions[i];
	bool refused = iova < fn->first;
	int ret;

	page_poison(views[0].data);
	ret = admin_identify(fn, iova);
	if (!page_is_poison(views[0].data))
		return test_fail("function %u reaches %pad, outside its window", i, &iova);
	if (!refused)
		return ret;
	if (!ret)
		return test_fail("function %u: no error event at %pad below its window", i, &iova);
	ret = test_wait_recovery(fn);
	return ret ? ret : start(i);
}

static void release(unsigned int i)
{
	admin_stop(functions[i]);
	test_detach(&views[i]);
	test_unmap_page(&views[0], queue_iova(i, 0));
	test_unmap_page(&views[0], queue_iova(i, 1));
}

static int run_on(unsigned int i)
{
	int ret;

	views[i].domain = views[0].domain;
	views[i].data = views[0].data;
	views[i].fn = functions[i];
	ret = test_attach(&views[i]);
	if (ret)
		return ret;
	ret = test_map_page(&views[0], queue_iova(i, 0), queues[i].sq);
	if (!ret)
		ret = test_map_page(&views[0], queue_iova(i, 1), queues[i].cq);
	if (!ret)
		ret = start(i);
	if (ret)
		release(i);
	return ret;
}

static int run_both(void)
{
	int ret = run_on(0);

	if (ret)
		return ret;
	ret = run_on(1);
	if (ret)
		release(0);
	return ret;
}

static int find_second(void)
{
	functions[1] = test_function(1);
	return functions[1] ? 0 : test_fail("there is no second NVMe function");
}

static int begin(void)
{
	int ret = find_second();

	if (!ret)
		ret = test_queue_alloc(&queues[1]);
	if (ret)
		return ret;
	ret = test_claim(functions[0]);
	if (ret)
		goto out_queue;
	ret = test_claim(functions[1]);
	if (ret)
		goto out_first;
	ret = test_domain_alloc(&views[0], functions[0]);
	if (ret)
		goto out_second;
	ret = run_both();
	if (!ret)
		return 0;
	test_domain_free(&views[0]);
out_second:
	test_release(functions[1]);
out_first:
	test_release(functions[0]);
out_queue:
	test_queue_free(&queues[1]);
	return ret;
}

static void end(void)
{
	release(1);
	release(0);
	test_domain_free(&views[0]);
	test_release(functions[1]);
	test_release(functions[0]);
	test_queue_free(&queues[1]);
}

static const struct test_setup shared = { begin, end };

static int expect_no_refresh_outside(void)
{
	struct inject_counts counts = inject_counts();

	if (counts.outside)
		return test_fail("%u of %u refreshes are outside the function's window",
				 counts.outside, counts.refreshes);
	return counts.refreshes ? 0 : test_fail("there was no refresh");
}

static int test_windows(void)
{
	struct zpci_dev *zdev;
	unsigned int i;
	int ret = find_second();

	if (ret)
		return ret;
	if (functions[0]->first == functions[1]->first ||
	    functions[0]->last == functions[1]->last)
		return test_fail("the two windows do not differ at both ends");
	for (i = 0; i < FUNCTIONS; i++) {
		zdev = to_zpci(functions[i]->pdev);
		if (zdev->start_dma != functions[i]->first ||
		    zdev->end_dma != functions[i]->last)
			return test_fail("function %u has %#llx to %#llx, not %pad to %pad",
					 i, zdev->start_dma, zdev->end_dma,
					 &functions[i]->first, &functions[i]->last);
	}
	return 0;
}

static int check_mapped(dma_addr_t iova, int (*check)(dma_addr_t iova))
{
	int ret = test_map_page(&views[0], iova, views[0].data);

	if (ret)
		return test_fail("map at %pad: error %d", &iova, ret);
	ret = check(iova);
	iommu_unmap(views[0].domain, iova, PAGE_SIZE);
	return ret;
}

static int both_hit(dma_addr_t iova)
{
	int ret = expect_hit(0, iova);

	return ret ? ret : expect_hit(1, iova);
}

/* Maps the IOVA to another page, which both functions must reach. */
static int check_remapped(dma_addr_t iova)
{
	void *old = views[0].data;
	void *page = (void *)get_zeroed_page(GFP_KERNEL);
	int ret;

	if (!page)
		return -ENOMEM;
	views[0].data = page;
	page_poison(old);
	ret = check_mapped(iova, both_hit);
	if (!ret && !page_is_poison(old))
		ret = test_fail("the unmapped page was written to");
	free_page((unsigned long)old);
	return ret;
}

static int test_common(void)
{
	dma_addr_t last = common_last() - (PAGE_SIZE - 1);
	unsigned int i;
	int ret = check_mapped(common_first(), both_hit);

	if (!ret)
		ret = check_mapped(last, both_hit);
	for (i = 0; !ret && i < REMAPS; i++)
		ret = check_remapped(common_first() + SZ_1M);
	return ret ? ret : expect_no_refresh_outside();
}

static int only_one_hits(unsigned int one, dma_addr_t iova)
{
	int ret = expect_hit(one, iova);

	if (!ret)
		ret = expect_out_of_reach(!one, iova);
	/* The one still works, and so does the other where both reach. */
	if (!ret)
		ret = expect_hit(one, iova);
	return ret ? ret : check_mapped(common_first(), both_hit);
}

static int only_first_hits(dma_addr_t iova)
{
	return only_one_hits(0, iova);
}

static int only_second_hits(dma_addr_t iova)
{
	return only_one_hits(1, iova);
}

static int test_below(void)
{
	int ret = check_mapped(functions[0]->first, only_first_hits);

	if (!ret)
		ret = check_mapped(functions[1]->first - PAGE_SIZE, only_first_hits);
	return ret ? ret : expect_no_refresh_outside();
}

static int test_above(void)
{
	int ret = check_mapped(functions[0]->last + 1, only_second_hits);

	if (!ret)
		ret = check_mapped(functions[1]->last - (PAGE_SIZE - 1), only_second_hits);
	return ret ? ret : expect_no_refresh_outside();
}

/* Queued unmaps where one function reaches the IOVA, and where both do */
static int test_full_flush(void)
{
	dma_addr_t iovas[] = { functions[0]->first, common_first() };
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(iovas); i++) {
		ret = test_map_page(&views[0], iovas[i], views[0].data);
		if (!ret)
			ret = expect_hit(0, iovas[i]);
		test_unmap_queued(views[0].domain, iovas[i], PAGE_SIZE);
		if (!ret)
			ret = check_remapped(iovas[1]);
	}
	return ret ? ret : expect_no_refresh_outside();
}

static const struct test_case cases[] = {
	{ "what is not reserved is each function's own window", test_windows },
	{ "where both reach, both do DMA", test_common, &shared },
	{ "below the second's window, the first does DMA alone", test_below, &shared, true },
	{ "above the first's window, the second does DMA alone", test_above, &shared, true },
	{ "a full flush refreshes only what each function reaches", test_full_flush, &shared },
	{}
};

TEST_SUITE(windows, "Functions with different windows on one domain", cases,
	   &functions[0], &queues[0]);
