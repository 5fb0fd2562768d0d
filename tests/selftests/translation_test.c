// SPDX-License-Identifier: GPL-2.0
/*
 * A device reaches what is mapped now: not what was mapped before, and only
 * with the permissions of the mapping. The same applies to a device that is
 * added later, and after a reset. Needs two igb.
 */
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "helper.h"
#include "kselftest_harness.h"

#define ROUNDS	16

static const char *bdfs[2];

FIXTURE(translation)
{
	struct iommu *iommu;
	struct copier copier;
	/* Two blocks of memory, and an IOVA for one of them */
	u8 *block[2];
	iova_t iova;
	int events;
};

FIXTURE_VARIANT(translation)
{
	const char *iommu_mode;
};

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES(translation);

FIXTURE_SETUP(translation)
{
	self->iommu = iommu_init(variant->iommu_mode);
	copier_open(&self->copier, bdfs[0], self->iommu, NULL);
	self->block[0] = memory(SZ_2M);
	self->block[1] = memory(SZ_2M);
	self->iova = iova_allocator_alloc(self->copier.allocator, SZ_2M);
	self->events = events_open();
}

FIXTURE_TEARDOWN(translation)
{
	copier_close(&self->copier);
	iova_allocator_cleanup(self->copier.allocator);
	iommu_cleanup(self->iommu);
	munmap(self->block[0], SZ_2M);
	munmap(self->block[1], SZ_2M);
}

/* The device writes to and reads from block[which] at an offset of the IOVA. */
static bool check_at(struct copier *copier, u8 *const block[2], iova_t iova, int which,
		     u64 offset, u8 pattern)
{
	u8 *here = block[which] + offset;
	u8 *there = block[!which] + offset;

	memset(here, 0, COPY_SIZE);
	memset(there, 0, COPY_SIZE);
	if (!copy_to(copier, iova + offset, pattern) ||
	    !is_filled(here, pattern) || !is_filled(there, 0))
		return false;
	pattern = ~pattern;
	memset(here, pattern, COPY_SIZE);
	return copy_from(copier, iova + offset, pattern);
}

#define CHECK_AT(...)								\
	ASSERT_TRUE(check_at(&self->copier, self->block, self->iova, __VA_ARGS__))

static int remap(struct iommu *iommu, void *to, iova_t iova, u64 size, int may)
{
	u64 unmapped;
	int ret;

	ret = raw_unmap(iommu, iova, size, &unmapped);
	if (ret)
		return ret;
	if (unmapped != size)
		return -EINVAL;
	return to ? raw_map(iommu, to, iova, size, may) : 0;
}

/* The same IOVA, another page: the device always reaches the new one. */
TEST_F(translation, another_page)
{
	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, PAGE, MAY_BOTH));
	for (int i = 0; i < ROUNDS; i++) {
		CHECK_AT(i % 2, 0, i + 1);
		ASSERT_EQ(0, remap(self->iommu, self->block[!(i % 2)], self->iova, PAGE,
				   MAY_BOTH));
	}
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, PAGE, 0));
	ASSERT_EQ(0, events_count(self->events, 0));
}

/* The same for more pages than a segment has */
TEST_F(translation, another_block)
{
	const u64 offsets[] = { 0, PAGE, SZ_1M - PAGE, SZ_1M, SZ_2M - PAGE };

	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, SZ_2M, MAY_BOTH));
	for (int i = 0; i < 4; i++) {
		for (int j = 0; j < ARRAY_SIZE(offsets); j++)
			CHECK_AT(i % 2, offsets[j], 16 * i + j + 1);
		ASSERT_EQ(0, remap(self->iommu, self->block[!(i % 2)], self->iova, SZ_2M,
				   MAY_BOTH));
	}
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, SZ_2M, 0));
	ASSERT_EQ(0, events_count(self->events, 0));
}

/* A block, then in its place a single page of another one */
TEST_F(translation, a_page_where_a_block_was)
{
	const u64 offset = SZ_1M - PAGE;
	iova_t iova = self->iova + offset;

	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, SZ_2M, MAY_BOTH));
	CHECK_AT(0, offset, 1);
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, SZ_2M, 0));
	ASSERT_EQ(0, raw_map(self->iommu, self->block[1] + offset, iova, PAGE, MAY_BOTH));
	CHECK_AT(1, offset, 2);
	/* Its neighbours are not mapped any more. */
	memset(self->block[0], 0, SZ_2M);
	ASSERT_FALSE(copy_to(&self->copier, iova - PAGE, 3));
	ASSERT_FALSE(copy_to(&self->copier, iova + PAGE, 3));
	ASSERT_TRUE(is_filled(self->block[0] + offset - PAGE, 0));
	ASSERT_TRUE(is_filled(self->block[0] + offset + PAGE, 0));
	ASSERT_EQ(0, remap(self->iommu, NULL, iova, PAGE, 0));
	ASSERT_EQ(2, events_count(self->events, 2));
}

/* The device can neither read nor write what was unmapped. */
TEST_F(translation, nothing_there)
{
	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, PAGE, MAY_BOTH));
	CHECK_AT(0, 0, 1);
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, PAGE, 0));
	memset(self->block[0], 2, COPY_SIZE);
	ASSERT_FALSE(copy_to(&self->copier, self->iova, 3));
	ASSERT_TRUE(is_filled(self->block[0], 2));
	ASSERT_FALSE(copy_from(&self->copier, self->iova, 2));
	ASSERT_EQ(2, events_count(self->events, 2));
	/* The function works again afterwards. */
	ASSERT_EQ(0, raw_map(self->iommu, self->block[1], self->iova, PAGE, MAY_BOTH));
	CHECK_AT(1, 0, 4);
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, PAGE, 0));
}

/* The device reaches the last page that the kernel offers. */
TEST_F(translation, last_page)
{
	struct iommu_iova_range *ranges;
	u32 count;

	ranges = iommu_iova_ranges(self->iommu, &count);
	self->iova = ranges[count - 1].last + 1 - PAGE;
	free(ranges);
	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, PAGE, MAY_BOTH));
	CHECK_AT(0, 0, 1);
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, PAGE, 0));
	ASSERT_EQ(0, events_count(self->events, 0));
}

/* The device may read a page that is mapped read-only, but not write to it. */
TEST_F(translation, read_only)
{
	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, PAGE, MAY_READ));
	memset(self->block[0], 1, COPY_SIZE);
	ASSERT_TRUE(copy_from(&self->copier, self->iova, 1));
	ASSERT_FALSE(copy_to(&self->copier, self->iova, 2));
	ASSERT_TRUE(is_filled(self->block[0], 1));
	ASSERT_TRUE(copy_from(&self->copier, self->iova, 1));
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, PAGE, 0));
	ASSERT_EQ(1, events_count(self->events, 1));
}

/* A permission does not outlive its mapping. */
TEST_F(translation, other_permissions)
{
	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, PAGE, MAY_READ));
	memset(self->block[0], 1, COPY_SIZE);
	ASSERT_TRUE(copy_from(&self->copier, self->iova, 1));
	ASSERT_EQ(0, remap(self->iommu, self->block[0], self->iova, PAGE, MAY_BOTH));
	CHECK_AT(0, 0, 2);
	ASSERT_EQ(0, remap(self->iommu, self->block[0], self->iova, PAGE, MAY_READ));
	memset(self->block[0], 3, COPY_SIZE);
	ASSERT_FALSE(copy_to(&self->copier, self->iova, 4));
	ASSERT_TRUE(is_filled(self->block[0], 3));
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, PAGE, 0));
	ASSERT_EQ(1, events_count(self->events, 1));
}

/*
 * A device that is added reaches existing mappings, sees how they change, and
 * loses them like the first one.
 */
TEST_F(translation, second_device)
{
	struct copier second = {};

	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, SZ_2M, MAY_BOTH));
	CHECK_AT(0, 0, 1);
	copier_open(&second, bdfs[1], self->iommu, self->copier.allocator);
	ASSERT_TRUE(copy_to(&second, self->iova + SZ_1M, 2));
	ASSERT_TRUE(is_filled(self->block[0] + SZ_1M, 2));
	/* From memory that was mapped before the second device was added */
	memset(self->copier.scratch.vaddr, 7, COPY_SIZE);
	ASSERT_TRUE(copy_from(&second, self->copier.scratch.iova, 7));
	CHECK_AT(0, SZ_2M - PAGE, 3);

	ASSERT_EQ(0, remap(self->iommu, self->block[1], self->iova, SZ_2M, MAY_BOTH));
	CHECK_AT(1, 0, 4);
	ASSERT_TRUE(copy_to(&second, self->iova, 5));
	ASSERT_TRUE(is_filled(self->block[1], 5));
	ASSERT_EQ(0, events_count(self->events, 0));

	self->events = events_open();
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, SZ_2M, 0));
	ASSERT_FALSE(copy_to(&second, self->iova, 6));
	ASSERT_TRUE(is_filled(self->block[1], 5));
	ASSERT_EQ(1, events_count(self->events, 1));
	copier_close(&second);
}

static int hot_reset(struct vfio_pci_device *device)
{
	char buffer[sizeof(struct vfio_pci_hot_reset) + sizeof(__s32)] = {};
	struct vfio_pci_hot_reset *reset = (void *)buffer;

	reset->argsz = sizeof(buffer);
	/* The group proves ownership; iommufd needs no group. */
	if (device->group_fd) {
		reset->count = 1;
		reset->group_fds[0] = device->group_fd;
	}
	return ioctl(device->fd, VFIO_DEVICE_PCI_HOT_RESET, reset) ? -errno : 0;
}

/* Mappings survive a reset of the function. */
TEST_F(translation, hot_reset)
{
	struct vfio_pci_device *device = self->copier.device;

	ASSERT_EQ(0, raw_map(self->iommu, self->block[0], self->iova, SZ_2M, MAY_BOTH));
	for (int i = 0; i < 3; i++) {
		CHECK_AT(0, SZ_1M, i + 1);
		vfio_pci_driver_remove(device);
		ASSERT_EQ(0, hot_reset(device));
		vfio_pci_driver_init(device);
		CHECK_AT(0, SZ_1M, i + 16);
		vfio_pci_driver_remove(device);
		vfio_pci_device_reset(device);
		vfio_pci_driver_init(device);
		CHECK_AT(0, SZ_1M, i + 32);
	}
	ASSERT_EQ(0, events_count(self->events, 0));
	/* What was unmapped before a reset stays unmapped after it. */
	ASSERT_EQ(0, remap(self->iommu, NULL, self->iova, SZ_2M, 0));
	vfio_pci_driver_remove(device);
	ASSERT_EQ(0, hot_reset(device));
	vfio_pci_driver_init(device);
	memset(self->block[0], 1, COPY_SIZE);
	self->events = events_open();
	ASSERT_FALSE(copy_to(&self->copier, self->iova, 2));
	ASSERT_TRUE(is_filled(self->block[0], 1));
	ASSERT_EQ(1, events_count(self->events, 1));
}

int main(int argc, char *argv[])
{
	int count;
	char **list = vfio_selftests_get_bdfs(&argc, argv, &count);

	if (count != ARRAY_SIZE(bdfs))
		ksft_exit_skip("two igb are needed, not %d\n", count);
	bdfs[0] = list[0];
	bdfs[1] = list[1];
	return test_harness_run(argc, argv);
}
