// SPDX-License-Identifier: GPL-2.0
/*
 * Huge pages of 1 MiB: a device reaches them, and nothing after their unmap.
 * This driver maps them as large pages, which need no page tables. Needs an
 * igb, and as many free huge pages as are mapped here.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/mman.h>

#include "helper.h"
#include "kselftest_harness.h"

#define SIZE	SZ_4M
/* IOVA space, enough for a mapping that is not aligned to 1 MiB */
#define SPACE	SZ_8M
/* KiB of page tables, one for each MiB */
#define TABLES	(SIZE / SZ_1M * 2)

static const char *bdf;

FIXTURE(hugetlb)
{
	struct iommu *iommu;
	struct copier copier;
	u8 *block;
	iova_t iova;
	int events;
};

FIXTURE_VARIANT(hugetlb)
{
	const char *iommu_mode;
};

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES(hugetlb);

FIXTURE_SETUP(hugetlb)
{
	self->block = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE | MAP_HUGETLB | MAP_HUGE_1MB,
			   -1, 0);
	if (self->block == MAP_FAILED)
		SKIP(return, "mmap() failed: %s\n", strerror(errno));
	self->iommu = iommu_init(variant->iommu_mode);
	copier_open(&self->copier, bdf, self->iommu, NULL);
	self->iova = iova_allocator_alloc(self->copier.allocator, SPACE);
	self->events = events_open();
}

FIXTURE_TEARDOWN(hugetlb)
{
	copier_close(&self->copier);
	iova_allocator_cleanup(self->copier.allocator);
	iommu_cleanup(self->iommu);
	munmap(self->block, SIZE);
}

/* The device writes to and reads from both ends of each huge page. */
TEST_F(hugetlb, copies)
{
	u64 unmapped;
	u8 pattern = 1;

	ASSERT_EQ(0, raw_map(self->iommu, self->block, self->iova, SIZE, MAY_BOTH));
	for (u64 at = 0; at < SIZE; at += at % SZ_1M ? PAGE : SZ_1M - PAGE) {
		memset(self->block + at, 0, COPY_SIZE);
		ASSERT_TRUE(copy_to(&self->copier, self->iova + at, pattern));
		ASSERT_TRUE(is_filled(self->block + at, pattern++));
		memset(self->block + at, pattern, COPY_SIZE);
		ASSERT_TRUE(copy_from(&self->copier, self->iova + at, pattern++));
	}
	ASSERT_EQ(0, raw_unmap(self->iommu, self->iova, SIZE, &unmapped));
	ASSERT_EQ(SIZE, unmapped);
	memset(self->block, 2, COPY_SIZE);
	ASSERT_FALSE(copy_to(&self->copier, self->iova, 3));
	ASSERT_TRUE(is_filled(self->block, 2));
	ASSERT_EQ(1, events_count(self->events, 1));
}

/*
 * Aligned huge pages need no page tables. A page off, they need one for each
 * MiB. As a replacement for type1 v1, iommufd only maps pages of 4 KiB, because
 * any of them may be unmapped.
 */
TEST_F(hugetlb, large_pages)
{
	u64 before, aligned, beside, unmapped;

	/* From here on, the higher-level tables exist. */
	ASSERT_EQ(0, raw_map(self->iommu, self->block, self->iova + SIZE, PAGE, MAY_BOTH));
	before = table_memory();
	ASSERT_EQ(0, raw_map(self->iommu, self->block, self->iova, SIZE, MAY_BOTH));
	aligned = table_memory();
	ASSERT_EQ(0, raw_unmap(self->iommu, self->iova, SIZE, &unmapped));
	ASSERT_EQ(SIZE, unmapped);
	ASSERT_EQ(0, raw_map(self->iommu, self->block, self->iova + PAGE, SIZE - PAGE, MAY_BOTH));
	beside = table_memory();
	ASSERT_EQ(0, raw_unmap(self->iommu, self->iova + PAGE, SIZE - PAGE, &unmapped));
	ASSERT_EQ(0, raw_unmap(self->iommu, self->iova + SIZE, PAGE, &unmapped));
	if (strcmp(variant->iommu_mode, "iommufd_compat_type1")) {
		ASSERT_LE(aligned, before);
		ASSERT_GE(beside, aligned + TABLES);
	} else {
		ASSERT_GE(aligned, before + TABLES);
	}
	ASSERT_EQ(0, events_count(self->events, 0));
}

int main(int argc, char *argv[])
{
	bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
