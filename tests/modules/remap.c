// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "remap": IOVAs that are mapped again translate to the new memory,
 * unmapped IOVAs do not translate, and their neighbours are unchanged. This is
 * tested for all sizes, and for all ways in which a hypervisor that shadows our
 * tables may learn of changes.
 */
#include <linux/scatterlist.h>
#include <linux/sizes.h>

#include "iommu_test.h"

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain dom;

/*
 * Two blocks, as large as the kernel can allocate. Ranges larger than a piece
 * map the same piece repeatedly, because a nested guest has little memory.
 */
#define BLOCK_BYTES SZ_4M
#define PIECE_BYTES SZ_2M
#define LARGEST SZ_64M

static void *blocks[2];
static struct scatterlist pieces[LARGEST / PIECE_BYTES];

/**
 * struct shape - a range that is mapped and unmapped by one call each
 * @iova: its IOVA, relative to the function's first IOVA
 * @size: its size
 * @queued: whether a full flush follows the unmap, as in the lazy mode of the
 *	DMA API
 */
struct shape {
	dma_addr_t iova;
	size_t size;
	bool queued;
};

static struct shape shape;

static dma_addr_t first_iova(void)
{
	return fn->first + shape.iova;
}

/* A single page after the range, which stays mapped */
static dma_addr_t neighbour_iova(void)
{
	return first_iova() + shape.size;
}

static size_t piece_size(void)
{
	return min(shape.size, PIECE_BYTES);
}

/* The start of a block, which large pages can map, or the page after it */
static void *memory(unsigned int block, bool small)
{
	return blocks[block] + (small ? PAGE_SIZE : 0);
}

static int map(void *memory)
{
	unsigned int count = shape.size / piece_size();
	unsigned int i;
	ssize_t ret;

	sg_init_table(pieces, count);
	for (i = 0; i < count; i++)
		sg_set_buf(&pieces[i], memory, piece_size());
	ret = iommu_map_sg(dom.domain, first_iova(), pieces, count, RW, GFP_KERNEL);
	return ret == shape.size ? 0 : test_fail("%zd bytes were mapped", ret);
}

static int unmap_at(dma_addr_t iova, size_t size)
{
	size_t done = shape.queued ? test_unmap_queued(dom.domain, iova, size) :
		iommu_unmap(dom.domain, iova, size);

	return done == size ? 0 : test_fail("%zu bytes were unmapped", done);
}

static int unmap(void)
{
	return unmap_at(first_iova(), shape.size);
}

static int check_page(void *memory, size_t offset)
{
	int ret = admin_check(fn, first_iova() + offset, memory + offset % piece_size());

	return ret ? test_fail("DMA does not reach the new memory at offset %#zx", offset) : 0;
}

/* The first page, the last one, and one in the middle */
static int check_data(void *memory)
{
	int ret = check_page(memory, 0);

	if (!ret)
		ret = check_page(memory, shape.size / 2 & ~(PAGE_SIZE - 1));
	if (!ret)
		ret = check_page(memory, shape.size - PAGE_SIZE);
	return ret;
}

static void poison(void *memory)
{
	size_t offset;

	for (offset = 0; offset < piece_size(); offset += PAGE_SIZE)
		page_poison(memory + offset);
}

static int expect_poison(const void *memory)
{
	size_t offset;

	for (offset = 0; offset < piece_size(); offset += PAGE_SIZE)
		if (!page_is_poison(memory + offset))
			return test_fail("the old memory was written to at offset %#zx",
					 offset);
	return 0;
}

static int check_neighbour(void)
{
	if (admin_check(fn, neighbour_iova(), dom.data))
		return test_fail("DMA to the page after the range does not work");
	return 0;
}

/* Small pages after large ones, and vice versa */
static const bool steps[] = { false, false, true, true, false };

static bool has_large_pages(void)
{
	return dom.domain->pgsize_bitmap & SZ_1M;
}

static int remap(void)
{
	void *old = NULL;
	void *new;
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(steps); i++) {
		/* Without large pages, all are small. */
		if (steps[i] && (shape.size < SZ_1M || !has_large_pages()))
			continue;
		new = memory(i % 2, steps[i]);
		ret = map(new);
		if (ret)
			return ret;
		if (old)
			poison(old);
		ret = check_data(new);
		if (!ret && old)
			ret = expect_poison(old);
		if (unmap() && !ret)
			return -EIO;
		old = new;
	}
	return ret;
}

static int unmap_pages(void)
{
	dma_addr_t iova = first_iova();
	int ret = 0;

	for (; !ret && iova < neighbour_iova(); iova += PAGE_SIZE)
		ret = unmap_at(iova, PAGE_SIZE);
	return ret;
}

/* Large pages where page tables were emptied page by page */
static int emptied(void)
{
	void *old = memory(0, true);
	void *new = memory(1, false);
	int ret = map(old);

	if (ret)
		return ret;
	ret = check_data(old);
	if (unmap_pages())
		return -EIO;
	if (!ret)
		ret = map(new);
	if (ret)
		return ret;
	poison(old);
	ret = check_data(new);
	if (!ret)
		ret = expect_poison(old);
	if (unmap() && !ret)
		return -EIO;
	return ret;
}

/* Number of mapped pages of the test domain without the range */
#define PAGES_BESIDE 4

static int expect_gone(void *memory)
{
	size_t last = shape.size - PAGE_SIZE;

	if (test_is_calm())
		return test_expect_outside(PAGES_BESIDE);
	return test_expect_gone(&dom, &queue, memory + last % piece_size(),
				first_iova() + last);
}

static int unmapped_from(void *memory)
{
	int ret = map(memory);

	if (ret)
		return ret;
	ret = check_data(memory);
	if (unmap() && !ret)
		return -EIO;
	/* First check what must work: a refused access may end all DMA. */
	if (!ret)
		ret = check_neighbour();
	return ret ? ret : expect_gone(memory);
}

static int unmapped(void)
{
	int ret = unmapped_from(memory(0, false));

	if (!ret && has_large_pages())
		ret = unmapped_from(memory(1, true));
	return ret;
}

static int with_neighbour(int (*check)(void))
{
	int ret = test_map_page(&dom, neighbour_iova(), dom.data);

	if (ret)
		return test_fail("map of the page after the range: error %d", ret);
	ret = check_neighbour();
	if (!ret)
		ret = check();
	test_unmap_page(&dom, neighbour_iova());
	return ret;
}

static int attached(int (*check)(void))
{
	int ret = test_domain_alloc(&dom, fn);

	if (ret)
		return ret;
	ret = test_run_on(&dom, &queue);
	if (!ret)
		ret = with_neighbour(check);
	admin_stop(fn);
	test_detach(&dom);
	test_domain_free(&dom);
	return ret;
}

static int run(int (*check)(void), dma_addr_t iova, size_t size, bool queued)
{
	int ret;

	shape = (struct shape) { iova, size, queued };
	if (neighbour_iova() + PAGE_SIZE - 1 > fn->last)
		return test_skip("the window is too small");
	ret = test_claim(fn);
	if (ret)
		return ret;
	ret = attached(check);
	test_release(fn);
	return ret;
}

/* Crosses from one page table to the next */
#define ASKEW (SZ_16M + SZ_512K)

TEST_CALL(strict_4k_remap, run(remap, SZ_16M, SZ_4K, false))
TEST_CALL(strict_4k_unmapped, run(unmapped, SZ_16M, SZ_4K, false))
TEST_CALL(strict_1m_remap, run(remap, SZ_16M, SZ_1M, false))
TEST_CALL(strict_1m_unmapped, run(unmapped, SZ_16M, SZ_1M, false))
TEST_CALL(strict_2m_remap, run(remap, SZ_16M, SZ_2M, false))
TEST_CALL(strict_2m_unmapped, run(unmapped, SZ_16M, SZ_2M, false))
TEST_CALL(strict_2m_emptied, run(emptied, SZ_16M, SZ_2M, false))
TEST_CALL(strict_askew_remap, run(remap, ASKEW, SZ_2M, false))
TEST_CALL(strict_askew_unmapped, run(unmapped, ASKEW, SZ_2M, false))
TEST_CALL(strict_64m_remap, run(remap, SZ_16M, SZ_64M, false))
TEST_CALL(strict_64m_unmapped, run(unmapped, SZ_16M, SZ_64M, false))
TEST_CALL(lazy_4k_remap, run(remap, SZ_16M, SZ_4K, true))
TEST_CALL(lazy_4k_unmapped, run(unmapped, SZ_16M, SZ_4K, true))
TEST_CALL(lazy_1m_remap, run(remap, SZ_16M, SZ_1M, true))
TEST_CALL(lazy_1m_unmapped, run(unmapped, SZ_16M, SZ_1M, true))
TEST_CALL(lazy_2m_remap, run(remap, SZ_16M, SZ_2M, true))
TEST_CALL(lazy_2m_unmapped, run(unmapped, SZ_16M, SZ_2M, true))
TEST_CALL(lazy_2m_emptied, run(emptied, SZ_16M, SZ_2M, true))
TEST_CALL(lazy_askew_remap, run(remap, ASKEW, SZ_2M, true))
TEST_CALL(lazy_askew_unmapped, run(unmapped, ASKEW, SZ_2M, true))
TEST_CALL(lazy_64m_remap, run(remap, SZ_16M, SZ_64M, true))
TEST_CALL(lazy_64m_unmapped, run(unmapped, SZ_16M, SZ_64M, true))

static const struct test_case cases[] = {
	{ "strict: 4K mapped again", test_strict_4k_remap },
	{ "strict: 4K unmapped", test_strict_4k_unmapped },
	{ "strict: 1M mapped again", test_strict_1m_remap },
	{ "strict: 1M unmapped", test_strict_1m_unmapped },
	{ "strict: 2M mapped again", test_strict_2m_remap },
	{ "strict: 2M unmapped", test_strict_2m_unmapped },
	{ "strict: 2M over emptied tables", test_strict_2m_emptied },
	{ "strict: 2M askew mapped again", test_strict_askew_remap },
	{ "strict: 2M askew unmapped", test_strict_askew_unmapped },
	{ "strict: 64M mapped again", test_strict_64m_remap },
	{ "strict: 64M unmapped", test_strict_64m_unmapped },
	{ "lazy: 4K mapped again", test_lazy_4k_remap },
	{ "lazy: 4K unmapped", test_lazy_4k_unmapped },
	{ "lazy: 1M mapped again", test_lazy_1m_remap },
	{ "lazy: 1M unmapped", test_lazy_1m_unmapped },
	{ "lazy: 2M mapped again", test_lazy_2m_remap },
	{ "lazy: 2M unmapped", test_lazy_2m_unmapped },
	{ "lazy: 2M over emptied tables", test_lazy_2m_emptied },
	{ "lazy: 2M askew mapped again", test_lazy_askew_remap },
	{ "lazy: 2M askew unmapped", test_lazy_askew_unmapped },
	{ "lazy: 64M mapped again", test_lazy_64m_remap },
	{ "lazy: 64M unmapped", test_lazy_64m_unmapped },
	{}
};

static void free_blocks(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(blocks); i++)
		free_pages((unsigned long)blocks[i], get_order(BLOCK_BYTES));
}

static int __init remap_init(void)
{
	unsigned int i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(blocks); i++) {
		blocks[i] = (void *)__get_free_pages(GFP_KERNEL, get_order(BLOCK_BYTES));
		if (!blocks[i]) {
			free_blocks();
			return -ENOMEM;
		}
	}
	ret = test_suite("remap", cases, &fn, &queue);
	free_blocks();
	return ret;
}
module_init(remap_init);

static void __exit remap_exit(void)
{
	test_forget("remap");
}
module_exit(remap_exit);

MODULE_DESCRIPTION("Tests of IOVAs that are mapped again");
MODULE_LICENSE("GPL");
