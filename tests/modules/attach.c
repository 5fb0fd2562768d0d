// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "attach": replacing domains, sharing domains, and properties that
 * must not depend on what is attached.
 */
#include <linux/kthread.h>
#include <linux/pci.h>
#include <linux/sizes.h>

#include "iommu_test.h"

#define REPLACES 1000

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];

TEST_SETUP(two_domains, test_pair_claim_mapped(pair, fn, &queue), test_pair_release(pair));

/* Maps and unmaps on both domains, far from the IOVAs that the device uses. */
static int disturb(void *unused)
{
	dma_addr_t iova = fn->first + SZ_256M;
	struct iommu_domain *domain;
	unsigned int i;
	int errors = 0;

	for (i = 0; !kthread_should_stop(); i++) {
		domain = pair[i % 2].domain;
		if (iommu_map(domain, iova, virt_to_phys(pair[0].data), PAGE_SIZE,
			      IOMMU_READ, GFP_KERNEL))
			errors++;
		else if (iommu_unmap(domain, iova, PAGE_SIZE) != PAGE_SIZE)
			errors++;
		cond_resched();
	}
	return errors;
}

/* The device is idle during each replace and writes after it. */
static int replace_once(unsigned int round)
{
	struct test_domain *now = &pair[round % 2];
	struct test_domain *before = &pair[(round + 1) % 2];
	int ret = test_replace(now);

	if (ret)
		return test_fail("round %u: replace: error %d", round, ret);
	page_poison(before->data);
	ret = test_domain_check(now);
	if (ret)
		return test_fail("round %u: DMA does not work on the new domain", round);
	if (!page_is_poison(before->data))
		return test_fail("round %u: the old domain's page was written to", round);
	return 0;
}

static int replace_many(void)
{
	unsigned int round;
	int ret = 0;

	for (round = 1; !ret && round <= REPLACES; round++)
		ret = replace_once(round);
	return ret;
}

static int replace_disturbed(void)
{
	struct task_struct *task = kthread_run(disturb, NULL, "iommu_test");
	int ret, errors;

	if (IS_ERR(task))
		return PTR_ERR(task);
	ret = replace_many();
	errors = kthread_stop(task);
	/* -EINTR: stopped before it ran */
	if (!ret && errors > 0)
		ret = test_fail("%d maps and unmaps during the replaces failed", errors);
	return ret;
}

static int check_counts(void)
{
	struct inject_counts counts = inject_counts();
	int ret = test_expect_errors(fn, 0);

	if (!ret && counts.outside)
		ret = test_fail("%u refreshes outside the window", counts.outside);
	if (!ret)
		ret = test_expect_replaces(REPLACES);
	if (!ret && !counts.refreshes)
		ret = test_fail("no refresh was counted: is the probe in the right place?");
	return ret;
}

static int test_replaces(void)
{
	int ret = test_start_on(&pair[0], &queue);

	inject_reset();
	if (!ret)
		ret = replace_disturbed();
	return ret ? ret : check_counts();
}

/* Checks only the instructions, so it works even if DMA fails afterwards. */
static int test_no_deregistration(void)
{
	unsigned int round;
	int ret = test_attach(&pair[0]);

	inject_reset();
	for (round = 1; !ret && round <= 10; round++)
		ret = test_attach(&pair[round % 2]);
	return ret ? ret : test_expect_replaces(10);
}

/* From the DMA API's domain and back, on a function that is not claimed */
static int test_from_default(void)
{
	struct device *dev = &fn->pdev->dev;
	struct iommu_domain *before = test_current(fn);
	struct test_domain dom;
	int ret = test_domain_alloc(&dom, fn);

	if (ret)
		return ret;
	ret = iommu_attach_device(dom.domain, dev);
	if (!ret) {
		ret = test_domain_map(&dom, &queue);
		if (!ret)
			ret = test_domain_start(&dom, &queue);
		if (!ret)
			ret = test_domain_check(&dom);
		admin_stop(fn);
		iommu_detach_device(dom.domain, dev);
	}
	if (!ret && test_current(fn) != before)
		ret = test_fail("the default domain is not attached again");
	test_domain_free(&dom);
	return ret;
}

/* The DMA API still works after other domains were attached. */
TEST_CALL(afterwards, test_dma_api(fn, NULL))

/* Two functions on one domain */

static int check_second(struct test_domain *dom, struct test_function *second,
			struct test_queue *own)
{
	struct test_domain view = *dom;
	int ret;

	view.fn = second;
	ret = test_attach(&view);
	if (ret)
		return ret;
	ret = admin_start(second, own->sq, data_iova(second) + SZ_1M,
			  own->cq, data_iova(second) + SZ_2M);
	if (!ret)
		ret = test_domain_check(&view);
	/* The first function still works. */
	if (!ret)
		ret = test_domain_check(dom);
	/* Both must reach a new mapping. */
	if (!ret) {
		iommu_unmap(dom->domain, data_iova(fn), PAGE_SIZE);
		ret = test_map_page(dom, data_iova(fn), dom->data);
	}
	if (!ret)
		ret = test_domain_check(&view);
	if (!ret)
		ret = test_domain_check(dom);
	admin_stop(second);
	test_detach(&view);
	if (!ret && test_domain_check(dom))
		ret = test_fail("the first function stopped when the second was detached");
	return ret;
}

static int map_own(struct test_domain *dom, struct test_queue *own)
{
	int ret = test_map_page(dom, data_iova(fn) + SZ_1M, own->sq);

	return ret ? ret : test_map_page(dom, data_iova(fn) + SZ_2M, own->cq);
}

static void unmap_own(struct test_domain *dom)
{
	test_unmap_page(dom, data_iova(fn) + SZ_1M);
	test_unmap_page(dom, data_iova(fn) + SZ_2M);
}

static int share_domain(struct test_function *second, struct test_queue *own)
{
	struct test_domain *dom = &pair[0];
	int ret = test_start_on(dom, &queue);

	if (!ret)
		ret = test_domain_check(dom);
	if (!ret)
		ret = map_own(dom, own);
	if (!ret)
		ret = check_second(dom, second, own);
	unmap_own(dom);
	return ret;
}

static int test_shared(void)
{
	struct test_function *second = test_function(1);
	struct test_queue own;
	int ret;

	if (!second)
		return test_skip("there is no second NVMe function");
	ret = test_queue_alloc(&own);
	if (ret)
		return ret;
	ret = test_claim(second);
	if (!ret) {
		ret = share_domain(second, &own);
		test_release(second);
	}
	test_queue_free(&own);
	return ret;
}

/* Properties that depend only on the device */

static int expect_window(const char *when, dma_addr_t first, dma_addr_t last)
{
	struct iommu_resv_region *region;
	dma_addr_t below = 0, above = 0;
	LIST_HEAD(regions);

	iommu_get_resv_regions(&fn->pdev->dev, &regions);
	list_for_each_entry(region, &regions, list) {
		if (!region->start)
			below = region->length;
		else
			above = region->start;
	}
	iommu_put_resv_regions(&fn->pdev->dev, &regions);
	if (below != first || (above && above - 1 != last) || (!above && last != U64_MAX))
		return test_fail("%s: reserved below %pad and from %pad, not %pad and after %pad",
				 when, &below, &above, &first, &last);
	return 0;
}

static int test_reserved(void)
{
	int ret = expect_window("on the DMA API's domain", fn->first, fn->last);

	if (!ret)
		ret = begin_two_domains();
	if (ret)
		return ret;
	ret = expect_window("blocked", fn->first, fn->last);
	if (!ret)
		ret = test_attach(&pair[0]);
	if (!ret)
		ret = expect_window("on a paging domain", fn->first, fn->last);
	end_two_domains();
	return ret;
}

/* Allocating, populating and freeing domains does not change zdev's window. */
static int test_window_constant(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	u64 start = zdev->start_dma, last = zdev->end_dma;
	int ret;

	/* The window that others see is what the reserved regions leave. */
	if (start != fn->first || last != fn->last)
		return test_fail("the window ends at %#llx, IOVAs are reserved after %pad",
				 last, &fn->last);
	/* Enlarge the window for a while, to detect if it is clamped again. */
	zdev->end_dma = last + SZ_1M;
	ret = begin_two_domains();
	if (!ret)
		end_two_domains();
	if (!ret && (zdev->start_dma != start || zdev->end_dma != last + SZ_1M))
		ret = test_fail("a domain operation changed the window's end to %#llx, was %#llx",
				zdev->end_dma, last + SZ_1M);
	zdev->end_dma = last;
	return ret;
}

static const struct test_case cases[] = {
	{ "reserved regions do not depend on the domain", test_reserved },
	{ "domains do not write the function's window", test_window_constant },
	{ "replace issues no deregistration", test_no_deregistration, &two_domains },
	{ "replace 1000 times, DMA hits the new domain", test_replaces, &two_domains },
	{ "from the DMA API's domain and back", test_from_default },
	{ "two functions on one domain", test_shared, &two_domains },
	{ "the DMA API works afterwards", test_afterwards },
	{}
};

TEST_SUITE(attach, "Tests of attaching and replacing domains", cases, &fn, &queue);
