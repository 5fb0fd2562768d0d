/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The interface between the s390 PCI subsystem and an IOMMU driver that may be a
 * module.
 */
#ifndef _ZPCI_IOMMU_H
#define _ZPCI_IOMMU_H

#include <linux/types.h>

struct iommu_domain;
struct iommu_pages_list;
struct module;
struct ratelimit_state;
struct zpci_dev;
struct zpci_iommu_ctrs;

/**
 * struct zpci_iommu_ops - the operations that the subsystem calls
 * @owner: the module that holds the operations; kept while the driver has functions
 * @init: a function appears; nobody else can use it before this succeeds
 * @destroy: a function goes away; nothing uses it any more
 * @disabled: a function was disabled: its registration is lost
 * @register_ioat: a function was enabled: register the table of what is attached;
 *	returns a condition code
 * @resume: a function is about to leave the error state without a reset
 * @counters: the counters of the attached domain, or NULL; zdev->dom_lock is held
 * @free_domain: the last user of a domain is gone
 *
 * All but @counters may sleep.
 */
struct zpci_iommu_ops {
	struct module *owner;
	int (*init)(struct zpci_dev *zdev);
	void (*destroy)(struct zpci_dev *zdev);
	void (*disabled)(struct zpci_dev *zdev);
	int (*register_ioat)(struct zpci_dev *zdev, u8 *status);
	int (*resume)(struct zpci_dev *zdev);
	struct zpci_iommu_ctrs *(*counters)(struct zpci_dev *zdev);
	void (*free_domain)(struct iommu_domain *domain);
};

int zpci_iommu_driver_register(const struct zpci_iommu_ops *ops);
int zpci_iommu_driver_start(void);
void zpci_iommu_driver_unregister(const struct zpci_iommu_ops *ops);
void zpci_iommu_domain_made(void);
void zpci_iommu_domain_free(struct iommu_domain *domain);

void zpci_iommu_set_domain(struct zpci_dev *zdev, struct iommu_domain *domain);
u64 zpci_iommu_aperture(void);
bool zpci_iommu_machine_takes_large_pages(void);
void zpci_iommu_log_limit_init(struct ratelimit_state *limit);
void zpci_iommu_err(struct zpci_dev *zdev, struct ratelimit_state *limit,
		    const char *text, const char *why);
void zpci_iommu_pages_list_add(struct iommu_pages_list *list, void *virt);
void zpci_iommu_pages_list_move(struct iommu_pages_list *from,
				struct iommu_pages_list *to);

unsigned long *zpci_iommu_percpu_offset(void);
u64 zpci_iommu_percpu_take(u64 __percpu *word);

#endif /* _ZPCI_IOMMU_H */
