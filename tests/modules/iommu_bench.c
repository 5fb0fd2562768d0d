// SPDX-License-Identifier: GPL-2.0
/*
 * Measures the cost of map, unmap and a full flush through the public IOMMU
 * API. It runs when it is loaded and writes its figures to the kernel log.
 *
 * The cost of map and unmap is measured on domains without devices: the
 * driver's own, generic_pt's x86-64 format, and two whose operations do
 * nothing, which show the cost of the core alone; then that of lookups, and of
 * single pages with the function attached, with its refreshes. On an emulator
 * that counts instructions (one per nanosecond of its clock) the figures are
 * instructions; a refresh is one of them.
 *
 * The cost of a full flush is measured on a domain with the function attached.
 */
#define pr_fmt(fmt) "iommu_bench: " fmt

#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/sort.h>
#include <asm/timex.h>

#include "bench.h"

static bool flush;
module_param(flush, bool, 0444);
MODULE_PARM_DESC(flush, "measure full flushes, not maps; the function must have no driver");

/* The best of these counts: the page allocator sometimes does more work. */
#define ROUNDS	4

/* Map and unmap */

/**
 * struct figures - the cost of one case
 * @map: cost of the maps
 * @unmap: cost of the unmaps
 */
struct figures {
	u64 map;
	u64 unmap;
};

/*
 * The TOD clock in nanoseconds. It counts 512 in 125 ns and rounds down, so
 * rounding up returns the emulator's clock.
 */
static u64 now(void)
{
	u64 tod = get_tod_clock_fast();

	return (tod >> 9) * 125 + DIV_ROUND_UP((tod & 511) * 125, 512);
}

/* The cost of reading the clock */
static u64 clock_cost(void)
{
	u64 start = now();

	return now() - start;
}

/* Right after a tick, the time until the next one is longest. */
static void wait_for_tick(void)
{
	unsigned long start = jiffies;

	while (start == READ_ONCE(jiffies))
		cpu_relax();
}

/*
 * Maps @size bytes @calls times, @stride apart. Inlined with constants, so the
 * loop costs next to nothing.
 */
static __always_inline int map_all(struct iommu_domain *domain, unsigned long iova,
				   phys_addr_t phys, size_t size, unsigned int calls,
				   size_t stride)
{
	unsigned int i;
	int ret;

	for (i = 0; i < calls; i++) {
		ret = iommu_map(domain, iova + i * stride, phys + i * size, size, RW, GFP_KERNEL);
		if (ret)
			return ret;
	}
	return 0;
}

static __always_inline size_t unmap_all(struct iommu_domain *domain, unsigned long iova,
					size_t size, unsigned int calls, size_t stride)
{
	size_t bytes = 0;
	unsigned int i;

	for (i = 0; i < calls; i++)
		bytes += iommu_unmap(domain, iova + i * stride, size);
	return bytes;
}

static __always_inline int measure_calls(struct iommu_domain *domain, struct figures *out,
					 unsigned long iova, phys_addr_t phys, size_t size,
					 unsigned int calls, size_t stride)
{
	u64 start, mapped;
	size_t bytes;
	int ret;

	wait_for_tick();
	start = now();
	ret = map_all(domain, iova, phys, size, calls, stride);
	mapped = now();
	if (ret)
		return ret;
	out->map = mapped - start - clock_cost();
	wait_for_tick();
	start = now();
	bytes = unmap_all(domain, iova, size, calls, stride);
	out->unmap = now() - start - clock_cost();
	return bytes == calls * size ? 0 : -EIO;
}

/* The address is less aligned than the IOVA if larger pages must not fit. */

static int measure_4k(struct iommu_domain *domain, struct figures *out)
{
	return measure_calls(domain, out, IOVA, PHYS + SZ_4K, SZ_4K, 1, 0);
}

static int measure_64k(struct iommu_domain *domain, struct figures *out)
{
	return measure_calls(domain, out, IOVA, PHYS + SZ_4K, SZ_64K, 1, 0);
}

static int measure_1m(struct iommu_domain *domain, struct figures *out)
{
	return measure_calls(domain, out, IOVA, PHYS + SZ_4K, SZ_1M, 1, 0);
}

static int measure_64m(struct iommu_domain *domain, struct figures *out)
{
	return measure_calls(domain, out, IOVA, PHYS + SZ_4K, SZ_64M, 1, 0);
}

static int measure_1g(struct iommu_domain *domain, struct figures *out)
{
	return measure_calls(domain, out, IOVA, PHYS, SZ_1G, 1, 0);
}

static int measure_singles(struct iommu_domain *domain, struct figures *out)
{
	return measure_calls(domain, out, IOVA, PHYS, SZ_4K, 256, SZ_2M);
}

/* In the window of every emulated function */
#define WINDOW	SZ_4G
#define STRIDE	SZ_2M
#define SINGLES	256

static int measure_attached_4k(struct iommu_domain *domain, struct figures *out)
{
	return measure_calls(domain, out, WINDOW, PHYS + SZ_4K, SZ_4K, 1, 0);
}

static int measure_attached_singles(struct iommu_domain *domain, struct figures *out)
{
	return measure_calls(domain, out, WINDOW, PHYS, SZ_4K, SINGLES, STRIDE);
}

struct bench_case {
	const char *name;
	int (*run)(struct iommu_domain *domain, struct figures *out);
};

static const struct bench_case cases[] = {
	{ "4K", measure_4k },
	{ "64K", measure_64k },
	{ "1M", measure_1m },
	{ "64M", measure_64m },
	{ "1G", measure_1g },
	{ "singles", measure_singles },
};

static const struct bench_case attached_cases[] = {
	{ "4K", measure_attached_4k },
	{ "singles", measure_attached_singles },
};

static int measure_case(const char *subject, struct iommu_domain *domain,
			const struct bench_case *which)
{
	struct figures best = { U64_MAX, U64_MAX }, figures = {};
	unsigned int round;
	int ret;

	/* The first round allocates permanent tables and warms the caches. */
	for (round = 0; round <= ROUNDS; round++) {
		ret = which->run(domain, &figures);
		if (ret) {
			pr_err("%s %s: error %d\n", subject, which->name, ret);
			return ret;
		}
		if (!round)
			continue;
		best.map = min(best.map, figures.map);
		best.unmap = min(best.unmap, figures.unmap);
	}
	pr_info("figure %s %s %llu %llu\n", subject, which->name, best.map, best.unmap);
	return 0;
}

static int measure(const char *subject, struct iommu_domain *domain)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < ARRAY_SIZE(cases) && !ret; i++)
		ret = measure_case(subject, domain, &cases[i]);
	return ret;
}

/* Looks up an IOVA in a mapped page, and one in an empty entry of the same table. */
static int measure_lookup(struct iommu_domain *domain)
{
	u64 start, mapped, empty;
	phys_addr_t phys;
	int ret = iommu_map(domain, IOVA, PHYS, SZ_4K, RW, GFP_KERNEL);

	if (ret)
		return ret;
	wait_for_tick();
	start = now();
	phys = iommu_iova_to_phys(domain, IOVA + 8);
	mapped = now() - start - clock_cost();
	wait_for_tick();
	start = now();
	if (iommu_iova_to_phys(domain, IOVA + SZ_4K))
		ret = -EIO;
	empty = now() - start - clock_cost();
	iommu_unmap(domain, IOVA, SZ_4K);
	if (ret || (phys & PAGE_MASK) != PHYS)
		return -EIO;
	pr_info("figure lookup 4K %llu %llu\n", mapped, empty);
	return 0;
}

static int measure_attached(struct pci_dev *pdev, struct iommu_domain *domain)
{
	struct zpci_dev *zdev = to_zpci(pdev);
	unsigned int i;
	int ret;

	if (zdev->start_dma > WINDOW || zdev->end_dma < WINDOW + SINGLES * STRIDE - 1)
		return -ERANGE;
	ret = iommu_device_claim_dma_owner(&pdev->dev, pdev);
	if (ret)
		return ret;
	ret = iommu_attach_device(domain, &pdev->dev);
	if (!ret) {
		for (i = 0; i < ARRAY_SIZE(attached_cases) && !ret; i++)
			ret = measure_case("attached", domain, &attached_cases[i]);
		iommu_detach_device(domain, &pdev->dev);
	}
	iommu_device_release_dma_owner(&pdev->dev);
	return ret;
}

/* Domains whose operations do nothing */

static int floor_map(struct iommu_domain *domain, unsigned long iova, phys_addr_t phys,
		     size_t pgsize, size_t pgcount, int prot, gfp_t gfp, size_t *mapped)
{
	*mapped = pgsize * pgcount;
	return 0;
}

static size_t floor_unmap(struct iommu_domain *domain, unsigned long iova, size_t pgsize,
			  size_t pgcount, struct iommu_iotlb_gather *gather)
{
	return pgsize * pgcount;
}

static int floor_sync_map(struct iommu_domain *domain, unsigned long iova, size_t size)
{
	return 0;
}

static void floor_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather)
{
}

static const struct iommu_domain_ops floor_ops = {
	.map_pages = floor_map,
	.unmap_pages = floor_unmap,
	.iotlb_sync_map = floor_sync_map,
	.iotlb_sync = floor_sync,
};

static struct iommu_domain floor_one_size = {
	.type = IOMMU_DOMAIN_UNMANAGED,
	.ops = &floor_ops,
	.pgsize_bitmap = SZ_4K,
};

static struct iommu_domain floor_two_sizes = {
	.type = IOMMU_DOMAIN_UNMANAGED,
	.ops = &floor_ops,
	.pgsize_bitmap = SZ_4K | SZ_1M,
};

static int measure_x86_64(void)
{
	static struct pt_iommu_x86_64 table;
	struct iommu_domain *domain = x86_64_make(&table);
	int ret;

	if (IS_ERR(domain))
		return PTR_ERR(domain);
	ret = measure("x86-64", domain);
	x86_64_free(domain);
	return ret;
}

static int bench_maps(struct pci_dev *pdev)
{
	struct iommu_domain *domain = iommu_paging_domain_alloc(&pdev->dev);
	int ret;

	if (IS_ERR(domain))
		return PTR_ERR(domain);
	pr_info("page-sizes %#lx\n", domain->pgsize_bitmap);
	ret = measure("driver", domain);
	if (!ret)
		ret = measure_lookup(domain);
	if (!ret)
		ret = measure_attached(pdev, domain);
	iommu_domain_free(domain);
	if (!ret)
		ret = measure_x86_64();
	if (!ret)
		ret = measure("floor", &floor_one_size);
	if (!ret)
		ret = measure("floor2", &floor_two_sizes);
	return ret;
}

/* Full flush */

/* Pages that stay mapped, across the whole window */
#define LIVE	32
/* Pages of a batch, contiguous at the end of the window */
#define BATCH	256
#define BATCHES	101

/* Refreshes, counted while this is on */
static struct {
	bool on;
	unsigned int count;
	u64 bytes;
	u64 first_start;
	u64 first_size;
} refreshes;

/* int zpci_refresh_trans(u64 fn, u64 addr, u64 range) */
static int on_refresh(struct kprobe *probe, struct pt_regs *regs)
{
	if (!refreshes.on)
		return 0;
	if (!refreshes.count++) {
		refreshes.first_start = regs->gprs[3];
		refreshes.first_size = regs->gprs[4];
	}
	refreshes.bytes += regs->gprs[4];
	return 0;
}

static struct kprobe refresh_probe = {
	.symbol_name = "zpci_refresh_trans",
	.pre_handler = on_refresh,
};

/* Unmaps like a flush queue: the flush comes after the batch. */
static int unmap_batch(struct iommu_domain *domain, unsigned long corner, u64 *time)
{
	struct iommu_iotlb_gather gather;
	size_t bytes = 0;
	unsigned int i;
	ktime_t start;

	iommu_iotlb_gather_init(&gather);
	gather.queued = true;
	refreshes.on = true;
	start = ktime_get();
	for (i = 0; i < BATCH; i++)
		bytes += iommu_unmap_fast(domain, corner + i * SZ_4K, SZ_4K, &gather);
	iommu_flush_iotlb_all(domain);
	*time = ktime_get() - start;
	refreshes.on = false;
	iommu_put_pages_list(&gather.freelist);
	return bytes == BATCH * SZ_4K ? 0 : -EIO;
}

static int run_batches(struct iommu_domain *domain, unsigned long corner, u64 *times)
{
	unsigned int i;
	int ret = 0;

	memset(&refreshes, 0, sizeof(refreshes));
	for (i = 0; i < BATCHES && !ret; i++) {
		ret = iommu_map(domain, corner, PHYS + SZ_4K, BATCH * SZ_4K, RW, GFP_KERNEL);
		if (ret)
			pr_err("batch %u: map: error %d\n", i, ret);
		else
			ret = unmap_batch(domain, corner, &times[i]);
		cond_resched();
	}
	return ret;
}

static int compare(const void *a, const void *b)
{
	return cmp_int(*(const u64 *)a, *(const u64 *)b);
}

/* Measures the time without the probe, and the ranges with it. */
static int flush_batches(struct iommu_domain *domain, unsigned long corner)
{
	static u64 times[BATCHES], ignored[BATCHES];
	int ret = run_batches(domain, corner, times);

	if (ret)
		return ret;
	sort(times, BATCHES, sizeof(*times), compare, NULL);
	ret = register_kprobe(&refresh_probe);
	if (ret)
		return ret;
	ret = run_batches(domain, corner, ignored);
	unregister_kprobe(&refresh_probe);
	if (ret)
		return ret;
	pr_info("batch pages %u batches %u start %#lx\n", BATCH, BATCHES, corner);
	pr_info("time best %llu median %llu\n", times[0], times[BATCHES / 2]);
	pr_info("refreshed ranges %u bytes %llu first %#llx size %#llx\n", refreshes.count,
		refreshes.bytes, refreshes.first_start, refreshes.first_size);
	return 0;
}

static int flush_attached(struct pci_dev *pdev, struct iommu_domain *domain)
{
	u64 first = to_zpci(pdev)->start_dma, last = to_zpci(pdev)->end_dma;
	u64 stride = div_u64(last - first + 1, LIVE);
	unsigned int i;
	int ret = 0;

	for (i = 0; i < LIVE && !ret; i++)
		ret = iommu_map(domain, first + i * stride, PHYS, SZ_4K, RW, GFP_KERNEL);
	if (ret)
		return ret;
	ret = iommu_attach_device(domain, &pdev->dev);
	if (ret)
		return ret;
	pr_info("window %#llx live %u\n", last - first + 1, LIVE);
	ret = flush_batches(domain, last + 1 - BATCH * SZ_4K);
	iommu_detach_device(domain, &pdev->dev);
	return ret;
}

static int bench_flush(struct pci_dev *pdev)
{
	struct iommu_domain *domain;
	int ret = iommu_device_claim_dma_owner(&pdev->dev, pdev);

	if (ret)
		return ret;
	domain = iommu_paging_domain_alloc(&pdev->dev);
	ret = PTR_ERR_OR_ZERO(domain);
	if (!ret) {
		ret = flush_attached(pdev, domain);
		iommu_domain_free(domain);
	}
	iommu_device_release_dma_owner(&pdev->dev);
	return ret;
}

static int bench_either(struct pci_dev *pdev)
{
	return flush ? bench_flush(pdev) : bench_maps(pdev);
}

BENCH(iommu_bench, "Measures the cost of map, unmap and a full flush", bench_either);
