/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by the test modules: results, the functions under test, a minimal NVMe
 * driver, and the injection of refusals.
 *
 * A suite is a module. It runs when it is loaded and leaves its results in
 * /sys/kernel/debug/iommu_test/<suite>, one line per test:
 *
 *	ok <name>
 *	not ok <name> # <reason>
 *	ok <name> # SKIP <reason>
 *
 * The guest's init reads them there. A kernel warning fails the test during
 * which it appears.
 */
#ifndef IOMMU_TEST_H
#define IOMMU_TEST_H

#include <linux/completion.h>
#include <linux/iommu.h>
#include <linux/module.h>
#include <linux/pci.h>

/* Results */

/* Return value of a test that cannot run here, see test_skip(). */
#define TEST_SKIPPED 1

/**
 * struct test_setup - setup and teardown that several tests share
 * @begin: called before the test; returns 0, TEST_SKIPPED or a negative error;
 *	unless it returns 0, neither the test nor @end is called
 * @end: called after the test, whatever its result
 */
struct test_setup {
	int (*begin)(void);
	void (*end)(void);
};

/**
 * TEST_SETUP() - define a setup of one call before and one after the test
 * @_name: the setup's name
 * @_begin: the call before the test, with its arguments
 * @_end: the call after the test, with its arguments
 */
#define TEST_SETUP(_name, _begin, _end)					\
static int begin_##_name(void)						\
{									\
	return _begin;							\
}									\
									\
static void end_##_name(void)						\
{									\
	_end;								\
}									\
									\
static const struct test_setup _name = { begin_##_name, end_##_name }

/**
 * struct test_case - a test, one line of the results; an empty one ends a list
 * @name: what is tested
 * @run: the test; returns 0, TEST_SKIPPED or a negative error
 * @setup: its setup, or NULL
 * @breaks: whether it always provokes an error event; then it is not run if
 *	test_is_calm()
 * @list: in place of all that, a list of the suite's tests in another file
 */
struct test_case {
	const char *name;
	int (*run)(void);
	const struct test_setup *setup;
	bool breaks;
	const struct test_case *list;
};

/**
 * TEST_CALL() - define a test that consists of one call
 * @_name: the function will be named test_<name>
 * @_call: the call, with its arguments
 */
#define TEST_CALL(_name, _call)						\
static int test_##_name(void)						\
{									\
	return _call;							\
}

int test_run(const char *suite, const struct test_case *cases);
void test_forget(const char *suite);
int __printf(1, 2) test_fail(const char *fmt, ...);
int __printf(1, 2) test_skip(const char *fmt, ...);

/* Functions under test: those bound to the driver "iommu_test" */

#define TEST_MAX_FUNCTIONS 2

/**
 * struct test_function - an NVMe function and its state
 * @pdev: the function
 * @bar: its registers
 * @group: its IOMMU group, which has no other member
 * @first: first IOVA of its window
 * @last: last IOVA of its window
 * @errors: number of error events reported for it
 * @resets: number of resets with which the kernel recovered it
 * @keeps_state: whether to request a recovery without a reset
 * @resumed: completed when the kernel has recovered it from an error
 * @stride: distance between its doorbells
 * @sq: submission queue while the controller runs
 * @cq: completion queue while the controller runs
 * @tail: index of the next submission
 * @head: index of the next completion
 * @phase: phase tag of the next completion
 */
struct test_function {
	struct pci_dev *pdev;
	void __iomem *bar;
	struct iommu_group *group;
	dma_addr_t first;
	dma_addr_t last;
	atomic_t errors;
	atomic_t resets;
	bool keeps_state;
	struct completion resumed;
	u32 stride;
	void *sq;
	void *cq;
	u16 tail;
	u16 head;
	u16 phase;
};

int test_sees_no_maps(struct test_function *fn);
struct test_function *test_function(unsigned int index);
int test_wait_recovery(struct test_function *fn);
int test_recover_if_broken(struct test_function *fn);
int test_reset(struct test_function *fn);

/* The NVMe admin queue: DMA to any IOVA that a test chooses */

int admin_start(struct test_function *fn, void *sq, dma_addr_t sq_iova,
		void *cq, dma_addr_t cq_iova);
bool admin_answers(struct test_function *fn);
void admin_stop(struct test_function *fn);
int admin_identify(struct test_function *fn, dma_addr_t iova);

/* Data pages, and checks of what the device wrote there */

void page_poison(void *page);
bool page_is_poison(const void *page);
bool page_is_identity(struct test_function *fn, const void *page);
int admin_check(struct test_function *fn, dma_addr_t iova, void *page);

/* A domain that maps the admin queue and a data page */

/**
 * struct test_domain - a paging domain for one function's admin queue
 * @domain: the domain
 * @handle: attach handle for iommu_replace_group_handle()
 * @fn: the function that the mappings are for
 * @data: the domain's own data page, mapped at data_iova()
 */
struct test_domain {
	struct iommu_domain *domain;
	struct iommu_attach_handle handle;
	struct test_function *fn;
	void *data;
};

/*
 * The pages of an admin queue. They are the same in all domains, so a running
 * controller does not notice when the domain is replaced.
 */
struct test_queue {
	void *sq;
	void *cq;
};

int test_queue_alloc(struct test_queue *queue);
void test_queue_free(struct test_queue *queue);

static inline dma_addr_t sq_iova(struct test_function *fn)
{
	return fn->first + 0x100000;
}

static inline dma_addr_t cq_iova(struct test_function *fn)
{
	return fn->first + 0x101000;
}

static inline dma_addr_t data_iova(struct test_function *fn)
{
	return fn->first + 0x300000;
}

int test_suite(const char *name, const struct test_case *cases,
	       struct test_function **fn, struct test_queue *queue);

/**
 * TEST_SUITE() - define a module that only runs a suite
 * @_name: the suite's name, without quotation marks
 * @_about: the module's description
 * @_cases: its tests
 * @_fn: pointer to a variable that is set to the first function under test
 * @_queue: pointer to a queue that gets the pages of an admin queue, or NULL
 */
#define TEST_SUITE(_name, _about, _cases, _fn, _queue)			\
static int __init _name##_init(void)					\
{									\
	return test_suite(#_name, _cases, _fn, _queue);			\
}									\
module_init(_name##_init);						\
									\
static void __exit _name##_exit(void)					\
{									\
	test_forget(#_name);						\
}									\
module_exit(_name##_exit);						\
MODULE_DESCRIPTION(_about);						\
MODULE_LICENSE("GPL")

#define RW	(IOMMU_READ | IOMMU_WRITE)

/*
 * No test machine has memory there. iommu.debug_pagealloc counts the mappings of
 * each page of memory, also those in a domain that was freed with them.
 */
#define NO_MEMORY	(1024UL * SZ_1G)

int test_map_page(struct test_domain *dom, dma_addr_t iova, void *page);
void test_unmap_page(struct test_domain *dom, dma_addr_t iova);
size_t test_unmap_queued(struct iommu_domain *domain, dma_addr_t iova, size_t size);

int test_domain_alloc(struct test_domain *dom, struct test_function *fn);
int test_domain_map(struct test_domain *dom, struct test_queue *queue);
void test_domain_free(struct test_domain *dom);
int test_domain_renew(struct test_domain *dom, void **page);
int test_domain_start(struct test_domain *dom, struct test_queue *queue);
int test_domain_check(struct test_domain *dom);

/* Owning a function: without the DMA API, blocked until a domain is attached */

int test_claim(struct test_function *fn);
void test_release(struct test_function *fn);
int test_pair_claim(struct test_domain pair[2], struct test_function *fn);
int test_pair_claim_mapped(struct test_domain pair[2], struct test_function *fn,
			   struct test_queue *queue);
void test_pair_release(struct test_domain pair[2]);
int test_replace(struct test_domain *dom);
struct iommu_domain *test_identity_domain(struct test_function *fn);
int test_replace_by_identity(struct test_function *fn, struct iommu_domain *identity);
int test_attach(struct test_domain *dom);
int test_start_on(struct test_domain *dom, struct test_queue *queue);
void test_detach(struct test_domain *dom);

/* What a function is attached to: in the core, for its DMA and for flushes */

static inline struct iommu_domain *test_current(struct test_function *fn)
{
	return iommu_get_domain_for_dev(&fn->pdev->dev);
}

int test_run_on(struct test_domain *dom, struct test_queue *queue);
int test_expect_running(struct test_domain *dom);
int test_expect_on(struct test_domain *dom, struct test_queue *queue);
int test_expect_errors(struct test_function *fn, int expected);
int test_expect_blocked(struct test_domain *dom, struct test_queue *queue,
			void *page);
int test_expect_gone(struct test_domain *dom, struct test_queue *queue,
		     void *page, dma_addr_t iova);
int test_dma_api(struct test_function *fn, int (*meanwhile)(void));
int test_break(struct test_function *fn);
int test_recover(struct test_function *fn, int ret);

/* For guests with a function that is passed through */

bool test_is_calm(void);
int test_expect_outside(unsigned int pages);

/* Instructions: count, record and refuse them */

/* Operations of MPCIFC */
#define FC_REGISTER	4
#define FC_DEREGISTER	5
#define FC_REREGISTER	6
#define FC_RESET_ERROR	7

#define FC_ATTACH	(BIT(FC_REGISTER) | BIT(FC_REREGISTER))
#define FC_ALL_TABLES	(FC_ATTACH | BIT(FC_DEREGISTER))

/**
 * struct inject_counts - instructions of the driver since inject_reset()
 * @operations: number of MPCIFCs, by operation
 * @gisas: the guest (GISA) of the last MPCIFC, by operation
 * @refreshes: number of RPCITs
 * @outside: number of RPCITs that exceed the function's window
 * @irqs_off: number of RPCITs with interrupts off
 * @table: IOTA that was registered last; 0 if it was deregistered, or nothing
 *	was registered
 */
struct inject_counts {
	unsigned int operations[16];
	u32 gisas[16];
	unsigned int refreshes;
	unsigned int outside;
	unsigned int irqs_off;
	u64 table;
};

#define INJECT_STEPS 64

/**
 * struct inject_step - an instruction that was recorded for a function
 * @operation: operation of MPCIFC; 0 for a refresh
 * @refused: whether the test refused it
 * @table: IOTA to register
 * @start: first IOVA to refresh
 * @size: number of bytes to refresh
 */
struct inject_step {
	u8 operation;
	bool refused;
	u64 table;
	u64 start;
	u64 size;
};

int test_expect_replaces(unsigned int replaces);

void inject_reset(void);
struct inject_counts inject_counts(void);
u64 inject_table(void);
void inject_record(struct test_function *fn);
unsigned int inject_steps(struct inject_step *steps);
void inject_offer_identity(struct test_function *fn, bool offer);
int inject_no_memory(bool fail);
void inject_watch(void);
bool inject_is_freed(void);
int inject_pause_start(struct test_function *fn, unsigned int step,
		       void (*job)(void));
int inject_pause_end(void);
void inject_refuse(struct test_function *fn, unsigned long operations);
void inject_refuse_as(struct test_function *fn, unsigned long operations,
		      u8 cc, u8 status);
void inject_refuse_identity(struct test_function *fn);
void inject_refuse_refresh(struct test_function *fn, int error,
			   unsigned int count);
void inject_refuse_from_refresh(struct test_function *fn, int error,
				unsigned long operations);
unsigned int inject_refused(void);
int inject_hide_disable(bool hide);
int inject_disabled(struct test_function *fn);

#endif /* IOMMU_TEST_H */
