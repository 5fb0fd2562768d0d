/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of the IOMMU driver in Rust.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM s390_iommu

#if !defined(_ZPCI_IOMMU_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _ZPCI_IOMMU_TRACE_H

#include <linux/tracepoint.h>
#include <linux/types.h>

/* The name of what is attached: a word, or a 64-bit number */
#define ZPCI_IOMMU_NAME_SIZE 21

/* An attach moved a function from @from to @to, or failed: @result is 0 or an error. */
TRACE_EVENT(s390_iommu_attach,
	    TP_PROTO(u32 fid, u64 from, u64 to, int result),
	    TP_ARGS(fid, from, to, result),
	    TP_STRUCT__entry(__field(u32, fid)
			     __field(int, result)
			     __array(char, from, ZPCI_IOMMU_NAME_SIZE)
			     __array(char, to, ZPCI_IOMMU_NAME_SIZE)),
	    TP_fast_assign(__entry->fid = fid;
			   __entry->result = result;
			   zpci_iommu_name(__entry->from, sizeof(__entry->from), from);
			   zpci_iommu_name(__entry->to, sizeof(__entry->to), to);),
	    TP_printk("fid=%08x from=%s to=%s result=%d",
		      __entry->fid, __entry->from, __entry->to, __entry->result)
);

/* The table of @domain got more levels, or could not: @result is 0 or an error. */
TRACE_EVENT(s390_iommu_widen,
	    TP_PROTO(u64 domain, u32 from, u32 to, int result),
	    TP_ARGS(domain, from, to, result),
	    TP_STRUCT__entry(__field(u64, domain)
			     __field(u32, from)
			     __field(u32, to)
			     __field(int, result)),
	    TP_fast_assign(__entry->domain = domain;
			   __entry->from = from;
			   __entry->to = to;
			   __entry->result = result;),
	    TP_printk("domain=%llu from=%u to=%u levels result=%d",
		      __entry->domain, __entry->from, __entry->to, __entry->result)
);

/*
 * RPCIT was issued for @start to @last (inclusive). @cc is its condition code,
 * @retries the number of attempts before for the same range.
 */
TRACE_EVENT(s390_iommu_refresh,
	    TP_PROTO(u32 fid, u64 start, u64 last, u32 cc, u32 retries),
	    TP_ARGS(fid, start, last, cc, retries),
	    TP_STRUCT__entry(__field(u64, start)
			     __field(u64, last)
			     __field(u32, fid)
			     __field(u32, cc)
			     __field(u32, retries)),
	    TP_fast_assign(__entry->start = start;
			   __entry->last = last;
			   __entry->fid = fid;
			   __entry->cc = cc;
			   __entry->retries = retries;),
	    TP_printk("fid=%08x iova=0x%016llx-0x%016llx cc=%u retries=%u",
		      __entry->fid, __entry->start, __entry->last, __entry->cc,
		      __entry->retries)
);

/* A translation table of @bytes was allocated at physical address @table. */
TRACE_EVENT(s390_iommu_table_alloc,
	    TP_PROTO(u64 domain, u64 table, u32 bytes),
	    TP_ARGS(domain, table, bytes),
	    TP_STRUCT__entry(__field(u64, domain)
			     __field(u64, table)
			     __field(u32, bytes)),
	    TP_fast_assign(__entry->domain = domain;
			   __entry->table = table;
			   __entry->bytes = bytes;),
	    TP_printk("domain=%llu table=0x%016llx bytes=%u",
		      __entry->domain, __entry->table, __entry->bytes)
);

/* A table is freed, either now or after the flush that must come first. */
TRACE_EVENT(s390_iommu_table_free,
	    TP_PROTO(u64 domain, u64 table, u32 bytes, bool after_flush),
	    TP_ARGS(domain, table, bytes, after_flush),
	    TP_STRUCT__entry(__field(u64, domain)
			     __field(u64, table)
			     __field(u32, bytes)
			     __field(bool, after_flush)),
	    TP_fast_assign(__entry->domain = domain;
			   __entry->table = table;
			   __entry->bytes = bytes;
			   __entry->after_flush = after_flush;),
	    TP_printk("domain=%llu table=0x%016llx bytes=%u %s",
		      __entry->domain, __entry->table, __entry->bytes,
		      __entry->after_flush ? "after the flush" : "now")
);

#endif /* _ZPCI_IOMMU_TRACE_H */

/* This part must be outside protection */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE zpci_iommu_trace
#include <trace/define_trace.h>
