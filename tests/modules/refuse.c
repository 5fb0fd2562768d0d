// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "refuse": the machine refuses an instruction in the middle of an
 * attach, a map or a block, and everything is as the IOMMU core believes.
 */
#define pr_fmt(fmt) "refuse: " fmt

#include <linux/module.h>
#include <linux/sizes.h>

#include "iommu_test.h"

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];

#define FC_ATTACH	(BIT(FC_REGISTER) | BIT(FC_REREGISTER))

static struct iommu_domain *current_domain(void)
{
	return iommu_get_domain_for_dev(&fn->pdev->dev);
}

/* Mappings are made where the domain is attached, so that these tests do not
 * rest on populated domains: those have a suite of their own.
 */
static int begin(void)
{
	int ret;

	inject_reset();
	ret = test_claim(fn);
	if (ret)
		return ret;
	ret = test_domain_alloc(&pair[0], fn);
	if (ret)
		goto out_release;
	ret = test_domain_alloc(&pair[1], fn);
	if (ret)
		goto out_free;
	return 0;
out_free:
	test_domain_free(&pair[0]);
out_release:
	test_release(fn);
	return ret;
}

static void end(void)
{
	inject_reset();
	admin_stop(fn);
	test_detach(&pair[0]);
	test_domain_free(&pair[0]);
	test_domain_free(&pair[1]);
	test_release(fn);
}

static int run_on(struct test_domain *dom)
{
	int ret = test_replace(dom);

	if (ret)
		return test_fail("attach: error %d", ret);
	ret = test_domain_map(dom, &queue);
	if (!ret)
		ret = test_domain_start(dom, &queue);
	return ret ? ret : test_domain_check(dom);
}

/* The attach must fail, and must have been refused by us. */
static int expect_refusal(int ret, unsigned int refused)
{
	if (!refused)
		return test_fail("the attach asked for nothing that could be refused");
	if (!ret)
		return test_fail("the machine refused, the attach says that it succeeded");
	return 0;
}

/* The IOVA gets another page, so that a flush that is missed shows. */
static int expect_flush(struct test_domain *dom)
{
	void *page = (void *)get_zeroed_page(GFP_KERNEL);
	void *old = dom->data;
	int ret;

	if (!page)
		return -ENOMEM;
	dom->data = page;
	page_poison(old);
	iommu_unmap(dom->domain, data_iova(fn), PAGE_SIZE);
	ret = iommu_map(dom->domain, data_iova(fn), virt_to_phys(page),
			PAGE_SIZE, IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);
	if (ret)
		ret = test_fail("map on the domain: error %d", ret);
	else if (test_domain_check(dom) || !page_is_poison(old))
		ret = test_fail("a flush on the domain does not reach the function");
	free_page((unsigned long)old);
	return ret;
}

/* Still on this domain: for the core, for the device, and for flushes. */
static int expect_running(struct test_domain *dom)
{
	int ret;

	if (current_domain() != dom->domain)
		return test_fail("the core has another domain");
	ret = test_domain_check(dom);
	if (ret)
		return test_fail("DMA through the old domain does not work any more");
	ret = expect_flush(dom);
	if (ret)
		return ret;
	if (atomic_read(&fn->errors))
		return test_fail("the function was in the error state");
	return 0;
}

/* The device reaches nothing: it neither completes a command, nor writes to
 * this page, at the IOVA of data. Whether it tries to is an error or not.
 */
static int expect_blocked(struct test_domain *dom, void *page)
{
	int ret;

	page_poison(page);
	ret = test_domain_start(dom, &queue);
	if (!ret && !admin_identify(fn, data_iova(fn)))
		ret = test_fail("DMA of a blocked function was let through");
	if (!ret && !page_is_poison(page))
		ret = test_fail("a blocked function wrote to memory");
	if (!ret && atomic_read(&fn->errors))
		ret = test_wait_recovery(fn);
	atomic_set(&fn->errors, 0);
	admin_stop(fn);
	return ret;
}

static int refuse_between(struct test_domain *from, struct test_domain *to)
{
	int ret = run_on(from);

	if (ret)
		return ret;
	inject_refuse(fn, FC_ATTACH);
	ret = test_replace(to);
	ret = expect_refusal(ret, inject_refused());
	inject_reset();
	if (!ret)
		ret = expect_running(from);
	/* Nothing is left behind that would spoil the next try. */
	if (!ret && test_replace(to))
		ret = test_fail("the attach fails when it is not refused");
	return ret;
}

static int test_paging_to_paging(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = refuse_between(&pair[0], &pair[1]);
	end();
	return ret;
}

static int test_again_and_back(void)
{
	unsigned int i;
	int ret = begin();

	if (ret)
		return ret;
	ret = run_on(&pair[1]);
	for (i = 0; !ret && i < 20; i++) {
		inject_refuse(fn, FC_ATTACH);
		ret = expect_refusal(test_replace(&pair[0]), inject_refused());
		inject_reset();
		if (!ret)
			ret = expect_running(&pair[1]);
	}
	end();
	return ret;
}

static int test_blocked_to_paging(void)
{
	struct iommu_domain *blocked;
	int ret = begin();

	if (ret)
		return ret;
	blocked = current_domain();
	inject_refuse(fn, FC_ATTACH);
	ret = expect_refusal(test_replace(&pair[0]), inject_refused());
	inject_reset();
	if (!ret && current_domain() != blocked)
		ret = test_fail("the function is not on the blocked domain");
	/* A flush must not hit a function that is not there. */
	if (!ret)
		ret = test_domain_map(&pair[0], &queue);
	if (!ret && atomic_read(&fn->errors))
		ret = test_fail("a flush hit the blocked function");
	if (!ret && test_replace(&pair[1]))
		ret = test_fail("the attach of another domain fails afterwards");
	end();
	return ret;
}

/* The domain of the DMA API, with a queue that the DMA API mapped */

static int check_dma_api(void *pages, dma_addr_t iova)
{
	page_poison(pages + 2 * PAGE_SIZE);
	if (admin_identify(fn, iova + 2 * PAGE_SIZE) ||
	    !page_is_identity(fn, pages + 2 * PAGE_SIZE))
		return test_fail("DMA through the default domain does not work any more");
	return 0;
}

static int refuse_from_default(void *pages, dma_addr_t iova)
{
	struct iommu_domain *before = current_domain();
	int ret = admin_start(fn, pages, iova, pages + PAGE_SIZE, iova + PAGE_SIZE);

	if (!ret)
		ret = check_dma_api(pages, iova);
	if (ret)
		return ret;
	inject_refuse(fn, FC_ATTACH);
	ret = iommu_attach_device(pair[0].domain, &fn->pdev->dev);
	ret = expect_refusal(ret, inject_refused());
	inject_reset();
	if (!ret && current_domain() != before)
		ret = test_fail("the core has another domain");
	return ret ? ret : check_dma_api(pages, iova);
}

static int test_default_to_paging(void)
{
	struct device *dev = &fn->pdev->dev;
	dma_addr_t iova;
	void *pages;
	int ret = test_domain_alloc(&pair[0], fn);

	if (ret)
		return ret;
	pages = dma_alloc_coherent(dev, 3 * PAGE_SIZE, &iova, GFP_KERNEL);
	ret = pages ? refuse_from_default(pages, iova) : -ENOMEM;
	admin_stop(fn);
	/* Whatever state that is: start from the driver's defaults again. */
	if (ret && !test_claim(fn))
		test_release(fn);
	if (pages)
		dma_free_coherent(dev, 3 * PAGE_SIZE, pages, iova);
	test_domain_free(&pair[0]);
	return ret;
}

/* A good registration, then a refused refresh */
static int test_refresh_of_attach(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = run_on(&pair[0]);
	if (!ret) {
		inject_refuse_refresh(fn, -EIO, 1);
		ret = expect_refusal(test_replace(&pair[1]), inject_refused());
		inject_reset();
	}
	if (!ret)
		ret = expect_running(&pair[0]);
	if (!ret && test_replace(&pair[1]))
		ret = test_fail("the attach fails when it is not refused");
	end();
	return ret;
}

/* The first registration: after a reset, nothing is registered. */

static u64 last_table(void)
{
	struct inject_counts counts;

	inject_counts(&counts);
	return counts.table;
}

/* Which table a domain has: nothing but the machine is told. */
static int find_table(struct test_domain *dom, u64 *table)
{
	inject_reset();
	if (test_replace(dom))
		return test_fail("attach failed");
	*table = last_table();
	if (!*table)
		return test_fail("an attach registered nothing");
	return 0;
}

/* As the core does after a failed attach: the domain goes, its page stays. */
static int renew_domain(struct test_domain *dom, void **page)
{
	void *data = (void *)get_zeroed_page(GFP_KERNEL);

	if (!data)
		return -ENOMEM;
	*page = dom->data;
	dom->data = data;
	test_domain_free(dom);
	return test_domain_alloc(dom, fn);
}

/* A domain with mappings, and a function that is not registered */
static int begin_unregistered(u64 *table)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = test_domain_map(&pair[0], &queue);
	if (!ret)
		ret = find_table(&pair[0], table);
	test_detach(&pair[0]);
	if (!ret)
		ret = test_reset(fn);
	if (ret)
		end();
	return ret;
}

static int test_first_registration(void)
{
	u64 table;
	int ret = begin_unregistered(&table);

	if (ret)
		return ret;
	inject_refuse(fn, BIT(FC_REGISTER));
	ret = expect_refusal(test_replace(&pair[0]), inject_refused());
	if (!ret && last_table() == table)
		ret = test_fail("the refused domain's table is registered");
	inject_reset();
	if (!ret)
		ret = expect_blocked(&pair[0], pair[0].data);
	if (!ret)
		ret = run_on(&pair[1]);
	if (!ret)
		ret = expect_running(&pair[1]);
	end();
	return ret;
}

/* The second of the two instructions: the empty table is there by then. */
static int test_first_table(void)
{
	u64 table;
	int ret = begin_unregistered(&table);

	if (ret)
		return ret;
	inject_refuse(fn, BIT(FC_REREGISTER));
	ret = test_replace(&pair[0]);
	if (!inject_refused())
		ret = ret ? test_fail("attach: error %d", ret) :
			test_skip("this driver registers the table at once");
	else
		ret = expect_refusal(ret, 1);
	inject_reset();
	if (!ret)
		ret = expect_blocked(&pair[0], pair[0].data);
	if (!ret)
		ret = run_on(&pair[1]);
	if (!ret)
		ret = expect_running(&pair[1]);
	end();
	return ret;
}

static int test_first_refresh(void)
{
	void *page = NULL;
	u64 table;
	int ret = begin_unregistered(&table);

	if (ret)
		return ret;
	inject_refuse_refresh(fn, -EIO, 1);
	ret = expect_refusal(test_replace(&pair[0]), inject_refused());
	if (!ret && last_table() == table)
		ret = test_fail("the refused domain's table is still registered");
	inject_reset();
	if (!ret)
		ret = renew_domain(&pair[0], &page);
	if (!ret)
		ret = expect_blocked(&pair[0], page);
	if (!ret)
		ret = run_on(&pair[1]);
	if (!ret)
		ret = expect_running(&pair[1]);
	end();
	free_page((unsigned long)page);
	return ret;
}

/* The new table's refresh is refused, and then these operations, by which the
 * old table would come back. The new domain goes.
 */
static int lose_both(unsigned long operations, void **page, u64 *table)
{
	int ret = test_domain_map(&pair[1], &queue);

	if (!ret)
		ret = find_table(&pair[1], table);
	if (!ret)
		ret = run_on(&pair[0]);
	if (ret)
		return ret;
	inject_refuse_from_refresh(fn, -EIO, operations);
	ret = expect_refusal(test_replace(&pair[1]), inject_refused());
	if (!ret && inject_refused() < 2)
		ret = test_fail("the old table was not put back");
	if (!ret && current_domain() != pair[0].domain)
		ret = test_fail("the core has another domain");
	if (!ret && (last_table() == *table) != !!(operations & BIT(FC_DEREGISTER)))
		ret = test_fail("the machine has table %#llx, the new one is %#llx",
				last_table(), *table);
	inject_reset();
	return ret ? ret : renew_domain(&pair[1], page);
}

static int test_restore(void)
{
	void *page = NULL;
	u64 table;
	int ret = begin();

	if (ret)
		return ret;
	ret = lose_both(BIT(FC_REREGISTER), &page, &table);
	if (!ret)
		ret = expect_blocked(&pair[0], page);
	if (!ret)
		ret = run_on(&pair[1]);
	if (!ret)
		ret = expect_running(&pair[1]);
	end();
	free_page((unsigned long)page);
	return ret;
}

/* What was refused can be attached by a reset. */
static int test_restore_reset(void)
{
	void *page = NULL;
	u64 table;
	int ret = begin();

	if (ret)
		return ret;
	ret = lose_both(FC_ALL_TABLES, &page, &table);
	if (!ret)
		ret = test_reset(fn);
	if (!ret)
		ret = test_domain_start(&pair[0], &queue);
	if (!ret)
		ret = expect_running(&pair[0]);
	if (!ret)
		ret = run_on(&pair[1]);
	if (!ret)
		ret = expect_running(&pair[1]);
	end();
	free_page((unsigned long)page);
	return ret;
}

/* In the error state, until the kernel may recover the function: it takes the
 * device's lock first.
 */
static int break_function(void)
{
	if (!admin_identify(fn, data_iova(fn) + SZ_1M))
		return test_fail("DMA to an unmapped IOVA was let through");
	if (admin_answers(fn))
		return test_fail("the function is not in the error state");
	return 0;
}

static int attach_broken(void)
{
	int ret;

	device_lock(&fn->pdev->dev);
	ret = break_function();
	if (!ret && test_replace(&pair[1]))
		ret = test_fail("attach in the error state failed");
	if (!ret && current_domain() != pair[1].domain)
		ret = test_fail("the core has another domain");
	device_unlock(&fn->pdev->dev);
	return ret ? ret : test_wait_recovery(fn);
}

static int test_attach_in_error(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = run_on(&pair[0]);
	if (!ret)
		ret = test_domain_map(&pair[1], &queue);
	if (!ret)
		ret = attach_broken();
	atomic_set(&fn->errors, 0);
	if (!ret)
		ret = test_domain_start(&pair[1], &queue);
	if (!ret)
		ret = expect_running(&pair[1]);
	end();
	return ret;
}

static int block_broken(void)
{
	int ret;

	device_lock(&fn->pdev->dev);
	ret = break_function();
	test_detach(&pair[0]);
	device_unlock(&fn->pdev->dev);
	return ret ? ret : test_wait_recovery(fn);
}

static int test_block_in_error(void)
{
	void *page = NULL;
	int ret = begin();

	if (ret)
		return ret;
	ret = run_on(&pair[0]);
	if (!ret)
		ret = block_broken();
	atomic_set(&fn->errors, 0);
	if (!ret)
		ret = renew_domain(&pair[0], &page);
	if (!ret)
		ret = expect_blocked(&pair[0], page);
	if (!ret)
		ret = run_on(&pair[1]);
	if (!ret)
		ret = expect_running(&pair[1]);
	end();
	free_page((unsigned long)page);
	return ret;
}

/* Refused maps */

static int map_extra(struct test_domain *dom)
{
	return iommu_map(dom->domain, data_iova(fn) + SZ_1M,
			 virt_to_phys(dom->data), PAGE_SIZE,
			 IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);
}

static int check_extra(struct test_domain *dom)
{
	int ret;

	page_poison(dom->data);
	ret = admin_identify(fn, data_iova(fn) + SZ_1M);
	if (!ret && !page_is_identity(fn, dom->data))
		ret = test_fail("the device's data is not in the page");
	return ret;
}

static int test_map_no_memory(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = run_on(&pair[0]);
	if (!ret) {
		inject_refuse_refresh(fn, -ENOMEM, 1);
		ret = map_extra(&pair[0]);
		if (ret)
			ret = test_fail("map: error %d, where a refresh of everything helps", ret);
		else if (!inject_refused())
			ret = test_fail("map asked for no refresh");
		inject_reset();
	}
	if (!ret)
		ret = check_extra(&pair[0]);
	if (iommu_iova_to_phys(pair[0].domain, data_iova(fn) + SZ_1M))
		iommu_unmap(pair[0].domain, data_iova(fn) + SZ_1M, PAGE_SIZE);
	end();
	return ret;
}

static int test_map_error(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = run_on(&pair[0]);
	if (!ret) {
		inject_refuse_refresh(fn, -EIO, 1);
		if (!map_extra(&pair[0]))
			ret = test_fail("map succeeds, the machine did not see it");
		inject_reset();
	}
	if (!ret && iommu_iova_to_phys(pair[0].domain, data_iova(fn) + SZ_1M))
		ret = test_fail("map failed and left a translation");
	if (!ret)
		ret = test_domain_check(&pair[0]);
	end();
	return ret;
}

/* With two functions, an error of one must be told whatever the other says.
 * Which is asked first is the driver's affair: try both.
 */
static int map_refused_for(struct test_function *victim)
{
	int ret;

	inject_refuse_refresh(victim, -EIO, 1);
	ret = map_extra(&pair[0]);
	if (!inject_refused())
		ret = test_fail("map does not refresh both functions");
	else if (!ret)
		ret = test_fail("map succeeds, one of two functions did not see it");
	else
		ret = 0;
	inject_reset();
	if (iommu_iova_to_phys(pair[0].domain, data_iova(fn) + SZ_1M))
		iommu_unmap(pair[0].domain, data_iova(fn) + SZ_1M, PAGE_SIZE);
	return ret;
}

static int map_error_of_two(struct test_function *second)
{
	struct test_domain view = pair[0];
	int ret = test_replace(&pair[0]);

	view.fn = second;
	if (!ret)
		ret = test_replace(&view);
	if (ret)
		return test_fail("attach: error %d", ret);
	ret = map_refused_for(fn);
	if (!ret)
		ret = map_refused_for(second);
	test_detach(&view);
	return ret;
}

static int test_map_error_of_two(void)
{
	struct test_function *second = test_function(1);
	int ret;

	if (!second)
		return test_skip("there is no second NVMe function");
	ret = begin();
	if (ret)
		return ret;
	ret = test_claim(second);
	if (!ret) {
		ret = map_error_of_two(second);
		test_release(second);
	}
	end();
	return ret;
}

/* Nobody can be told; what comes after works. */
static int test_unmap_error(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = run_on(&pair[0]);
	if (!ret)
		ret = map_extra(&pair[0]);
	if (!ret) {
		inject_refuse_refresh(fn, -EIO, 1);
		if (iommu_unmap(pair[0].domain, data_iova(fn) + SZ_1M, PAGE_SIZE) != PAGE_SIZE)
			ret = test_fail("unmap did not unmap");
		else if (!inject_refused())
			ret = test_fail("unmap asked for no refresh");
		inject_reset();
	}
	if (!ret && iommu_iova_to_phys(pair[0].domain, data_iova(fn) + SZ_1M))
		ret = test_fail("unmap left a translation");
	if (!ret)
		ret = expect_running(&pair[0]);
	end();
	return ret;
}

/* Blocking never fails: the core frees the old domain whatever we say. */
static int test_block(void)
{
	struct iommu_domain *blocked;
	int ret = begin();

	if (ret)
		return ret;
	blocked = current_domain();
	ret = run_on(&pair[0]);
	admin_stop(fn);
	inject_refuse(fn, FC_ALL_TABLES);
	test_detach(&pair[0]);
	if (!ret && !inject_refused())
		ret = test_fail("the block asked for nothing that could be refused");
	inject_reset();
	if (!ret && current_domain() != blocked)
		ret = test_fail("the function is not on the blocked domain");
	/* The old domain goes; a flush of it must not look for the function. */
	test_domain_free(&pair[0]);
	if (!ret)
		ret = run_on(&pair[1]);
	if (!ret && atomic_read(&fn->errors))
		ret = test_fail("the function was in the error state");
	/* end() expects both. */
	if (test_domain_alloc(&pair[0], fn))
		return -ENOMEM;
	end();
	return ret;
}

/* What is refused can be replaced by taking the table away. */
static int test_block_by_deregistration(void)
{
	void *page = NULL;
	int ret = begin();

	if (ret)
		return ret;
	ret = run_on(&pair[0]);
	admin_stop(fn);
	inject_refuse(fn, FC_ATTACH);
	test_detach(&pair[0]);
	if (!ret && last_table())
		ret = test_fail("the machine has table %#llx", last_table());
	inject_reset();
	if (!ret)
		ret = renew_domain(&pair[0], &page);
	if (!ret)
		ret = expect_blocked(&pair[0], page);
	if (!ret)
		ret = run_on(&pair[1]);
	if (!ret)
		ret = expect_running(&pair[1]);
	end();
	free_page((unsigned long)page);
	return ret;
}

static const struct test_case cases[] = {
	{ "attach from a paging domain", test_paging_to_paging },
	{ "attach from a paging domain, twenty times", test_again_and_back },
	{ "attach from the blocked domain", test_blocked_to_paging },
	{ "attach from the DMA API's domain", test_default_to_paging },
	{ "refresh after a good registration", test_refresh_of_attach },
	{ "first registration, from a function that is not registered", test_first_registration },
	{ "table after the first registration", test_first_table },
	{ "refresh after the first registration", test_first_refresh },
	{ "new table, then the old one", test_restore },
	{ "new table, then everything; a reset", test_restore_reset },
	{ "attach in the error state", test_attach_in_error },
	{ "block in the error state", test_block_in_error },
	{ "map: refresh without resources is tried again", test_map_no_memory },
	{ "map: refresh with an error undoes the map", test_map_error },
	{ "map: the error of one of two functions is told", test_map_error_of_two },
	{ "unmap: the error of a refresh", test_unmap_error },
	{ "block, deregistration is not refused", test_block_by_deregistration },
	{ "block", test_block },
};

static int __init refuse_init(void)
{
	int ret;

	fn = test_function(0);
	if (!fn)
		return -ENODEV;
	ret = test_queue_alloc(&queue);
	if (ret)
		return ret;
	ret = test_run("refuse", cases, ARRAY_SIZE(cases));
	test_queue_free(&queue);
	return ret;
}

static void __exit refuse_exit(void)
{
	test_forget("refuse");
}

module_init(refuse_init);
module_exit(refuse_exit);
MODULE_DESCRIPTION("Tests of attach, map and block under refusal");
MODULE_LICENSE("GPL");
