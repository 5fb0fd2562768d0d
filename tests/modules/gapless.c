// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "gapless": domains are replaced while the device works. Only for
 * functions that are not shadowed: re-registration empties a shadow, and until
 * the following refresh nothing is mapped.
 */
#define pr_fmt(fmt) "gapless: " fmt

#include <linux/kthread.h>
#include <linux/sizes.h>

#include "iommu_test.h"

#define REPLACES	1000
/* Wait for a command after so many replaces: the other thread may not run. */
#define REPLACES_A_COMMAND 8
#define MAPS		65536

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];

/* The round whose domain is attached; 0 during a replace */
static atomic_t attached;
static unsigned int maps;
static unsigned int commands;
/* Commands that overlapped a replace */
static unsigned int crossed;
static int failure;

static int begin(void)
{
	int ret;

	if (to_zpci(fn->pdev)->tlb_refresh)
		return test_skip("the machine shadows tables, so a replace has a gap");
	ret = test_pair_claim_mapped(pair, fn, &queue);
	if (ret)
		return ret;
	atomic_set(&attached, 0);
	maps = 0;
	commands = 0;
	crossed = 0;
	failure = 0;
	return 0;
}

static dma_addr_t map_iova(unsigned int map)
{
	return fn->first + SZ_256M + map * PAGE_SIZE;
}

static void end(void)
{
	unsigned int i;

	for (i = 0; i < 2; i++)
		if (maps)
			iommu_unmap(pair[i].domain, map_iova(0), maps * PAGE_SIZE);
	test_pair_release(pair);
}

static const struct test_setup two_domains = { begin, end };

/*
 * The data must be in the page of the attached domain, or if this domain was
 * replaced meanwhile, in the page of one of the two.
 */
static int identify(dma_addr_t iova)
{
	unsigned int before, after;
	bool hit[2];
	int ret;

	page_poison(pair[0].data);
	page_poison(pair[1].data);
	before = atomic_read_acquire(&attached);
	ret = admin_identify(fn, iova);
	after = atomic_read_acquire(&attached);
	if (ret)
		return ret;
	hit[0] = page_is_identity(fn, pair[0].data);
	hit[1] = page_is_identity(fn, pair[1].data);
	if (hit[0] == hit[1])
		return test_fail("command %u: the data is in %s", commands,
				 hit[0] ? "both pages" : "no page");
	if (!before || before != after)
		crossed++;
	else if (!hit[before % 2])
		return test_fail("command %u: data in the other domain's page after round %u",
				 commands, before);
	WRITE_ONCE(commands, commands + 1);
	return 0;
}

/* Uses an IOVA that the device has used, and one that was never mapped. */
static int work_once(void)
{
	dma_addr_t iova = map_iova(maps);
	int ret = identify(data_iova(fn));

	if (ret || maps == MAPS)
		return ret;
	ret = test_map_page(&pair[0], iova, pair[0].data);
	if (!ret && test_map_page(&pair[1], iova, pair[1].data)) {
		iommu_unmap(pair[0].domain, iova, PAGE_SIZE);
		ret = -ENOMEM;
	}
	if (ret)
		return test_fail("map: error %d", ret);
	maps++;
	return identify(iova);
}

static int work(void *unused)
{
	int ret = 0;

	while (!kthread_should_stop()) {
		if (!ret)
			ret = work_once();
		if (ret)
			WRITE_ONCE(failure, ret);
		cond_resched();
	}
	return 0;
}

static int replace_many(void)
{
	unsigned int round, count;
	int ret = 0;

	for (round = 1; !ret && round <= REPLACES; round++) {
		atomic_set_release(&attached, 0);
		if (test_replace(&pair[round % 2]))
			return test_fail("round %u: replace failed", round);
		atomic_set_release(&attached, round);
		count = READ_ONCE(commands);
		/* A command that does not complete fails after a timeout. */
		while (!(round % REPLACES_A_COMMAND) && count == READ_ONCE(commands) &&
		       !READ_ONCE(failure))
			cond_resched();
		ret = READ_ONCE(failure);
	}
	return ret;
}

static int replace_beside_work(void)
{
	struct task_struct *task = kthread_run(work, NULL, "iommu_test");
	int ret;

	if (IS_ERR(task))
		return PTR_ERR(task);
	ret = replace_many();
	kthread_stop(task);
	return ret ? ret : failure;
}

static int check_counts(void)
{
	unsigned int refreshes = inject_counts().refreshes;
	int ret;

	pr_info("%u commands, %u replaces, %u commands during a replace, %u maps, %u refreshes\n",
		commands, REPLACES, crossed, 2 * maps, refreshes);
	ret = test_expect_errors(fn, 0);
	if (!ret && !crossed)
		ret = test_fail("no command overlapped a replace");
	if (!ret)
		ret = test_expect_replaces(REPLACES);
	/*
	 * A replace refreshes what the function may cache from the old table.
	 * Mappings 16 MiB apart are refreshed separately.
	 */
	if (!ret && refreshes < REPLACES)
		ret = test_fail("%u refreshes, not one per replace", refreshes);
	return ret;
}

static int test_replaces(void)
{
	int ret = test_start_on(&pair[0], &queue);

	inject_reset();
	if (!ret)
		ret = replace_beside_work();
	if (!ret)
		ret = check_counts();
	return ret ? ret : test_domain_check(&pair[REPLACES % 2]);
}

/* Maps in both domains, where the device finds the mappings at once. */
static int test_maps(void)
{
	unsigned int refreshes;
	int ret = test_start_on(&pair[0], &queue);

	atomic_set(&attached, 2);
	inject_reset();
	while (!ret && maps < REPLACES)
		ret = work_once();
	refreshes = inject_counts().refreshes;
	if (!ret && refreshes)
		ret = test_fail("%u refreshes although nothing was unmapped", refreshes);
	return ret;
}

static const struct test_case cases[] = {
	{ "what is mapped needs no refresh", test_maps, &two_domains },
	{ "replace 1000 times while the device works", test_replaces, &two_domains },
	{}
};

TEST_SUITE(gapless, "Domains replaced under DMA", cases, &fn, &queue);
