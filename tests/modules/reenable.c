// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "reenable": the steps of KVM when a guest gets or returns a function
 * (kvm_s390_pci_register_kvm() and its counterpart). KVM disables the function,
 * stores the guest's GISA or removes it, and enables the function again, while
 * VFIO or iommufd has a domain attached.
 *
 * Interpretation in a guest needs SIE, which no emulated processor has. This
 * suite calls the same entry points as KVM, and checks the instructions. The
 * emulator accepts a GISA and ignores it.
 */
#include <linux/cleanup.h>

#include "iommu_test.h"

/* An address for a guest's interruption state area */
#define GISA 0x12340000

static struct test_function *fn;
static struct test_queue queue;
/* The domain under test, and one to replace it */
static struct test_domain pair[2];

static int begin(void)
{
	return test_pair_claim(pair, fn);
}

static int take_down(void)
{
	int ret;

	admin_stop(fn);
	pci_save_state(fn->pdev);
	ret = zpci_disable_device(to_zpci(fn->pdev));
	return ret ? test_fail("disable: error %d", ret) : 0;
}

/* The emulator resets a function when it is disabled. */
static void restore(void)
{
	pci_restore_state(fn->pdev);
	pci_set_master(fn->pdev);
}

static int bring_up(u32 gisa)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	int ret;

	zdev->gisa = gisa;
	ret = zpci_reenable_device(zdev);
	if (ret)
		return test_fail("re-enable: error %d", ret);
	restore();
	return 0;
}

static int cycle(u32 gisa)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	int ret;

	guard(mutex)(&zdev->kzdev_lock);
	ret = take_down();
	return ret ? ret : bring_up(gisa);
}

static void end(void)
{
	if (to_zpci(fn->pdev)->gisa)
		cycle(0);
	test_pair_release(pair);
}

static const struct test_setup blocked = { begin, end };

static int attach_mapped(void)
{
	int ret = test_domain_map(&pair[0], &queue);

	return ret ? ret : test_attach(&pair[0]);
}

static int check_dma(struct test_domain *on)
{
	int ret = test_domain_start(on, &queue);

	if (!ret)
		ret = test_domain_check(on);
	return ret ? ret : test_expect_errors(fn, 0);
}

static int begin_running(void)
{
	int ret = begin();

	if (ret)
		return ret;
	ret = attach_mapped();
	if (!ret)
		ret = check_dma(&pair[0]);
	if (ret)
		end();
	return ret;
}

static const struct test_setup running = { begin_running, end };

/* Expects one registration, of a table and with this GISA. */
static int expect_registered(u32 gisa)
{
	struct inject_counts counts = inject_counts();

	if (counts.operations[FC_REGISTER] != 1)
		return test_fail("%u registrations", counts.operations[FC_REGISTER]);
	if (!counts.table)
		return test_fail("no table is registered");
	if (counts.gisas[FC_REGISTER] != gisa)
		return test_fail("registered with GISA %#x, not %#x",
				 counts.gisas[FC_REGISTER], gisa);
	return 0;
}

static int test_reenable(void)
{
	static const u32 gisas[] = { GISA, 0, GISA, 0 };
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(gisas); i++) {
		inject_reset();
		ret = cycle(gisas[i]);
		if (!ret)
			ret = expect_registered(gisas[i]);
		if (!ret)
			ret = check_dma(&pair[0]);
	}
	return ret;
}

/* Maps another page at the IOVA while the function is disabled. */
static int change_mapping(void *page)
{
	int ret;

	iommu_unmap(pair[0].domain, data_iova(fn), PAGE_SIZE);
	ret = test_map_page(&pair[0], data_iova(fn), page);
	return ret ? test_fail("map: error %d", ret) : 0;
}

static int reenable_changed(void *page)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	int ret, ret_enable;

	guard(mutex)(&zdev->kzdev_lock);
	ret = take_down();
	if (ret)
		return ret;
	ret = change_mapping(page);
	ret_enable = bring_up(GISA);
	return ret ? ret : ret_enable;
}

static int test_changed(void)
{
	void *page = (void *)get_zeroed_page(GFP_KERNEL);
	void *old = pair[0].data;
	int ret;

	if (!page)
		return -ENOMEM;
	ret = reenable_changed(page);
	page_poison(old);
	pair[0].data = page;
	if (!ret)
		ret = check_dma(&pair[0]);
	if (!ret && !page_is_poison(old))
		ret = test_fail("the unmapped page was written to");
	/* test_domain_free() unmaps the new page before it frees it. */
	free_page((unsigned long)old);
	return ret;
}

/* Blocking deregisters the table or replaces it by an empty one. */
static int expect_named(const char *what, unsigned int operations)
{
	struct inject_counts counts = inject_counts();
	unsigned int count = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(counts.operations); i++) {
		if (!(operations & BIT(i)) || !counts.operations[i])
			continue;
		count++;
		if (counts.gisas[i] != GISA)
			return test_fail("%s: operation %u with GISA %#x",
					 what, i, counts.gisas[i]);
	}
	return count ? 0 : test_fail("%s: no such operation was issued", what);
}

/* Replace and block, as iommufd does while the guest has the function */
static int test_gisa(void)
{
	int ret = cycle(GISA);

	if (!ret)
		ret = test_domain_map(&pair[1], &queue);
	inject_reset();
	if (!ret)
		ret = test_attach(&pair[1]);
	if (ret)
		return ret;
	ret = expect_named("replace", BIT(FC_REREGISTER));
	if (!ret)
		ret = check_dma(&pair[1]);
	admin_stop(fn);
	inject_reset();
	test_detach(&pair[1]);
	if (!ret)
		ret = expect_named("block", BIT(FC_REREGISTER) | BIT(FC_DEREGISTER));
	/* end() detaches this one. */
	return ret ? ret : test_attach(&pair[0]);
}

/* iommufd opens a function before it attaches anything. */
static int test_blocked(void)
{
	int ret = cycle(GISA);

	if (!ret && inject_counts().operations[FC_REGISTER])
		ret = test_fail("a blocked function was registered");
	inject_reset();
	if (!ret)
		ret = attach_mapped();
	if (!ret)
		ret = expect_registered(GISA);
	return ret ? ret : check_dma(&pair[0]);
}

static int refuse_registration(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	int ret;

	guard(mutex)(&zdev->kzdev_lock);
	ret = take_down();
	if (ret)
		return ret;
	inject_refuse(fn, BIT(FC_REGISTER));
	zdev->gisa = GISA;
	ret = zpci_reenable_device(zdev);
	if (!inject_refused())
		ret = test_fail("no instruction was issued that could be refused");
	else if (!ret)
		ret = test_fail("the function was enabled although the machine refused");
	else if (zdev_enabled(zdev))
		ret = test_fail("the function is enabled without a table");
	else
		ret = 0;
	inject_reset();
	if (!zdev_enabled(zdev) && bring_up(0))
		return test_fail("the function can no longer be enabled");
	return ret;
}

static int test_refused(void)
{
	int ret = refuse_registration();

	if (!ret)
		ret = expect_registered(0);
	return ret ? ret : check_dma(&pair[0]);
}

/* What another CPU may do at the same time: unmap and flush */
static void unmap_and_flush(void)
{
	iommu_unmap(pair[0].domain, data_iova(fn), PAGE_SIZE);
	iommu_flush_iotlb_all(pair[0].domain);
}

/*
 * The machine disables the function, and the driver learns of it when the
 * function is about to be enabled. Until it is registered, no flush may refresh
 * it.
 */
static int enable_disabled(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	int ret;

	guard(mutex)(&zdev->kzdev_lock);
	if (inject_hide_disable(true))
		return test_skip("this driver is not notified of disabled functions");
	ret = take_down();
	inject_hide_disable(false);
	if (ret)
		return ret;
	inject_reset();
	inject_record(fn);
	ret = inject_pause_start(fn, 0, unmap_and_flush);
	if (ret)
		return test_fail("pause: error %d", ret);
	ret = bring_up(0);
	if (!inject_pause_end() && !ret)
		ret = test_fail("no task was held up");
	return ret;
}

static int test_disabled_by_machine(void)
{
	static struct inject_step steps[INJECT_STEPS];
	unsigned int i, count;
	int ret = enable_disabled();

	if (ret)
		return ret;
	count = inject_steps(steps);
	for (i = 0; i < count && steps[i].operation != FC_REGISTER; i++) {
		if (!steps[i].operation)
			return test_fail("a refresh came before the registration");
	}
	ret = expect_registered(0);
	if (!ret)
		ret = test_map_page(&pair[0], data_iova(fn), pair[0].data);
	return ret ? ret : check_dma(&pair[0]);
}

/*
 * The function is enabled again after it was disabled and before the driver
 * learns of this. It translates then, and flushes must continue.
 */
static int test_enabled_meanwhile(void)
{
	int ret = cycle(0);

	if (ret)
		return ret;
	/* A late notification: the function already has a table again. */
	if (inject_disabled(fn))
		return test_skip("this driver is not notified of disabled functions");
	inject_reset();
	unmap_and_flush();
	if (!inject_counts().refreshes)
		return test_fail("an unmap did not refresh an enabled function");
	ret = test_map_page(&pair[0], data_iova(fn), pair[0].data);
	return ret ? ret : check_dma(&pair[0]);
}

static const struct test_case cases[] = {
	{ "with a domain attached, with and without a guest", test_reenable, &running },
	{ "a mapping that changed in between means the new page", test_changed, &running },
	{ "replace and block name the guest", test_gisa, &running },
	{ "blocked: nothing is registered before an attach", test_blocked, &blocked },
	{ "disabled by the machine: no flush before it is registered again",
	  test_disabled_by_machine, &running },
	{ "enabled again before the driver learns that it was disabled",
	  test_enabled_meanwhile, &running },
	{ "a refused registration leaves the function disabled", test_refused, &running },
	{}
};

TEST_SUITE(reenable, "Tests of the steps that KVM takes for a function", cases, &fn, &queue);
