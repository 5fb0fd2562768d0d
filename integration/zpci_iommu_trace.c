// SPDX-License-Identifier: GPL-2.0
/*
 * Tracepoints of the IOMMU driver in Rust. They are built in with the rest of
 * its C code: so events can be enabled before a driver that is a module is
 * loaded, and the module needs no C object.
 */
#include <linux/export.h>
#include <linux/limits.h>
#include <linux/sprintf.h>
#include <linux/string.h>
#include <linux/types.h>

static void zpci_iommu_name(char *name, size_t size, u64 attached);

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "zpci_iommu_trace.h"

/* The name of what is attached; trace.rs defines the numbers */
static void zpci_iommu_name(char *name, size_t size, u64 attached)
{
	switch (attached) {
	case 0:
		strscpy(name, "blocked", size);
		break;
	case U64_MAX:
		strscpy(name, "identity", size);
		break;
	default:
		snprintf(name, size, "%llu", attached);
	}
}

EXPORT_TRACEPOINT_SYMBOL_GPL(s390_iommu_attach);
EXPORT_SYMBOL_GPL(rust_do_trace_s390_iommu_attach);
EXPORT_TRACEPOINT_SYMBOL_GPL(s390_iommu_widen);
EXPORT_SYMBOL_GPL(rust_do_trace_s390_iommu_widen);
EXPORT_TRACEPOINT_SYMBOL_GPL(s390_iommu_refresh);
EXPORT_SYMBOL_GPL(rust_do_trace_s390_iommu_refresh);
EXPORT_TRACEPOINT_SYMBOL_GPL(s390_iommu_table_alloc);
EXPORT_SYMBOL_GPL(rust_do_trace_s390_iommu_table_alloc);
EXPORT_TRACEPOINT_SYMBOL_GPL(s390_iommu_table_free);
EXPORT_SYMBOL_GPL(rust_do_trace_s390_iommu_table_free);
