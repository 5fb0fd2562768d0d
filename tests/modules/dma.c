// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "dma": what the device reads and writes is what the domain says.
 */
#define pr_fmt(fmt) "dma: " fmt

#include <linux/module.h>
#include <linux/sizes.h>

#include "iommu_test.h"

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain dom;

/* What a test starts from */
enum start {
	MAP_THEN_ATTACH,
	ATTACH_THEN_MAP,
};

static int map_and_attach(enum start start)
{
	int ret = 0;

	if (start == MAP_THEN_ATTACH)
		ret = test_domain_map(&dom, &queue);
	if (!ret && test_replace(&dom))
		ret = test_fail("attach failed");
	if (!ret && start == ATTACH_THEN_MAP)
		ret = test_domain_map(&dom, &queue);
	return ret ? ret : test_domain_start(&dom, &queue);
}

static int begin(enum start start)
{
	int ret;

	inject_reset();
	ret = test_claim(fn);
	if (ret)
		return ret;
	ret = test_domain_alloc(&dom, fn);
	if (ret)
		goto out_release;
	ret = map_and_attach(start);
	if (!ret)
		return 0;

	admin_stop(fn);
	test_detach(&dom);
	test_domain_free(&dom);
out_release:
	test_release(fn);
	return ret;
}

static void end(void)
{
	admin_stop(fn);
	test_detach(&dom);
	test_domain_free(&dom);
	test_release(fn);
}

static int expect_no_errors(void)
{
	int errors = atomic_read(&fn->errors);

	return errors ? test_fail("%d error events", errors) : 0;
}

static int check_start(enum start start)
{
	int ret = begin(start);

	if (ret)
		return ret;
	ret = test_domain_check(&dom);
	if (!ret)
		ret = expect_no_errors();
	end();
	return ret;
}

static int test_attach_then_map(void)
{
	return check_start(ATTACH_THEN_MAP);
}

static int test_populated(void)
{
	return check_start(MAP_THEN_ATTACH);
}

/* The first IOVA at which mapping, unmapping and DMA took place is mapped to
 * another page: the device must write to that one.
 */
static int move_data(void *page)
{
	void *old = dom.data;
	int ret;

	iommu_unmap(dom.domain, data_iova(fn), PAGE_SIZE);
	ret = iommu_map(dom.domain, data_iova(fn), virt_to_phys(page), PAGE_SIZE,
			IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);
	if (ret)
		return test_fail("map: error %d", ret);
	page_poison(old);
	dom.data = page;
	ret = test_domain_check(&dom);
	if (!ret && !page_is_poison(old))
		ret = test_fail("the page that was unmapped was written to");
	return ret;
}

#define MOVES 200

static int check_moves(void)
{
	void *other = (void *)get_zeroed_page(GFP_KERNEL);
	unsigned int i;
	void *page;
	int ret = 0;

	if (!other)
		return -ENOMEM;
	for (i = 0; !ret && i < MOVES; i++) {
		page = dom.data;
		ret = move_data(other);
		other = dom.data == other ? page : other;
	}
	free_page((unsigned long)other);
	return ret;
}

static int test_stale(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = test_domain_check(&dom);
	if (!ret)
		ret = check_moves();
	if (!ret)
		ret = expect_no_errors();
	end();
	return ret;
}

/* The machine refuses what the device tries; nothing is written; after the
 * reset that the error event leads to, the function works on its domain.
 */
static int expect_refused(dma_addr_t iova)
{
	int ret;

	page_poison(dom.data);
	if (!admin_identify(fn, iova))
		return test_fail("DMA to %pad was let through", &iova);
	if (!page_is_poison(dom.data))
		return test_fail("the page was written to");
	ret = test_wait_recovery(fn);
	if (!ret && !page_is_poison(dom.data))
		ret = test_fail("the page was written to, late");
	return ret;
}

/* Recovered as it is: populated, attached, reset. */
static int expect_recovered(void)
{
	int ret = test_domain_start(&dom, &queue);

	if (!ret)
		ret = test_domain_check(&dom);
	return ret ? test_fail("after the recovery the function's DMA does not work") : 0;
}

static int test_unmapped(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = expect_refused(data_iova(fn) + SZ_1M);
	end();
	return ret;
}

/* The device has used the mapping, and must not have it any more. */
static int test_unmapped_again(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = test_domain_check(&dom);
	iommu_unmap(dom.domain, data_iova(fn), PAGE_SIZE);
	if (!ret)
		ret = expect_refused(data_iova(fn));
	end();
	return ret;
}

/* The device has used the mapping of this page, and must not have it any more. */
static int expect_gone(void *page, dma_addr_t iova)
{
	int ret;

	page_poison(page);
	if (!admin_identify(fn, iova) || !page_is_poison(page))
		return test_fail("DMA to %pad was let through after the unmap", &iova);
	ret = test_wait_recovery(fn);
	return ret ? ret : test_domain_start(&dom, &queue);
}

/* As the DMA API's queue does it: many unmaps, then one flush of everything. */
static void unmap_queued(dma_addr_t iova, size_t size)
{
	struct iommu_iotlb_gather gather;

	iommu_iotlb_gather_init(&gather);
	gather.queued = true;
	iommu_unmap_fast(dom.domain, iova, size, &gather);
	iommu_flush_iotlb_all(dom.domain);
}

static int test_full_flush(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = test_domain_check(&dom);
	unmap_queued(data_iova(fn), PAGE_SIZE);
	if (!ret)
		ret = expect_refused(data_iova(fn));
	end();
	return ret;
}

#define RUN_OF_PAGES 16

/* Of a run of pages the device has used the last one. */
static int check_run(void *memory)
{
	dma_addr_t iova = data_iova(fn) + SZ_1M;
	size_t size = RUN_OF_PAGES * PAGE_SIZE;
	void *page = memory + size - PAGE_SIZE;
	int ret = iommu_map(dom.domain, iova, virt_to_phys(memory), size,
			    IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);

	if (ret)
		return test_fail("map: error %d", ret);
	ret = admin_identify(fn, iova + size - PAGE_SIZE);
	if (!ret && !page_is_identity(fn, page))
		ret = test_fail("the device's data is not in the page");
	unmap_queued(iova, size);
	return ret ? ret : expect_gone(page, iova + size - PAGE_SIZE);
}

static int test_full_flush_of_run(void)
{
	const unsigned int order = get_order(RUN_OF_PAGES * PAGE_SIZE);
	unsigned long memory = __get_free_pages(GFP_KERNEL, order);
	int ret;

	if (!memory)
		return -ENOMEM;
	ret = begin(ATTACH_THEN_MAP);
	if (!ret) {
		ret = check_run((void *)memory);
		end();
	}
	free_pages(memory, order);
	return ret;
}

static int test_recovery(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = expect_refused(data_iova(fn) + SZ_1M);
	if (!ret)
		ret = expect_recovered();
	end();
	return ret;
}

static int test_below_window(void)
{
	int ret;

	if (!fn->first)
		return test_skip("the window starts at 0");
	ret = begin(ATTACH_THEN_MAP);
	if (ret)
		return ret;
	ret = expect_refused(fn->first - PAGE_SIZE);
	end();
	return ret;
}

static int remap_data(dma_addr_t iova, int prot)
{
	int ret;

	iommu_unmap(dom.domain, iova, PAGE_SIZE);
	ret = iommu_map(dom.domain, iova, virt_to_phys(dom.data), PAGE_SIZE,
			prot, GFP_KERNEL);
	return ret ? test_fail("map: error %d", ret) : 0;
}

static int test_read_only(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = remap_data(data_iova(fn), IOMMU_READ);
	if (!ret)
		ret = expect_refused(data_iova(fn));
	end();
	return ret;
}

static int test_read_only_recovery(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = remap_data(data_iova(fn), IOMMU_READ);
	if (!ret)
		ret = expect_refused(data_iova(fn));
	if (!ret)
		ret = remap_data(data_iova(fn), IOMMU_READ | IOMMU_WRITE);
	if (!ret)
		ret = expect_recovered();
	end();
	return ret;
}

/* The domain's table reaches further than the function: such an IOVA may be
 * mapped, for another function; this one does not see it, nor does it get a
 * refresh for it. The emulator drops DMA there without an error event.
 */
static int test_outside_window(void)
{
	dma_addr_t iova = fn->last + 1;
	int ret;

	ret = begin(ATTACH_THEN_MAP);
	if (ret)
		return ret;
	if (iova > dom.domain->geometry.aperture_end) {
		ret = test_skip("the window ends where the table ends");
		goto out;
	}
	ret = iommu_map(dom.domain, iova, virt_to_phys(dom.data), PAGE_SIZE,
			IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);
	if (ret) {
		ret = test_fail("map: error %d", ret);
		goto out;
	}
	page_poison(dom.data);
	admin_identify(fn, iova);
	if (!page_is_poison(dom.data))
		ret = test_fail("the page was written to");
	if (!ret)
		ret = test_domain_check(&dom);
	iommu_unmap(dom.domain, iova, PAGE_SIZE);
	if (!ret)
		ret = test_domain_check(&dom);
	if (!ret)
		ret = expect_no_errors();
out:
	end();
	return ret;
}

/* DMA to a large mapping lands at the right offset, also on the last page, and
 * nowhere once it was unmapped.
 */
static int check_large(void *memory, size_t size)
{
	dma_addr_t iova = fn->first + SZ_16M;
	size_t offset;
	int ret = iommu_map(dom.domain, iova, virt_to_phys(memory), size,
			    IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);

	if (ret)
		return test_fail("map: error %d", ret);
	for (offset = 0; !ret && offset < size; offset += size / 4 - PAGE_SIZE) {
		page_poison(memory + offset);
		ret = admin_identify(fn, iova + offset);
		if (!ret && !page_is_identity(fn, memory + offset))
			ret = test_fail("the data is not at offset %#zx", offset);
	}
	if (!ret)
		ret = admin_identify(fn, iova + size - PAGE_SIZE);
	iommu_unmap(dom.domain, iova, size);
	return ret ? ret : expect_gone(memory + size - PAGE_SIZE, iova + size - PAGE_SIZE);
}

static int test_large(void)
{
	const unsigned int order = get_order(SZ_4M);
	unsigned long memory = __get_free_pages(GFP_KERNEL, order);
	int ret;

	if (!memory)
		return -ENOMEM;
	ret = begin(ATTACH_THEN_MAP);
	if (!ret) {
		ret = check_large((void *)round_up(memory, SZ_1M), SZ_2M);
		if (!ret)
			ret = check_large((void *)memory + PAGE_SIZE, SZ_2M);
		end();
	}
	free_pages(memory, order);
	return ret;
}

/* A blocked function's DMA goes nowhere, whether or not that is an error. */
static int test_blocked(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = test_domain_check(&dom);
	test_detach(&dom);
	page_poison(dom.data);
	if (!ret && !admin_identify(fn, data_iova(fn)))
		ret = test_fail("a blocked function's DMA was let through");
	if (!ret && !page_is_poison(dom.data))
		ret = test_fail("a blocked function wrote to memory");
	/* Back from whatever state that led to */
	if (!ret)
		ret = test_recover_if_broken(fn);
	if (test_replace(&dom))
		ret = test_fail("attach after block failed");
	admin_stop(fn);
	end();
	return ret;
}

static int test_reset_attached(void)
{
	int ret = begin(ATTACH_THEN_MAP);

	if (ret)
		return ret;
	ret = test_domain_check(&dom);
	if (!ret)
		ret = test_reset(fn);
	if (!ret)
		ret = test_domain_start(&dom, &queue);
	if (!ret)
		ret = test_domain_check(&dom);
	if (!ret)
		ret = expect_no_errors();
	end();
	return ret;
}

static int test_reset_blocked(void)
{
	int ret = test_claim(fn);

	if (ret)
		return ret;
	ret = test_reset(fn);
	test_release(fn);
	return ret ? ret : check_start(ATTACH_THEN_MAP);
}

static const struct test_case cases[] = {
	{ "attach, map, DMA", test_attach_then_map },
	{ "map, attach, DMA", test_populated },
	{ "an IOVA mapped again means the new page", test_stale },
	{ "DMA to large mappings", test_large },
	{ "DMA to an unmapped IOVA is refused", test_unmapped },
	{ "DMA to an IOVA that was mapped is refused", test_unmapped_again },
	{ "DMA works after the recovery from that", test_recovery },
	{ "a full flush ends the mapping of a page", test_full_flush },
	{ "a full flush ends the mapping of a run of pages", test_full_flush_of_run },
	{ "DMA below the window is refused", test_below_window },
	{ "an IOVA above the window is out of reach", test_outside_window },
	{ "a write to a read-only IOVA is refused", test_read_only },
	{ "DMA works after the recovery from that write", test_read_only_recovery },
	{ "a blocked function's DMA goes nowhere", test_blocked },
	{ "DMA after a reset", test_reset_attached },
	{ "reset of a blocked function", test_reset_blocked },
	{}
};

TEST_SUITE(dma, cases, &fn, &queue);
MODULE_DESCRIPTION("Tests of DMA through paging domains");
MODULE_LICENSE("GPL");
