// SPDX-License-Identifier: GPL-2.0
/*
 * Counts, records, refuses and delays the instructions that the driver issues.
 *
 * The probes are on the kernel's own functions, so the driver needs no code for
 * this. A refused call does not reach the machine.
 */
#define pr_fmt(fmt) "iommu_test: " fmt

#include <linux/cleanup.h>
#include <linux/cpumask.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <asm/pci_clp.h>
#include <asm/pci_insn.h>
#include <asm/timex.h>

#include "internal.h"

static char *refresh_symbol = "zpci_refresh_trans";
module_param(refresh_symbol, charp, 0444);
MODULE_PARM_DESC(refresh_symbol, "function that issues RPCIT");

static unsigned int no_resources_every;
module_param(no_resources_every, uint, 0644);
MODULE_PARM_DESC(no_resources_every, "refuse every n-th refresh: insufficient resources");

static unsigned int refuse_table;
module_param(refuse_table, uint, 0444);
MODULE_PARM_DESC(refuse_table, "refuse the n-th operation on a table, starting at 1");

static unsigned int refuse_cc = 1;
module_param(refuse_cc, uint, 0444);
MODULE_PARM_DESC(refuse_cc, "condition code of refuse_table");

static unsigned int refuse_status = 16;
module_param(refuse_status, uint, 0444);
MODULE_PARM_DESC(refuse_status, "status of refuse_table");

/*
 * "Insufficient resources": an error that a driver must not ignore, unlike
 * "function gone" and "function in the error state".
 */
#define REFUSED_CC	1
#define REFUSED_STATUS	16

/* What to refuse, and what was issued */
static struct {
	raw_spinlock_t lock; /* protects all fields */
	struct test_function *fn;
	unsigned long operations;
	u8 cc;
	u8 status;
	bool identity_only;
	unsigned int refreshes;
	int refresh_error;
	unsigned long operations_then;
	unsigned int refused;
	struct inject_counts counts;
	struct test_function *recorded;
	struct inject_step steps[INJECT_STEPS];
	unsigned int step_count;
	struct task_struct *victim;
} inject = {
	.lock = __RAW_SPIN_LOCK_UNLOCKED(inject.lock),
};

/*
 * A function for which identity is accepted although the machine does not offer
 * it: its registrations of identity do not reach the machine.
 */
static struct test_function *identity_fn;

/* Holds up a task once, until a job on another CPU is done */
static struct {
	struct test_function *fn;
	struct task_struct *victim;
	struct task_struct *worker;
	unsigned int steps_left;
	bool late;
	atomic_t state;
	void (*job)(void);
} pause;

enum {
	PAUSE_WAITS,
	PAUSE_REACHED,
	PAUSE_DONE,
};

static bool is_one_of(u8 operation, unsigned long operations)
{
	return operation < BITS_PER_LONG && (operations & BIT(operation));
}

static bool is_handle_of(struct test_function *fn, u64 request)
{
	return fn && to_zpci(fn->pdev)->fh == (u32)(request >> 32);
}

/* Skips the probed function, which returns this value. */
static int return_early(struct pt_regs *regs, unsigned long value)
{
	regs->gprs[2] = value;
	regs->psw.addr = regs->gprs[14];
	return 1;
}

/* What is not refused here succeeds in the emulator and on the functions. */
static void note_table(u8 operation, const struct zpci_fib *fib)
{
	if (is_one_of(operation, FC_ATTACH))
		inject.counts.table = fib->iota;
	else if (operation == FC_DEREGISTER)
		inject.counts.table = 0;
}

static void record(u64 request, struct inject_step step)
{
	if (is_handle_of(inject.recorded, request) &&
	    inject.step_count < ARRAY_SIZE(inject.steps))
		inject.steps[inject.step_count++] = step;
}

/* 2 s of the TOD clock. If the job takes longer, it waits for the task. */
#define HOLD_UP_LIMIT	(2ULL * 1000000 << 12)

/*
 * Holds up the task before it issues the instruction, if this is the step. No
 * lock is held here; the job runs on another CPU.
 */
static void hold_up(u64 request)
{
	u64 start;

	if (READ_ONCE(pause.victim) != current || !is_handle_of(pause.fn, request))
		return;
	if (pause.steps_left--)
		return;
	start = get_tod_clock_fast();
	atomic_set_release(&pause.state, PAUSE_REACHED);
	while (atomic_read_acquire(&pause.state) != PAUSE_DONE && !pause.late) {
		pause.late = get_tod_clock_fast() - start > HOLD_UP_LIMIT;
		cpu_relax();
	}
}

/* u8 zpci_mod_fc(u64 req, struct zpci_fib *fib, u8 *status) */
static int on_mod_fc(struct kprobe *probe, struct pt_regs *regs)
{
	const struct zpci_fib *fib = (void *)regs->gprs[3];
	u64 request = regs->gprs[2];
	u8 operation = request & 0xff;
	bool on_table = is_one_of(operation, FC_ALL_TABLES);
	u8 *status = (void *)regs->gprs[4];
	bool refuse;

	if (on_table)
		hold_up(request);
	guard(raw_spinlock)(&inject.lock);
	inject.counts.operations[operation % 16]++;
	inject.counts.gisas[operation % 16] = fib->gd;
	refuse = is_handle_of(inject.fn, request) && is_one_of(operation, inject.operations) &&
		 !(inject.identity_only && fib->iota);
	inject.refused += refuse;
	if (!refuse)
		note_table(operation, fib);
	if (on_table)
		record(request, (struct inject_step) {
			.operation = operation, .refused = refuse, .table = fib->iota,
		});

	if (on_table && refuse_table && !--refuse_table) {
		*status = refuse_status;
		return return_early(regs, refuse_cc);
	}
	if (refuse) {
		*status = inject.status;
		return return_early(regs, inject.cc);
	}
	if (!fib->iota && is_handle_of(identity_fn, request) && is_one_of(operation, FC_ATTACH))
		return return_early(regs, 0);
	return 0;
}

/* The window of a function that is not under test is unknown. */
static bool is_outside(u64 request, u64 start, u64 size)
{
	struct test_function *fn;
	unsigned int i;

	for (i = 0; i < TEST_MAX_FUNCTIONS; i++) {
		fn = test_function(i);
		if (!is_handle_of(fn, request))
			continue;
		return !size || start < fn->first || start + size - 1 > fn->last;
	}
	return false;
}

/* int zpci_refresh_trans(u64 fn, u64 addr, u64 range) */
static int on_refresh(struct kprobe *probe, struct pt_regs *regs)
{
	u64 request = regs->gprs[2];
	bool refuse;
	int error;

	hold_up(request);
	guard(raw_spinlock)(&inject.lock);
	inject.counts.refreshes++;
	inject.counts.outside += is_outside(request, regs->gprs[3], regs->gprs[4]);
	/* A breakpoint probe turns them off, an ftrace probe does not. */
	inject.counts.irqs_off += irqs_disabled() && !(regs->psw.mask & PSW_MASK_IO);
	/* NULL means any function */
	refuse = inject.refreshes &&
		 (!inject.fn || is_handle_of(inject.fn, request));
	inject.refused += refuse;
	inject.refreshes -= refuse;
	if (refuse)
		inject.operations |= inject.operations_then;
	error = inject.refresh_error;
	if (no_resources_every && !(inject.counts.refreshes % no_resources_every)) {
		refuse = true;
		error = -ENOMEM;
	}
	record(request, (struct inject_step) {
		.refused = refuse, .start = regs->gprs[3], .size = regs->gprs[4],
	});
	return refuse ? return_early(regs, error) : 0;
}

static struct kprobe mod_fc_probe = {
	.symbol_name = "zpci_mod_fc",
	.pre_handler = on_mod_fc,
};

static struct kprobe refresh_probe = {
	.pre_handler = on_refresh,
};

/**
 * inject_reset() - refuse nothing and count from zero
 */
void inject_reset(void)
{
	guard(raw_spinlock_irqsave)(&inject.lock);
	inject.fn = NULL;
	inject.operations = 0;
	inject.operations_then = 0;
	inject.identity_only = false;
	inject.refreshes = 0;
	inject.refused = 0;
	memset(&inject.counts, 0, sizeof(inject.counts));
	inject.recorded = NULL;
	inject.step_count = 0;
}
EXPORT_SYMBOL_GPL(inject_reset);

/**
 * inject_counts() - get the counts of instructions since inject_reset()
 *
 * Returns: the counts
 */
struct inject_counts inject_counts(void)
{
	guard(raw_spinlock_irqsave)(&inject.lock);
	return inject.counts;
}
EXPORT_SYMBOL_GPL(inject_counts);

/**
 * inject_table() - get the table that was registered since inject_reset()
 *
 * Returns: its IOTA, see struct inject_counts
 */
u64 inject_table(void)
{
	return inject_counts().table;
}
EXPORT_SYMBOL_GPL(inject_table);

/**
 * inject_refuse_as() - refuse operations of MPCIFC until inject_reset()
 * @fn: the function
 * @operations: one bit for each operation
 * @cc: the condition code
 * @status: the status
 */
void inject_refuse_as(struct test_function *fn, unsigned long operations,
		      u8 cc, u8 status)
{
	inject_reset();
	guard(raw_spinlock_irqsave)(&inject.lock);
	inject.fn = fn;
	inject.operations = operations;
	inject.cc = cc;
	inject.status = status;
}
EXPORT_SYMBOL_GPL(inject_refuse_as);

/**
 * inject_refuse() - refuse operations of MPCIFC for lack of resources until
 *	inject_reset()
 * @fn: the function
 * @operations: one bit for each operation
 */
void inject_refuse(struct test_function *fn, unsigned long operations)
{
	inject_refuse_as(fn, operations, REFUSED_CC, REFUSED_STATUS);
}
EXPORT_SYMBOL_GPL(inject_refuse);

/**
 * inject_refuse_identity() - refuse registrations of identity until
 *	inject_reset()
 * @fn: the function
 */
void inject_refuse_identity(struct test_function *fn)
{
	inject_refuse(fn, FC_ATTACH);
	guard(raw_spinlock_irqsave)(&inject.lock);
	inject.identity_only = true;
}
EXPORT_SYMBOL_GPL(inject_refuse_identity);

/**
 * inject_refuse_refresh() - refuse the next refreshes
 * @fn: the function; NULL for any
 * @error: what zpci_refresh_trans() returns instead
 * @count: number of refreshes
 */
void inject_refuse_refresh(struct test_function *fn, int error,
			   unsigned int count)
{
	inject_reset();
	guard(raw_spinlock_irqsave)(&inject.lock);
	inject.fn = fn;
	inject.refresh_error = error;
	inject.refreshes = count;
}
EXPORT_SYMBOL_GPL(inject_refuse_refresh);

/**
 * inject_refuse_from_refresh() - refuse the next refresh, and from then on
 *	operations of MPCIFC until inject_reset()
 * @fn: the function
 * @error: what zpci_refresh_trans() returns instead
 * @operations: one bit for each operation
 */
void inject_refuse_from_refresh(struct test_function *fn, int error,
				unsigned long operations)
{
	inject_refuse_refresh(fn, error, 1);
	guard(raw_spinlock_irqsave)(&inject.lock);
	inject.operations_then = operations;
	inject.cc = REFUSED_CC;
	inject.status = REFUSED_STATUS;
}
EXPORT_SYMBOL_GPL(inject_refuse_from_refresh);

/**
 * inject_refused() - get the number of refused calls since inject_reset()
 *
 * Returns: the number
 */
unsigned int inject_refused(void)
{
	return READ_ONCE(inject.refused);
}
EXPORT_SYMBOL_GPL(inject_refused);

/**
 * inject_record() - record the instructions for a function until inject_reset()
 * @fn: the function
 */
void inject_record(struct test_function *fn)
{
	guard(raw_spinlock_irqsave)(&inject.lock);
	inject.recorded = fn;
	inject.step_count = 0;
}
EXPORT_SYMBOL_GPL(inject_record);

/**
 * inject_steps() - get the instructions since inject_record()
 * @steps: an array of INJECT_STEPS; later instructions are not recorded
 *
 * Returns: the number of instructions
 */
unsigned int inject_steps(struct inject_step *steps)
{
	guard(raw_spinlock_irqsave)(&inject.lock);
	memcpy(steps, inject.steps, inject.step_count * sizeof(*steps));
	return inject.step_count;
}
EXPORT_SYMBOL_GPL(inject_steps);

/**
 * inject_offer_identity() - make a function look as if it may skip translation
 * @fn: the function
 * @offer: whether it may
 *
 * Debian's emulator offers no such function. Registrations of identity do not
 * reach it: it still uses the table that was registered before. If the machine
 * offers such a function, nothing changes.
 */
void inject_offer_identity(struct test_function *fn, bool offer)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);

	if (offer == zdev->rtr_avail || (!offer && !identity_fn))
		return;
	WRITE_ONCE(identity_fn, offer ? fn : NULL);
	zdev->rtr_avail = offer;
}
EXPORT_SYMBOL_GPL(inject_offer_identity);

/* void *krealloc_node_align_noprof(const void *p, size_t size, ...) */
static int on_krealloc(struct kprobe *probe, struct pt_regs *regs)
{
	if (current != READ_ONCE(inject.victim))
		return 0;
	guard(raw_spinlock)(&inject.lock);
	inject.refused++;
	return return_early(regs, 0);
}

static struct kprobe krealloc_probe = {
	.symbol_name = "krealloc_node_align_noprof",
	.pre_handler = on_krealloc,
};

/**
 * inject_no_memory() - make the calling task's allocations by Rust code fail
 * @fail: whether they fail
 *
 * Returns: 0 or an error
 */
int inject_no_memory(bool fail)
{
	int ret = 0;

	if (fail) {
		/* A previous registration has set the address. */
		krealloc_probe.addr = NULL;
		ret = register_kprobe(&krealloc_probe);
	}
	WRITE_ONCE(inject.victim, fail && !ret ? current : NULL);
	if (!fail)
		unregister_kprobe(&krealloc_probe);
	return ret;
}
EXPORT_SYMBOL_GPL(inject_no_memory);

/* A table, to check when it is freed */
static void *watched;
static bool watched_is_freed;

/* void iommu_free_pages(void *virt) */
static int on_free_pages(struct kprobe *probe, struct pt_regs *regs)
{
	if ((void *)regs->gprs[2] == READ_ONCE(watched))
		WRITE_ONCE(watched_is_freed, true);
	return 0;
}

/*
 * Only enabled when needed, and then left enabled: in a small kernel the
 * function begins with a compare and branch, which the emulator single-steps
 * incorrectly.
 */
static struct kprobe free_pages_probe = {
	.symbol_name = "iommu_free_pages",
	.pre_handler = on_free_pages,
	.flags = KPROBE_FLAG_DISABLED,
};

/**
 * inject_watch() - watch the table that was registered last
 */
void inject_watch(void)
{
	WRITE_ONCE(watched_is_freed, false);
	WRITE_ONCE(watched, phys_to_virt(inject.counts.table & PAGE_MASK));
	enable_kprobe(&free_pages_probe);
}
EXPORT_SYMBOL_GPL(inject_watch);

/**
 * inject_is_freed() - whether the watched table was freed
 *
 * Returns: true if it was
 */
bool inject_is_freed(void)
{
	return READ_ONCE(watched_is_freed);
}
EXPORT_SYMBOL_GPL(inject_is_freed);

static int do_job(void *unused)
{
	while (!kthread_should_stop()) {
		if (atomic_read_acquire(&pause.state) == PAUSE_REACHED) {
			pause.job();
			atomic_set_release(&pause.state, PAUSE_DONE);
		}
		cond_resched();
	}
	return 0;
}

/**
 * inject_pause_start() - hold up the calling task once
 * @fn: before it issues an instruction for this function
 * @step: number of such instructions that it may issue before
 * @job: called on another CPU meanwhile
 *
 * Until inject_pause_end(), the task stays on this CPU.
 *
 * Returns: 0 or an error
 */
int inject_pause_start(struct test_function *fn, unsigned int step,
		       void (*job)(void))
{
	unsigned int here = get_cpu();
	unsigned int there = cpumask_any_but(cpu_online_mask, here);

	set_cpus_allowed_ptr(current, cpumask_of(here));
	put_cpu();
	if (there >= nr_cpu_ids)
		return -ENODEV;
	pause.fn = fn;
	pause.steps_left = step;
	pause.late = false;
	pause.job = job;
	atomic_set(&pause.state, PAUSE_WAITS);
	pause.worker = kthread_create(do_job, NULL, "iommu_pause");
	if (IS_ERR(pause.worker))
		return PTR_ERR(pause.worker);
	kthread_bind(pause.worker, there);
	wake_up_process(pause.worker);
	WRITE_ONCE(pause.victim, current);
	return 0;
}
EXPORT_SYMBOL_GPL(inject_pause_start);

/**
 * inject_pause_end() - stop holding up the task
 *
 * Returns: whether it was held up, and the job did not wait for it
 */
int inject_pause_end(void)
{
	WRITE_ONCE(pause.victim, NULL);
	kthread_stop(pause.worker);
	set_cpus_allowed_ptr(current, cpu_possible_mask);
	return atomic_read(&pause.state) == PAUSE_DONE && !pause.late;
}
EXPORT_SYMBOL_GPL(inject_pause_end);

static int hide_disable(struct kprobe *probe, struct pt_regs *regs)
{
	return return_early(regs, 0);
}

static struct kprobe disable_probe = {
	.symbol_name = "zpci_iommu_disabled",
	.pre_handler = hide_disable,
};

/**
 * inject_hide_disable() - hide from the driver that a function was disabled, as
 *	when the machine disables it
 * @hide: whether to hide it
 *
 * Returns: 0, or an error if this driver is never notified
 */
int inject_hide_disable(bool hide)
{
	if (hide) {
		disable_probe.addr = NULL;
		disable_probe.flags = 0;
		return register_kprobe(&disable_probe);
	}
	unregister_kprobe(&disable_probe);
	return 0;
}
EXPORT_SYMBOL_GPL(inject_hide_disable);

/**
 * inject_disabled() - notify the driver that a function was disabled
 * @fn: the function
 *
 * Returns: 0, or an error if this driver is never notified
 */
int inject_disabled(struct test_function *fn)
{
	void (*disabled)(struct zpci_dev *zdev);
	int ret = inject_hide_disable(true);

	if (ret)
		return ret;
	disabled = (void *)disable_probe.addr;
	inject_hide_disable(false);
	disabled(to_zpci(fn->pdev));
	return 0;
}
EXPORT_SYMBOL_GPL(inject_disabled);

int inject_init(void)
{
	int ret = register_kprobe(&mod_fc_probe);

	if (ret)
		return ret;
	refresh_probe.symbol_name = refresh_symbol;
	ret = register_kprobe(&refresh_probe);
	if (ret) {
		pr_err("no probe on %s (%d): set refresh_symbol=\n",
		       refresh_symbol, ret);
		goto out_mod_fc;
	}
	ret = register_kprobe(&free_pages_probe);
	if (ret)
		goto out_refresh;
	return 0;

out_refresh:
	unregister_kprobe(&refresh_probe);
out_mod_fc:
	unregister_kprobe(&mod_fc_probe);
	return ret;
}

void inject_exit(void)
{
	unregister_kprobe(&free_pages_probe);
	unregister_kprobe(&refresh_probe);
	unregister_kprobe(&mod_fc_probe);
}
