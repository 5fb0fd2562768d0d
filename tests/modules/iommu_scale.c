// SPDX-License-Identifier: GPL-2.0
/*
 * Measures how maps and unmaps of 4 KiB scale with the number of CPUs, and how
 * much memory tables need, through the public IOMMU API. It runs when it is
 * loaded and writes its figures to the kernel log.
 *
 * No device is attached. The module counts pairs of a map and an unmap for a
 * while, on 1, 2, 4 and 8 CPUs: each CPU in its own range, and all CPUs in one
 * page table. It does the same with generic_pt's x86-64 format. Subjects and
 * numbers of CPUs alternate in every round, so that load on the host affects
 * all.
 */
#define pr_fmt(fmt) "iommu_scale: " fmt

#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/vmstat.h>

#include "bench.h"

static unsigned int rounds = 5;
module_param(rounds, uint, 0444);
MODULE_PARM_DESC(rounds, "how often each figure is measured");

static unsigned int window = 60;
module_param(window, uint, 0444);
MODULE_PARM_DESC(window, "milliseconds that a measurement takes");

#define MOST	8

static const struct {
	const char *name;
	/* Distance between the pages of two CPUs */
	unsigned long stride;
} layouts[] = {
	{ "apart", SZ_64M },
	/* The 32 entries of a cache line: no two CPUs share one. */
	{ "leaf", 32 * SZ_4K },
};

/**
 * struct worker - a CPU that maps and unmaps
 * @domain: the domain
 * @iova: its page
 * @pairs: number of pairs of a map and an unmap
 * @error: the first error
 */
struct worker {
	struct iommu_domain *domain;
	unsigned long iova;
	u64 pairs;
	int error;
} ____cacheline_aligned;

static struct worker workers[MOST];
static bool go;
static atomic_t ready;

static int work(void *data)
{
	struct worker *worker = data;

	atomic_inc(&ready);
	while (!READ_ONCE(go) && !kthread_should_stop())
		cpu_relax();
	while (READ_ONCE(go) && !worker->error) {
		worker->error = iommu_map(worker->domain, worker->iova, PHYS, SZ_4K, RW,
					  GFP_KERNEL);
		if (!worker->error &&
		    iommu_unmap(worker->domain, worker->iova, SZ_4K) != SZ_4K)
			worker->error = -EIO;
		worker->pairs++;
		cond_resched();
	}
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return worker->error;
}

/* The pairs per second of @count CPUs, or an error */
static s64 measure(struct iommu_domain *domain, unsigned long stride, unsigned int count)
{
	struct task_struct *tasks[MOST];
	unsigned int i, started = 0;
	ktime_t start, end;
	u64 pairs = 0;
	int ret = 0;

	go = false;
	atomic_set(&ready, 0);
	for (i = 0; i < count; i++) {
		workers[i] = (struct worker){ .domain = domain, .iova = IOVA + i * stride };
		tasks[i] = kthread_create_on_cpu(work, &workers[i], i, "iommu_scale/%u");
		if (IS_ERR(tasks[i])) {
			ret = PTR_ERR(tasks[i]);
			break;
		}
		started++;
		wake_up_process(tasks[i]);
	}
	/* Stopping a thread before it ran is an error, but not of a map. */
	while (atomic_read(&ready) < started)
		schedule_timeout_uninterruptible(1);
	start = ktime_get();
	if (!ret) {
		WRITE_ONCE(go, true);
		msleep(window);
	}
	WRITE_ONCE(go, false);
	end = ktime_get();
	for (i = 0; i < started; i++) {
		int error = kthread_stop(tasks[i]);

		pairs += workers[i].pairs;
		ret = ret ?: error;
	}
	return ret ?: (s64)div64_u64(pairs * NSEC_PER_SEC, end - start);
}

static int measure_all(const char *subject, struct iommu_domain *domain, unsigned int round)
{
	unsigned int count, layout;

	for (layout = 0; layout < ARRAY_SIZE(layouts); layout++) {
		for (count = 1; count <= MOST && count <= num_online_cpus(); count *= 2) {
			s64 rate = measure(domain, layouts[layout].stride, count);

			if (rate < 0) {
				pr_err("%s %s %u: error %lld\n", subject, layouts[layout].name,
				       count, rate);
				return rate;
			}
			/*
			 * Round 0 allocates tables and warms up the emulator.
			 */
			if (round)
				pr_info("scale %s %s %u %lld\n", subject, layouts[layout].name,
					count, rate);
		}
	}
	return 0;
}

/* Memory for tables */

/* A counter of pages, including what CPUs have not added to it yet */
static long exact(enum node_stat_item item)
{
	long pages = atomic_long_read(&vm_node_stat[item]);
	unsigned int cpu;

	for_each_online_cpu(cpu)
		pages += per_cpu_ptr(NODE_DATA(0)->per_cpu_nodestats, cpu)->vm_node_stat_diff[item];
	return pages;
}

/*
 * The driver in C allocates tables from slabs. All others allocate pages, which
 * are counted as secondary page tables.
 */
static long table_pages(void)
{
	return exact(NR_SECONDARY_PAGETABLE) + exact(NR_SLAB_UNRECLAIMABLE_B);
}

static int unmap_pieces(struct iommu_domain *domain, unsigned long bytes, unsigned long piece,
			unsigned long stride)
{
	unsigned long at;

	for (at = 0; at < bytes; at += stride) {
		if (iommu_unmap(domain, IOVA + at, piece) != piece)
			return -EIO;
		cond_resched();
	}
	return 0;
}

static int map_pieces(struct iommu_domain *domain, unsigned long bytes, unsigned long piece,
		      unsigned long stride)
{
	unsigned long at;
	int ret = 0;

	for (at = 0; at < bytes && !ret; at += stride) {
		/* The address is less aligned, so no large page fits. */
		ret = iommu_map(domain, IOVA + at, PHYS + SZ_4K, piece, RW, GFP_KERNEL);
		cond_resched();
	}
	return ret;
}

/*
 * Measures how many bytes of tables a GiB needs that is mapped in pieces, and
 * how many are left after it was unmapped in pieces.
 */
static int measure_memory(const char *subject, struct iommu_domain *domain, const char *name,
			  unsigned long piece, unsigned long stride, unsigned long unmap)
{
	long before = table_pages(), full, left;
	int ret = map_pieces(domain, SZ_1G, piece, stride);

	if (ret)
		return ret;
	full = table_pages();
	ret = unmap_pieces(domain, SZ_1G, unmap, unmap < stride ? stride : unmap);
	left = table_pages();
	if (!ret)
		pr_info("memory %s %s %lu %ld %ld\n", subject, name, SZ_1G / stride * piece,
			(full - before) * PAGE_SIZE, (left - before) * PAGE_SIZE);
	return ret;
}

static const struct {
	const char *name;
	/* Size of a map, distance between maps, size of an unmap */
	unsigned long piece;
	unsigned long stride;
	unsigned long unmap;
} patterns[] = {
	{ "dense", SZ_1G, SZ_1G, SZ_1G },
	{ "pieces", SZ_1M, SZ_1M, SZ_1M },
	{ "pages", SZ_64K, SZ_64K, SZ_64K },
	{ "scattered", SZ_4K, SZ_1M, SZ_4K },
};

/**
 * struct subject - a page table format to measure
 * @name: its name in the log
 * @make: allocates an empty one
 * @free: frees it
 */
struct subject {
	const char *name;
	struct iommu_domain *(*make)(struct pci_dev *pdev, unsigned int index);
	void (*free)(struct iommu_domain *domain);
};

static struct iommu_domain *make_driver(struct pci_dev *pdev, unsigned int index)
{
	return iommu_paging_domain_alloc(&pdev->dev);
}

static struct iommu_domain *make_x86_64(struct pci_dev *pdev, unsigned int index)
{
	static struct pt_iommu_x86_64 tables[ARRAY_SIZE(patterns)];

	return x86_64_make(&tables[index]);
}

static const struct subject subjects[] = {
	{ "driver", make_driver, iommu_domain_free },
	{ "x86-64", make_x86_64, x86_64_free },
};

static int scale(struct pci_dev *pdev)
{
	struct iommu_domain *domains[ARRAY_SIZE(subjects)];
	unsigned int i, made, round;
	int ret = 0;

	for (made = 0; made < ARRAY_SIZE(subjects); made++) {
		domains[made] = subjects[made].make(pdev, 0);
		ret = PTR_ERR_OR_ZERO(domains[made]);
		if (ret)
			break;
	}
	for (round = 0; round <= rounds && !ret; round++)
		for (i = 0; i < made && !ret; i++)
			ret = measure_all(subjects[i].name, domains[i], round);
	while (made--)
		subjects[made].free(domains[made]);
	return ret;
}

/* Frees no domain before all are measured, because slabs would be reused. */
static int memory_of(struct pci_dev *pdev, const struct subject *subject)
{
	struct iommu_domain *domains[ARRAY_SIZE(patterns)];
	unsigned int made;
	int ret = 0;

	for (made = 0; made < ARRAY_SIZE(patterns) && !ret; made++) {
		domains[made] = subject->make(pdev, made);
		if (IS_ERR(domains[made])) {
			ret = PTR_ERR(domains[made]);
			break;
		}
		ret = measure_memory(subject->name, domains[made], patterns[made].name,
				     patterns[made].piece, patterns[made].stride,
				     patterns[made].unmap);
	}
	while (made--)
		subject->free(domains[made]);
	return ret;
}

static int memory(struct pci_dev *pdev)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < ARRAY_SIZE(subjects) && !ret; i++)
		ret = memory_of(pdev, &subjects[i]);
	return ret;
}

static int measure_both(struct pci_dev *pdev)
{
	int ret;

	pr_info("cpus %u rounds %u window %u\n", num_online_cpus(), rounds, window);
	ret = scale(pdev);
	return ret ? ret : memory(pdev);
}

BENCH(iommu_scale, "Measures how maps and unmaps scale, and the memory for tables", measure_both);
