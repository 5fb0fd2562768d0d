// SPDX-License-Identifier: GPL-2.0
/*
 * The functions under test, and domains for them.
 *
 * Our own driver is bound to them (by driver_override), as the IOMMU API
 * expects of its callers. It lets the kernel reset the function when an error
 * event is reported.
 */
#define pr_fmt(fmt) "iommu_test: " fmt

#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "internal.h"

#include "iommu-pages.h"
/*
 * For iommu_replace_group_handle(), which iommufd uses. It is the only way from
 * one domain to another that does not go through the blocked domain.
 */
#include "iommu-priv.h"

#define RECOVERY_LIMIT (20 * HZ)
#define SETTLE_LIMIT_MS 5000

static struct test_function *functions[TEST_MAX_FUNCTIONS];

/**
 * test_function() - get a function under test
 * @index: its index, in the order of addresses
 *
 * Returns: the function, or NULL if there are fewer
 */
struct test_function *test_function(unsigned int index)
{
	return index < TEST_MAX_FUNCTIONS ? functions[index] : NULL;
}
EXPORT_SYMBOL_GPL(test_function);

/**
 * test_sees_no_maps() - check whether a function needs a refresh after a map
 * @fn: the function
 *
 * Returns: 0 if it does, TEST_SKIPPED if the machine finds new mappings without
 * a refresh
 */
int test_sees_no_maps(struct test_function *fn)
{
	if (to_zpci(fn->pdev)->tlb_refresh)
		return 0;
	return test_skip("the machine finds new mappings without a refresh");
}
EXPORT_SYMBOL_GPL(test_sees_no_maps);

/*
 * The window is what the reserved regions leave. It is read before anything is
 * attached, so that later changes are detected.
 */
static void read_window(struct test_function *fn)
{
	struct iommu_resv_region *region;
	LIST_HEAD(regions);

	fn->first = 0;
	fn->last = U64_MAX;
	iommu_get_resv_regions(&fn->pdev->dev, &regions);
	list_for_each_entry(region, &regions, list) {
		if (!region->start)
			fn->first = region->length;
		else if (region->start - 1 < fn->last)
			fn->last = region->start - 1;
	}
	iommu_put_resv_regions(&fn->pdev->dev, &regions);
}

static int test_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct test_function *fn;
	unsigned int i;
	int ret;

	for (i = 0; i < TEST_MAX_FUNCTIONS && functions[i]; i++)
		;
	if (i == TEST_MAX_FUNCTIONS)
		return -ENOSPC;

	fn = devm_kzalloc(&pdev->dev, sizeof(*fn), GFP_KERNEL);
	if (!fn)
		return -ENOMEM;
	fn->pdev = pdev;
	init_completion(&fn->resumed);
	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	fn->bar = pcim_iomap_region(pdev, 0, "iommu_test");
	if (IS_ERR(fn->bar))
		return PTR_ERR(fn->bar);
	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	fn->group = iommu_group_get(&pdev->dev);
	if (!fn->group)
		return -ENODEV;
	pci_set_master(pdev);
	pci_save_state(pdev);
	read_window(fn);
	pci_set_drvdata(pdev, fn);
	functions[i] = fn;
	return 0;
}

static void test_remove(struct pci_dev *pdev)
{
	struct test_function *fn = pci_get_drvdata(pdev);
	unsigned int i;

	admin_stop(fn);
	iommu_group_put(fn->group);
	for (i = 0; i < TEST_MAX_FUNCTIONS; i++)
		if (functions[i] == fn)
			functions[i] = NULL;
}

static pci_ers_result_t on_error(struct pci_dev *pdev, pci_channel_state_t state)
{
	struct test_function *fn = pci_get_drvdata(pdev);

	atomic_inc(&fn->errors);
	if (state == pci_channel_io_perm_failure)
		return PCI_ERS_RESULT_DISCONNECT;
	return fn->keeps_state ? PCI_ERS_RESULT_CAN_RECOVER : PCI_ERS_RESULT_NEED_RESET;
}

static pci_ers_result_t on_slot_reset(struct pci_dev *pdev)
{
	struct test_function *fn = pci_get_drvdata(pdev);

	atomic_inc(&fn->resets);
	pci_restore_state(pdev);
	pci_save_state(pdev);
	pci_set_master(pdev);
	return PCI_ERS_RESULT_RECOVERED;
}

static void on_resume(struct pci_dev *pdev)
{
	struct test_function *fn = pci_get_drvdata(pdev);

	complete(&fn->resumed);
}

static const struct pci_error_handlers test_error_handlers = {
	.error_detected = on_error,
	.slot_reset = on_slot_reset,
	.resume = on_resume,
};

/* Binds only by driver_override. */
static const struct pci_device_id test_ids[] = { {} };

static struct pci_driver test_driver = {
	.name = "iommu_test",
	.id_table = test_ids,
	.probe = test_probe,
	.remove = test_remove,
	.err_handler = &test_error_handlers,
	/* The suites attach their own domains. */
	.driver_managed_dma = true,
};

/**
 * test_wait_recovery() - wait until the kernel has recovered the function
 * @fn: the function that caused an error event
 *
 * Returns: 0, or a failed test if it is not recovered in time
 */
int test_wait_recovery(struct test_function *fn)
{
	if (!wait_for_completion_timeout(&fn->resumed, RECOVERY_LIMIT))
		return test_fail("no error event, or no recovery from it");
	return 0;
}
EXPORT_SYMBOL_GPL(test_wait_recovery);

/**
 * test_recover_if_broken() - wait for the recovery of a function that may have
 *	caused an error event
 * @fn: the function
 *
 * Returns: 0 or a failed test
 */
int test_recover_if_broken(struct test_function *fn)
{
	if (admin_answers(fn) && !atomic_read(&fn->errors))
		return 0;
	return test_wait_recovery(fn);
}
EXPORT_SYMBOL_GPL(test_recover_if_broken);

/**
 * test_reset() - reset the function, like a reset through sysfs
 * @fn: the function
 *
 * Returns: 0 or a failed test
 */
int test_reset(struct test_function *fn)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	int ret;

	/* A reset fails if a recovery still holds the lock at its end. */
	mutex_lock(&zdev->state_lock);
	mutex_unlock(&zdev->state_lock);
	ret = pci_reset_function(fn->pdev);
	return ret ? test_fail("reset: error %d", ret) : 0;
}
EXPORT_SYMBOL_GPL(test_reset);

/**
 * test_queue_alloc() - allocate the pages of an admin queue
 * @queue: gets the pages
 *
 * Returns: 0 or -ENOMEM
 */
int test_queue_alloc(struct test_queue *queue)
{
	queue->sq = (void *)get_zeroed_page(GFP_KERNEL);
	queue->cq = (void *)get_zeroed_page(GFP_KERNEL);
	if (queue->sq && queue->cq)
		return 0;
	test_queue_free(queue);
	return -ENOMEM;
}
EXPORT_SYMBOL_GPL(test_queue_alloc);

/**
 * test_queue_free() - free the pages of an admin queue
 * @queue: the pages
 */
void test_queue_free(struct test_queue *queue)
{
	free_page((unsigned long)queue->sq);
	free_page((unsigned long)queue->cq);
}
EXPORT_SYMBOL_GPL(test_queue_free);

/**
 * test_suite() - run a suite on the first function under test
 * @name: the suite's name
 * @cases: its tests
 * @fn: is set to the function
 * @queue: gets the pages of an admin queue, or NULL
 *
 * Returns: 0 even if tests fail, -ENODEV or -ENOMEM
 */
int test_suite(const char *name, const struct test_case *cases,
	       struct test_function **fn, struct test_queue *queue)
{
	int ret;

	*fn = test_function(0);
	if (!*fn)
		return -ENODEV;
	if (!queue)
		return test_run(name, cases);
	ret = test_queue_alloc(queue);
	if (ret)
		return ret;
	ret = test_run(name, cases);
	test_queue_free(queue);
	return ret;
}
EXPORT_SYMBOL_GPL(test_suite);

/**
 * test_map_page() - map a page for reading and writing
 * @dom: the domain
 * @iova: its IOVA
 * @page: the page
 *
 * Returns: 0 or the core's error, which this function does not report
 */
int test_map_page(struct test_domain *dom, dma_addr_t iova, void *page)
{
	return iommu_map(dom->domain, iova, virt_to_phys(page), PAGE_SIZE, RW, GFP_KERNEL);
}
EXPORT_SYMBOL_GPL(test_map_page);

/**
 * test_unmap_page() - unmap a page if one is mapped
 * @dom: the domain
 * @iova: its IOVA
 *
 * Does not unmap a page that is not mapped, because the driver in C would warn.
 */
void test_unmap_page(struct test_domain *dom, dma_addr_t iova)
{
	if (iommu_iova_to_phys(dom->domain, iova))
		iommu_unmap(dom->domain, iova, PAGE_SIZE);
}
EXPORT_SYMBOL_GPL(test_unmap_page);

/**
 * test_unmap_queued() - unmap like the DMA API's flush queue, with a full flush
 *	at the end
 * @domain: the domain
 * @iova: first IOVA
 * @size: number of bytes
 *
 * Returns: the number of unmapped bytes
 */
size_t test_unmap_queued(struct iommu_domain *domain, dma_addr_t iova, size_t size)
{
	struct iommu_iotlb_gather gather;
	size_t done;

	iommu_iotlb_gather_init(&gather);
	gather.queued = true;
	done = iommu_unmap_fast(domain, iova, size, &gather);
	iommu_flush_iotlb_all(domain);
	iommu_put_pages_list(&gather.freelist);
	return done;
}
EXPORT_SYMBOL_GPL(test_unmap_queued);

/**
 * test_domain_alloc() - allocate an empty domain and its data page
 * @dom: gets both
 * @fn: the function that the domain is for
 *
 * Returns: 0 or a failed test
 */
int test_domain_alloc(struct test_domain *dom, struct test_function *fn)
{
	int ret;

	dom->fn = fn;
	dom->domain = NULL;
	dom->data = (void *)get_zeroed_page(GFP_KERNEL);
	if (!dom->data)
		return -ENOMEM;
	dom->domain = iommu_paging_domain_alloc(&fn->pdev->dev);
	if (!IS_ERR(dom->domain))
		return 0;
	free_page((unsigned long)dom->data);
	dom->data = NULL;
	ret = test_fail("cannot allocate a domain: %pe", dom->domain);
	dom->domain = NULL;
	return ret;
}
EXPORT_SYMBOL_GPL(test_domain_alloc);

static int map_at(struct test_domain *dom, dma_addr_t iova, void *page)
{
	int ret = test_map_page(dom, iova, page);

	return ret ? test_fail("map at %pad: error %d", &iova, ret) : 0;
}

/**
 * test_domain_map() - map the admin queue and the data page
 * @dom: the domain
 * @queue: the queue's pages
 *
 * Returns: 0 or a failed test
 */
int test_domain_map(struct test_domain *dom, struct test_queue *queue)
{
	int ret = map_at(dom, sq_iova(dom->fn), queue->sq);

	if (!ret)
		ret = map_at(dom, cq_iova(dom->fn), queue->cq);
	if (!ret)
		ret = map_at(dom, data_iova(dom->fn), dom->data);
	return ret;
}
EXPORT_SYMBOL_GPL(test_domain_map);

/**
 * test_domain_free() - unmap everything and free the domain
 * @dom: the domain, which is not attached; may have no domain
 */
void test_domain_free(struct test_domain *dom)
{
	if (!dom->domain)
		return;
	test_unmap_page(dom, sq_iova(dom->fn));
	test_unmap_page(dom, cq_iova(dom->fn));
	test_unmap_page(dom, data_iova(dom->fn));
	iommu_domain_free(dom->domain);
	free_page((unsigned long)dom->data);
}
EXPORT_SYMBOL_GPL(test_domain_free);

/**
 * test_domain_start() - start the controller on the domain's admin queue
 * @dom: the domain that the function is attached to
 * @queue: the queue's pages, mapped there
 *
 * Returns: 0 or a failed test
 */
int test_domain_start(struct test_domain *dom, struct test_queue *queue)
{
	return admin_start(dom->fn, queue->sq, sq_iova(dom->fn),
				queue->cq, cq_iova(dom->fn));
}
EXPORT_SYMBOL_GPL(test_domain_start);

/**
 * test_domain_check() - make the device write to the data page
 * @dom: the domain that the function must be attached to
 *
 * Returns: 0 if the data arrived in this domain's page, or a failed test
 */
int test_domain_check(struct test_domain *dom)
{
	return admin_check(dom->fn, data_iova(dom->fn), dom->data);
}
EXPORT_SYMBOL_GPL(test_domain_check);

/**
 * test_domain_renew() - free a domain, as the core does after a failed attach,
 *	and allocate another one
 * @dom: the domain; gets the new one, with nothing mapped
 * @page: gets the data page of the old one, which is not freed
 *
 * Returns: 0 or a failed test
 */
int test_domain_renew(struct test_domain *dom, void **page)
{
	void *data = (void *)get_zeroed_page(GFP_KERNEL);

	if (!data)
		return -ENOMEM;
	*page = dom->data;
	dom->data = data;
	test_domain_free(dom);
	return test_domain_alloc(dom, dom->fn);
}
EXPORT_SYMBOL_GPL(test_domain_renew);

/*
 * After a test that ended in the error state, the kernel may still be about to
 * reset the function. Waits until this is done, so that it does not affect the
 * next test.
 */
static void settle(struct test_function *fn)
{
	ktime_t end = ktime_add_ms(ktime_get(), SETTLE_LIMIT_MS);

	fn->keeps_state = false;
	while (!admin_answers(fn) && ktime_before(ktime_get(), end))
		msleep(20);
	/* The recovery holds the lock until its end. */
	device_lock(&fn->pdev->dev);
	device_unlock(&fn->pdev->dev);
	if (!admin_answers(fn))
		test_reset(fn);
	atomic_set(&fn->errors, 0);
	atomic_set(&fn->resets, 0);
	reinit_completion(&fn->resumed);
}

/**
 * test_claim() - take the function from the DMA API, which blocks it
 * @fn: the function
 *
 * Restarts the count of instructions and refuses none.
 *
 * Returns: 0 or a failed test
 */
int test_claim(struct test_function *fn)
{
	int ret;

	inject_reset();
	settle(fn);
	ret = iommu_device_claim_dma_owner(&fn->pdev->dev, fn);
	return ret ? test_fail("claim: error %d", ret) : 0;
}
EXPORT_SYMBOL_GPL(test_claim);

/**
 * test_release() - return the function to the DMA API
 * @fn: the function
 */
void test_release(struct test_function *fn)
{
	iommu_device_release_dma_owner(&fn->pdev->dev);
}
EXPORT_SYMBOL_GPL(test_release);

/**
 * test_replace() - attach the domain in place of the attached one
 * @dom: the domain
 *
 * Returns: 0 or the core's error, which this function does not report
 */
int test_replace(struct test_domain *dom)
{
	return iommu_replace_group_handle(dom->fn->group, dom->domain,
					  &dom->handle);
}
EXPORT_SYMBOL_GPL(test_replace);

/**
 * test_identity_domain() - get the identity domain
 * @fn: the function
 *
 * Returns: the domain, or an error for a function that must translate
 */
struct iommu_domain *test_identity_domain(struct test_function *fn)
{
	const struct iommu_ops *ops = dev_iommu_ops(&fn->pdev->dev);

	return ops->domain_alloc_identity ? ops->domain_alloc_identity(&fn->pdev->dev) :
					    ERR_PTR(-EOPNOTSUPP);
}
EXPORT_SYMBOL_GPL(test_identity_domain);

/**
 * test_replace_by_identity() - attach identity in place of the attached domain
 * @fn: the function
 * @identity: the domain from test_identity_domain()
 *
 * Returns: 0 or the core's error
 */
int test_replace_by_identity(struct test_function *fn, struct iommu_domain *identity)
{
	static struct iommu_attach_handle handle;

	return iommu_replace_group_handle(fn->group, identity, &handle);
}
EXPORT_SYMBOL_GPL(test_replace_by_identity);

/**
 * test_attach() - call test_replace(), which must succeed
 * @dom: the domain
 *
 * Returns: 0 or a failed test
 */
int test_attach(struct test_domain *dom)
{
	int ret = test_replace(dom);

	return ret ? test_fail("attach: error %d", ret) : 0;
}
EXPORT_SYMBOL_GPL(test_attach);

/**
 * test_start_on() - attach the domain and start the controller on it
 * @dom: the domain
 * @queue: the queue's pages, mapped there
 *
 * Returns: 0 or a failed test
 */
int test_start_on(struct test_domain *dom, struct test_queue *queue)
{
	int ret = test_attach(dom);

	return ret ? ret : test_domain_start(dom, queue);
}
EXPORT_SYMBOL_GPL(test_start_on);

/**
 * test_detach() - block the function
 * @dom: the domain that is attached
 */
void test_detach(struct test_domain *dom)
{
	iommu_detach_group_handle(dom->domain, dom->fn->group);
}
EXPORT_SYMBOL_GPL(test_detach);

/**
 * test_pair_claim() - claim the function and allocate two empty domains for it
 * @pair: gets the domains
 * @fn: the function
 *
 * Returns: 0, or a failed test with nothing to release
 */
int test_pair_claim(struct test_domain pair[2], struct test_function *fn)
{
	int ret = test_claim(fn);

	if (ret)
		return ret;
	ret = test_domain_alloc(&pair[0], fn);
	if (!ret)
		ret = test_domain_alloc(&pair[1], fn);
	if (ret) {
		test_domain_free(&pair[0]);
		test_release(fn);
	}
	return ret;
}
EXPORT_SYMBOL_GPL(test_pair_claim);

/**
 * test_pair_release() - refuse nothing any more, block the function, free the
 *	domains and release the function
 * @pair: the domains; one of them may be attached
 */
void test_pair_release(struct test_domain pair[2])
{
	struct test_function *fn = pair[0].fn;

	inject_reset();
	admin_stop(fn);
	test_detach(&pair[0]);
	test_domain_free(&pair[0]);
	test_domain_free(&pair[1]);
	test_release(fn);
}
EXPORT_SYMBOL_GPL(test_pair_release);

/**
 * test_pair_claim_mapped() - claim the function and allocate two domains for it
 *	that map the admin queue and their data pages
 * @pair: gets the domains
 * @fn: the function
 * @queue: the queue's pages
 *
 * Returns: 0, or a failed test with nothing to release
 */
int test_pair_claim_mapped(struct test_domain pair[2], struct test_function *fn,
			   struct test_queue *queue)
{
	int ret = test_pair_claim(pair, fn);

	if (ret)
		return ret;
	ret = test_domain_map(&pair[0], queue);
	if (!ret)
		ret = test_domain_map(&pair[1], queue);
	if (ret)
		test_pair_release(pair);
	return ret;
}
EXPORT_SYMBOL_GPL(test_pair_claim_mapped);

static int __init iommu_test_init(void)
{
	int ret = results_init();

	if (ret)
		return ret;
	ret = pci_register_driver(&test_driver);
	if (ret)
		goto out_results;
	ret = inject_init();
	if (ret)
		goto out_driver;
	return 0;

out_driver:
	pci_unregister_driver(&test_driver);
out_results:
	results_exit();
	return ret;
}

static void __exit iommu_test_exit(void)
{
	inject_exit();
	pci_unregister_driver(&test_driver);
	results_exit();
}

module_init(iommu_test_init);
module_exit(iommu_test_exit);
MODULE_IMPORT_NS("IOMMUFD_INTERNAL");
MODULE_DESCRIPTION("Code that the IOMMU test suites share");
MODULE_LICENSE("GPL");
