// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "oracle": on every CPU a thread randomly maps, unmaps, looks up and
 * flushes in a shared domain, while a device uses it and its domain is
 * replaced. Each thread owns some pages of each table and knows what is mapped
 * there: every lookup must return exactly that, at any time.
 */
#define pr_fmt(fmt) "oracle: " fmt

#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/prandom.h>
#include <linux/sizes.h>

#include "iommu-pages.h"
#include "iommu_test.h"

/* No memory is accessed, so any address will do; no large page fits it. */
#define PHYS		(NO_MEMORY + SZ_256M + SZ_4K)
#define MAX_THREADS	4
/* Pages of a run have one owner, and adjacent runs have different owners. */
#define RUN		16
#define RUNS		256
#define PAGES		(RUN * RUNS)

static unsigned long seed = 1;
module_param(seed, ulong, 0400);
MODULE_PARM_DESC(seed, "Seed of the random numbers of the threads");

static unsigned int seconds = 5;
module_param(seconds, uint, 0400);
MODULE_PARM_DESC(seconds, "How long each test takes");

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];

/**
 * struct oracle - a thread and its expectations
 * @task: the thread
 * @random: state of its random numbers
 * @index: its index among the threads
 * @calls: number of its calls
 * @wrong: whether it has found and logged an error
 * @phys: what each of its pages is mapped to; 0 for nothing
 */
struct oracle {
	struct task_struct *task;
	struct rnd_state random;
	unsigned int index;
	unsigned long calls;
	bool wrong;
	phys_addr_t phys[PAGES];
};

static struct oracle *oracles[MAX_THREADS];
static unsigned int threads;

/*
 * Whether some unmaps use a full flush, which would make up for any other flush
 * that was missed.
 */
static bool queues = true;

static u32 below(struct oracle *oracle, u32 end)
{
	return prandom_u32_state(&oracle->random) % end;
}

/* The threads own runs in turn: each thread has some in every page table. */
static dma_addr_t page_iova(struct oracle *oracle, unsigned int page)
{
	unsigned long run = page / RUN * threads + oracle->index;

	return fn->first + SZ_256M + (run * RUN + page % RUN) * SZ_4K;
}

static void __printf(3, 4) wrong(struct oracle *oracle, unsigned int page,
				 const char *fmt, ...)
{
	dma_addr_t iova = page_iova(oracle, page);
	struct va_format text;
	va_list args;

	va_start(args, fmt);
	text.fmt = fmt;
	text.va = &args;
	pr_err("thread %u, call %lu, %pad: %pV\n", oracle->index, oracle->calls, &iova, &text);
	va_end(args);
	oracle->wrong = true;
}

static void look(struct oracle *oracle, unsigned int page)
{
	phys_addr_t found = iommu_iova_to_phys(pair[0].domain, page_iova(oracle, page));

	if (found != oracle->phys[page])
		wrong(oracle, page, "translates to %pa, not %pa", &found, &oracle->phys[page]);
}

/* Chooses a part of a run: its first page and the number of pages. */
static unsigned int choose(struct oracle *oracle, unsigned int *count)
{
	unsigned int first = below(oracle, RUN);

	*count = 1 + below(oracle, RUN - first);
	return below(oracle, RUNS) * RUN + first;
}

/* A map over a live page must be refused and change nothing. */
static void map_run(struct oracle *oracle)
{
	unsigned int count, i, first = choose(oracle, &count);
	phys_addr_t phys = PHYS + (phys_addr_t)below(oracle, 0x10000) * SZ_4K;
	bool is_free = true;
	int ret;

	for (i = 0; i < count; i++)
		is_free &= !oracle->phys[first + i];
	ret = iommu_map(pair[0].domain, page_iova(oracle, first), phys, count * SZ_4K, RW,
			GFP_ATOMIC);
	if (!ret != is_free)
		return wrong(oracle, first, "map of %u pages, %s: error %d", count,
			     is_free ? "all free" : "some taken", ret);
	for (i = 0; !ret && i < count; i++)
		oracle->phys[first + i] = phys + i * SZ_4K;
}

/* Returns how many pages were unmapped. */
static unsigned int unmap_run(struct oracle *oracle, struct iommu_iotlb_gather *gather)
{
	unsigned int count, i, first = choose(oracle, &count), mapped = 0;
	dma_addr_t iova = page_iova(oracle, first);
	size_t done;

	while (mapped < count && oracle->phys[first + mapped])
		mapped++;
	if (!mapped)
		return 0;
	done = gather ? iommu_unmap_fast(pair[0].domain, iova, mapped * SZ_4K, gather) :
			iommu_unmap(pair[0].domain, iova, mapped * SZ_4K);
	if (done != mapped * SZ_4K)
		wrong(oracle, first, "unmap of %u pages: %zu bytes", mapped, done);
	for (i = 0; i < mapped; i++)
		oracle->phys[first + i] = 0;
	return mapped;
}

/* Several unmaps before one full flush, like the DMA API's flush queue. */
static void unmap_queued(struct oracle *oracle)
{
	struct iommu_iotlb_gather gather;
	unsigned int i, count = 1 + below(oracle, 4);

	iommu_iotlb_gather_init(&gather);
	gather.queued = true;
	for (i = 0; i < count && !oracle->wrong; i++)
		unmap_run(oracle, &gather);
	pair[0].domain->ops->flush_iotlb_all(pair[0].domain);
	iommu_put_pages_list(&gather.freelist);
}

/* Unmaps all pages of the thread. */
static void unmap_all(struct oracle *oracle)
{
	unsigned int page;

	for (page = 0; page < PAGES && !oracle->wrong; page++) {
		if (!oracle->phys[page])
			continue;
		if (iommu_unmap(pair[0].domain, page_iova(oracle, page), SZ_4K) != SZ_4K)
			wrong(oracle, page, "unmap of a page did nothing");
		oracle->phys[page] = 0;
	}
}

static void one_call(struct oracle *oracle)
{
	unsigned int kind = below(oracle, 1000);

	if (!kind)
		unmap_all(oracle);
	else if (kind < 400)
		map_run(oracle);
	else if (kind < 650)
		unmap_run(oracle, NULL);
	else if (kind < 700 && queues)
		unmap_queued(oracle);
	else
		look(oracle, below(oracle, PAGES));
	oracle->calls++;
}

static int run(void *argument)
{
	struct oracle *oracle = argument;

	while (!kthread_should_stop()) {
		if (!oracle->wrong)
			one_call(oracle);
		cond_resched();
	}
	return 0;
}

static void free_oracles(void)
{
	unsigned int i;

	for (i = 0; i < MAX_THREADS; i++) {
		kvfree(oracles[i]);
		oracles[i] = NULL;
	}
}

static int stop(void)
{
	unsigned long calls = 0;
	unsigned int i, page;
	bool is_wrong = false;

	for (i = 0; i < threads; i++) {
		struct oracle *oracle = oracles[i];

		if (!oracle || !oracle->task)
			continue;
		kthread_stop(oracle->task);
		for (page = 0; page < PAGES && !oracle->wrong; page++)
			look(oracle, page);
		calls += oracle->calls;
		is_wrong |= oracle->wrong;
	}
	for (i = 0; i < threads; i++)
		if (oracles[i] && !is_wrong)
			unmap_all(oracles[i]);
	pr_info("%lu calls on %u threads, seed %lu\n", calls, threads, seed);
	free_oracles();
	if (is_wrong)
		return test_fail("a translation was wrong, see the log; seed=%lu", seed);
	return calls ? 0 : test_fail("no thread made a call");
}

static int start(void)
{
	unsigned int i;

	threads = clamp(num_online_cpus(), 1, MAX_THREADS);
	for (i = 0; i < threads; i++) {
		struct oracle *oracle = kvzalloc(sizeof(*oracle), GFP_KERNEL);

		if (!oracle)
			break;
		oracles[i] = oracle;
		oracle->index = i;
		prandom_seed_state(&oracle->random, seed + i);
		oracle->task = kthread_run(run, oracle, "iommu_oracle");
		if (IS_ERR(oracle->task)) {
			oracle->task = NULL;
			break;
		}
	}
	if (i == threads)
		return 0;
	stop();
	return -ENOMEM;
}

static int begin(void)
{
	int ret = test_pair_claim_mapped(pair, fn, &queue);

	if (ret)
		return ret;
	ret = test_start_on(&pair[0], &queue);
	if (ret)
		test_pair_release(pair);
	return ret;
}

static void end(void)
{
	test_pair_release(pair);
}

static const struct test_setup running = { begin, end };

static int beside(int (*work)(unsigned int round))
{
	unsigned long until = jiffies + seconds * HZ;
	unsigned int round;
	int stopped, ret = start();

	if (ret)
		return ret;
	for (round = 0; !ret && time_before(jiffies, until); round++)
		ret = work(round);
	stopped = stop();
	if (!ret)
		ret = stopped;
	return ret ? ret : test_expect_errors(fn, 0);
}

/* The device writes to its data page. */
static int dma_once(unsigned int round)
{
	return test_domain_check(&pair[0]);
}

TEST_CALL(dma, beside(dma_once))

/* The same, on one domain after the other */
static int replace_once(unsigned int round)
{
	struct test_domain *dom = &pair[(round + 1) % 2];
	int ret;

	admin_stop(fn);
	ret = test_start_on(dom, &queue);
	return ret ? ret : test_domain_check(dom);
}

TEST_CALL(replaces, beside(replace_once))

/* The same, to the page that replaces another one at its IOVA */
static int renew_once(unsigned int round)
{
	return test_expect_running(&pair[0]);
}

TEST_CALL(flushes, beside(renew_once))

/*
 * The device cannot reach what was unmapped, whatever others flush. The threads
 * stop before, because maps fail while the function is in the error state.
 */
static int unmap_beside(void)
{
	dma_addr_t iova = data_iova(fn);
	int stopped, ret = start();

	if (ret)
		return ret;
	msleep(50);
	if (iommu_unmap(pair[0].domain, iova, PAGE_SIZE) != PAGE_SIZE)
		ret = test_fail("unmap of the device's page did nothing");
	stopped = stop();
	if (!ret)
		ret = stopped;
	if (!ret)
		ret = test_expect_gone(&pair[0], &queue, pair[0].data, iova);
	if (!ret)
		ret = test_map_page(&pair[0], iova, pair[0].data);
	return ret ? ret : test_domain_check(&pair[0]);
}

static int test_gone(void)
{
	unsigned long until = jiffies + seconds * HZ;
	int ret;

	queues = false;
	do {
		ret = unmap_beside();
	} while (!ret && time_before(jiffies, until));
	queues = true;
	return ret;
}

static int reset_once(unsigned int round)
{
	int ret;

	admin_stop(fn);
	ret = test_reset(fn);
	if (!ret)
		ret = test_domain_start(&pair[0], &queue);
	return ret ? ret : test_domain_check(&pair[0]);
}

TEST_CALL(resets, beside(reset_once))

static const struct test_case cases[] = {
	{ "maps, unmaps and lookups beside DMA", test_dma, &running },
	{ "the same, and the device's page changes", test_flushes, &running },
	{ "the same, and the domain is replaced", test_replaces, &running },
	{ "the same, and the function is reset", test_resets, &running },
	{ "what is unmapped beside others is gone", test_gone, &running },
	{}
};

TEST_SUITE(oracle, "Threads that check what is mapped in one domain", cases, &fn, &queue);
