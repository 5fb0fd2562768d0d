/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by iommu_bench.ko and iommu_scale.ko: the function whose IOMMU is
 * measured, the measurement when the module is loaded, and generic_pt's x86-64
 * format for comparison, set up as for an IOMMU that flushes ranges.
 */
#ifndef IOMMU_TEST_BENCH_H
#define IOMMU_TEST_BENCH_H

#include <linux/generic_pt/iommu.h>
#include <linux/iommu.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sizes.h>

#include "iommu-pages.h"

static char *bdf = "0000:00:00.0";
module_param(bdf, charp, 0444);
MODULE_PARM_DESC(bdf, "PCI function whose IOMMU is measured");

#define RW	(IOMMU_READ | IOMMU_WRITE)

/**
 * BENCH() - define a module that only takes measurements when it is loaded
 * @_name: the module's name, without quotation marks
 * @_about: its description
 * @_measure: measures the function's IOMMU
 */
#define BENCH(_name, _about, _measure)					\
static int __init _name##_init(void)					\
{									\
	return bench(_measure);						\
}									\
module_init(_name##_init);						\
									\
static void __exit _name##_exit(void)					\
{									\
}									\
module_exit(_name##_exit);						\
MODULE_IMPORT_NS("GENERIC_PT_IOMMU");					\
MODULE_DESCRIPTION(_about);						\
MODULE_LICENSE("GPL")

/* No memory is accessed, so any address will do. */
#define IOVA	0x200000000UL
#define PHYS	0x40000000UL

static void x86_64_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather)
{
	iommu_put_pages_list(&gather->freelist);
}

static const struct iommu_domain_ops x86_64_ops = {
	IOMMU_PT_DOMAIN_OPS(x86_64),
	.iotlb_sync = x86_64_sync,
};

static struct iommu_domain *x86_64_make(struct pt_iommu_x86_64 *table)
{
	static const struct pt_iommu_x86_64_cfg cfg = {
		.common.features = BIT(PT_FEAT_FLUSH_RANGE),
		.common.hw_max_vasz_lg2 = 47,
		.common.hw_max_oasz_lg2 = 52,
		.top_level = 3,
	};
	int ret;

	memset(table, 0, sizeof(*table));
	table->iommu.nid = NUMA_NO_NODE;
	table->iommu.domain.type = IOMMU_DOMAIN_UNMANAGED;
	table->iommu.domain.ops = &x86_64_ops;
	ret = pt_iommu_x86_64_init(table, &cfg, GFP_KERNEL);
	return ret ? ERR_PTR(ret) : &table->iommu.domain;
}

static void x86_64_free(struct iommu_domain *domain)
{
	pt_iommu_deinit(container_of(domain, struct pt_iommu, domain));
}

static int __init bench(int (*measure)(struct pci_dev *pdev))
{
	unsigned int seg, bus, slot, function;
	struct pci_dev *pdev;
	int ret;

	if (sscanf(bdf, "%x:%x:%x.%x", &seg, &bus, &slot, &function) != 4)
		return -EINVAL;
	pdev = pci_get_domain_bus_and_slot(seg, bus, PCI_DEVFN(slot, function));
	if (!pdev)
		return -ENODEV;
	ret = measure(pdev);
	pci_dev_put(pdev);
	return ret;
}

#endif /* IOMMU_TEST_BENCH_H */
