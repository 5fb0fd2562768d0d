// SPDX-License-Identifier: GPL-2.0
/*
 * Makes one of the driver's calls fail while the driver starts, or delays it.
 *
 * The probes are on the kernel's own functions, so the driver needs no code for
 * this. They are armed for the task that loads the driver's module, from just
 * before the module starts until it has started. They count the driver's calls:
 * those with the driver among their nearest callers. The call with the number
 * of the parameter "nth" is not executed and returns an error; with 0 all calls
 * are executed.
 *
 * Enabling a function takes "enable_ms" longer, whoever does it. In this time
 * its slot can be switched.
 */
#define pr_fmt(fmt) "init_fail: " fmt

#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sched.h>
#include <asm/stacktrace.h>

#define DRIVER "s390_iommu"

static unsigned int nth;
module_param(nth, uint, 0644);
MODULE_PARM_DESC(nth, "the number of the call that fails, from 1; 0 for none");

static unsigned int calls;
module_param(calls, uint, 0444);
MODULE_PARM_DESC(calls, "the number of calls in the last start");

static char failed[64] = "none";
module_param_string(failed, failed, sizeof(failed), 0444);
MODULE_PARM_DESC(failed, "the function whose call failed in the last start");

static unsigned int enable_ms;
module_param(enable_ms, uint, 0644);
MODULE_PARM_DESC(enable_ms, "how much longer enabling a function takes, in ms");

/*
 * The current start: written by the task that loads the module, in whose
 * context the probes read it.
 */
static struct task_struct *loader;
static const struct module *driver;

/*
 * How many callers to check: the kernel's Rust code and the built-in part of
 * the driver may be in between. A call from further away is not the driver's
 * own.
 */
#define DISTANCE 4

static bool is_in_driver(unsigned long address)
{
	const struct module *mod = driver;

	for_each_mod_mem_type(type) {
		if (address - (unsigned long)mod->mem[type].base < mod->mem[type].size)
			return true;
	}
	return false;
}

/*
 * Whether one of the nearest callers of the probed function is the driver. The
 * function has no stack frame yet. A stack frame holds the return address of
 * the function that its owner called.
 */
static bool by_driver(const struct pt_regs *regs)
{
	const struct stack_frame *frame = (void *)regs->gprs[15];
	unsigned int i;

	if (is_in_driver(regs->gprs[14]))
		return true;
	for (i = 1; i < DISTANCE; i++) {
		frame = (void *)frame->back_chain;
		if (!frame)
			return false;
		if (is_in_driver(frame->gprs[8]))
			return true;
	}
	return false;
}

struct failing {
	struct kprobe probe;
	long result;
};

static int on_call(struct kprobe *probe, struct pt_regs *regs)
{
	struct failing *failing = container_of(probe, struct failing, probe);

	if (READ_ONCE(loader) != current || !by_driver(regs))
		return 0;
	if (++calls != nth)
		return 0;
	strscpy(failed, probe->symbol_name);
	regs->gprs[2] = failing->result;
	regs->psw.addr = regs->gprs[14];
	return 1;
}

#define FAILING(name, error) \
	{ .probe = { .symbol_name = name, .pre_handler = on_call }, .result = error }

static struct failing all[] = {
	/* Memory for tables and for Rust's boxes */
	FAILING("iommu_alloc_pages_node_sz", 0),
	FAILING("krealloc_node_align_noprof", 0),
	/* Registration with the subsystem, and its scan */
	FAILING("zpci_iommu_driver_register", -EBUSY),
	FAILING("zpci_scan_devices", -ENOMEM),
	/* For each function */
	FAILING("iommu_device_sysfs_add", -ENOMEM),
	FAILING("iommu_device_register", -ENOMEM),
};

static int on_enable(struct kprobe *probe, struct pt_regs *regs)
{
	mdelay(READ_ONCE(enable_ms));
	return 0;
}

static struct kprobe enable = {
	.symbol_name = "zpci_enable_device", .pre_handler = on_enable,
};

static int on_module(struct notifier_block *block, unsigned long state, void *data)
{
	const struct module *mod = data;

	if (strcmp(mod->name, DRIVER))
		return NOTIFY_DONE;
	if (state == MODULE_STATE_COMING) {
		calls = 0;
		strscpy(failed, "none");
		driver = mod;
		WRITE_ONCE(loader, current);
	} else {
		WRITE_ONCE(loader, NULL);
	}
	return NOTIFY_DONE;
}

static struct notifier_block modules = { .notifier_call = on_module };

static struct kprobe *probes[ARRAY_SIZE(all) + 1];

static int __init init_fail_init(void)
{
	unsigned int i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(all); i++)
		probes[i] = &all[i].probe;
	probes[i] = &enable;
	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		ret = register_kprobe(probes[i]);
		if (ret) {
			pr_err("no probe on %s (%d)\n", probes[i]->symbol_name, ret);
			unregister_kprobes(probes, i);
			return ret;
		}
	}
	ret = register_module_notifier(&modules);
	if (ret)
		unregister_kprobes(probes, ARRAY_SIZE(probes));
	return ret;
}

static void __exit init_fail_exit(void)
{
	unregister_module_notifier(&modules);
	unregister_kprobes(probes, ARRAY_SIZE(probes));
}

module_init(init_fail_init);
module_exit(init_fail_exit);
MODULE_DESCRIPTION("Makes a step of the start of the s390 IOMMU driver fail");
MODULE_AUTHOR("The s390 IOMMU in Rust contributors");
MODULE_LICENSE("GPL");
