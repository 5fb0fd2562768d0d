// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "helper.h"

int raw_map(struct iommu *iommu, void *vaddr, iova_t iova, u64 size, int may)
{
	struct vfio_iommu_type1_dma_map type1 = {
		.argsz = sizeof(type1),
		.vaddr = (uintptr_t)vaddr,
		.iova = iova,
		.size = size,
	};
	struct iommu_ioas_map ioas = {
		.size = sizeof(ioas),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA,
		.ioas_id = iommu->ioas_id,
		.user_va = (uintptr_t)vaddr,
		.iova = iova,
		.length = size,
	};

	if (may & MAY_READ) {
		type1.flags |= VFIO_DMA_MAP_FLAG_READ;
		ioas.flags |= IOMMU_IOAS_MAP_READABLE;
	}
	if (may & MAY_WRITE) {
		type1.flags |= VFIO_DMA_MAP_FLAG_WRITE;
		ioas.flags |= IOMMU_IOAS_MAP_WRITEABLE;
	}
	if (is_iommufd(iommu))
		return ioctl(iommu->iommufd, IOMMU_IOAS_MAP, &ioas) ? -errno : 0;
	return ioctl(iommu->container_fd, VFIO_IOMMU_MAP_DMA, &type1) ? -errno : 0;
}

int raw_unmap(struct iommu *iommu, iova_t iova, u64 size, u64 *unmapped)
{
	struct vfio_iommu_type1_dma_unmap type1 = {
		.argsz = sizeof(type1),
		.iova = iova,
		.size = size,
	};
	struct iommu_ioas_unmap ioas = {
		.size = sizeof(ioas),
		.ioas_id = iommu->ioas_id,
		.iova = iova,
		.length = size,
	};

	if (is_iommufd(iommu)) {
		if (ioctl(iommu->iommufd, IOMMU_IOAS_UNMAP, &ioas))
			return -errno;
		*unmapped = ioas.length;
		return 0;
	}
	if (ioctl(iommu->container_fd, VFIO_IOMMU_UNMAP_DMA, &type1))
		return -errno;
	*unmapped = type1.size;
	return 0;
}

void *memory(size_t size)
{
	void *at = mmap_reserve(size, size, 0);

	at = mmap(at, size, PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	VFIO_ASSERT_NE(at, MAP_FAILED);
	return at;
}

static void region_open(struct copier *copier, struct dma_region *region, u64 size)
{
	region->vaddr = memory(size);
	region->size = size;
	region->iova = iova_allocator_alloc(copier->allocator, size);
	iommu_map(copier->iommu, region);
}

static void region_close(struct copier *copier, struct dma_region *region)
{
	iommu_unmap(copier->iommu, region);
	VFIO_ASSERT_EQ(munmap(region->vaddr, region->size), 0);
}

void copier_open(struct copier *copier, const char *bdf, struct iommu *iommu,
		 struct iova_allocator *allocator)
{
	copier->iommu = iommu;
	copier->device = vfio_pci_device_init(bdf, iommu);
	VFIO_ASSERT_NOT_NULL(copier->device->driver.ops, "%s is not an igb", bdf);
	/* The ranges are those of the device, so it must be opened first. */
	copier->allocator = allocator ?: iova_allocator_init(iommu);
	region_open(copier, &copier->scratch, SZ_64K);
	region_open(copier, &copier->device->driver.region, SZ_2M);
	vfio_pci_driver_init(copier->device);
}

void copier_close(struct copier *copier)
{
	vfio_pci_driver_remove(copier->device);
	region_close(copier, &copier->device->driver.region);
	region_close(copier, &copier->scratch);
	vfio_pci_device_cleanup(copier->device);
}

bool is_filled(const void *at, u8 pattern)
{
	const u8 *bytes = at;

	for (int i = 0; i < COPY_SIZE; i++) {
		if (bytes[i] != pattern)
			return false;
	}
	return true;
}

static bool copy(struct copier *copier, iova_t from, iova_t to)
{
	return !vfio_pci_driver_memcpy(copier->device, from, to, COPY_SIZE);
}

bool copy_to(struct copier *copier, iova_t iova, u8 pattern)
{
	memset(copier->scratch.vaddr, pattern, COPY_SIZE);
	return copy(copier, copier->scratch.iova, iova);
}

bool copy_from(struct copier *copier, iova_t iova, u8 pattern)
{
	memset(copier->scratch.vaddr, ~pattern, COPY_SIZE);
	return copy(copier, iova, copier->scratch.iova) &&
		is_filled(copier->scratch.vaddr, pattern);
}

static u64 field(const char *path, const char *name)
{
	unsigned long value = 0;
	bool found = false;
	char line[256];
	FILE *file;

	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file, "open %s", path);
	while (!found && fgets(line, sizeof(line), file)) {
		if (!strncmp(line, name, strlen(name)))
			found = sscanf(line + strlen(name), ": %lu kB", &value) == 1;
	}
	fclose(file);
	VFIO_ASSERT_TRUE(found, "%s has no %s", path, name);
	return value;
}

u64 table_memory(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY);

	/* Refresh the counts: each CPU adds its own only once a second. */
	VFIO_ASSERT_GE(fd, 0, "open /proc/sys/vm/stat_refresh");
	VFIO_ASSERT_EQ(write(fd, "1", 1), 1);
	close(fd);
	return field("/proc/meminfo", "SecPageTables");
}

bool table_memory_settles(u64 before)
{
	/* Workers free tables after a grace period. */
	for (int i = 0; i < 1200; i++) {
		if (table_memory() <= before)
			return true;
		usleep(100000);
	}
	fprintf(stderr, "# %lu KiB of tables, %lu before\n", table_memory(), before);
	return false;
}

u64 status_field(const char *name)
{
	return field("/proc/self/status", name);
}

int events_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);

	VFIO_ASSERT_GE(fd, 0, "open /dev/kmsg");
	VFIO_ASSERT_EQ(lseek(fd, 0, SEEK_END), 0);
	return fd;
}

static int events_read(int fd)
{
	char record[8192];
	int count = 0;
	ssize_t size;

	for (;;) {
		size = read(fd, record, sizeof(record) - 1);
		/* The oldest record was overwritten meanwhile. */
		if (size < 0 && errno == EPIPE)
			continue;
		if (size <= 0)
			return count;
		record[size] = '\0';
		if (strstr(record, "reports an error for PCI function"))
			count++;
	}
}

int events_count(int fd, int wanted)
{
	int count = events_read(fd);

	/* A kernel thread reports them some time later. */
	for (int i = 0; i < 6000 && count < wanted; i++) {
		usleep(10000);
		count += events_read(fd);
	}
	close(fd);
	return count;
}
