// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "api": the public IOMMU API on a paging domain without devices.
 */
#include <linux/prandom.h>
#include <linux/scatterlist.h>
#include <linux/sizes.h>
#include <linux/vmalloc.h>

#include "iommu_test.h"

/* No memory is accessed, so any address will do; not 0, which is "none". */
#define PHYS		(NO_MEMORY + SZ_256M)

static struct iommu_domain *domain;
static struct test_function *fn;
/* Where to map: the start of the function's window */
static unsigned long base;

static int begin(void)
{
	base = fn->first;
	domain = iommu_paging_domain_alloc(&fn->pdev->dev);
	return IS_ERR(domain) ? test_fail("cannot allocate a domain: %pe", domain) : 0;
}

static void end(void)
{
	iommu_domain_free(domain);
}

static const struct test_setup fresh = { begin, end };

static int map(unsigned long iova, phys_addr_t phys, size_t size)
{
	int ret = iommu_map(domain, iova, phys, size, RW, GFP_KERNEL);

	if (ret)
		return test_fail("iommu_map(%#lx, %#zx): error %d", iova, size, ret);
	return 0;
}

static int unmap(unsigned long iova, size_t size)
{
	size_t done = iommu_unmap(domain, iova, size);

	if (done != size)
		return test_fail("iommu_unmap(%#lx, %#zx): %#zx", iova, size, done);
	return 0;
}

/* iova must translate to phys, or if phys is 0, to nothing. */
static int expect(unsigned long iova, phys_addr_t phys)
{
	phys_addr_t found = iommu_iova_to_phys(domain, iova);

	if (found != phys)
		return test_fail("%#lx translates to %pa, not %pa", iova, &found, &phys);
	return 0;
}

/* Each page of a range must translate, or if phys is 0, none. */
static int expect_range(unsigned long iova, phys_addr_t phys, size_t size)
{
	size_t offset;
	int ret;

	for (offset = 0; offset < size; offset += SZ_4K) {
		ret = expect(iova + offset, phys ? phys + offset : 0);
		if (ret)
			return ret;
	}
	return 0;
}

/* The map must fail, with this error unless it is 0. */
static int refuse(unsigned long iova, phys_addr_t phys, size_t size, int error)
{
	int ret = iommu_map(domain, iova, phys, size, RW, GFP_KERNEL);

	if (!ret) {
		iommu_unmap(domain, iova, size);
		return test_fail("map %#lx size %#zx succeeded", iova, size);
	}
	if (error && ret != error)
		return test_fail("map %#lx size %#zx: error %d, not %d",
				 iova, size, ret, error);
	return 0;
}

static int test_geometry(void)
{
	struct iommu_domain_geometry *geometry = &domain->geometry;

	if (!geometry->force_aperture)
		return test_fail("the aperture is not forced");
	if (geometry->aperture_start)
		return test_fail("the aperture starts at %pad", &geometry->aperture_start);
	if (geometry->aperture_end < fn->last)
		return test_fail("the aperture ends at %pad, in the function's window",
				 &geometry->aperture_end);
	if (!is_power_of_2(geometry->aperture_end + 1) && geometry->aperture_end != U64_MAX)
		return test_fail("the aperture ends at %pad, where no table does",
				 &geometry->aperture_end);
	if (!(domain->pgsize_bitmap & SZ_4K))
		return test_fail("no 4 KiB pages");
	return 0;
}

static int map_check_unmap(unsigned long iova, phys_addr_t phys, size_t size)
{
	int ret = map(iova, phys, size);

	if (ret)
		return ret;
	ret = expect_range(iova, phys, size);
	if (!ret && iova)
		ret = expect(iova - 1, 0);
	if (!ret)
		ret = expect(iova + size, 0);
	if (!ret)
		ret = unmap(iova, size);
	if (!ret)
		ret = expect_range(iova, 0, size);
	return ret;
}

static int test_sizes(void)
{
	size_t size;
	int ret;

	for (size = SZ_4K; size <= SZ_256M; size *= 2) {
		ret = map_check_unmap(base, PHYS, size);
		if (ret)
			return ret;
	}
	return 0;
}

/* Aligned only to pages, and IOVA and address not in the same way */
static int test_odd_ranges(void)
{
	static const struct {
		unsigned long offset;
		size_t size;
	} ranges[] = {
		{ SZ_1M - SZ_4K, 2 * SZ_4K },
		{ SZ_1M - SZ_4K, SZ_1M + 2 * SZ_4K },
		{ SZ_2G - SZ_4K, 2 * SZ_4K },
		{ SZ_2G - SZ_1M - SZ_4K, 2 * SZ_1M + 3 * SZ_4K },
		{ SZ_4K, SZ_64M - SZ_4K },
	};
	unsigned int i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		ret = map_check_unmap(base + ranges[i].offset, PHYS, ranges[i].size);
		if (!ret)
			ret = map_check_unmap(base + ranges[i].offset,
					      PHYS + 3 * SZ_4K, ranges[i].size);
		if (ret)
			return ret;
	}
	return 0;
}

static int test_offset(void)
{
	static const unsigned long offsets[] = { 0, 1, 0x123, 0x7ff, SZ_4K - 1 };
	unsigned int i;
	int ret = map(base, PHYS, 2 * SZ_4K);

	for (i = 0; !ret && i < ARRAY_SIZE(offsets); i++) {
		ret = expect(base + offsets[i], PHYS + offsets[i]);
		if (!ret)
			ret = expect(base + SZ_4K + offsets[i], PHYS + SZ_4K + offsets[i]);
	}
	iommu_unmap(domain, base, 2 * SZ_4K);
	return ret;
}

/* Large pages of 1 MiB, if there are any, have longer offsets. */
static int test_large_offset(void)
{
	int ret = map(base, PHYS, SZ_2M);

	if (!ret)
		ret = expect(base + 0x12345, PHYS + 0x12345);
	if (!ret)
		ret = expect(base + SZ_2M - 1, PHYS + SZ_2M - 1);
	iommu_unmap(domain, base, SZ_2M);
	return ret;
}

static int test_misaligned_map(void)
{
	int ret = refuse(base + 0x800, PHYS, SZ_4K, -EINVAL);

	if (!ret)
		ret = refuse(base, PHYS + 0x10, SZ_4K, -EINVAL);
	if (!ret)
		ret = refuse(base, PHYS, SZ_4K + 1, -EINVAL);
	if (!ret)
		ret = refuse(base, PHYS, 1, -EINVAL);
	if (!ret)
		ret = expect_range(base, 0, 4 * SZ_4K);
	return ret;
}

static int test_misaligned_unmap(void)
{
	int ret = map(base, PHYS, 2 * SZ_4K);

	if (ret)
		return ret;
	if (iommu_unmap(domain, base + 1, SZ_4K) ||
	    iommu_unmap(domain, base, SZ_4K - 1))
		ret = test_fail("a misaligned range was unmapped");
	if (!ret)
		ret = expect_range(base, PHYS, 2 * SZ_4K);
	iommu_unmap(domain, base, 2 * SZ_4K);
	return ret;
}

static int test_zero_size(void)
{
	int ret = map(base, PHYS, SZ_4K);

	if (!ret)
		ret = map(base + SZ_4K, PHYS, 0);
	if (!ret)
		ret = map(base, PHYS + SZ_4K, 0);
	if (!ret && iommu_unmap(domain, base, 0))
		ret = test_fail("unmap of size 0 unmapped something");
	if (!ret)
		ret = expect(base, PHYS);
	if (!ret)
		ret = expect(base + SZ_4K, 0);
	iommu_unmap(domain, base, SZ_4K);
	return ret;
}

static int test_overflow(void)
{
	int ret = refuse(-SZ_4K, PHYS, 2 * SZ_4K, 0);

	if (!ret)
		ret = refuse(base, PHYS, -SZ_4K, 0);
	if (!ret)
		ret = expect(0, 0);
	if (!ret)
		ret = expect(base, 0);
	return ret;
}

static int test_outside_map(void)
{
	unsigned long end = domain->geometry.aperture_end;
	int ret;

	if (end == ULONG_MAX)
		return test_skip("the aperture covers all IOVAs");
	ret = refuse(end + 1, PHYS, SZ_4K, 0);
	if (!ret)
		ret = refuse(end + 1 - SZ_4K, PHYS, 2 * SZ_4K, 0);
	if (!ret)
		ret = refuse(ULONG_MAX + 1 - SZ_4K, PHYS, SZ_4K, 0);
	/* Nothing may be left mapped in the part inside the aperture. */
	if (!ret)
		ret = expect(end + 1 - SZ_4K, 0);
	return ret;
}

static int test_outside_unmap(void)
{
	unsigned long end = domain->geometry.aperture_end;

	int ret;

	if (end == ULONG_MAX)
		return test_skip("the aperture covers all IOVAs");
	/* In a table of three levels, an IOVA outside has the same indices. */
	ret = map(base, PHYS, SZ_4K);
	if (ret)
		return ret;
	if (iommu_unmap(domain, end + 1, SZ_4K) || iommu_unmap(domain, base + end + 1, SZ_4K))
		ret = test_fail("something outside the aperture was unmapped");
	/* The debug code takes the last page for an overflow and warns. */
	if (!IS_ENABLED(CONFIG_IOMMU_DEBUG_PAGEALLOC) &&
	    iommu_unmap(domain, ULONG_MAX + 1 - SZ_4K, SZ_4K))
		ret = test_fail("something outside the aperture was unmapped");
	if (!ret)
		ret = expect(base, PHYS);
	iommu_unmap(domain, base, SZ_4K);
	return ret;
}

static int test_outside_lookup(void)
{
	unsigned long end = domain->geometry.aperture_end;
	/* In a table of three levels, an IOVA outside has the same indices. */
	int ret = map(base, PHYS, SZ_4K);

	if (!ret && end != ULONG_MAX)
		ret = expect(base + end + 1, 0);
	iommu_unmap(domain, base, SZ_4K);
	return ret;
}

static int test_edges(void)
{
	unsigned long end = domain->geometry.aperture_end;
	unsigned long last = end + 1 - SZ_4K;
	int ret = map(last, PHYS, SZ_4K);

	if (!ret)
		ret = expect(end, PHYS + SZ_4K - 1);
	if (!ret)
		ret = unmap(last, SZ_4K);
	if (!ret)
		ret = map_check_unmap(0, PHYS, 2 * SZ_4K);
	return ret;
}

static int test_overlap_page(void)
{
	int ret = map(base, PHYS, SZ_4K);

	if (!ret)
		ret = refuse(base, PHYS + SZ_1M, SZ_4K, -EADDRINUSE);
	if (!ret)
		ret = expect(base, PHYS);
	iommu_unmap(domain, base, SZ_4K);
	return ret;
}

/* The live page is in the last of the three page tables of the range. */
static int test_overlap_range(void)
{
	unsigned long live = base + 2 * SZ_1M + 5 * SZ_4K;
	int ret = map(live, PHYS, SZ_4K);

	if (!ret)
		ret = refuse(base, PHYS + SZ_64M, 3 * SZ_1M, -EADDRINUSE);
	if (!ret)
		ret = expect_range(base, 0, live - base);
	if (!ret)
		ret = expect(live, PHYS);
	if (!ret)
		ret = expect_range(live + SZ_4K, 0, SZ_1M);
	iommu_unmap(domain, live, SZ_4K);
	return ret;
}

/* A map over existing but empty tables must succeed. */
static int test_overlap_nothing(void)
{
	int ret = map_check_unmap(base + SZ_1M, PHYS, SZ_4K);

	return ret ? ret : map_check_unmap(base, PHYS, SZ_4M);
}

static int test_unmap_hole(void)
{
	int ret = map(base + SZ_4K, PHYS, SZ_4K);

	/* Without a table, and with one */
	if (!ret && (iommu_unmap(domain, base + SZ_1G, SZ_64M) ||
		     iommu_unmap(domain, base, SZ_4K)))
		ret = test_fail("a hole was unmapped");
	return ret ? ret : unmap(base + SZ_4K, SZ_4K);
}

static int test_unmap_into_hole(void)
{
	size_t four = 4 * SZ_4K;
	size_t done;
	int ret = map(base, PHYS, four);

	if (!ret)
		ret = map(base + 2 * four, PHYS, four);
	if (ret)
		return ret;
	done = iommu_unmap(domain, base, 3 * four);
	if (done != four)
		ret = test_fail("unmap continued to %#zx, the hole is at %#zx", done, four);
	if (!ret)
		ret = expect_range(base, 0, 2 * four);
	if (!ret)
		ret = expect_range(base + 2 * four, PHYS, four);
	if (!ret)
		ret = unmap(base + 2 * four, four);
	return ret;
}

static int test_remap(void)
{
	unsigned int i;
	int ret;

	for (i = 0; i < 100; i++) {
		ret = map_check_unmap(base, PHYS + i * SZ_64K, SZ_16K);
		if (ret)
			return ret;
	}
	return 0;
}

/* A read-only mapping translates like any other. */
static int test_read_only(void)
{
	int ret = iommu_map(domain, base, PHYS, SZ_4K, IOMMU_READ, GFP_KERNEL);

	if (ret)
		return test_fail("map: error %d", ret);
	ret = expect(base, PHYS);
	return ret ? ret : unmap(base, SZ_4K);
}

static int test_scattered(void)
{
	struct scatterlist list[4];
	struct page *page = pfn_to_page(PHYS >> PAGE_SHIFT);
	phys_addr_t phys[] = { 0, SZ_1M, SZ_64K, SZ_2M };
	ssize_t done;
	unsigned int i;
	int ret = 0;

	sg_init_table(list, ARRAY_SIZE(list));
	for (i = 0; i < ARRAY_SIZE(list); i++)
		sg_set_page(&list[i], page + (phys[i] >> PAGE_SHIFT), SZ_8K, 0);
	done = iommu_map_sg(domain, base, list, ARRAY_SIZE(list), RW, GFP_KERNEL);
	if (done != 4 * SZ_8K)
		return test_fail("iommu_map_sg: %zd", done);
	for (i = 0; !ret && i < ARRAY_SIZE(list); i++)
		ret = expect_range(base + i * SZ_8K, sg_phys(&list[i]), SZ_8K);
	return ret ? ret : unmap(base, 4 * SZ_8K);
}

/* Random ranges, compared with a list of what every page must translate to */

#define SOAK_PAGES	6144
/* KASAN makes each round slow. */
#define SOAK_ROUNDS	(IS_ENABLED(CONFIG_KASAN) ? 1000 : 20000)
#define SOAK_LONGEST	700

static phys_addr_t *shadow;

static unsigned long soak_iova(unsigned int page)
{
	/* Across a region boundary, wherever the window starts */
	unsigned long middle = round_up(base + SZ_1G, SZ_2G);

	return middle - SOAK_PAGES / 2 * SZ_4K + (unsigned long)page * SZ_4K;
}

/* The first page from @page on whose state is not @live, or @end */
static unsigned int run_end(unsigned int page, unsigned int end, bool live)
{
	while (page < end && !!shadow[page] == live)
		page++;
	return page;
}

static int soak_map(struct rnd_state *rnd, unsigned int page, unsigned int end)
{
	/* Half of them are aligned like the IOVA, as large pages require. */
	phys_addr_t phys = PHYS + (soak_iova(page) & (SZ_1M - 1)) +
			   (prandom_u32_state(rnd) % 2) * SZ_4K;
	unsigned int free = run_end(page, end, false);
	size_t size = (end - page) * SZ_4K;
	int ret;

	if (free < end)
		return refuse(soak_iova(page), phys, size, -EADDRINUSE);
	ret = map(soak_iova(page), phys, size);
	for (; !ret && page < end; page++, phys += SZ_4K)
		shadow[page] = phys;
	return ret;
}

/* May continue into the hole after the run, where it must stop. */
static int soak_unmap(unsigned int page, unsigned int end)
{
	unsigned int stop = run_end(page, end, true);
	size_t done = iommu_unmap(domain, soak_iova(page), (end - page) * SZ_4K);

	if (done != (size_t)(stop - page) * SZ_4K)
		return test_fail("unmapped %#zx bytes of %#x pages, %#x pages are live",
				 done, end - page, stop - page);
	for (; page < stop; page++)
		shadow[page] = 0;
	return 0;
}

static int soak_compare(unsigned int from, unsigned int to)
{
	int ret = 0;

	for (; !ret && from < to; from++)
		ret = expect(soak_iova(from), shadow[from]);
	return ret;
}

/*
 * Unmaps whole runs of live pages: the API does not allow splitting a mapping,
 * which may be larger than a page.
 */
static int soak_round(struct rnd_state *rnd)
{
	unsigned int page = prandom_u32_state(rnd) % SOAK_PAGES;
	unsigned int length = 1 + prandom_u32_state(rnd) % SOAK_LONGEST;
	unsigned int end = min(page + length, SOAK_PAGES);
	int ret;

	if (shadow[page]) {
		while (page && shadow[page - 1])
			page--;
		end = run_end(page, SOAK_PAGES, true);
		end = min(end + length % 2, SOAK_PAGES);
		ret = soak_unmap(page, end);
	} else {
		ret = soak_map(rnd, page, end);
	}
	if (ret)
		return ret;
	return soak_compare(max(page, 2U) - 2, min(page + 4, SOAK_PAGES));
}

static int soak(void)
{
	struct rnd_state rnd;
	unsigned int i;
	int ret;

	prandom_seed_state(&rnd, 20260101);
	for (i = 0; i < SOAK_ROUNDS; i++) {
		ret = soak_round(&rnd);
		if (!ret && i % 1000 == 0)
			ret = soak_compare(0, SOAK_PAGES);
		if (ret)
			return ret;
		cond_resched();
	}
	return soak_compare(0, SOAK_PAGES);
}

static int test_soak(void)
{
	unsigned int page, end;
	int ret;

	shadow = vcalloc(SOAK_PAGES, sizeof(*shadow));
	if (!shadow)
		return -ENOMEM;
	ret = soak();
	for (page = 0; page < SOAK_PAGES; page = end + 1) {
		end = run_end(page, SOAK_PAGES, true);
		if (end > page)
			iommu_unmap(domain, soak_iova(page), (end - page) * SZ_4K);
	}
	vfree(shadow);
	return ret;
}

static int test_attached(void)
{
	struct device *dev = &fn->pdev->dev;
	struct iommu_domain *before = test_current(fn);
	int ret = map(base, PHYS, SZ_64K);

	if (ret)
		return ret;
	ret = iommu_attach_device(domain, dev);
	if (ret)
		return test_fail("attach: error %d", ret);
	if (test_current(fn) != domain)
		ret = test_fail("the domain is not attached");
	if (!ret)
		ret = expect_range(base, PHYS, SZ_64K);
	if (!ret)
		ret = map_check_unmap(base + SZ_1M, PHYS, SZ_1M);
	if (!ret)
		ret = unmap(base, SZ_64K);
	iommu_detach_device(domain, dev);
	if (!ret && test_current(fn) != before)
		ret = test_fail("the default domain is not attached again");
	return ret;
}

/*
 * A domain with mappings can be freed. They do not map memory, because
 * CONFIG_IOMMU_DEBUG_PAGEALLOC would count the pages as mapped forever.
 */
TEST_CALL(free_populated, map(base, NO_MEMORY, SZ_8M))

#ifdef CONFIG_RANDOMIZE_IDENTITY_BASE
/* Otherwise no test on this kernel notices a mix-up of virtual and physical addresses. */
static int test_random_base(void)
{
	return __va(0) ? 0 : test_fail("physical addresses are virtual: has the CPU a PRNG?");
}
#endif

static const struct test_case cases[] = {
	{ "the aperture is the table's reach", test_geometry, &fresh },
	{ "map and unmap 4 KiB to 256 MiB", test_sizes, &fresh },
	{ "map and unmap across tables", test_odd_ranges, &fresh },
	{ "iova_to_phys keeps the offset", test_offset, &fresh },
	{ "iova_to_phys keeps the offset in 2 MiB", test_large_offset, &fresh },
	{ "misaligned map is refused", test_misaligned_map, &fresh },
	{ "misaligned unmap does nothing", test_misaligned_unmap, &fresh },
	{ "zero size does nothing", test_zero_size, &fresh },
	{ "overflowing map is refused", test_overflow, &fresh },
	{ "map outside the aperture is refused", test_outside_map, &fresh },
	{ "unmap outside the aperture does nothing", test_outside_unmap, &fresh },
	{ "lookup outside the aperture finds nothing", test_outside_lookup, &fresh },
	{ "first and last page of the aperture", test_edges, &fresh },
	{ "map over a live page is refused", test_overlap_page, &fresh },
	{ "map of a range over a live page changes nothing", test_overlap_range, &fresh },
	{ "map over empty tables", test_overlap_nothing, &fresh },
	{ "unmap of a hole does nothing", test_unmap_hole, &fresh },
	{ "unmap stops at a hole", test_unmap_into_hole, &fresh },
	{ "map again elsewhere", test_remap, &fresh },
	{ "read-only map", test_read_only, &fresh },
	{ "map a scatterlist", test_scattered, &fresh },
	{ "random maps and unmaps against a shadow", test_soak, &fresh },
	{ "map, attach, map, unmap, detach", test_attached, &fresh },
	{ "free a populated domain", test_free_populated, &fresh },
#ifdef CONFIG_RANDOMIZE_IDENTITY_BASE
	{ "memory is mapped at a random address", test_random_base, &fresh },
#endif
	{}
};

TEST_SUITE(api, "Tests of the IOMMU API on a paging domain", cases, &fn, NULL);
