// SPDX-License-Identifier: GPL-2.0
/*
 * Invalid calls: each must fail with the expected errno, map nothing and leave
 * nothing behind. Works with any device.
 */
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "helper.h"
#include "kselftest_harness.h"

static const char *bdf;

FIXTURE(bad_input)
{
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct iova_allocator *allocator;
	u8 *block;
	/* A free IOVA, and the limits of what can be mapped */
	iova_t iova;
	iova_t first;
	iova_t last;
	/* An existing mapping of 16 pages */
	iova_t taken;
	/* Before the device was opened, then after the setup */
	u64 tables;
	u64 locked;
	u64 pinned;
};

FIXTURE_VARIANT(bad_input)
{
	const char *iommu_mode;
};

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES(bad_input);

FIXTURE_SETUP(bad_input)
{
	struct iommu_iova_range *ranges;
	u32 count;

	self->tables = table_memory();
	self->iommu = iommu_init(variant->iommu_mode);
	self->device = vfio_pci_device_init(bdf, self->iommu);
	self->allocator = iova_allocator_init(self->iommu);
	self->block = memory(SZ_1M);
	ranges = iommu_iova_ranges(self->iommu, &count);
	self->first = ranges[0].start;
	self->last = ranges[count - 1].last;
	free(ranges);
	/* Leave free IOVAs below it, which could be mapped as well. */
	iova_allocator_alloc(self->allocator, SZ_64K);
	self->taken = iova_allocator_alloc(self->allocator, SZ_64K);
	/* Above it, so that a range from here does not overlap it as well */
	self->iova = iova_allocator_alloc(self->allocator, SZ_1M);
	ASSERT_EQ(0, raw_map(self->iommu, self->block, self->taken, SZ_64K, MAY_BOTH));
	self->locked = status_field("VmLck");
	self->pinned = status_field("VmPin");
}

FIXTURE_TEARDOWN(bad_input)
{
	u64 unmapped;

	/* Exactly what was mapped in the setup is still mapped. */
	ASSERT_EQ(0, __iommu_unmap_all(self->iommu, &unmapped));
	ASSERT_EQ(SZ_64K, unmapped);
	ASSERT_EQ(self->locked + self->pinned,
		  status_field("VmLck") + status_field("VmPin") + SZ_64K / SZ_1K);
	iova_allocator_cleanup(self->allocator);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
	munmap(self->block, SZ_1M);
	ASSERT_TRUE(table_memory_settles(self->tables));
}

/* Nothing was pinned. The teardown checks what is mapped. */
#define CHECK_NOTHING() do {						\
	ASSERT_EQ(self->locked, status_field("VmLck"));			\
	ASSERT_EQ(self->pinned, status_field("VmPin"));			\
} while (0)

#define MAP_FAILS(_error, _vaddr, _iova, _size) do {			\
	ASSERT_EQ(-(_error), raw_map(self->iommu, _vaddr, _iova, _size,	\
				     MAY_BOTH));			\
	CHECK_NOTHING();						\
} while (0)

TEST_F(bad_input, map_alignment)
{
	u8 *block = self->block;

	MAP_FAILS(EINVAL, block, self->iova, 0);
	MAP_FAILS(EINVAL, block, self->iova, 1);
	MAP_FAILS(EINVAL, block, self->iova, PAGE - 1);
	MAP_FAILS(EINVAL, block, self->iova, PAGE + 1);
	MAP_FAILS(EINVAL, block, self->iova + 1, PAGE);
	MAP_FAILS(EINVAL, block, self->iova + PAGE / 2, PAGE);
	MAP_FAILS(EINVAL, block + 1, self->iova, PAGE);
	MAP_FAILS(EINVAL, block + PAGE / 2, self->iova, PAGE);
}

/* Below, above and across the limits of what the function reaches */
TEST_F(bad_input, map_out_of_reach)
{
	const u64 end = self->last + 1;

	ASSERT_LT(PAGE, self->first);
	MAP_FAILS(EINVAL, self->block, 0, PAGE);
	MAP_FAILS(EINVAL, self->block, self->first - PAGE, PAGE);
	MAP_FAILS(EINVAL, self->block, self->first - PAGE, 2 * PAGE);
	MAP_FAILS(EINVAL, self->block, end - PAGE, 2 * PAGE);
	MAP_FAILS(EINVAL, self->block, end, PAGE);
	MAP_FAILS(EINVAL, self->block, 1UL << 42, PAGE);
	MAP_FAILS(EINVAL, self->block, 1UL << 53, PAGE);
	MAP_FAILS(EINVAL, self->block, 1UL << 63, PAGE);
	MAP_FAILS(EINVAL, self->block, -(u64)PAGE, PAGE);
}

TEST_F(bad_input, map_huge)
{
	MAP_FAILS(EOVERFLOW, self->block, -(u64)PAGE, 2 * PAGE);
	MAP_FAILS(EOVERFLOW, self->block, self->iova, -(u64)PAGE);
	MAP_FAILS(EINVAL, self->block, self->iova, 1UL << 43);
	MAP_FAILS(EINVAL, self->block, self->iova, 1UL << 62);
	MAP_FAILS(EINVAL, self->block, self->iova, self->last - self->iova + 1 + PAGE);
}

TEST_F(bad_input, map_over_another)
{
	MAP_FAILS(EEXIST, self->block, self->taken, PAGE);
	MAP_FAILS(EEXIST, self->block, self->taken, SZ_64K);
	MAP_FAILS(EEXIST, self->block, self->taken + SZ_64K - PAGE, 2 * PAGE);
	MAP_FAILS(EEXIST, self->block, self->taken - PAGE, 2 * PAGE);
	MAP_FAILS(EEXIST, self->block, self->taken - PAGE, SZ_64K + 2 * PAGE);
	ASSERT_EQ(-EEXIST, raw_map(self->iommu, self->block, self->taken, PAGE, MAY_READ));
}

/* Memory that is missing, from the start of the range or from the middle */
TEST_F(bad_input, map_no_memory)
{
	u8 *block = memory(SZ_4M);

	ASSERT_EQ(0, munmap(block + SZ_2M, SZ_2M));
	MAP_FAILS(EFAULT, block + SZ_2M, self->iova, PAGE);
	MAP_FAILS(EFAULT, block + SZ_2M - PAGE, self->iova, 2 * PAGE);
	MAP_FAILS(EFAULT, block + SZ_2M - SZ_512K, self->iova, SZ_1M);
	/* The device may not write where the process may not. */
	ASSERT_EQ(0, mprotect(block, SZ_64K, PROT_READ));
	MAP_FAILS(EFAULT, block, self->iova, PAGE);
	MAP_FAILS(EFAULT, block + SZ_64K - PAGE, self->iova, PAGE);
	munmap(block, SZ_2M);
}

TEST_F(bad_input, map_flags)
{
	struct vfio_iommu_type1_dma_map type1 = {
		.argsz = sizeof(type1),
		.flags = VFIO_DMA_MAP_FLAG_READ,
		.vaddr = (uintptr_t)self->block,
		.iova = self->iova,
		.size = PAGE,
	};
	struct iommu_ioas_map ioas = {
		.size = sizeof(ioas),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
		.ioas_id = self->iommu->ioas_id,
		.user_va = (uintptr_t)self->block,
		.iova = self->iova,
		.length = PAGE,
	};

#define TYPE1_FAILS(_error, _field, _value) do {				\
	struct vfio_iommu_type1_dma_map __map = type1;				\
										\
	__map._field = (_value);						\
	ASSERT_EQ(-1, ioctl(self->iommu->container_fd, VFIO_IOMMU_MAP_DMA, &__map)); \
	ASSERT_EQ(_error, errno);						\
	CHECK_NOTHING();							\
} while (0)

#define IOAS_FAILS(_error, _field, _value) do {					\
	struct iommu_ioas_map __map = ioas;					\
										\
	__map._field = (_value);						\
	ASSERT_EQ(-1, ioctl(self->iommu->iommufd, IOMMU_IOAS_MAP, &__map));	\
	ASSERT_EQ(_error, errno);						\
	CHECK_NOTHING();							\
} while (0)

	if (is_iommufd(self->iommu)) {
		IOAS_FAILS(EINVAL, flags, IOMMU_IOAS_MAP_FIXED_IOVA);
		IOAS_FAILS(EOPNOTSUPP, flags, ioas.flags | 1 << 3);
		IOAS_FAILS(EOPNOTSUPP, flags, -1);
		IOAS_FAILS(EOPNOTSUPP, __reserved, 1);
		IOAS_FAILS(ENOENT, ioas_id, -2);
		IOAS_FAILS(EINVAL, size, sizeof(ioas) - 1);
		IOAS_FAILS(EOVERFLOW, iova, -1);
		IOAS_FAILS(EOVERFLOW, length, -1);
	} else {
		TYPE1_FAILS(EINVAL, flags, VFIO_DMA_MAP_FLAG_READ | 1 << 3);
		TYPE1_FAILS(EINVAL, flags, -1);
		TYPE1_FAILS(EINVAL, argsz, sizeof(type1) - 1);
		TYPE1_FAILS(EINVAL, argsz, 0);
	}
	/* iommufd's container accepts a mapping without permissions. */
	if (is_type1(self->iommu)) {
		TYPE1_FAILS(EINVAL, flags, 0);
		TYPE1_FAILS(ENOENT, flags, VFIO_DMA_MAP_FLAG_VADDR);
	}
}

#define UNMAP_FAILS(_error, _iova, _size) do {				\
	u64 __unmapped;							\
									\
	ASSERT_EQ(-(_error), raw_unmap(self->iommu, _iova, _size,	\
				       &__unmapped));			\
	CHECK_NOTHING();						\
} while (0)

TEST_F(bad_input, unmap)
{
	const u64 taken = self->taken;
	u64 unmapped = 1;

	UNMAP_FAILS(EINVAL, self->iova, 0);
	UNMAP_FAILS(EINVAL, taken, 0);
	UNMAP_FAILS(EOVERFLOW, -(u64)PAGE, 2 * PAGE);
	UNMAP_FAILS(EOVERFLOW, taken, -(u64)PAGE);
	if (is_type1(self->iommu)) {
		UNMAP_FAILS(EINVAL, taken + 1, PAGE);
		UNMAP_FAILS(EINVAL, taken, PAGE - 1);
	}
	/* Where nothing is mapped */
	if (is_iommufd(self->iommu)) {
		UNMAP_FAILS(ENOENT, self->iova, PAGE);
		UNMAP_FAILS(ENOENT, 0, self->first);
		UNMAP_FAILS(ENOENT, self->last + 1, 1UL << 62);
	} else {
		ASSERT_EQ(0, raw_unmap(self->iommu, self->iova, PAGE, &unmapped));
		ASSERT_EQ(0, unmapped);
		unmapped = 1;
		ASSERT_EQ(0, raw_unmap(self->iommu, 0, self->first, &unmapped));
		ASSERT_EQ(0, unmapped);
		CHECK_NOTHING();
	}
}

/* A part of a mapping: type1 v2 and iommufd refuse this. */
TEST_F(bad_input, unmap_a_part)
{
	const bool is_v1 = self->iommu->mode->iommu_type == VFIO_TYPE1_IOMMU;
	const int error = is_type1(self->iommu) ? EINVAL : ENOENT;
	u64 unmapped;

	if (self->iommu->mode->container_path && is_v1) {
		/* Type1 v1 does nothing; iommufd's splits it, as documented. */
		ASSERT_EQ(0, raw_unmap(self->iommu, self->taken + PAGE, PAGE, &unmapped));
		ASSERT_EQ(is_type1(self->iommu) ? 0 : PAGE, unmapped);
		if (unmapped) {
			ASSERT_EQ(0, raw_map(self->iommu, self->block + PAGE,
					     self->taken + PAGE, PAGE, MAY_BOTH));
		}
		CHECK_NOTHING();
		return;
	}
	UNMAP_FAILS(error, self->taken, PAGE);
	UNMAP_FAILS(error, self->taken + PAGE, PAGE);
	UNMAP_FAILS(error, self->taken + SZ_64K - PAGE, PAGE);
	UNMAP_FAILS(error, self->taken - PAGE, 2 * PAGE);
	UNMAP_FAILS(error, self->taken + SZ_64K - PAGE, 2 * PAGE);
}

TEST_F(bad_input, unmap_flags)
{
	struct vfio_iommu_type1_dma_unmap type1 = {
		.argsz = sizeof(type1),
		.iova = self->taken,
		.size = SZ_64K,
	};

	struct iommu_ioas_unmap ioas = {
		.size = sizeof(ioas),
		.ioas_id = self->iommu->ioas_id,
		.iova = self->taken,
		.length = SZ_64K,
	};

#define UNMAP_IOAS_FAILS(_error, _field, _value) do {				\
	struct iommu_ioas_unmap __unmap = ioas;					\
										\
	__unmap._field = (_value);						\
	ASSERT_EQ(-1, ioctl(self->iommu->iommufd, IOMMU_IOAS_UNMAP, &__unmap));	\
	ASSERT_EQ(_error, errno);						\
	CHECK_NOTHING();							\
} while (0)

#define UNMAP_TYPE1_FAILS(_error, _field, _value) do {				\
	struct vfio_iommu_type1_dma_unmap __unmap = type1;			\
										\
	__unmap._field = (_value);						\
	ASSERT_EQ(-1, ioctl(self->iommu->container_fd, VFIO_IOMMU_UNMAP_DMA,	\
			    &__unmap));						\
	ASSERT_EQ(_error, errno);						\
	CHECK_NOTHING();							\
} while (0)

	if (is_iommufd(self->iommu)) {
		UNMAP_IOAS_FAILS(EINVAL, size, sizeof(ioas) - 1);
		UNMAP_IOAS_FAILS(ENOENT, ioas_id, -1);
		UNMAP_IOAS_FAILS(EINVAL, length, 0);
		UNMAP_IOAS_FAILS(EOVERFLOW, length, -1);
		return;
	}
	UNMAP_TYPE1_FAILS(EINVAL, argsz, sizeof(type1) - 1);
	UNMAP_TYPE1_FAILS(EINVAL, flags, 1 << 3);
	UNMAP_TYPE1_FAILS(EINVAL, flags, -1);
	/* VFIO_DMA_UNMAP_FLAG_ALL allows no IOVA and no size. */
	UNMAP_TYPE1_FAILS(EINVAL, flags, VFIO_DMA_UNMAP_FLAG_ALL);
}

int main(int argc, char *argv[])
{
	bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
