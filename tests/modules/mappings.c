// SPDX-License-Identifier: GPL-2.0
/*
 * Not a suite: this provides a domain to inspect while the module is loaded.
 * The guest's suite "observability" knows its mappings.
 */
#define pr_fmt(fmt) "mappings: " fmt

#include <linux/delay.h>
#include <linux/iommu.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sizes.h>

#include "iommu_test.h"

/* Three contiguous pages, and a read-only page after them */
#define PAGES		0x0100000000ULL
#define PAGES_TO	(NO_MEMORY + 0x12340000)
#define READ_ONLY	0x0100003000ULL
#define READ_ONLY_TO	(NO_MEMORY + 0x12343000)
/* 2 MiB, aligned, at the end of a table */
#define FRAMES		0x017fe00000ULL
#define FRAMES_TO	(NO_MEMORY + SZ_1G)
/* Pages that all map to the same address */
#define MANY		0x0200000000ULL
#define MANY_TO		(NO_MEMORY + 0x55555000)
/* 4 MiB that are mapped and unmapped, with all page tables */
#define CHURN		0x0300000000ULL
#define CHURN_TO	(NO_MEMORY + 0x66661000)

static unsigned int many;
module_param(many, uint, 0444);
MODULE_PARM_DESC(many, "how many pages to map as separate ranges");

static bool churn;
module_param(churn, bool, 0444);
MODULE_PARM_DESC(churn, "map and unmap continuously");

static struct pci_dev *pdev;
static struct iommu_domain *domain;
static struct task_struct *thread;

static int map(u64 iova, u64 phys, size_t size, int prot)
{
	return iommu_map(domain, iova, phys, size, prot, GFP_KERNEL);
}

static int map_all(void)
{
	const int both = IOMMU_READ | IOMMU_WRITE;
	unsigned int i;
	int ret;

	ret = map(PAGES, PAGES_TO, 3 * PAGE_SIZE, both);
	if (!ret)
		ret = map(READ_ONLY, READ_ONLY_TO, PAGE_SIZE, IOMMU_READ);
	if (!ret)
		ret = map(FRAMES, FRAMES_TO, SZ_2M, both);
	/* The last page of the aperture */
	if (!ret)
		ret = map(domain->geometry.aperture_end - PAGE_SIZE + 1, PAGES_TO,
			  PAGE_SIZE, both);
	for (i = 0; !ret && i < many; i++)
		ret = map(MANY + (u64)i * PAGE_SIZE, MANY_TO, PAGE_SIZE, both);
	return ret;
}

static int come_and_go(void *unused)
{
	while (!kthread_should_stop()) {
		if (map(CHURN, CHURN_TO, SZ_4M, IOMMU_READ)) {
			pr_err("no memory to map\n");
			msleep(20);
			continue;
		}
		if (iommu_unmap(domain, CHURN, SZ_4M) != SZ_4M)
			pr_err("WARNING: unmapped less than was mapped\n");
		cond_resched();
	}
	return 0;
}

static void forget(void)
{
	iommu_domain_free(domain);
	pci_dev_put(pdev);
}

static int __init seen_init(void)
{
	int ret;

	pdev = pci_get_class(PCI_CLASS_STORAGE_EXPRESS, NULL);
	if (!pdev)
		return -ENODEV;
	domain = iommu_paging_domain_alloc(&pdev->dev);
	if (IS_ERR(domain)) {
		pci_dev_put(pdev);
		return PTR_ERR(domain);
	}
	ret = map_all();
	if (!ret && churn) {
		thread = kthread_run(come_and_go, NULL, "mappings");
		ret = PTR_ERR_OR_ZERO(thread);
	}
	if (ret)
		forget();
	return ret;
}

static void __exit seen_exit(void)
{
	if (thread)
		kthread_stop(thread);
	forget();
}

module_init(seen_init);
module_exit(seen_exit);
MODULE_DESCRIPTION("A domain to inspect");
MODULE_LICENSE("GPL");
