// SPDX-License-Identifier: GPL-2.0
/*
 * Not a suite: drivers that probe while this module is loaded map as much at
 * once as their devices support. With an IOMMU the DMA API recommends 128 KiB,
 * and the NVMe driver makes no larger requests.
 */
#define pr_fmt(fmt) "mapping_size: " fmt

#include <linux/kprobes.h>
#include <linux/module.h>

static int on_return(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	regs_set_return_value(regs, SIZE_MAX);
	return 0;
}

static struct kretprobe advice = {
	.kp.symbol_name = "dma_opt_mapping_size",
	.handler = on_return,
};

static int __init mapping_size_init(void)
{
	return register_kretprobe(&advice);
}

static void __exit mapping_size_exit(void)
{
	unregister_kretprobe(&advice);
}

module_init(mapping_size_init);
module_exit(mapping_size_exit);
MODULE_DESCRIPTION("Lets drivers map more than 128 KiB at once");
MODULE_LICENSE("GPL");
