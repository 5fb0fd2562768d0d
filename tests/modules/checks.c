// SPDX-License-Identifier: GPL-2.0
/*
 * Checks of what a function is attached to: what the IOMMU core has recorded,
 * where the DMA goes, and whether flushes reach the function.
 */
#define pr_fmt(fmt) "iommu_test: " fmt

#include <linux/dma-mapping.h>
#include <linux/export.h>
#include <linux/gfp.h>
#include <linux/sizes.h>

#include "internal.h"

/**
 * test_run_on() - attach, map, start the controller and check DMA
 * @dom: the domain, with nothing mapped yet
 * @queue: pages for the admin queue
 *
 * Maps after the attach, so that only the tests of populated domains depend on
 * attaching one.
 *
 * Returns: 0 or a failed test
 */
int test_run_on(struct test_domain *dom, struct test_queue *queue)
{
	int ret = test_attach(dom);

	if (!ret)
		ret = test_domain_map(dom, queue);
	if (!ret)
		ret = test_domain_start(dom, queue);
	return ret ? ret : test_domain_check(dom);
}
EXPORT_SYMBOL_GPL(test_run_on);

/* Maps another page at the IOVA, so that a missed flush is detected. */
static int expect_flush(struct test_domain *dom)
{
	void *page = (void *)get_zeroed_page(GFP_KERNEL);
	dma_addr_t iova = data_iova(dom->fn);
	void *old = dom->data;
	int ret;

	if (!page)
		return -ENOMEM;
	dom->data = page;
	page_poison(old);
	iommu_unmap(dom->domain, iova, PAGE_SIZE);
	ret = test_map_page(dom, iova, page);
	if (ret)
		ret = test_fail("map on the domain: error %d", ret);
	else if (test_domain_check(dom) || !page_is_poison(old))
		ret = test_fail("a flush on the domain does not reach the function");
	free_page((unsigned long)old);
	return ret;
}

/**
 * test_expect_running() - check that the function is attached to this domain
 * @dom: the domain; the controller must be running
 *
 * Checks what the core has recorded, the device's DMA and flushes, and that the
 * function was never in the error state.
 *
 * Returns: 0 or a failed test
 */
int test_expect_running(struct test_domain *dom)
{
	struct test_function *fn = dom->fn;
	int ret;

	if (test_current(fn) != dom->domain)
		return test_fail("the core has another domain attached");
	ret = test_domain_check(dom);
	if (ret)
		return test_fail("DMA through the domain does not work");
	ret = expect_flush(dom);
	if (ret)
		return ret;
	if (atomic_read(&fn->errors))
		return test_fail("the function was in the error state");
	return 0;
}
EXPORT_SYMBOL_GPL(test_expect_running);

/**
 * test_expect_on() - start the controller, then test_expect_running()
 * @dom: the domain
 * @queue: the queue's pages, mapped there
 *
 * Returns: 0 or a failed test
 */
int test_expect_on(struct test_domain *dom, struct test_queue *queue)
{
	int ret = test_domain_start(dom, queue);

	return ret ? ret : test_expect_running(dom);
}
EXPORT_SYMBOL_GPL(test_expect_on);

/**
 * test_expect_errors() - check the number of reported error events
 * @fn: the function
 * @expected: how many the test has provoked
 *
 * Returns: 0 or a failed test
 */
int test_expect_errors(struct test_function *fn, int expected)
{
	int errors = atomic_read(&fn->errors);

	if (errors != expected)
		return test_fail("%d error events, %d were expected", errors, expected);
	return 0;
}
EXPORT_SYMBOL_GPL(test_expect_errors);

/**
 * test_expect_blocked() - check that the device cannot reach memory
 * @dom: provides the function and the IOVAs of the admin queue
 * @queue: pages for the admin queue
 * @page: a page that was mapped at data_iova()
 *
 * The device must neither complete a command nor write to the page. Its attempt
 * may or may not cause an error event.
 *
 * Returns: 0 or a failed test
 */
int test_expect_blocked(struct test_domain *dom, struct test_queue *queue,
			void *page)
{
	struct test_function *fn = dom->fn;
	int ret;

	page_poison(page);
	ret = test_domain_start(dom, queue);
	if (!ret && !admin_identify(fn, data_iova(fn)))
		ret = test_fail("DMA of a blocked function succeeded");
	if (!ret && !page_is_poison(page))
		ret = test_fail("a blocked function wrote to memory");
	if (!ret)
		ret = test_recover_if_broken(fn);
	atomic_set(&fn->errors, 0);
	admin_stop(fn);
	return ret;
}
EXPORT_SYMBOL_GPL(test_expect_blocked);

/**
 * test_dma_api() - check DMA with a queue that the DMA API has mapped
 * @fn: the function, on the DMA API's domain
 * @meanwhile: called while the queue is in use, or NULL; DMA must work after it
 *
 * Returns: 0 or a failed test
 */
int test_dma_api(struct test_function *fn, int (*meanwhile)(void))
{
	struct device *dev = &fn->pdev->dev;
	size_t size = 3 * PAGE_SIZE;
	dma_addr_t iova;
	void *pages = dma_alloc_coherent(dev, size, &iova, GFP_KERNEL);
	void *data = pages + 2 * PAGE_SIZE;
	int ret;

	if (!pages)
		return test_fail("dma_alloc_coherent failed");
	ret = admin_start(fn, pages, iova, pages + PAGE_SIZE, iova + PAGE_SIZE);
	if (!ret)
		ret = admin_check(fn, iova + 2 * PAGE_SIZE, data);
	if (!ret && meanwhile) {
		ret = meanwhile();
		if (!ret)
			ret = admin_check(fn, iova + 2 * PAGE_SIZE, data);
	}
	admin_stop(fn);
	dma_free_coherent(dev, size, pages, iova);
	return ret;
}
EXPORT_SYMBOL_GPL(test_dma_api);

/**
 * test_expect_replaces() - check that each replace was one re-registration
 * @replaces: number of replaces since inject_reset()
 *
 * Returns: 0 or a failed test
 */
int test_expect_replaces(unsigned int replaces)
{
	struct inject_counts counts = inject_counts();

	if (counts.operations[FC_REREGISTER] != replaces)
		return test_fail("%u re-registrations, not one per replace",
				 counts.operations[FC_REREGISTER]);
	if (counts.operations[FC_DEREGISTER])
		return test_fail("%u deregistrations", counts.operations[FC_DEREGISTER]);
	return 0;
}
EXPORT_SYMBOL_GPL(test_expect_replaces);

/**
 * test_break() - put the function into the error state
 * @fn: the function, its controller started
 *
 * Call test_recover() afterwards, whatever the result: the kernel does not
 * recover the function before that.
 *
 * Returns: 0 or a failed test
 */
int test_break(struct test_function *fn)
{
	device_lock(&fn->pdev->dev);
	reinit_completion(&fn->resumed);
	if (!admin_identify(fn, data_iova(fn) + SZ_1M))
		return test_fail("DMA to an unmapped IOVA succeeded");
	if (admin_answers(fn))
		return test_fail("the function is not in the error state");
	return 0;
}
EXPORT_SYMBOL_GPL(test_break);

/**
 * test_recover() - let the kernel recover the function after test_break()
 * @fn: the function
 * @ret: the result so far; if it is 0, wait for the recovery
 *
 * Resets the count of error events.
 *
 * Returns: @ret unless it is 0, then the result of the recovery: 0 or a failed
 * test
 */
int test_recover(struct test_function *fn, int ret)
{
	device_unlock(&fn->pdev->dev);
	if (!ret)
		ret = test_wait_recovery(fn);
	atomic_set(&fn->errors, 0);
	return ret;
}
EXPORT_SYMBOL_GPL(test_recover);

/**
 * test_expect_gone() - check that the device cannot reach an unmapped page
 * @dom: the domain that it is attached to
 * @queue: the queue's pages
 * @page: the page that was mapped
 * @iova: where it was mapped
 *
 * The attempt causes an error event, which is not counted. The controller is
 * started again after the recovery.
 *
 * Returns: 0 or a failed test
 */
int test_expect_gone(struct test_domain *dom, struct test_queue *queue,
		     void *page, dma_addr_t iova)
{
	int ret;

	page_poison(page);
	reinit_completion(&dom->fn->resumed);
	/*
	 * The emulated controller ignores that it could not write the page, and
	 * reports success if the function has been recovered by then.
	 */
	admin_identify(dom->fn, iova);
	if (!page_is_poison(page))
		return test_fail("DMA to %pad succeeded after the unmap", &iova);
	ret = test_wait_recovery(dom->fn);
	/*
	 * Its completion may come while the recovery has registered the table,
	 * but not refreshed it yet: another error event.
	 */
	if (!ret && !admin_answers(dom->fn))
		ret = test_wait_recovery(dom->fn);
	atomic_set(&dom->fn->errors, 0);
	return ret ? ret : test_domain_start(dom, queue);
}
EXPORT_SYMBOL_GPL(test_expect_gone);
