// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "flush": which refreshes flushes issue, how many, and what happens
 * after a refused flush: a later one makes up for it, and nothing that the
 * machine may still walk is freed before that.
 */
#define pr_fmt(fmt) "flush: " fmt

#include <linux/bitfield.h>
#include <linux/kthread.h>
#include <linux/sizes.h>
#include <linux/smp.h>
#include <asm/pci_dma.h>

#include "iommu-pages.h"
#include "iommu_test.h"

/* No device accesses it; no large page fits it. */
#define PHYS	(NO_MEMORY + SZ_4K)

/* More than the refreshes of any flush */
#define ALL	100000

/* Limit for one flush, whatever was unmapped */
#define MOST_REFRESHES	10

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];
/* The first one, which the function is attached to */
static struct test_domain *const dom = &pair[0];
static struct inject_step steps[INJECT_STEPS];

static int begin(void)
{
	int ret = test_pair_claim(pair, fn);

	if (ret)
		return ret;
	/* The attach shows which table is registered. */
	ret = test_run_on(dom, &queue);
	if (ret)
		test_pair_release(pair);
	return ret;
}

static void end(void)
{
	test_pair_release(pair);
}

static const struct test_setup running = { begin, end };

static int map_at(dma_addr_t iova, size_t size)
{
	int ret = iommu_map(dom->domain, iova, PHYS, size, RW, GFP_KERNEL);

	return ret ? test_fail("map at %pad: error %d", &iova, ret) : 0;
}

static int unmap(dma_addr_t iova, size_t size, bool queued)
{
	size_t done = queued ? test_unmap_queued(dom->domain, iova, size) :
		iommu_unmap(dom->domain, iova, size);

	return done == size ? 0 : test_fail("%zu bytes at %pad were unmapped", done, &iova);
}

/* Unmaps while the machine refuses every refresh. */
static int unmap_refused(dma_addr_t iova, size_t size, bool queued, int error)
{
	bool refused;
	int ret;

	inject_refuse_refresh(fn, error, ALL);
	ret = unmap(iova, size, queued);
	refused = inject_refused();
	inject_reset();
	if (!ret && !refused)
		ret = test_fail("no instruction was issued that could be refused");
	return ret;
}

/* Whether a refresh that was recorded and not refused covers the range */
static bool is_covered(dma_addr_t iova, size_t size)
{
	unsigned int i, count = inject_steps(steps);

	for (i = 0; i < count; i++)
		if (!steps[i].operation && !steps[i].refused && steps[i].start <= iova &&
		    iova + size <= steps[i].start + steps[i].size)
			return true;
	return false;
}

/* The device has used the mapping, and must have forgotten it. */
static int expect_gone(dma_addr_t iova)
{
	return test_expect_gone(dom, &queue, dom->data, iova);
}

/* The cost of a full flush */

/* Instructions of the last full flush */
static struct inject_counts counts;

/*
 * Unmaps pages at equal distances, and counts the RPCITs of the full flush that
 * follows. The machine refuses the given number of them for lack of resources.
 */
static int flush_scattered(unsigned int count, size_t stride, unsigned int refusals,
			   unsigned int most)
{
	struct iommu_iotlb_gather gather;
	unsigned int i;
	int ret = 0;

	/* Away from the pages that the device uses */
	dma_addr_t corner = fn->first + SZ_64K;

	if (corner + count * stride - 1 > fn->last)
		return test_skip("the window is too small");
	for (i = 0; !ret && i < count; i++)
		ret = map_at(corner + i * stride, PAGE_SIZE);
	iommu_iotlb_gather_init(&gather);
	gather.queued = true;
	while (i--)
		iommu_unmap_fast(dom->domain, corner + i * stride, PAGE_SIZE, &gather);
	inject_refuse_refresh(fn, -ENOMEM, refusals);
	iommu_flush_iotlb_all(dom->domain);
	iommu_put_pages_list(&gather.freelist);
	counts = inject_counts();
	inject_reset();
	/* Do not leave refused refreshes to the next test. */
	iommu_flush_iotlb_all(dom->domain);
	if (!ret && !counts.refreshes)
		ret = test_fail("the flush issued no refresh");
	if (!ret && counts.refreshes > most)
		ret = test_fail("the flush of %u pages took %u refreshes, not %u at most",
				count, counts.refreshes, most);
	return ret;
}

TEST_CALL(512, flush_scattered(511, SZ_4M, 0, MOST_REFRESHES))
TEST_CALL(1024, flush_scattered(1023, SZ_2M, 0, MOST_REFRESHES))
TEST_CALL(512_no_resources, flush_scattered(511, SZ_4M, ALL, 2))
TEST_CALL(no_resources_once, flush_scattered(511, SZ_4M, 1, MOST_REFRESHES))

/* The maximum latency of interrupts on the CPU that flushes */
struct patience {
	struct task_struct *task;
	int cpu;
	u64 longest;
};

static void take_interrupt(void *unused)
{
}

static int interrupt(void *data)
{
	struct patience *patience = data;

	while (!kthread_should_stop()) {
		u64 start = ktime_get_ns();

		smp_call_function_single(patience->cpu, take_interrupt, NULL, true);
		patience->longest = max(patience->longest, ktime_get_ns() - start);
		cond_resched();
	}
	return 0;
}

static int patience_start(struct patience *patience)
{
	unsigned int there;

	*patience = (struct patience) { .cpu = raw_smp_processor_id() };
	there = cpumask_any_but(cpu_online_mask, patience->cpu);
	if (there >= nr_cpu_ids)
		return test_skip("there is only one CPU");
	patience->task = kthread_create(interrupt, patience, "iommu_test");
	if (IS_ERR(patience->task))
		return test_fail("cannot create a thread");
	kthread_bind(patience->task, there);
	wake_up_process(patience->task);
	return 0;
}

/* Checks a count. The time is only logged, because the host may be busy. */
static int test_interrupts(void)
{
	struct patience patience;
	int ret;

	migrate_disable();
	ret = patience_start(&patience);
	if (!ret) {
		ret = flush_scattered(1023, SZ_2M, 0, ALL);
		kthread_stop(patience.task);
	}
	migrate_enable();
	if (ret)
		return ret;
	pr_info("an interrupt waited %llu us at most, %u refreshes\n",
		div_u64(patience.longest, NSEC_PER_USEC), counts.refreshes);
	if (counts.irqs_off)
		return test_fail("%u of %u refreshes with interrupts off", counts.irqs_off,
				 counts.refreshes);
	return 0;
}

static int test_map_no_resources(void)
{
	dma_addr_t iova = data_iova(fn) + SZ_1M;
	unsigned int i, count, asked = 0;
	int ret = test_sees_no_maps(fn);

	if (ret)
		return ret;
	inject_refuse_refresh(fn, -ENOMEM, 2);
	inject_record(fn);
	ret = iommu_map(dom->domain, iova, PHYS, PAGE_SIZE, RW, GFP_KERNEL);
	count = inject_steps(steps);
	for (i = 0; i < count; i++)
		asked += steps[i].refused;
	inject_reset();
	if (ret != -ENOMEM)
		return test_fail("map without resources: %d, not ENOMEM", ret);
	if (asked > 2 || iommu_iova_to_phys(dom->domain, iova))
		return test_fail("%u refreshes, and the map was %s", asked,
				 asked > 2 ? "tried again" : "not undone");
	return test_expect_running(dom);
}

/* A map without permissions is refused. */
static int test_map_nothing(void)
{
	static const size_t sizes[] = { SZ_4K, SZ_64K, SZ_1M };
	static const int prots[] = { 0, IOMMU_CACHE, IOMMU_NOEXEC };
	dma_addr_t iova = fn->first + SZ_16M;
	unsigned int i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(sizes) * ARRAY_SIZE(prots); i++) {
		size_t size = sizes[i / ARRAY_SIZE(prots)];
		int prot = prots[i % ARRAY_SIZE(prots)];

		ret = iommu_map(dom->domain, iova, SZ_256M, size, prot, GFP_KERNEL);
		if (!ret)
			iommu_unmap(dom->domain, iova, size);
		if (ret != -EINVAL)
			return test_fail("map of %zu bytes, prot %#x: %d, not EINVAL",
					 size, prot, ret);
		if (iommu_iova_to_phys(dom->domain, iova))
			return test_fail("the failed map left a translation");
	}
	return 0;
}

/* Marks */

#define CHUNKS 160

/* Each MiB in turn, which covers every chunk, wherever chunks start */
static int test_every_chunk(void)
{
	dma_addr_t iova;
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < CHUNKS; i++) {
		iova = fn->first + i * SZ_1M + SZ_128K;
		ret = map_at(iova, PAGE_SIZE);
		inject_record(fn);
		if (!ret)
			ret = unmap(iova, PAGE_SIZE, true);
		if (!ret && !is_covered(iova, PAGE_SIZE))
			ret = test_fail("the flush skipped chunk %u", i);
	}
	return ret;
}

/* With DMA, in both halves of a word of marks */
static int test_half_of_chunks(void)
{
	static const unsigned int chunks[] = { 8, 40, 63, 104 };
	dma_addr_t iova;
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(chunks); i++) {
		iova = fn->first + chunks[i] * SZ_1M;
		ret = test_map_page(dom, iova, dom->data);
		if (!ret)
			ret = admin_identify(fn, iova);
		if (!ret)
			ret = unmap(iova, PAGE_SIZE, true);
		if (!ret)
			ret = expect_gone(iova);
	}
	return ret;
}

/* Two unmaps and one sync: in either order, both are refreshed. */
static int sync_two(dma_addr_t one, dma_addr_t other)
{
	struct iommu_iotlb_gather gather;
	int ret = map_at(one, PAGE_SIZE);

	if (!ret)
		ret = map_at(other, PAGE_SIZE);
	if (ret)
		return ret;
	inject_record(fn);
	iommu_iotlb_gather_init(&gather);
	iommu_unmap_fast(dom->domain, one, PAGE_SIZE, &gather);
	iommu_unmap_fast(dom->domain, other, PAGE_SIZE, &gather);
	iommu_iotlb_sync(dom->domain, &gather);
	if (!is_covered(one, PAGE_SIZE) || !is_covered(other, PAGE_SIZE))
		return test_fail("one of the two unmaps was not refreshed");
	return 0;
}

static int test_two_unmaps(void)
{
	dma_addr_t iova = fn->first + SZ_16M;
	int ret = sync_two(iova, iova + SZ_64K);

	if (!ret)
		ret = sync_two(iova + SZ_64K, iova);
	if (!ret)
		ret = sync_two(iova + SZ_64K, iova + SZ_64K - PAGE_SIZE);
	return ret;
}

/* A later flush makes up for a refused one. */

static void flush_again(void)
{
	iommu_flush_iotlb_all(dom->domain);
}

/* A strict unmap of another range */
static void unmap_other(void)
{
	dma_addr_t iova = data_iova(fn) + SZ_32M;

	if (!map_at(iova, PAGE_SIZE))
		iommu_unmap(dom->domain, iova, PAGE_SIZE);
}

static int make_up(bool queued, int error, void (*next)(void))
{
	dma_addr_t iova = data_iova(fn);
	int ret = test_domain_check(dom);

	if (!ret)
		ret = unmap_refused(iova, PAGE_SIZE, queued, error);
	if (ret)
		return ret;
	inject_record(fn);
	next();
	if (!is_covered(iova, PAGE_SIZE))
		return test_fail("the refused refresh was not repeated");
	return expect_gone(iova);
}

TEST_CALL(flush_then_flush, make_up(true, -EIO, flush_again))
TEST_CALL(flush_then_unmap, make_up(true, -EIO, unmap_other))
TEST_CALL(unmap_then_flush, make_up(false, -EIO, flush_again))
TEST_CALL(unmap_then_unmap, make_up(false, -EIO, unmap_other))
TEST_CALL(no_resources_then_flush, make_up(true, -ENOMEM, flush_again))
TEST_CALL(no_resources_then_unmap, make_up(false, -ENOMEM, unmap_other))

/* Tables: the test holds a reference, to see if the driver drops its own. */

static u64 entry_of(u64 table, u64 index)
{
	return READ_ONCE(((u64 *)phys_to_virt(table))[index]);
}

/* Gets a reference to the page table of an IOVA, walking like the machine. */
static struct page *hold_table(dma_addr_t iova)
{
	u64 iota = inject_table();
	struct page *page;
	u64 entry;

	if ((iota & ZPCI_IOTA_RTTO_FLAG) != ZPCI_IOTA_RTTO_FLAG)
		return NULL;
	entry = entry_of(iota & PAGE_MASK, iova >> 31 & 0x7ff);
	entry = entry_of(entry & ZPCI_RTE_ADDR_MASK, iova >> 20 & 0x7ff);
	page = virt_to_page(phys_to_virt(entry & ZPCI_STE_ADDR_MASK));
	get_page(page);
	return page;
}

static bool is_given_back(struct page *page)
{
	return page_ref_count(page) == 1;
}

/* An IOVA whose page table maps nothing else */
static dma_addr_t own_mib(void)
{
	return fn->first + SZ_16M;
}

static int free_domain(void)
{
	void *page;
	int ret;

	admin_stop(fn);
	test_detach(dom);
	ret = test_domain_renew(dom, &page);
	if (!ret)
		free_page((unsigned long)page);
	return ret;
}

/* The driver in C frees tables only with the domain. */
static int lose_table(bool queued, int error, bool frees)
{
	struct page *page;
	int ret = map_at(own_mib(), SZ_1M);

	if (ret)
		return ret;
	page = hold_table(own_mib());
	if (!page)
		return test_fail("no table of three levels is registered");
	ret = unmap_refused(own_mib(), SZ_1M, queued, error);
	if (!ret && is_given_back(page))
		ret = test_fail("a table that the machine may still walk was freed");
	if (!ret && !frees)
		iommu_flush_iotlb_all(dom->domain);
	if (!ret && frees)
		ret = free_domain();
	if (!ret && !is_given_back(page))
		ret = test_fail("the table is leaked: %s did not free it",
				frees ? "freeing the domain" : "the next flush");
	put_page(page);
	return ret;
}

TEST_CALL(tables_strict, lose_table(false, -EIO, false))
TEST_CALL(tables_queued, lose_table(true, -EIO, false))
TEST_CALL(tables_no_resources_strict, lose_table(false, -ENOMEM, false))
TEST_CALL(tables_no_resources_queued, lose_table(true, -ENOMEM, false))
TEST_CALL(tables_freed_strict, lose_table(false, -EIO, true))
TEST_CALL(tables_freed_queued, lose_table(true, -EIO, true))
TEST_CALL(tables_freed_no_resources, lose_table(true, -ENOMEM, true))

/*
 * A large page over an empty page table: the table is freed after a refresh of
 * its range. If the machine refuses that, the table stays and is filled; if it
 * lacks resources, a refresh of the whole window makes up for it. Device
 * accesses reach the new memory in all cases.
 */
static int replace_table(void *memory, int error)
{
	dma_addr_t last = own_mib() + SZ_1M - PAGE_SIZE;
	bool is_freed = error != -EIO;
	struct page *page;
	int ret = map_at(own_mib(), PAGE_SIZE);

	if (ret)
		return ret;
	page = hold_table(own_mib());
	if (!page)
		return test_fail("no table of three levels is registered");
	ret = unmap(own_mib(), PAGE_SIZE, false);
	if (error)
		inject_refuse_refresh(fn, error, 1);
	inject_record(fn);
	if (!ret)
		ret = iommu_map(dom->domain, own_mib(), virt_to_phys(memory), SZ_1M, RW,
				GFP_KERNEL);
	if (!ret && is_freed && !is_covered(own_mib(), SZ_1M))
		ret = test_fail("the machine was not made to forget the table");
	if (!ret && error && !inject_refused())
		ret = test_fail("no instruction was issued that could be refused");
	inject_reset();
	if (!ret && is_given_back(page) != is_freed)
		ret = test_fail(is_freed ? "the empty table was not freed"
				: "a table that the machine may still walk was freed");
	put_page(page);
	if (!ret)
		ret = admin_check(fn, last, memory + SZ_1M - PAGE_SIZE);
	if (!ret)
		ret = unmap(own_mib(), SZ_1M, false);
	return ret ? ret : test_domain_check(dom);
}

static int with_mib(int error)
{
	unsigned int order = get_order(SZ_1M);
	void *memory;
	int ret;

	if (!(dom->domain->pgsize_bitmap & SZ_1M))
		return test_skip("the domain has no large pages");
	memory = (void *)__get_free_pages(GFP_KERNEL, order);
	if (!memory)
		return -ENOMEM;
	ret = replace_table(memory, error);
	free_pages((unsigned long)memory, order);
	return ret;
}

TEST_CALL(large_over_table, with_mib(0))
TEST_CALL(large_refused, with_mib(-EIO))
TEST_CALL(large_no_resources, with_mib(-ENOMEM))

/* Flushes may overlap, but must not rely on what another has not done yet. */
static bool is_done_meanwhile;

static void flush_beside(void)
{
	inject_record(fn);
	iommu_flush_iotlb_all(dom->domain);
	is_done_meanwhile = is_covered(data_iova(fn), PAGE_SIZE);
}

static int test_overlap(void)
{
	bool beside;
	int ret = test_domain_check(dom);

	is_done_meanwhile = false;
	if (!ret)
		ret = inject_pause_start(fn, 0, flush_beside);
	if (ret)
		return ret;
	ret = unmap(data_iova(fn), PAGE_SIZE, true);
	beside = inject_pause_end();
	inject_reset();
	if (!ret && !beside)
		ret = test_fail("a flush waits for another one to finish");
	if (!ret && !is_done_meanwhile)
		ret = test_fail("a flush returned before its range was refreshed");
	return ret ? ret : expect_gone(data_iova(fn));
}

/* Attach and block refresh no more than what is mapped. */

static int expect_no_refresh(const char *what)
{
	unsigned int asked = inject_counts().refreshes;

	return asked ? test_fail("%s: %u refreshes although nothing is mapped", what, asked) : 0;
}

static int test_attach_empty(void)
{
	int ret;

	admin_stop(fn);
	test_detach(dom);
	inject_reset();
	ret = test_attach(&pair[1]);
	if (!ret)
		ret = expect_no_refresh("attach");
	inject_reset();
	test_detach(&pair[1]);
	return ret ? ret : expect_no_refresh("block");
}

/* Two ranges far apart: refreshes cover them, and little else. */
static int expect_spans(dma_addr_t near, dma_addr_t far)
{
	unsigned int i, count = inject_steps(steps);
	u64 bytes = 0;

	for (i = 0; i < count; i++)
		bytes += steps[i].operation ? 0 : steps[i].size;
	if (!is_covered(near, PAGE_SIZE) || !is_covered(far, PAGE_SIZE))
		return test_fail("a mapped page was not refreshed");
	if (bytes > SZ_64M)
		return test_fail("%llu MiB were refreshed for a few pages", bytes / SZ_1M);
	return 0;
}

static int test_attach_spans(void)
{
	dma_addr_t far = fn->first + SZ_1G;
	int ret;

	if (far + SZ_1M > fn->last)
		return test_skip("the window is too small");
	ret = map_at(far, PAGE_SIZE);
	if (ret)
		return ret;
	admin_stop(fn);
	test_detach(dom);
	inject_record(fn);
	ret = test_attach(dom);
	if (!ret)
		ret = expect_spans(data_iova(fn), far);
	iommu_unmap(dom->domain, far, PAGE_SIZE);
	return ret;
}

static const struct test_case cases[] = {
	{ "map without READ and WRITE", test_map_nothing, &running },
	{ "map: no resources", test_map_no_resources, &running },
	{ "a full flush of 511 pages, 4 MiB apart", test_512, &running },
	{ "a full flush of 1023 pages, 2 MiB apart", test_1024, &running },
	{ "a full flush with no resources for the first refresh",
	  test_no_resources_once, &running },
	{ "a full flush with no resources", test_512_no_resources, &running },
	{ "a full flush leaves interrupts on", test_interrupts, &running },
	{ "a full flush of each of many chunks", test_every_chunk, &running },
	{ "a full flush, with DMA, in both halves of a word", test_half_of_chunks, &running },
	{ "two unmaps, one sync", test_two_unmaps, &running },
	{ "refused full flush, then a full flush", test_flush_then_flush, &running },
	{ "refused full flush, then an unmap", test_flush_then_unmap, &running },
	{ "refused unmap, then a full flush", test_unmap_then_flush, &running },
	{ "refused unmap, then an unmap", test_unmap_then_unmap, &running },
	{ "full flush without resources, then a full flush",
	  test_no_resources_then_flush, &running },
	{ "unmap without resources, then an unmap", test_no_resources_then_unmap, &running },
	{ "tables of a refused unmap", test_tables_strict, &running },
	{ "tables of a refused full flush", test_tables_queued, &running },
	{ "tables of an unmap without resources", test_tables_no_resources_strict, &running },
	{ "tables of a full flush without resources", test_tables_no_resources_queued, &running },
	{ "tables of a refused unmap, the domain freed", test_tables_freed_strict, &running },
	{ "tables of a refused full flush, the domain freed", test_tables_freed_queued,
	  &running },
	{ "tables of a full flush without resources, the domain freed",
	  test_tables_freed_no_resources, &running },
	{ "a large page over an empty table", test_large_over_table, &running },
	{ "a large page over an empty table, refused", test_large_refused, &running },
	{ "a large page over an empty table, no resources", test_large_no_resources,
	  &running },
	{ "attach and block of an empty domain", test_attach_empty, &running },
	{ "attach of a few pages far apart", test_attach_spans, &running },
	{ "two full flushes at once", test_overlap, &running },
	{}
};

TEST_SUITE(flush, "Tests of flushes and their cost", cases, &fn, &queue);
