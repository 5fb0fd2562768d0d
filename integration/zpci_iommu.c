// SPDX-License-Identifier: GPL-2.0
/*
 * The built-in part of the IOMMU driver in Rust.
 *
 * The s390 PCI subsystem is built in, but the driver may be a module. Until a
 * driver registers, functions are refused, so that none does DMA without an
 * IOMMU. Then the subsystem looks for them again. A driver stays loaded while
 * it has a function or one of its domains exists.
 *
 * This file also has the boot parameters, and wrappers of static inlines.
 */

#define pr_fmt(fmt) "s390_iommu: " fmt

#include <linux/cpumask.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/io.h>
#include <linux/kconfig.h>
#include <linux/kstrtox.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/pci.h>
#include <linux/percpu.h>
#include <linux/ratelimit.h>

#include <asm/lowcore.h>
#include <asm/machine.h>
#include <asm/pci_debug.h>
#include <asm/pci_dma.h>

#include "../../dma-iommu.h"
#include "../../iommu-pages.h"
#include "zpci_iommu.h"

/* The driver and its users; protected by driver_lock. */
static DEFINE_MUTEX(driver_lock);
static const struct zpci_iommu_ops *driver;
static unsigned int functions;
static unsigned int domains;
/* Whether domains keep the module reference of the last function */
static bool kept;

static u64 aperture = U64_MAX;
static u32 aperture_factor __initdata = 1;

/**
 * zpci_iommu_driver_register() - register the driver
 * @ops: the operations that the subsystem calls from here on
 *
 * Return: 0; -ENODEV if the machine has no zPCI or it is off; -EBUSY if a
 * driver is registered already.
 */
int zpci_iommu_driver_register(const struct zpci_iommu_ops *ops)
{
	if (!zpci_is_enabled())
		return -ENODEV;

	guard(mutex)(&driver_lock);
	if (driver)
		return -EBUSY;
	driver = ops;
	return 0;
}
EXPORT_SYMBOL_GPL(zpci_iommu_driver_register);

/**
 * zpci_iommu_driver_start() - look for the functions that were refused so far
 *
 * Return: 0, or the error of the search. After an error the driver has no function
 * and is no longer registered.
 */
int zpci_iommu_driver_start(void)
{
	/* Not under the lock: adding a function takes it. */
	int rc = zpci_rescan_devices();

	if (!rc)
		return 0;

	guard(mutex)(&driver_lock);
	if (functions || kept) {
		/* An event added a function, which needs the driver. */
		pr_err("cannot look for functions (%d), some may be missing\n", rc);
		return 0;
	}
	driver = NULL;
	return rc;
}
EXPORT_SYMBOL_GPL(zpci_iommu_driver_start);

/**
 * zpci_iommu_driver_unregister() - unregister the driver, so it gets no new functions
 * @ops: the registered operations; if they are no longer registered, nothing happens
 *
 * The driver has no function at this point: each one holds the driver's module.
 */
void zpci_iommu_driver_unregister(const struct zpci_iommu_ops *ops)
{
	guard(mutex)(&driver_lock);
	if (driver == ops)
		driver = NULL;
}
EXPORT_SYMBOL_GPL(zpci_iommu_driver_unregister);

/* Gets the driver for a function, with a reference to its module. */
static const struct zpci_iommu_ops *get_driver(void)
{
	guard(mutex)(&driver_lock);
	if (!driver)
		return NULL;
	if (kept)
		kept = false;
	else if (!try_module_get(driver->owner))
		return NULL;
	functions++;
	return driver;
}

/* Drops a function's reference. The last one goes to the domains that are left. */
static void put_driver(void)
{
	guard(mutex)(&driver_lock);
	functions--;
	if (!functions && domains)
		kept = true;
	else
		module_put(driver->owner);
}

/**
 * zpci_iommu_domain_made() - count a new domain of the driver
 *
 * Call this while the driver has a function, which keeps the module loaded.
 */
void zpci_iommu_domain_made(void)
{
	guard(mutex)(&driver_lock);
	domains++;
}
EXPORT_SYMBOL_GPL(zpci_iommu_domain_made);

/**
 * zpci_iommu_domain_free() - free a domain of the driver
 * @domain: the domain
 *
 * iommufd may hold a domain when all functions are gone. The driver's module then
 * stays until the last domain is freed. The reference is dropped here because this
 * code is not unloaded with the module.
 */
void zpci_iommu_domain_free(struct iommu_domain *domain)
{
	driver->free_domain(domain);

	guard(mutex)(&driver_lock);
	domains--;
	if (!domains && kept) {
		kept = false;
		module_put(driver->owner);
	}
}
EXPORT_SYMBOL_GPL(zpci_iommu_domain_free);

/* Must not be called: zpci_release_device() takes a lock that the caller holds. */
static void zpci_iommu_last_reference(struct kref *kref)
{
	WARN(1, "a function that is known has no reference");
}

int zpci_init_iommu(struct zpci_dev *zdev)
{
	const struct zpci_iommu_ops *ops;
	struct zpci_dev *known;
	int rc;

	/*
	 * A driver's scan and an event may find the same function at the same
	 * time. Additions are serialised, so the second one is detected here.
	 */
	known = get_zdev_by_fid(zdev->fid);
	if (known) {
		kref_put(&known->kref, zpci_iommu_last_reference);
		return -EEXIST;
	}

	ops = get_driver();
	if (!ops) {
		/* A built-in driver always registers after the first search. */
		if (IS_MODULE(CONFIG_S390_IOMMU_RUST))
			pr_info("function %08x waits for the driver\n", zdev->fid);
		return -ENODEV;
	}

	spin_lock_init(&zdev->dom_lock);
	rc = ops->init(zdev);
	if (rc)
		put_driver();
	return rc;
}

void zpci_destroy_iommu(struct zpci_dev *zdev)
{
	/* Only functions that the driver has get here, and they keep it loaded. */
	driver->destroy(zdev);
	put_driver();
}

int zpci_iommu_register_ioat(struct zpci_dev *zdev, u8 *status)
{
	return driver->register_ioat(zdev, status);
}

void zpci_iommu_disabled(struct zpci_dev *zdev)
{
	driver->disabled(zdev);
}

int zpci_iommu_resume(struct zpci_dev *zdev)
{
	return driver->resume(zdev);
}

struct zpci_iommu_ctrs *zpci_get_iommu_ctrs(struct zpci_dev *zdev)
{
	lockdep_assert_held(&zdev->dom_lock);

	return driver->counters(zdev);
}

/**
 * zpci_iommu_set_domain() - record the attached domain
 * @zdev: the function
 * @domain: the domain that is attached to it
 */
void zpci_iommu_set_domain(struct zpci_dev *zdev, struct iommu_domain *domain)
{
	guard(spinlock_irqsave)(&zdev->dom_lock);
	WRITE_ONCE(zdev->s390_domain, domain);
}
EXPORT_SYMBOL_GPL(zpci_iommu_set_domain);

/**
 * zpci_iommu_aperture() - how many bytes a function may map
 *
 * Return: the limit from s390_iommu_aperture=, in bytes.
 */
u64 zpci_iommu_aperture(void)
{
	return aperture;
}
EXPORT_SYMBOL_GPL(zpci_iommu_aperture);

/**
 * zpci_iommu_machine_takes_large_pages() - whether segment entries may map large pages
 *
 * Return: true if the machine is known to support them.
 */
bool zpci_iommu_machine_takes_large_pages(void)
{
	return machine_is_kvm();
}
EXPORT_SYMBOL_GPL(zpci_iommu_machine_takes_large_pages);

/**
 * zpci_iommu_log_limit_init() - ratelimit_default_init() for the driver
 * @limit: the limit
 */
void zpci_iommu_log_limit_init(struct ratelimit_state *limit)
{
	ratelimit_default_init(limit);
}
EXPORT_SYMBOL_GPL(zpci_iommu_log_limit_init);

/**
 * zpci_iommu_err() - log a refusal of the machine that should not happen
 * @zdev: the function
 * @limit: the rate limit of the function
 * @text: what the machine refused, and the consequence
 * @why: the reason that the machine gave
 */
void zpci_iommu_err(struct zpci_dev *zdev, struct ratelimit_state *limit,
		    const char *text, const char *why)
{
	/* Log the FID: the bus, which has the name, may be gone already. */
	if (__ratelimit(limit))
		pr_err("function %08x: %s (%s)\n", zdev->fid, text, why);
}
EXPORT_SYMBOL_GPL(zpci_iommu_err);

/**
 * zpci_iommu_pages_list_add() - iommu_pages_list_add() for the driver
 * @list: the list
 * @virt: pages from iommu_alloc_pages_node_sz()
 */
void zpci_iommu_pages_list_add(struct iommu_pages_list *list, void *virt)
{
	iommu_pages_list_add(list, virt);
}
EXPORT_SYMBOL_GPL(zpci_iommu_pages_list_add);

/**
 * zpci_iommu_pages_list_move() - move all pages of a list to another one
 * @from: the list, empty afterwards
 * @to: the list that gets the pages
 */
void zpci_iommu_pages_list_move(struct iommu_pages_list *from,
				struct iommu_pages_list *to)
{
	iommu_pages_list_splice(from, to);
	INIT_LIST_HEAD(&from->pages);
}
EXPORT_SYMBOL_GPL(zpci_iommu_pages_list_move);

/**
 * zpci_iommu_percpu_offset() - where a CPU finds the offset of its per-CPU memory
 *
 * Return: an address that, like the lowcore, refers to different memory on each CPU.
 */
unsigned long *zpci_iommu_percpu_offset(void)
{
	return (unsigned long *)&get_lowcore()->percpu_offset;
}
EXPORT_SYMBOL_GPL(zpci_iommu_percpu_offset);

/**
 * zpci_iommu_percpu_take() - sum a per-CPU word over all CPUs and reset it to 0
 * @word: the word
 *
 * Return: the sum.
 */
u64 zpci_iommu_percpu_take(u64 __percpu *word)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += xchg(per_cpu_ptr(word, cpu), 0);
	return sum;
}
EXPORT_SYMBOL_GPL(zpci_iommu_percpu_take);

static int __init s390_iommu_setup(char *str)
{
	if (!strcmp(str, "strict")) {
		pr_warn("s390_iommu=strict is deprecated; use iommu.strict=1\n");
		iommu_set_dma_strict();
	} else {
		pr_warn("s390_iommu=%s is not known, ignored\n", str);
	}
	return 1;
}
__setup("s390_iommu=", s390_iommu_setup);

static int __init s390_iommu_aperture_setup(char *str)
{
	if (kstrtou32(str, 10, &aperture_factor)) {
		pr_warn("s390_iommu_aperture=%s is not a number, 1 is used\n", str);
		aperture_factor = 1;
	}
	return 1;
}
__setup("s390_iommu_aperture=", s390_iommu_aperture_setup);

static int __init zpci_iommu_init(void)
{
	u64 memory = virt_to_phys(high_memory);

	iommu_dma_forcedac = true;
	if (!aperture_factor || check_mul_overflow(memory, (u64)aperture_factor, &aperture))
		aperture = U64_MAX;
	return 0;
}
subsys_initcall(zpci_iommu_init);
