// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "dma": the device reads and writes the memory that the domain maps.
 */
#include <linux/sizes.h>

#include "iommu_test.h"

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain dom;

#define PAGES_OF_QUEUE 2

static int start(void)
{
	return test_domain_start(&dom, &queue);
}

static int attach_then_map(void)
{
	int ret = test_attach(&dom);

	if (!ret)
		ret = test_domain_map(&dom, &queue);
	return ret ? ret : start();
}

static int map_then_attach(void)
{
	int ret = test_domain_map(&dom, &queue);

	return ret ? ret : test_start_on(&dom, &queue);
}

static void end(void)
{
	admin_stop(fn);
	test_detach(&dom);
	test_domain_free(&dom);
	test_release(fn);
}

static int begin(int (*attach)(void))
{
	int ret = test_claim(fn);

	if (ret)
		return ret;
	ret = test_domain_alloc(&dom, fn);
	if (ret) {
		test_release(fn);
		return ret;
	}
	ret = attach();
	if (ret)
		end();
	return ret;
}

static int begin_attached(void)
{
	return begin(attach_then_map);
}

static int begin_populated(void)
{
	return begin(map_then_attach);
}

static int begin_reset(void)
{
	int ret = test_claim(fn);

	if (ret)
		return ret;
	ret = test_reset(fn);
	test_release(fn);
	return ret ? ret : begin_attached();
}

static const struct test_setup attached = { begin_attached, end };
static const struct test_setup populated = { begin_populated, end };
static const struct test_setup reset_blocked = { begin_reset, end };

static int test_dma(void)
{
	int ret = test_domain_check(&dom);

	return ret ? ret : test_expect_errors(fn, 0);
}

#define MOVES 200

/*
 * Maps another page at an IOVA that the device has used, again and again: the
 * device must always write to the new page.
 */
static int test_stale(void)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < MOVES; i++)
		ret = test_expect_running(&dom);
	return ret;
}

/*
 * The machine must refuse the DMA: nothing is written, and the error event
 * leads to a recovery of the function.
 */
static int expect_refused(dma_addr_t iova)
{
	int ret;

	page_poison(dom.data);
	reinit_completion(&fn->resumed);
	/* The completion may report success, see test_expect_gone(). */
	admin_identify(fn, iova);
	if (!page_is_poison(dom.data))
		return test_fail("DMA to %pad succeeded", &iova);
	ret = test_wait_recovery(fn);
	if (!ret && !page_is_poison(dom.data))
		ret = test_fail("the page was written to after the access was refused");
	return ret;
}

/* A recovery resets the function while a populated domain is attached. */
static int expect_recovered(void)
{
	int ret = start();

	if (!ret)
		ret = test_domain_check(&dom);
	return ret ? test_fail("DMA does not work after the recovery") : 0;
}

TEST_CALL(unmapped, expect_refused(data_iova(fn) + SZ_1M))

/* The device has used the data page, which is unmapped now. */
static int expect_data_gone(void)
{
	if (test_is_calm())
		return test_expect_outside(PAGES_OF_QUEUE);
	return expect_refused(data_iova(fn));
}

static int test_unmapped_again(void)
{
	int ret = test_domain_check(&dom);

	iommu_unmap(dom.domain, data_iova(fn), PAGE_SIZE);
	return ret ? ret : expect_data_gone();
}

/* The device has used the mapping of this page, and must have forgotten it. */
static int expect_gone(void *page, dma_addr_t iova)
{
	if (test_is_calm())
		return test_expect_outside(PAGES_OF_QUEUE + 1);
	return test_expect_gone(&dom, &queue, page, iova);
}

static int test_full_flush(void)
{
	int ret = test_domain_check(&dom);

	test_unmap_queued(dom.domain, data_iova(fn), PAGE_SIZE);
	return ret ? ret : expect_data_gone();
}

#define RUN_OF_PAGES 16

/* Maps a run of pages, of which the device uses the last one. */
static int check_run(void *memory)
{
	dma_addr_t iova = data_iova(fn) + SZ_1M;
	size_t size = RUN_OF_PAGES * PAGE_SIZE;
	void *page = memory + size - PAGE_SIZE;
	int ret = iommu_map(dom.domain, iova, virt_to_phys(memory), size, RW, GFP_KERNEL);

	if (ret)
		return test_fail("map: error %d", ret);
	ret = admin_check(fn, iova + size - PAGE_SIZE, page);
	test_unmap_queued(dom.domain, iova, size);
	return ret ? ret : expect_gone(page, iova + size - PAGE_SIZE);
}

static int with_memory(size_t size, int (*check)(void *memory))
{
	unsigned long memory = __get_free_pages(GFP_KERNEL, get_order(size));
	int ret;

	if (!memory)
		return -ENOMEM;
	ret = check((void *)memory);
	free_pages(memory, get_order(size));
	return ret;
}

TEST_CALL(full_flush_of_run, with_memory(RUN_OF_PAGES * PAGE_SIZE, check_run))

static int test_recovery(void)
{
	int ret = expect_refused(data_iova(fn) + SZ_1M);

	return ret ? ret : expect_recovered();
}

static int test_below_window(void)
{
	if (!fn->first)
		return test_skip("the window starts at 0");
	return expect_refused(fn->first - PAGE_SIZE);
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
	int ret = remap_data(data_iova(fn), IOMMU_READ);

	return ret ? ret : expect_refused(data_iova(fn));
}

static int test_read_only_recovery(void)
{
	int ret = test_read_only();

	if (!ret)
		ret = remap_data(data_iova(fn), RW);
	return ret ? ret : expect_recovered();
}

/*
 * The domain's table reaches beyond the function's window. An IOVA there may be
 * mapped for another function. This function cannot reach it, and is not
 * refreshed for it. The emulator drops DMA there without an error event.
 */
static int test_outside_window(void)
{
	dma_addr_t iova = fn->last + 1;
	int ret;

	if (iova > dom.domain->geometry.aperture_end)
		return test_skip("the window ends where the table ends");
	ret = test_map_page(&dom, iova, dom.data);
	if (ret)
		return test_fail("map: error %d", ret);
	page_poison(dom.data);
	admin_identify(fn, iova);
	if (!page_is_poison(dom.data))
		ret = test_fail("the page was written to");
	if (!ret)
		ret = test_domain_check(&dom);
	iommu_unmap(dom.domain, iova, PAGE_SIZE);
	return ret ? ret : test_dma();
}

/*
 * DMA to a large mapping reaches the right offset, also in the last page, and
 * reaches nothing after the unmap.
 */
static int check_large(void *memory, size_t size)
{
	dma_addr_t iova = fn->first + SZ_16M;
	size_t offset;
	int ret = iommu_map(dom.domain, iova, virt_to_phys(memory), size, RW, GFP_KERNEL);

	if (ret)
		return test_fail("map: error %d", ret);
	for (offset = 0; !ret && offset < size; offset += size / 4 - PAGE_SIZE)
		ret = admin_check(fn, iova + offset, memory + offset);
	if (!ret)
		ret = admin_identify(fn, iova + size - PAGE_SIZE);
	iommu_unmap(dom.domain, iova, size);
	return ret ? ret : expect_gone(memory + size - PAGE_SIZE, iova + size - PAGE_SIZE);
}

/* With large pages of 1 MiB, if there are any, and with small pages */
static int check_both(void *memory)
{
	int ret = check_large(PTR_ALIGN(memory, SZ_1M), SZ_2M);

	return ret ? ret : check_large(memory + PAGE_SIZE, SZ_2M);
}

TEST_CALL(large, with_memory(SZ_4M, check_both))

/* DMA of a blocked function reaches nothing, with or without an error event. */
static int test_blocked(void)
{
	int ret = test_domain_check(&dom);

	test_detach(&dom);
	page_poison(dom.data);
	if (!ret && !admin_identify(fn, data_iova(fn)))
		ret = test_fail("DMA of a blocked function succeeded");
	if (!ret && !page_is_poison(dom.data))
		ret = test_fail("a blocked function wrote to memory");
	/* Recover from whatever state this led to */
	if (!ret)
		ret = test_recover_if_broken(fn);
	if (test_replace(&dom))
		ret = test_fail("attach after block failed");
	return ret;
}

static int test_reset_attached(void)
{
	int ret = test_domain_check(&dom);

	if (!ret)
		ret = test_reset(fn);
	if (!ret)
		ret = start();
	return ret ? ret : test_dma();
}

static const struct test_case cases[] = {
	{ "attach, map, DMA", test_dma, &attached },
	{ "map, attach, DMA", test_dma, &populated },
	{ "an IOVA mapped again means the new page", test_stale, &attached },
	{ "DMA to large mappings", test_large, &attached },
	{ "DMA to an unmapped IOVA is refused", test_unmapped, &attached, true },
	{ "DMA to an IOVA that was mapped is refused", test_unmapped_again, &attached },
	{ "DMA works after the recovery from that", test_recovery, &attached, true },
	{ "a full flush ends the mapping of a page", test_full_flush, &attached },
	{ "a full flush ends the mapping of a run of pages", test_full_flush_of_run, &attached },
	{ "DMA below the window is refused", test_below_window, &attached, true },
	{ "an IOVA above the window is out of reach", test_outside_window, &attached, true },
	{ "a write to a read-only IOVA is refused", test_read_only, &attached, true },
	{ "DMA works after the recovery from that write", test_read_only_recovery, &attached,
	  true },
	{ "a blocked function's DMA goes nowhere", test_blocked, &attached, true },
	{ "DMA after a reset", test_reset_attached, &attached },
	{ "reset of a blocked function", test_dma, &reset_blocked },
	{}
};

TEST_SUITE(dma, "Tests of DMA through paging domains", cases, &fn, &queue);
