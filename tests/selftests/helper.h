/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of the s390 IOMMU share: mapping with any arguments, a device
 * that copies, and what the kernel counts.
 */
#ifndef SELFTESTS_S390_IOMMU_HELPER_H
#define SELFTESTS_S390_IOMMU_HELPER_H

#include <stdbool.h>

#include <linux/iommufd.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#define PAGE SZ_4K

/* A variant for FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES(fixture) of libvfio */
#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_mode, _fixture)\
FIXTURE_VARIANT_ADD(_fixture, _mode)\
{\
	.iommu_mode = #_mode,\
}

/* Permissions of a mapping, from the device's point of view */
#define MAY_READ	1
#define MAY_WRITE	2
#define MAY_BOTH	(MAY_READ | MAY_WRITE)

static inline bool is_iommufd(const struct iommu *iommu)
{
	return iommu->iommufd;
}

/* VFIO's own container, not the one that iommufd offers in its place */
static inline bool is_type1(const struct iommu *iommu)
{
	return iommu->mode->container_path &&
		!strcmp(iommu->mode->container_path, "/dev/vfio/vfio");
}

/* Both return 0 or a negative errno */
int raw_map(struct iommu *iommu, void *vaddr, iova_t iova, u64 size, int may);
int raw_unmap(struct iommu *iommu, iova_t iova, u64 size, u64 *unmapped);

/* Memory that fork() shares and that starts at a multiple of its size */
void *memory(size_t size);

/*
 * A device that copies: an igb with its driver of libvfio, and memory that is
 * mapped for it for as long as it is there.
 */
struct copier {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct iova_allocator *allocator;
	/* Where it copies from and to, 64 KiB */
	struct dma_region scratch;
};

/* A copy of this size is one access in each direction */
#define COPY_SIZE 1024

void copier_open(struct copier *copier, const char *bdf, struct iommu *iommu,
		 struct iova_allocator *allocator);
void copier_close(struct copier *copier);

/* Both return whether the device was able to copy COPY_SIZE bytes */
bool copy_to(struct copier *copier, iova_t iova, u8 pattern);
bool copy_from(struct copier *copier, iova_t iova, u8 pattern);

/* Whether COPY_SIZE bytes there are all this */
bool is_filled(const void *at, u8 pattern);

/* KiB of the page tables that are not the processors' */
u64 table_memory(void);
/* Waits, for minutes if need be, until it is not more than before */
bool table_memory_settles(u64 before);

/* A field of /proc/self/status in KiB */
u64 status_field(const char *name);

/* What the kernel says of errors of PCI functions from now on */
int events_open(void);
/* How many there were, waiting for as many as are wanted; closes it */
int events_count(int fd, int wanted);

#endif /* SELFTESTS_S390_IOMMU_HELPER_H */
