// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "transitions": what a reset and a recovery without a reset restore, and
 * functions that are gone.
 */
#include "transitions.h"

/* Resets register what is attached, starting with the first instruction. */

static int reset_in(enum state state, const char *asked)
{
	int ret = start_from(state);

	if (ret)
		return ret;
	inject_record(fn);
	ret = test_reset(fn);
	if (!ret)
		ret = expect_asked(asked);
	inject_reset();
	return ret ? ret : expect_state(state);
}

static int test_resets(void)
{
	int ret = reset_in(PAGING_A, "REG empty, REREG A, refresh");

	return ret ? ret : reset_in(EMPTY, "");
}

TEST_CALL(reset_identity, reset_in(IDENTITY, "REG identity"))

/* Recovery */

/* Calls @meanwhile in the error state, before the kernel recovers from it. */
static int recover_after(bool keeps_state, int (*meanwhile)(void))
{
	int ret = start_from(PAGING_A);

	if (!ret)
		ret = test_domain_start(&pair[0], &queue);
	if (!ret)
		ret = test_domain_check(&pair[0]);
	if (ret)
		return ret;
	fn->keeps_state = keeps_state;
	ret = test_break(fn);
	if (!ret && meanwhile)
		ret = meanwhile();
	inject_record(fn);
	return test_recover(fn, ret);
}

static int expect_resets(int expected)
{
	int resets = atomic_read(&fn->resets);

	if (resets != expected)
		return test_fail("recovered with %d resets, not %d", resets, expected);
	return 0;
}

/* Checks the instructions of the recovery if @asked is set, and the state. */
static int check_recovery(bool keeps_state, int (*meanwhile)(void), const char *asked,
			  enum state state)
{
	int ret = recover_after(keeps_state, meanwhile);

	if (!ret)
		ret = expect_resets(keeps_state ? 0 : 1);
	if (!ret && asked)
		ret = expect_asked(asked);
	inject_reset();
	return ret ? ret : expect_state(state);
}

static int attach_b(void)
{
	return test_attach(&pair[1]);
}

static int block(void)
{
	test_detach(&pair[0]);
	return 0;
}

static int attach_identity(void)
{
	int ret = go_to(IDENTITY);

	return ret ? test_fail("identity in the error state: error %d", ret) : 0;
}

TEST_CALL(resume, check_recovery(true, NULL, "", PAGING_A))
TEST_CALL(resume_attached, check_recovery(true, attach_b, NULL, PAGING_B))
TEST_CALL(resume_blocked, check_recovery(true, block, NULL, EMPTY))
TEST_CALL(resume_identity, check_recovery(true, attach_identity, "REREG identity", IDENTITY))

/* After a reset, the driver must register what was attached last. */
TEST_CALL(recover_as_it_was, check_recovery(false, NULL, "REG empty, REREG A, refresh", PAGING_A))
TEST_CALL(recover_attached,
	  check_recovery(false, attach_b, "REG empty, REREG B, refresh", PAGING_B))
TEST_CALL(recover_blocked, check_recovery(false, block, "", UNREGISTERED))
TEST_CALL(recover_identity, check_recovery(false, attach_identity, "REG identity", IDENTITY))

/*
 * Flushes skip a function in the error state. After the recovery, it must have
 * forgotten what was unmapped.
 */
static void *fresh_page;

static int remap_data(void)
{
	int ret;

	if (iommu_unmap(pair[0].domain, data_iova(fn), PAGE_SIZE) != PAGE_SIZE)
		return test_fail("unmap in the error state did nothing");
	ret = test_map_page(&pair[0], data_iova(fn), fresh_page);
	return ret ? test_fail("map in the error state: error %d", ret) : 0;
}

static int test_resume_remapped(void)
{
	void *old = pair[0].data;
	int ret;

	fresh_page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!fresh_page)
		return -ENOMEM;
	ret = recover_after(true, remap_data);
	page_poison(old);
	if (!ret)
		ret = expect_resets(0);
	inject_reset();
	pair[0].data = fresh_page;
	if (!ret)
		ret = expect_state(PAGING_A);
	if (!ret && !page_is_poison(old))
		ret = test_fail("the unmapped page was written to");
	admin_stop(fn);
	free_page((unsigned long)old);
	return ret;
}

/* Unless a flush was missed, the recovery issues no instructions. */
static int remap_and_refuse(void)
{
	int ret;

	fresh_page = pair[0].data;
	ret = remap_data();
	inject_refuse_refresh(fn, -EIO, 1);
	return ret;
}

/* The machine refuses an instruction of the recovery: a reset follows. */
static int test_resume_refused(void)
{
	int ret = recover_after(true, remap_and_refuse);

	if (!ret && !inject_refused())
		ret = test_fail("the recovery issued no instruction that could be refused");
	if (!ret)
		ret = expect_resets(1);
	inject_reset();
	return ret ? ret : expect_state(PAGING_A);
}

/* Gone: the machine does not know the handle any more. */

static u32 lose_handle(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	u32 handle = zdev->fh;

	/* Another generation of the handle, still of an enabled function */
	WRITE_ONCE(zdev->fh, handle ^ 0x00010000);
	return handle;
}

static int change_when_gone(int (*change)(void), enum state state)
{
	unsigned int before;
	u32 handle;
	int ret = start_from(PAGING_A);

	if (ret)
		return ret;
	handle = lose_handle();
	ret = change();
	before = inject_counts().refreshes;
	/* Flushes skip it. */
	if (!ret && iommu_unmap(pair[1].domain, data_iova(fn), PAGE_SIZE) != PAGE_SIZE)
		ret = test_fail("unmap did nothing");
	if (!ret)
		ret = test_map_page(&pair[1], data_iova(fn), pair[1].data);
	WRITE_ONCE(to_zpci(fn->pdev)->fh, handle);
	if (!ret && inject_counts().refreshes != before)
		ret = test_fail("a flush refreshed a function that is gone");
	/* A reset registers it like any other function. */
	if (!ret)
		ret = test_reset(fn);
	return ret ? ret : expect_state(state);
}

TEST_CALL(attach_gone, change_when_gone(attach_b, PAGING_B))
TEST_CALL(block_gone, change_when_gone(block, UNREGISTERED))

const struct test_case recovery_cases[] = {
	{ "reset", test_resets, &two_domains },
	{ "reset with identity", test_reset_identity, &with_identity },
	{ "recovery without a reset", test_resume, &two_domains },
	{ "recovery without a reset, attached meanwhile", test_resume_attached, &two_domains },
	{ "recovery without a reset, blocked meanwhile", test_resume_blocked, &two_domains },
	{ "recovery without a reset, mapped anew meanwhile", test_resume_remapped,
	  &two_domains },
	{ "recovery without a reset, identity meanwhile", test_resume_identity,
	  &with_identity },
	{ "recovery with a reset", test_recover_as_it_was, &two_domains },
	{ "recovery with a reset, attached meanwhile", test_recover_attached, &two_domains },
	{ "recovery with a reset, blocked meanwhile", test_recover_blocked, &two_domains },
	{ "recovery with a reset, identity meanwhile", test_recover_identity, &with_identity },
	{ "recovery without a reset is refused", test_resume_refused, &two_domains },
	{ "attach of a function that is gone", test_attach_gone, &two_domains },
	{ "block of a function that is gone", test_block_gone, &two_domains },
	{}
};
