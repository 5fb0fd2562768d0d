// SPDX-License-Identifier: GPL-2.0
/*
 * Counts and refuses what the driver asks the machine for.
 *
 * The probes sit on the kernel's own functions, so that nothing of this is in
 * the driver. A refused call does not reach the machine.
 */
#define pr_fmt(fmt) "iommu_test: " fmt

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <asm/pci_clp.h>
#include <asm/pci_insn.h>

#include "internal.h"

static char *refresh_symbol = "zpci_refresh_trans";
module_param(refresh_symbol, charp, 0444);
MODULE_PARM_DESC(refresh_symbol, "function that issues RPCIT");

/* "Insufficient resources": an error that no driver may take for success, as
 * it may take "function gone" and "function in the error state".
 */
#define REFUSED_CC	1
#define REFUSED_STATUS	16

/* What is refused, and what was seen */
static struct {
	raw_spinlock_t lock; /* protects all of it */
	struct test_function *fn;
	unsigned long operations;
	unsigned int refreshes;
	int refresh_error;
	unsigned long operations_then;
	unsigned int refused;
	struct inject_counts counts;
} inject = {
	.lock = __RAW_SPIN_LOCK_UNLOCKED(inject.lock),
};

static bool is_handle_of(struct test_function *fn, u64 request)
{
	return fn && to_zpci(fn->pdev)->fh == (u32)(request >> 32);
}

/* Ends the probed function before it began, with this return value. */
static int return_early(struct pt_regs *regs, unsigned long value)
{
	regs->gprs[2] = value;
	regs->psw.addr = regs->gprs[14];
	return 1;
}

/* The emulator and the tests' functions take what is not refused here. */
static void note_table(u8 operation, const struct zpci_fib *fib)
{
	if (operation == FC_REGISTER || operation == FC_REREGISTER)
		inject.counts.table = fib->iota;
	else if (operation == FC_DEREGISTER)
		inject.counts.table = 0;
}

/* u8 zpci_mod_fc(u64 req, struct zpci_fib *fib, u8 *status) */
static int on_mod_fc(struct kprobe *probe, struct pt_regs *regs)
{
	const struct zpci_fib *fib = (void *)regs->gprs[3];
	u64 request = regs->gprs[2];
	u8 operation = request & 0xff;
	bool refuse;

	raw_spin_lock(&inject.lock);
	inject.counts.operations[operation % 16]++;
	refuse = is_handle_of(inject.fn, request) &&
		 operation < BITS_PER_LONG &&
		 (inject.operations & BIT(operation));
	inject.refused += refuse;
	if (!refuse)
		note_table(operation, fib);
	raw_spin_unlock(&inject.lock);

	if (!refuse)
		return 0;
	*(u8 *)regs->gprs[4] = REFUSED_STATUS;
	return return_early(regs, REFUSED_CC);
}

/* A function that is not bound to us has no window that we know. */
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

	raw_spin_lock(&inject.lock);
	inject.counts.refreshes++;
	inject.counts.outside += is_outside(request, regs->gprs[3], regs->gprs[4]);
	/* No function means any */
	refuse = inject.refreshes &&
		 (!inject.fn || is_handle_of(inject.fn, request));
	inject.refused += refuse;
	inject.refreshes -= refuse;
	if (refuse)
		inject.operations |= inject.operations_then;
	error = inject.refresh_error;
	raw_spin_unlock(&inject.lock);

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
 * inject_reset() - refuse nothing, count from zero
 */
void inject_reset(void)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&inject.lock, flags);
	inject.fn = NULL;
	inject.operations = 0;
	inject.operations_then = 0;
	inject.refreshes = 0;
	inject.refused = 0;
	memset(&inject.counts, 0, sizeof(inject.counts));
	raw_spin_unlock_irqrestore(&inject.lock, flags);
}
EXPORT_SYMBOL_GPL(inject_reset);

/**
 * inject_counts() - what was asked for since inject_reset()
 * @counts: where to put it
 */
void inject_counts(struct inject_counts *counts)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&inject.lock, flags);
	*counts = inject.counts;
	raw_spin_unlock_irqrestore(&inject.lock, flags);
}
EXPORT_SYMBOL_GPL(inject_counts);

/**
 * inject_refuse() - refuse operations of MPCIFC until inject_reset()
 * @fn: for this function
 * @operations: one bit for each operation
 */
void inject_refuse(struct test_function *fn, unsigned long operations)
{
	unsigned long flags;

	inject_reset();
	raw_spin_lock_irqsave(&inject.lock, flags);
	inject.fn = fn;
	inject.operations = operations;
	raw_spin_unlock_irqrestore(&inject.lock, flags);
}
EXPORT_SYMBOL_GPL(inject_refuse);

/**
 * inject_refuse_refresh() - refuse the next refreshes
 * @fn: for this function; NULL for any
 * @error: what zpci_refresh_trans() returns instead
 * @count: how many
 */
void inject_refuse_refresh(struct test_function *fn, int error,
			   unsigned int count)
{
	unsigned long flags;

	inject_reset();
	raw_spin_lock_irqsave(&inject.lock, flags);
	inject.fn = fn;
	inject.refresh_error = error;
	inject.refreshes = count;
	raw_spin_unlock_irqrestore(&inject.lock, flags);
}
EXPORT_SYMBOL_GPL(inject_refuse_refresh);

/**
 * inject_refuse_from_refresh() - refuse the next refresh, and from then on
 *	operations of MPCIFC until inject_reset()
 * @fn: for this function
 * @error: what zpci_refresh_trans() returns instead
 * @operations: one bit for each operation
 */
void inject_refuse_from_refresh(struct test_function *fn, int error,
				unsigned long operations)
{
	unsigned long flags;

	inject_refuse_refresh(fn, error, 1);
	raw_spin_lock_irqsave(&inject.lock, flags);
	inject.operations_then = operations;
	raw_spin_unlock_irqrestore(&inject.lock, flags);
}
EXPORT_SYMBOL_GPL(inject_refuse_from_refresh);

/**
 * inject_refused() - how many calls were refused since inject_reset()
 *
 * Returns: the number
 */
unsigned int inject_refused(void)
{
	return READ_ONCE(inject.refused);
}
EXPORT_SYMBOL_GPL(inject_refused);

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
		unregister_kprobe(&mod_fc_probe);
	}
	return ret;
}

void inject_exit(void)
{
	unregister_kprobe(&refresh_probe);
	unregister_kprobe(&mod_fc_probe);
}
