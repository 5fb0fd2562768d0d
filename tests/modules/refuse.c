// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "refuse": the machine refuses an instruction in the middle of an
 * attach, a map or a block, and the state is still what the IOMMU core assumes.
 */
#include <linux/sizes.h>

#include "iommu_test.h"

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];
/* The data page of a domain that was freed */
static void *left;

static int begin(void)
{
	return test_pair_claim(pair, fn);
}

static void end(void)
{
	test_pair_release(pair);
	free_page((unsigned long)left);
	left = NULL;
}

static const struct test_setup two_domains = { begin, end };

/* The function is attached to the first domain and works. */
static int begin_running(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = test_run_on(&pair[0], &queue);
	if (ret)
		end();
	return ret;
}

static const struct test_setup running = { begin_running, end };

/* The same, if the machine needs a refresh after maps */
static int begin_refreshed_after_maps(void)
{
	int ret = test_sees_no_maps(fn);

	return ret ? ret : begin_running();
}

static const struct test_setup refreshed_after_maps = { begin_refreshed_after_maps, end };

/* The attach must fail because the test refused an instruction. */
static int expect_refusal(int ret)
{
	if (!inject_refused())
		return test_fail("the attach issued no instruction that could be refused");
	if (!ret)
		return test_fail("the attach succeeded although the machine refused");
	return 0;
}

static int expect_to_run(struct test_domain *dom)
{
	int ret = test_run_on(dom, &queue);

	return ret ? ret : test_expect_running(dom);
}

/* The function is only blocked: the other domain can be attached. */
static int expect_only_blocked(void *page)
{
	int ret = test_expect_blocked(&pair[0], &queue, page);

	return ret ? ret : expect_to_run(&pair[1]);
}

/* The same after the domain was freed, as the core does it */
static int expect_only_blocked_renewed(void)
{
	int ret = test_domain_renew(&pair[0], &left);

	return ret ? ret : expect_only_blocked(left);
}

/*
 * Refuses these operations, or if there are none, the refresh after a
 * successful registration.
 */
static void refuse(unsigned long operations)
{
	if (operations)
		inject_refuse(fn, operations);
	else
		inject_refuse_refresh(fn, -EIO, 1);
}

static int replace_refused(unsigned long operations)
{
	int ret;

	refuse(operations);
	ret = expect_refusal(test_replace(&pair[1]));
	inject_reset();
	if (!ret)
		ret = test_expect_running(&pair[0]);
	/* Nothing is left behind that would make the next attach fail. */
	if (!ret && test_replace(&pair[1]))
		ret = test_fail("the attach fails although it is not refused");
	return ret;
}

TEST_CALL(paging_to_paging, replace_refused(FC_ATTACH))
TEST_CALL(refresh_of_attach, replace_refused(0))

static int test_again_and_back(void)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < 20; i++) {
		inject_refuse(fn, FC_ATTACH);
		ret = expect_refusal(test_replace(&pair[1]));
		inject_reset();
		if (!ret)
			ret = test_expect_running(&pair[0]);
	}
	return ret;
}

static int test_blocked_to_paging(void)
{
	struct iommu_domain *blocked = test_current(fn);
	int ret;

	inject_refuse(fn, FC_ATTACH);
	ret = expect_refusal(test_replace(&pair[0]));
	inject_reset();
	if (!ret && test_current(fn) != blocked)
		ret = test_fail("the function is not attached to the blocked domain");
	/* A flush must not refresh a function that is not attached. */
	if (!ret)
		ret = test_domain_map(&pair[0], &queue);
	if (!ret && atomic_read(&fn->errors))
		ret = test_fail("a flush refreshed the blocked function");
	if (!ret && test_replace(&pair[1]))
		ret = test_fail("the attach of another domain fails afterwards");
	return ret;
}

static int refuse_from_default(void)
{
	struct iommu_domain *before = test_current(fn);
	int ret;

	inject_refuse(fn, FC_ATTACH);
	ret = expect_refusal(iommu_attach_device(pair[0].domain, &fn->pdev->dev));
	inject_reset();
	if (!ret && test_current(fn) != before)
		ret = test_fail("the core has another domain attached");
	return ret;
}

static int test_default_to_paging(void)
{
	int ret = test_domain_alloc(&pair[0], fn);

	if (ret)
		return ret;
	ret = test_dma_api(fn, refuse_from_default);
	/* After a failure, return to the DMA API's domain from any state. */
	if (ret && !test_claim(fn))
		test_release(fn);
	test_domain_free(&pair[0]);
	return ret;
}

/* The first registration: after a reset, nothing is registered. */

/* Finds the table of a domain by registering it. */
static int find_table(struct test_domain *dom, u64 *table)
{
	int ret;

	inject_reset();
	ret = test_attach(dom);
	*table = inject_table();
	if (!ret && !*table)
		ret = test_fail("the attach registered nothing");
	return ret;
}

/* The table of the domain whose attach is refused */
static u64 table;

/* A domain with mappings, and a function that is not registered */
static int begin_unregistered(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = test_domain_map(&pair[0], &queue);
	if (!ret)
		ret = find_table(&pair[0], &table);
	test_detach(&pair[0]);
	if (!ret)
		ret = test_reset(fn);
	if (ret)
		end();
	return ret;
}

static const struct test_setup unregistered = { begin_unregistered, end };

static int first_refused(unsigned long operations)
{
	int ret;

	refuse(operations);
	ret = expect_refusal(test_replace(&pair[0]));
	if (!ret && inject_table() == table)
		ret = test_fail("the refused domain's table is registered");
	inject_reset();
	return ret ? ret : expect_only_blocked_renewed();
}

TEST_CALL(first_registration, first_refused(BIT(FC_REGISTER)))
TEST_CALL(first_refresh, first_refused(0))

/*
 * The second of the two instructions is refused: the driver uses other
 * instructions, in case the machine does not support this one. If these are
 * refused as well, see the suite "fallback".
 */
static int test_first_table(void)
{
	int ret;

	inject_refuse(fn, BIT(FC_REREGISTER));
	ret = test_attach(&pair[0]);
	if (!ret && !inject_refused())
		ret = test_skip("this driver registers the table with the first instruction");
	else if (!ret && inject_table() != table)
		ret = test_fail("table %#llx is registered, not %#llx", inject_table(),
				table);
	inject_reset();
	return ret ? ret : test_expect_on(&pair[0], &queue);
}

/*
 * The refresh of the new table is refused, then the operations that would
 * register the old table again, for each of the tries. Then the new domain is
 * freed.
 */
static int lose_both(unsigned long operations, unsigned int tries)
{
	int ret = test_domain_map(&pair[1], &queue);

	if (!ret)
		ret = find_table(&pair[1], &table);
	inject_watch();
	if (!ret)
		ret = test_run_on(&pair[0], &queue);
	if (ret)
		return ret;
	inject_refuse_from_refresh(fn, -EIO, operations);
	ret = expect_refusal(test_replace(&pair[1]));
	if (!ret && inject_refused() < 2)
		ret = test_fail("nothing was issued to register the old table again");
	while (!ret && --tries)
		ret = expect_refusal(test_replace(&pair[1]));
	if (!ret && test_current(fn) != pair[0].domain)
		ret = test_fail("the core has another domain attached");
	if (!ret && (inject_table() == table) != !!(operations & BIT(FC_DEREGISTER)))
		ret = test_fail("table %#llx is registered, the new one is %#llx",
				inject_table(), table);
	inject_reset();
	return ret ? ret : test_domain_renew(&pair[1], &left);
}

static int test_restore(void)
{
	int ret = lose_both(BIT(FC_REREGISTER), 1);

	return ret ? ret : expect_only_blocked(left);
}

/* A reset registers the old table, which was refused. */
static int restore_reset(unsigned int tries)
{
	int ret = lose_both(FC_ALL_TABLES, tries);

	if (!ret && inject_is_freed())
		ret = test_fail("the table was freed while it was registered");
	if (!ret)
		ret = test_reset(fn);
	if (!ret && !inject_is_freed())
		ret = test_fail("the table is no longer registered, but was not freed");
	if (!ret)
		ret = test_expect_on(&pair[0], &queue);
	return ret ? ret : expect_to_run(&pair[1]);
}

TEST_CALL(restore_reset, restore_reset(1))

/* The tables of the old domain are freed with it after it was replaced. */
static int expect_old_freed(void)
{
	void *page = NULL;
	int ret = find_table(&pair[0], &table);

	inject_watch();
	admin_stop(fn);
	if (!ret)
		ret = test_attach(&pair[1]);
	if (!ret)
		ret = test_domain_renew(&pair[0], &page);
	if (!ret && !inject_is_freed())
		ret = test_fail("the old domain was freed, but its table was not");
	free_page((unsigned long)page);
	return ret;
}

/*
 * Tables that the machine may use are kept until the reset and no longer,
 * however often the attach is tried.
 */
static int test_restore_often(void)
{
	int ret = restore_reset(3);

	return ret ? ret : expect_old_freed();
}

static int test_attach_in_error(void)
{
	int ret = test_domain_map(&pair[1], &queue);

	if (ret)
		return ret;
	ret = test_break(fn);
	if (!ret)
		ret = test_attach(&pair[1]);
	if (!ret && test_current(fn) != pair[1].domain)
		ret = test_fail("the core has another domain attached");
	ret = test_recover(fn, ret);
	return ret ? ret : test_expect_on(&pair[1], &queue);
}

static int test_block_in_error(void)
{
	int ret = test_break(fn);

	test_detach(&pair[0]);
	ret = test_recover(fn, ret);
	return ret ? ret : expect_only_blocked_renewed();
}

/* Refused maps */

static dma_addr_t extra_iova(void)
{
	return data_iova(fn) + SZ_1M;
}

static int map_extra(void)
{
	return test_map_page(&pair[0], extra_iova(), pair[0].data);
}

/* The map's own refresh, then one of everything */
static int expect_second_try(void)
{
	static struct inject_step steps[INJECT_STEPS];

	if (inject_steps(steps) != 2 || !steps[0].refused || steps[1].refused)
		return test_fail("%u of %u refreshes were refused", inject_refused(),
				 inject_counts().refreshes);
	if (steps[1].start > sq_iova(fn) || steps[1].start + steps[1].size <= extra_iova())
		return test_fail("%#llx bytes from %#llx were refreshed, not everything",
				 steps[1].size, steps[1].start);
	return 0;
}

static int test_map_no_memory(void)
{
	int ret;

	inject_refuse_refresh(fn, -ENOMEM, 1);
	inject_record(fn);
	ret = map_extra();
	if (ret)
		ret = test_fail("map: error %d although a full refresh would succeed", ret);
	else
		ret = expect_second_try();
	inject_reset();
	if (!ret)
		ret = admin_check(fn, extra_iova(), pair[0].data);
	test_unmap_page(&pair[0], extra_iova());
	return ret;
}

static int test_map_error(void)
{
	int ret = 0;

	inject_refuse_refresh(fn, -EIO, 1);
	if (!map_extra())
		ret = test_fail("map succeeded although its refresh failed");
	inject_reset();
	if (!ret && iommu_iova_to_phys(pair[0].domain, extra_iova()))
		ret = test_fail("the failed map left a translation");
	if (!ret)
		ret = test_domain_check(&pair[0]);
	return ret;
}

/*
 * With two functions, the error of one must be returned, whatever the result of
 * the other. The driver chooses the order, so try both.
 */
static int map_refused_for(struct test_function *victim)
{
	int ret;

	inject_refuse_refresh(victim, -EIO, 1);
	ret = map_extra();
	if (!inject_refused())
		ret = test_fail("map does not refresh both functions");
	else if (!ret)
		ret = test_fail("map succeeded although the refresh of one function failed");
	else
		ret = 0;
	inject_reset();
	test_unmap_page(&pair[0], extra_iova());
	return ret;
}

static struct test_function *second;

static int begin_with_second(void)
{
	int ret;

	second = test_function(1);
	if (!second)
		return test_skip("there is no second NVMe function");
	ret = begin_refreshed_after_maps();
	if (ret)
		return ret;
	ret = test_claim(second);
	if (ret)
		end();
	return ret;
}

static void end_with_second(void)
{
	test_release(second);
	end();
}

static const struct test_setup two_functions = { begin_with_second, end_with_second };

/* Both refreshes fail: the first error is returned. */
static int two_errors(void)
{
	int ret;

	inject_refuse_refresh(NULL, -EIO, 2);
	ret = map_extra();
	if (inject_refused() != 2)
		return test_fail("%u of two functions were refreshed", inject_refused());
	inject_reset();
	return ret == -EIO ? 0 : test_fail("map: %d although both refreshes failed, not EIO", ret);
}

static int test_map_error_of_two(void)
{
	struct test_domain view = pair[0];
	int ret;

	view.fn = second;
	ret = test_attach(&view);
	if (ret)
		return ret;
	ret = map_refused_for(fn);
	if (!ret)
		ret = map_refused_for(second);
	if (!ret)
		ret = two_errors();
	test_detach(&view);
	return ret;
}

/* The error is not returned; later operations work. */
static int test_unmap_error(void)
{
	int ret = map_extra();

	if (ret)
		return ret;
	inject_refuse_refresh(fn, -EIO, 1);
	if (iommu_unmap(pair[0].domain, extra_iova(), PAGE_SIZE) != PAGE_SIZE)
		ret = test_fail("unmap did not unmap the page");
	else if (!inject_refused())
		ret = test_fail("unmap issued no refresh");
	inject_reset();
	if (!ret && iommu_iova_to_phys(pair[0].domain, extra_iova()))
		ret = test_fail("unmap left a translation");
	if (!ret)
		ret = test_expect_running(&pair[0]);
	return ret;
}

/*
 * A domain has slots for a few functions and allocates memory for more. The
 * other functions are the virtual machine's random number generators, which do
 * no DMA through the IOMMU.
 */

#define INLINE_MEMBERS 6

static struct iommu_group *others[INLINE_MEMBERS];
static unsigned int other_count;

static int find_others(void)
{
	struct pci_dev *pdev = NULL;

	other_count = 0;
	while (other_count < INLINE_MEMBERS &&
	       (pdev = pci_get_device(PCI_VENDOR_ID_REDHAT_QUMRANET, PCI_ANY_ID, pdev)))
		others[other_count++] = iommu_group_get(&pdev->dev);
	pci_dev_put(pdev);
	if (other_count == INLINE_MEMBERS)
		return 0;
	return test_skip("there are fewer than %u other functions", INLINE_MEMBERS);
}

static void put_others(void)
{
	while (other_count)
		iommu_group_put(others[--other_count]);
}

static int begin_full(void)
{
	int ret = find_others();

	if (!ret)
		ret = begin();
	if (ret)
		put_others();
	return ret;
}

static void end_full(void)
{
	unsigned int i;

	for (i = 0; i < other_count; i++)
		iommu_detach_group(pair[1].domain, others[i]);
	put_others();
	end();
}

static const struct test_setup full_domain = { begin_full, end_full };

static int test_no_memory(void)
{
	unsigned int i;
	int failed, ret = 0;

	for (i = 0; !ret && i < INLINE_MEMBERS; i++)
		ret = iommu_attach_group(pair[1].domain, others[i]);
	if (ret)
		return test_fail("attach of another function: error %d", ret);
	ret = test_run_on(&pair[0], &queue);
	if (!ret)
		ret = test_domain_map(&pair[1], &queue);
	if (ret)
		return ret;
	inject_reset();
	ret = inject_no_memory(true);
	if (ret)
		return ret;
	failed = test_replace(&pair[1]);
	inject_no_memory(false);
	if (!inject_refused())
		return test_fail("the attach allocated no memory");
	if (failed != -ENOMEM)
		return test_fail("attach without memory: %d, not ENOMEM", failed);
	ret = test_expect_running(&pair[0]);
	if (!ret && test_replace(&pair[1]))
		ret = test_fail("the attach fails although there is memory");
	return ret ? ret : test_expect_running(&pair[1]);
}

/*
 * Blocking never fails: the core frees the old domain whatever the driver
 * returns. Its table must not be freed while the machine has it.
 */
static int test_block(void)
{
	struct iommu_domain *blocked = test_current(fn);
	int ret = find_table(&pair[0], &table);

	inject_watch();
	test_detach(&pair[0]);
	if (!ret)
		ret = test_run_on(&pair[0], &queue);
	admin_stop(fn);
	inject_refuse(fn, FC_ALL_TABLES);
	test_detach(&pair[0]);
	if (!ret && !inject_refused())
		ret = test_fail("the block issued no instruction that could be refused");
	inject_reset();
	if (!ret && test_current(fn) != blocked)
		ret = test_fail("the function is not attached to the blocked domain");
	/* When the old domain is freed, its flush must not use the function. */
	if (!ret)
		ret = test_domain_renew(&pair[0], &left);
	if (!ret && inject_is_freed())
		ret = test_fail("the table was freed while it was registered");
	if (!ret)
		ret = test_run_on(&pair[1], &queue);
	if (!ret && atomic_read(&fn->errors))
		ret = test_fail("the function was in the error state");
	if (!ret && !inject_is_freed())
		ret = test_fail("another table is registered, but the old one was not freed");
	return ret;
}

/* If the machine refuses the empty table, the driver deregisters. */
static int test_block_by_deregistration(void)
{
	int ret = 0;

	admin_stop(fn);
	inject_refuse(fn, FC_ATTACH);
	test_detach(&pair[0]);
	if (inject_table())
		ret = test_fail("table %#llx is registered", inject_table());
	inject_reset();
	return ret ? ret : expect_only_blocked_renewed();
}

/*
 * If the core could not attach the function to anything else, it frees the
 * domain that the function is attached to. The table must not stay registered,
 * and the counters must not point to the domain.
 */
static int test_freed_attached(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	struct iommu_domain *freed = pair[0].domain;
	int ret = test_domain_map(&pair[0], &queue);

	if (!ret)
		ret = find_table(&pair[0], &table);
	if (ret)
		return ret;
	ret = test_domain_renew(&pair[0], &left);
	if (!ret && zdev->s390_domain == freed)
		ret = test_fail("the counters point to the freed domain");
	if (!ret && inject_table() == table)
		ret = test_fail("the freed domain's table is registered");
	/* The core still has the freed domain recorded as attached. */
	if (!ret)
		ret = expect_to_run(&pair[1]);
	return ret;
}

static const struct test_case cases[] = {
	{ "attach from a paging domain", test_paging_to_paging, &running },
	{ "attach from a paging domain, twenty times", test_again_and_back, &running },
	{ "attach from the blocked domain", test_blocked_to_paging, &two_domains },
	{ "attach from the DMA API's domain", test_default_to_paging },
	{ "refresh after a good registration", test_refresh_of_attach, &running },
	{ "first registration, from a function that is not registered",
	  test_first_registration, &unregistered },
	{ "table after the first registration", test_first_table, &unregistered },
	{ "refresh after the first registration", test_first_refresh, &unregistered },
	{ "new table, then the old one", test_restore, &two_domains },
	{ "new table, then everything; a reset", test_restore_reset, &two_domains },
	{ "new table, then everything, three times; a reset", test_restore_often,
	  &two_domains },
	{ "a domain is freed while it is attached", test_freed_attached, &two_domains },
	{ "attach in the error state", test_attach_in_error, &running },
	{ "block in the error state", test_block_in_error, &running },
	{ "map: refresh without resources is tried again",
	  test_map_no_memory, &refreshed_after_maps },
	{ "map: refresh with an error undoes the map", test_map_error, &refreshed_after_maps },
	{ "map: the error of one of two functions is returned",
	  test_map_error_of_two, &two_functions },
	{ "unmap: the error of a refresh", test_unmap_error, &running },
	{ "attach without memory", test_no_memory, &full_domain },
	{ "block, deregistration is not refused", test_block_by_deregistration, &running },
	{ "block", test_block, &two_domains },
	{}
};

TEST_SUITE(refuse, "Tests of refused attaches, maps and blocks", cases, &fn, &queue);
