// SPDX-License-Identifier: GPL-2.0
/*
 * Provides a domain without functions that has many tables while this module is
 * loaded. The guest's program checks how the kernel accounts for the memory.
 */
#define pr_fmt(fmt) "tables: " fmt

#include <linux/iommu.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sizes.h>

#include "iommu_test.h"

/* Not aligned to a large page, so there is a page table for each MiB. */
#define PHYS	(NO_MEMORY + SZ_4K)
#define BASE	SZ_4G

static unsigned int mebibytes = 1024;
module_param(mebibytes, uint, 0444);
MODULE_PARM_DESC(mebibytes, "how many MiB to map, with one page table each");

static bool account;
module_param(account, bool, 0444);
MODULE_PARM_DESC(account, "charge the tables to the calling task");

static struct iommu_domain *domain;

static size_t size(void)
{
	return (size_t)mebibytes * SZ_1M;
}

/* Writing 0 unmaps everything but keeps the domain. */
static int set_mapped(const char *value, const struct kernel_param *parameter)
{
	bool mapped;
	int ret = kstrtobool(value, &mapped);

	if (ret || mapped || !domain)
		return ret ? ret : -EINVAL;
	return iommu_unmap(domain, BASE, size()) == size() ? 0 : -EIO;
}

static const struct kernel_param_ops mapped_ops = {
	.set = set_mapped,
};

module_param_cb(mapped, &mapped_ops, NULL, 0200);
MODULE_PARM_DESC(mapped, "write 0 to unmap");

static int __init tables_init(void)
{
	/* Any function will do. */
	struct pci_dev *pdev = pci_get_device(PCI_ANY_ID, PCI_ANY_ID, NULL);
	int ret;

	if (!pdev)
		return -ENODEV;
	domain = iommu_paging_domain_alloc(&pdev->dev);
	pci_dev_put(pdev);
	if (IS_ERR(domain))
		return PTR_ERR(domain);
	ret = iommu_map(domain, BASE, PHYS, size(), IOMMU_READ,
			account ? GFP_KERNEL_ACCOUNT : GFP_KERNEL);
	if (ret)
		iommu_domain_free(domain);
	return ret;
}

static void __exit tables_exit(void)
{
	iommu_domain_free(domain);
}

module_init(tables_init);
module_exit(tables_exit);
MODULE_DESCRIPTION("A domain with many tables");
MODULE_LICENSE("GPL");
