// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "stress": maps and unmaps, in atomic context and on other CPUs, that
 * race with everything that changes the registration of the function.
 *
 * A refresh of a function that is not registered puts it into the error state.
 * So an unexpected error event means that a flush came at the wrong moment. A
 * missed flush shows in where the device writes.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/sizes.h>

#include "iommu_test.h"

#define TRANSITIONS	3000
#define RACES		2000
#define RESETS		40
#define RECOVERIES	10
#define MAX_WORKERS	3

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];

TEST_SETUP(two_domains, test_pair_claim_mapped(pair, fn, &queue), test_pair_release(pair));

/* Maps with interrupts off, as the submission path of a driver may do. */
static int map_atomic(struct iommu_domain *domain, dma_addr_t iova, void *page)
{
	unsigned long flags;
	int ret;

	local_irq_save(flags);
	ret = iommu_map(domain, iova, virt_to_phys(page), PAGE_SIZE, RW, GFP_ATOMIC);
	local_irq_restore(flags);
	return ret;
}

static size_t unmap_atomic(struct iommu_domain *domain, dma_addr_t iova)
{
	unsigned long flags;
	size_t done;

	local_irq_save(flags);
	done = iommu_unmap(domain, iova, PAGE_SIZE);
	local_irq_restore(flags);
	return done;
}

/* Workers that continuously map and unmap on both domains */

struct worker {
	struct task_struct *task;
	dma_addr_t iova;
	unsigned long rounds;
	unsigned long failures;
};

static struct worker workers[MAX_WORKERS];
static unsigned int worker_count;

static int work(void *argument)
{
	struct worker *worker = argument;

	while (!kthread_should_stop()) {
		struct iommu_domain *domain = pair[worker->rounds++ % 2].domain;

		if (map_atomic(domain, worker->iova, pair[0].data))
			worker->failures++;
		else if (unmap_atomic(domain, worker->iova) != PAGE_SIZE)
			worker->failures++;
		cond_resched();
	}
	return 0;
}

static void stop_workers(void)
{
	while (worker_count)
		kthread_stop(workers[--worker_count].task);
}

static int start_workers(void)
{
	unsigned int count = clamp(num_online_cpus() - 1, 1, MAX_WORKERS);
	struct worker *worker;

	while (worker_count < count) {
		worker = &workers[worker_count];
		worker->iova = fn->first + SZ_256M + worker_count * SZ_4M;
		worker->rounds = 0;
		worker->failures = 0;
		worker->task = kthread_run(work, worker, "iommu_stress");
		if (IS_ERR(worker->task)) {
			stop_workers();
			return PTR_ERR(worker->task);
		}
		worker_count++;
	}
	return 0;
}

/* Stops the workers and waits for error events, which take a moment. */
static void settle(void)
{
	stop_workers();
	msleep(100);
}

/* Maps may fail only if the function is in the error state or being reset. */
static int expect_no_failures(void)
{
	unsigned long rounds = 0, failures = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(workers); i++) {
		rounds += workers[i].rounds;
		failures += workers[i].failures;
	}
	if (failures)
		return test_fail("%lu of %lu maps and unmaps failed", failures, rounds);
	if (!rounds)
		return test_fail("nothing was mapped during the test");
	return 0;
}

/* There was no error event, and every map and unmap succeeded. */
static int expect_undisturbed(void)
{
	int ret = test_expect_errors(fn, 0);

	return ret ? ret : expect_no_failures();
}

static int start_and_check(void)
{
	int ret = test_domain_start(&pair[0], &queue);

	return ret ? ret : test_domain_check(&pair[0]);
}

/* The function can still be attached, and its DMA works. */
static int attach_and_check(void)
{
	int ret = test_attach(&pair[0]);

	return ret ? ret : start_and_check();
}

/* Every transition, with the controller off */

static int step(unsigned int round)
{
	int ret;

	switch (round % 3) {
	case 0:
		ret = test_replace(&pair[0]);
		break;
	case 1:
		ret = test_replace(&pair[1]);
		break;
	default:
		test_detach(&pair[1]);
		return 0;
	}
	return ret ? test_fail("round %u: attach: error %d", round, ret) : 0;
}

static int run_transitions(void)
{
	unsigned int round;
	int ret = 0;

	for (round = 0; !ret && round < TRANSITIONS; round++)
		ret = step(round);
	return ret;
}

static int test_transitions(void)
{
	unsigned int outside;
	int ret;

	inject_reset();
	ret = start_workers();
	if (!ret)
		ret = run_transitions();
	settle();
	outside = inject_counts().outside;
	if (!ret)
		ret = expect_undisturbed();
	if (!ret && outside)
		ret = test_fail("%u refreshes outside the window", outside);
	return ret ? ret : attach_and_check();
}

/*
 * An unmap and a map on the domain that is being attached, at the same time: in
 * any order, the device must reach the new page afterwards.
 */

struct race {
	atomic_t round;
	atomic_t done;
	struct iommu_domain *domain;
	void *page;
	int error;
};

static struct race race;

static void remap_in_race(unsigned int round)
{
	/* From well before the registration to well after the refresh */
	ndelay((round * 37) % 400 * 100);
	if (unmap_atomic(race.domain, data_iova(fn)) != PAGE_SIZE ||
	    map_atomic(race.domain, data_iova(fn), race.page))
		race.error = 1;
}

static int racer(void *unused)
{
	int last = 0;

	while (!kthread_should_stop()) {
		int round = atomic_read_acquire(&race.round);

		if (round == last) {
			cond_resched();
			continue;
		}
		last = round;
		remap_in_race(round);
		atomic_set_release(&race.done, round);
	}
	return 0;
}

static int race_once(unsigned int round, void **spare)
{
	struct test_domain *now = &pair[round % 2];
	void *old = now->data;
	int ret;

	page_poison(old);
	race.domain = now->domain;
	race.page = *spare;
	atomic_set_release(&race.round, round);
	ret = test_replace(now);
	while (atomic_read_acquire(&race.done) != round)
		cond_resched();
	now->data = *spare;
	*spare = old;
	if (ret || race.error)
		return test_fail("round %u: attach %d, remap %d", round, ret, race.error);
	ret = test_domain_check(now);
	if (ret)
		return test_fail("round %u: a flush during the attach was missed", round);
	if (!page_is_poison(old))
		return test_fail("round %u: the unmapped page was written to", round);
	return 0;
}

static int run_races(void)
{
	void *spare = (void *)get_zeroed_page(GFP_KERNEL);
	struct task_struct *task;
	unsigned int round;
	int ret = 0;

	if (!spare)
		return -ENOMEM;
	memset(&race, 0, sizeof(race));
	task = kthread_run(racer, NULL, "iommu_race");
	if (IS_ERR(task)) {
		free_page((unsigned long)spare);
		return PTR_ERR(task);
	}
	for (round = 1; !ret && round <= RACES; round++)
		ret = race_once(round, &spare);
	kthread_stop(task);
	free_page((unsigned long)spare);
	return ret;
}

static int test_races(void)
{
	int ret = test_start_on(&pair[0], &queue);

	if (!ret)
		ret = run_races();
	return ret ? ret : test_expect_errors(fn, 0);
}

/* Resets and recoveries by the platform */

static int begin_attached(void)
{
	int ret = begin_two_domains();

	if (ret)
		return ret;
	ret = test_attach(&pair[0]);
	if (!ret)
		ret = start_workers();
	if (ret)
		end_two_domains();
	return ret;
}

static void end_attached(void)
{
	stop_workers();
	end_two_domains();
}

static const struct test_setup attached = { begin_attached, end_attached };

static int test_resets(void)
{
	unsigned int round;
	int ret = 0;

	for (round = 0; !ret && round < RESETS; round++) {
		admin_stop(fn);
		ret = test_reset(fn);
		if (!ret)
			ret = start_and_check();
	}
	settle();
	return ret ? ret : expect_undisturbed();
}

/*
 * Every transition on another CPU, during resets: an attach may find the
 * function disabled, or enabled but not yet registered.
 */

struct attacher {
	struct task_struct *task;
	unsigned int rounds;
	int error;
};

static struct attacher attacher;

static int attach_and_block(void *unused)
{
	while (!kthread_should_stop()) {
		if (!attacher.error)
			attacher.error = step(attacher.rounds++);
		cond_resched();
	}
	return 0;
}

static int start_attacher(void)
{
	memset(&attacher, 0, sizeof(attacher));
	attacher.task = kthread_run(attach_and_block, NULL, "iommu_attach");
	return PTR_ERR_OR_ZERO(attacher.task);
}

static int stop_attacher(unsigned int least)
{
	kthread_stop(attacher.task);
	if (attacher.error)
		return test_fail("attach %u: error %d", attacher.rounds, attacher.error);
	if (attacher.rounds < least)
		return test_fail("%u attaches, fewer than %u", attacher.rounds, least);
	return 0;
}

static int reset_beside_attaches(void)
{
	unsigned int round;
	int stopped, ret = start_attacher();

	if (ret)
		return ret;
	for (round = 0; !ret && round < RESETS; round++)
		ret = test_reset(fn);
	stopped = stop_attacher(RESETS);
	return ret ? ret : stopped;
}

static int test_attach_and_reset(void)
{
	int ret = reset_beside_attaches();

	settle();
	if (!ret)
		ret = attach_and_check();
	return ret ? ret : expect_undisturbed();
}

static int recover_once(void)
{
	reinit_completion(&fn->resumed);
	/* Nothing is mapped there. */
	admin_identify(fn, data_iova(fn) + SZ_1M);
	return test_wait_recovery(fn);
}

static int test_recoveries(void)
{
	unsigned int round;
	int ret = start_and_check();

	for (round = 0; !ret && round < RECOVERIES; round++) {
		ret = recover_once();
		if (!ret)
			ret = start_and_check();
	}
	settle();
	return ret ? ret : test_expect_errors(fn, RECOVERIES);
}

/*
 * The same during recoveries. If the function happens to be blocked, the device
 * cannot even fetch the command. That is an error event as well, unless nothing
 * is registered. Checks at the end that there was one.
 */
static int recover_beside_attaches(void)
{
	unsigned int round;
	int stopped, ret = start_attacher();

	if (ret)
		return ret;
	for (round = 0; !ret && round < RECOVERIES; round++) {
		reinit_completion(&fn->resumed);
		if (!test_domain_start(&pair[0], &queue))
			admin_identify(fn, data_iova(fn) + SZ_1M);
		if (!admin_answers(fn))
			ret = test_wait_recovery(fn);
	}
	stopped = stop_attacher(RECOVERIES);
	if (!ret)
		ret = stopped;
	if (!ret && !atomic_read(&fn->errors))
		ret = test_fail("there was no error event");
	return ret;
}

static int test_attach_and_recovery(void)
{
	int ret = begin_attached();

	if (ret)
		return ret;
	ret = recover_beside_attaches();
	end_attached();
	if (ret)
		return ret;
	/* This waits for the last recovery. */
	ret = begin_attached();
	if (ret)
		return ret;
	ret = start_and_check();
	stop_workers();
	if (!ret)
		ret = test_expect_errors(fn, 0);
	end_two_domains();
	return ret;
}

static const struct test_case cases[] = {
	{ "flushes beside attach, replace and block", test_transitions, &two_domains },
	{ "no flush beside an attach is missed", test_races, &two_domains },
	{ "flushes beside resets", test_resets, &attached },
	{ "attach, replace and block beside resets", test_attach_and_reset, &attached },
	{ "flushes beside recoveries", test_recoveries, &attached },
	{ "attach, replace and block beside recoveries", test_attach_and_recovery },
	{}
};

TEST_SUITE(stress, "Tests of flushes during changes of a function's state", cases, &fn, &queue);
