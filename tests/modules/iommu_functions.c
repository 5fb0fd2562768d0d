// SPDX-License-Identifier: GPL-2.0
/*
 * Measures the cost of a domain that many functions share: attaches, full
 * flushes, detaches, through the public IOMMU API. It runs when it is loaded
 * and writes its figures to the kernel log. It takes random number generators,
 * which do no DMA through the IOMMU, from their driver.
 */
#define pr_fmt(fmt) "iommu_functions: " fmt

#include <linux/iommu.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sort.h>

#define RW	(IOMMU_READ | IOMMU_WRITE)
#define PHYS	0x40000000UL

#define VIRTIO		0x1af4
#define VIRTIO_RNG	0x1044

#define MOST	64
#define FLUSHES	15

static struct pci_dev *functions[MOST];
static unsigned int taken;

static int take_all(void)
{
	struct pci_dev *pdev = NULL;
	int ret;

	while (taken < MOST && (pdev = pci_get_device(VIRTIO, VIRTIO_RNG, pdev))) {
		device_release_driver(&pdev->dev);
		ret = iommu_device_claim_dma_owner(&pdev->dev, functions);
		if (ret) {
			pci_dev_put(pdev);
			return ret;
		}
		functions[taken++] = pci_dev_get(pdev);
	}
	pci_dev_put(pdev);
	return taken ? 0 : -ENODEV;
}

static void give_back(void)
{
	while (taken--) {
		iommu_device_release_dma_owner(&functions[taken]->dev);
		pci_dev_put(functions[taken]);
	}
}

static int compare(const void *a, const void *b)
{
	return cmp_int(*(const u64 *)a, *(const u64 *)b);
}

/* A full flush after the unmap of a page, like a flush queue */
static int flush(struct iommu_domain *domain, unsigned long iova, u64 *time)
{
	u64 times[FLUSHES];
	unsigned int i;
	int ret;

	for (i = 0; i < FLUSHES; i++) {
		struct iommu_iotlb_gather gather;
		ktime_t start;

		ret = iommu_map(domain, iova, PHYS, PAGE_SIZE, RW, GFP_KERNEL);
		if (ret)
			return ret;
		iommu_iotlb_gather_init(&gather);
		gather.queued = true;
		if (iommu_unmap_fast(domain, iova, PAGE_SIZE, &gather) != PAGE_SIZE)
			return -EIO;
		start = ktime_get();
		iommu_flush_iotlb_all(domain);
		times[i] = ktime_get() - start;
	}
	sort(times, FLUSHES, sizeof(*times), compare, NULL);
	*time = times[FLUSHES / 2];
	return 0;
}

static int share_domain(struct iommu_domain *domain)
{
	unsigned long iova = to_zpci(functions[0])->start_dma;
	unsigned int attached, steps = 1;
	u64 attach = 0, time;
	ktime_t start;
	int ret = 0;

	for (attached = 0; attached < taken;) {
		start = ktime_get();
		ret = iommu_attach_device(domain, &functions[attached]->dev);
		attach += ktime_get() - start;
		if (ret)
			break;
		if (++attached != steps)
			continue;
		ret = flush(domain, iova, &time);
		if (ret)
			break;
		pr_info("shared %u attach %llu flush %llu\n", attached, attach, time);
		steps *= 4;
	}
	start = ktime_get();
	while (attached--)
		iommu_detach_device(domain, &functions[attached]->dev);
	if (!ret)
		pr_info("detached %u %llu\n", taken, (u64)(ktime_get() - start));
	return ret;
}

static int __init iommu_functions_init(void)
{
	struct iommu_domain *domain;
	int ret = take_all();

	if (!ret) {
		domain = iommu_paging_domain_alloc(&functions[0]->dev);
		ret = PTR_ERR_OR_ZERO(domain);
		if (!ret) {
			ret = share_domain(domain);
			iommu_domain_free(domain);
		}
	}
	give_back();
	return ret;
}

static void __exit iommu_functions_exit(void)
{
}

module_init(iommu_functions_init);
module_exit(iommu_functions_exit);
MODULE_DESCRIPTION("Measures a domain that many functions share");
MODULE_LICENSE("GPL");
