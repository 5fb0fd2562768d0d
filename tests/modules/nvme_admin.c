// SPDX-License-Identifier: GPL-2.0
/*
 * The NVMe admin queue as a device that does DMA wherever a test needs it.
 *
 * IDENTIFY makes the device read a submission, write a page of known content
 * and write a completion, each at an IOVA that the test chooses. The test polls
 * for completions, so it needs no interrupt.
 */
#define pr_fmt(fmt) "iommu_test: " fmt

#include <linux/delay.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/ktime.h>
#include <linux/nvme.h>

#include "internal.h"

#define QUEUE_ENTRIES	16
#define READY_LIMIT_MS	5000
/*
 * A completion takes a millisecond, or much longer on a busy machine. The check
 * for a failed function or controller comes long before this limit.
 */
#define COMMAND_LIMIT_MS 10000
#define PATIENCE_MS	20
#define POISON		0xa5

static int wait_ready(struct test_function *fn, u32 ready)
{
	ktime_t end = ktime_add_ms(ktime_get(), READY_LIMIT_MS);
	u32 csts;

	do {
		csts = readl(fn->bar + NVME_REG_CSTS);
		if (csts == U32_MAX)
			return test_fail("the controller does not answer");
		if ((csts & NVME_CSTS_RDY) == ready)
			return 0;
		usleep_range(100, 500);
	} while (ktime_before(ktime_get(), end));
	return test_fail("the controller's status stays %#x", csts);
}

/**
 * admin_answers() - whether the function's registers can be read
 * @fn: the function
 *
 * Returns: false while it is in the error state
 */
bool admin_answers(struct test_function *fn)
{
	return readl(fn->bar + NVME_REG_CSTS) != U32_MAX;
}
EXPORT_SYMBOL_GPL(admin_answers);

/**
 * admin_stop() - disable the controller
 * @fn: the function
 */
void admin_stop(struct test_function *fn)
{
	fn->sq = NULL;
	fn->cq = NULL;
	writel(0, fn->bar + NVME_REG_CC);
	/* A failure shows at the next start. */
	wait_ready(fn, 0);
}
EXPORT_SYMBOL_GPL(admin_stop);

/**
 * admin_start() - enable the controller with this admin queue
 * @fn: the function
 * @sq: submission queue, a page
 * @sq_iova: its IOVA
 * @cq: completion queue, a page
 * @cq_iova: its IOVA
 *
 * Returns: 0 or a failed test
 */
int admin_start(struct test_function *fn, void *sq, dma_addr_t sq_iova,
		void *cq, dma_addr_t cq_iova)
{
	const u32 entries = QUEUE_ENTRIES - 1;
	const u32 config = NVME_CC_CSS_NVM | NVME_CC_IOSQES | NVME_CC_IOCQES;
	int ret;

	writel(0, fn->bar + NVME_REG_CC);
	ret = wait_ready(fn, 0);
	if (ret)
		return ret;
	memset(sq, 0, PAGE_SIZE);
	memset(cq, 0, PAGE_SIZE);
	fn->sq = sq;
	fn->cq = cq;
	fn->tail = 0;
	fn->head = 0;
	fn->phase = 1;
	fn->stride = 4 << NVME_CAP_STRIDE(lo_hi_readq(fn->bar + NVME_REG_CAP));
	writel(entries << 16 | entries, fn->bar + NVME_REG_AQA);
	lo_hi_writeq(sq_iova, fn->bar + NVME_REG_ASQ);
	lo_hi_writeq(cq_iova, fn->bar + NVME_REG_ACQ);
	writel(config, fn->bar + NVME_REG_CC);
	writel(config | NVME_CC_ENABLE, fn->bar + NVME_REG_CC);
	return wait_ready(fn, NVME_CSTS_RDY);
}
EXPORT_SYMBOL_GPL(admin_start);

static void submit_identify(struct test_function *fn, dma_addr_t iova)
{
	struct nvme_command *sq = fn->sq;
	struct nvme_command *command = &sq[fn->tail];

	memset(command, 0, sizeof(*command));
	command->identify.opcode = nvme_admin_identify;
	command->identify.command_id = cpu_to_le16(fn->tail);
	command->identify.dptr.prp1 = cpu_to_le64(iova);
	command->identify.cns = NVME_ID_CNS_CTRL;
	fn->tail = (fn->tail + 1) % QUEUE_ENTRIES;
	/* The device must see the command before the doorbell. */
	wmb();
	writel(fn->tail, fn->bar + NVME_REG_DBS);
}

static bool is_complete(struct test_function *fn)
{
	struct nvme_completion *cq = fn->cq;

	return (le16_to_cpu(READ_ONCE(cq[fn->head].status)) & 1) == fn->phase;
}

/*
 * Whether there will be no completion: the function is in the error state, or
 * the controller could not fetch the command.
 */
static bool has_failed(struct test_function *fn)
{
	u32 csts = readl(fn->bar + NVME_REG_CSTS);

	return csts == U32_MAX || csts & NVME_CSTS_CFS;
}

static u16 take_completion(struct test_function *fn)
{
	struct nvme_completion *cq = fn->cq;
	u16 status = le16_to_cpu(READ_ONCE(cq[fn->head].status)) >> 1;

	fn->head = (fn->head + 1) % QUEUE_ENTRIES;
	if (!fn->head)
		fn->phase ^= 1;
	writel(fn->head, fn->bar + NVME_REG_DBS + fn->stride);
	return status;
}

/**
 * admin_identify() - make the device write its identity
 * @fn: the function, its controller started
 * @iova: the target
 *
 * Returns: 0 or a failed test
 */
int admin_identify(struct test_function *fn, dma_addr_t iova)
{
	ktime_t start = ktime_get();
	u16 status;
	s64 waited;

	submit_identify(fn, iova);
	while (!is_complete(fn)) {
		waited = ktime_ms_delta(ktime_get(), start);
		if (waited > PATIENCE_MS && has_failed(fn))
			return test_fail("no completion: the function or its controller failed");
		if (waited > COMMAND_LIMIT_MS)
			return test_fail("no completion: the admin queue's DMA does not work");
		cond_resched();
	}
	status = take_completion(fn);
	return status ? test_fail("IDENTIFY: status %#x", status) : 0;
}
EXPORT_SYMBOL_GPL(admin_identify);

/**
 * page_poison() - fill a page with a pattern that no device writes
 * @page: the page
 */
void page_poison(void *page)
{
	memset(page, POISON, PAGE_SIZE);
}
EXPORT_SYMBOL_GPL(page_poison);

/**
 * page_is_poison() - whether nothing wrote to the page
 * @page: the page
 *
 * Returns: true if every byte still has the pattern
 */
bool page_is_poison(const void *page)
{
	return !memchr_inv(page, POISON, PAGE_SIZE);
}
EXPORT_SYMBOL_GPL(page_is_poison);

/**
 * page_is_identity() - whether the page has all of IDENTIFY's data
 * @fn: the function that should have written it
 * @page: the page
 *
 * Returns: true if it has
 */
bool page_is_identity(struct test_function *fn, const void *page)
{
	const struct nvme_id_ctrl *id = page;
	const u8 *last = page + PAGE_SIZE - 1;

	return le16_to_cpu(id->vid) == fn->pdev->vendor && *last != POISON;
}
EXPORT_SYMBOL_GPL(page_is_identity);

/**
 * admin_check() - make the device write its identity to a page
 * @fn: the function, its controller started
 * @iova: where the page is mapped
 * @page: the page
 *
 * Returns: 0 if all data has arrived, or a failed test
 */
int admin_check(struct test_function *fn, dma_addr_t iova, void *page)
{
	int ret;

	page_poison(page);
	ret = admin_identify(fn, iova);
	if (!ret && !page_is_identity(fn, page))
		ret = test_fail("the device's data is not in the page");
	return ret;
}
EXPORT_SYMBOL_GPL(admin_check);
