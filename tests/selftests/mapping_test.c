// SPDX-License-Identifier: GPL-2.0
/*
 * Mappings of every size and alignment, and more of them than fit. A device
 * checks where they lead. Needs an igb.
 */
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "helper.h"
#include "kselftest_harness.h"

/* The largest mapping, and the IOVA space that is reserved for it */
#define LARGEST		SZ_256M
#define SPACE		SZ_512M
/* IOVA space to fill with single pages */
#define SMALL_SPACE	SZ_64M

static const char *bdf;

FIXTURE(mapping)
{
	struct iommu *iommu;
	struct copier copier;
	u8 *block;
	u64 size;
	/* A multiple of SPACE */
	iova_t iova;
	int events;
};

FIXTURE_VARIANT(mapping)
{
	const char *iommu_mode;
};

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES(mapping);

FIXTURE_SETUP(mapping)
{
	self->iommu = iommu_init(variant->iommu_mode);
	copier_open(&self->copier, bdf, self->iommu, NULL);
	self->iova = iova_allocator_alloc(self->copier.allocator, SPACE);
	self->size = LARGEST;
	self->block = memory(self->size);
	self->events = events_open();
}

FIXTURE_TEARDOWN(mapping)
{
	ASSERT_EQ(0, events_count(self->events, 0));
	copier_close(&self->copier);
	iova_allocator_cleanup(self->copier.allocator);
	iommu_cleanup(self->iommu);
	munmap(self->block, self->size);
}

/*
 * Checks the page at an offset of a block that is mapped at an IOVA: the device
 * reads from it and writes to it. Every offset has its own pattern.
 */
static bool check_page(struct copier *copier, u8 *block, iova_t iova, u64 offset)
{
	const u8 pattern = 1 + (offset / PAGE) % 251;
	u8 *here = block + offset;
	bool good;

	memset(here, pattern, COPY_SIZE);
	good = copy_from(copier, iova + offset, pattern) &&
		copy_to(copier, iova + offset + COPY_SIZE, pattern) &&
		is_filled(here + COPY_SIZE, pattern);
	if (!good)
		fprintf(stderr, "# IOVA %#lx at %#lx\n", iova, offset);
	memset(here, 0, 2 * COPY_SIZE);
	return good;
}

/* The first page, the last one, and one in the middle */
static bool check_pages(struct copier *copier, u8 *block, iova_t iova, u64 size)
{
	return check_page(copier, block, iova, 0) &&
		check_page(copier, block, iova, size / 2 / PAGE * PAGE) &&
		check_page(copier, block, iova, size - PAGE);
}

static bool check_mapping(struct copier *copier, u8 *block, iova_t iova, u64 size)
{
	u64 unmapped = 0;
	int ret;

	ret = raw_map(copier->iommu, block, iova, size, MAY_BOTH);
	if (!ret && !check_pages(copier, block, iova, size))
		return false;
	if (!ret)
		ret = raw_unmap(copier->iommu, iova, size, &unmapped);
	if (!ret && unmapped == size)
		return true;
	fprintf(stderr, "# IOVA %#lx, size %#lx: %d, unmapped %#lx\n", iova, size, ret,
		unmapped);
	return false;
}

/* Powers of two, naturally aligned */
TEST_F(mapping, aligned_sizes)
{
	for (u64 size = PAGE; size <= LARGEST; size *= 2)
		ASSERT_TRUE(check_mapping(&self->copier, self->block, self->iova + size, size));
}

/* A page more and a page less, at odd addresses and odd IOVAs */
TEST_F(mapping, odd_sizes)
{
	for (u64 size = 2 * PAGE; size <= LARGEST; size *= 2) {
		ASSERT_TRUE(check_mapping(&self->copier, self->block + PAGE,
					  self->iova + size - PAGE, size - PAGE));
		if (size > SZ_16M)
			continue;
		ASSERT_TRUE(check_mapping(&self->copier, self->block,
					  self->iova + size - PAGE, size + PAGE));
		ASSERT_TRUE(check_mapping(&self->copier, self->block + PAGE,
					  self->iova + size, size + PAGE));
	}
}

/* Every alignment of a block that is larger than a segment. */
TEST_F(mapping, alignments)
{
	const u64 size = SZ_1M + 2 * PAGE;

	for (u64 shift = PAGE; shift <= SZ_2M; shift *= 2) {
		ASSERT_TRUE(check_mapping(&self->copier, self->block, self->iova + shift, size));
		ASSERT_TRUE(check_mapping(&self->copier, self->block + shift, self->iova, size));
		ASSERT_TRUE(check_mapping(&self->copier, self->block + shift,
					  self->iova + SZ_2M - shift, size));
	}
}

/* No more fits into full IOVA space, and freed IOVAs can be used again. */
TEST_F(mapping, single_pages)
{
	u64 unmapped;
	u64 offset;

	for (offset = 0; offset < SMALL_SPACE; offset += PAGE)
		ASSERT_EQ(0, raw_map(self->iommu, self->block + offset,
				     self->iova + offset, PAGE, MAY_BOTH));
	for (offset = 0; offset < SMALL_SPACE; offset += SZ_8M)
		ASSERT_EQ(-EEXIST, raw_map(self->iommu, self->block,
					   self->iova + offset, PAGE, MAY_BOTH));
	ASSERT_TRUE(check_page(&self->copier, self->block, self->iova, SMALL_SPACE - PAGE));

	/* Map every second page elsewhere; its neighbours do not change. */
	for (offset = 0; offset < SMALL_SPACE; offset += 2 * PAGE) {
		ASSERT_EQ(0, raw_unmap(self->iommu, self->iova + offset, PAGE,
				       &unmapped));
		ASSERT_EQ(PAGE, unmapped);
	}
	for (offset = 0; offset < SMALL_SPACE; offset += 2 * PAGE)
		ASSERT_EQ(0, raw_map(self->iommu, self->block + SMALL_SPACE + offset,
				     self->iova + offset, PAGE, MAY_BOTH));
	for (offset = 0; offset < SMALL_SPACE; offset += SZ_2M + 2 * PAGE) {
		ASSERT_TRUE(check_page(&self->copier, self->block + SMALL_SPACE, self->iova,
				       offset));
		ASSERT_TRUE(check_page(&self->copier, self->block, self->iova, offset + PAGE));
	}
	ASSERT_EQ(0, raw_unmap(self->iommu, self->iova, SMALL_SPACE, &unmapped));
	ASSERT_EQ(SMALL_SPACE, unmapped);
	ASSERT_TRUE(check_mapping(&self->copier, self->block, self->iova, SMALL_SPACE));
}

/* A VFIO container accepts 65535 mappings, wherever they are, and no more. */
TEST_F(mapping, all_entries)
{
	/* With type1, the copier uses two of them. iommufd has no limit. */
	const u64 most = is_type1(self->iommu) ? 0xffff - 2 : 0x10000;
	u64 unmapped;
	u64 count;

	for (count = 0; count < 0x10000; count++) {
		int ret = raw_map(self->iommu, self->block, self->iova + count * PAGE,
				  PAGE, MAY_BOTH);

		if (ret == -ENOSPC)
			break;
		ASSERT_EQ(0, ret);
	}
	ASSERT_EQ(most, count);
	ASSERT_TRUE(check_page(&self->copier, self->block, self->iova + (count - 1) * PAGE, 0));
	ASSERT_EQ(0, raw_unmap(self->iommu, self->iova, SPACE, &unmapped));
	ASSERT_EQ(count * PAGE, unmapped);
	ASSERT_TRUE(check_mapping(&self->copier, self->block, self->iova, SZ_1M));
}

/* iommufd chooses the IOVA. Containers need one: the next. */
static int map_somewhere(struct iommu *iommu, void *vaddr, u64 size, iova_t next, iova_t *iova)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = iommu->ioas_id,
		.user_va = (uintptr_t)vaddr,
		.length = size,
	};

	*iova = next;
	if (!is_iommufd(iommu))
		return raw_map(iommu, vaddr, next, size, MAY_BOTH);
	if (ioctl(iommu->iommufd, IOMMU_IOAS_MAP, &map))
		return -errno;
	*iova = map.iova;
	return 0;
}

/* Allocates IOVAs until none is left, and frees them. */
TEST_F(mapping, all_iovas)
{
	const u64 size = SZ_1M;
	const int count = SMALL_SPACE / size;
	struct iommu_iova_range range = {
		.start = self->iova,
		.last = self->iova + SMALL_SPACE - 1,
	};
	struct iommu_ioas_allow_iovas allow = {
		.size = sizeof(allow),
		.ioas_id = self->iommu->ioas_id,
		.num_iovas = 1,
		.allowed_iovas = (uintptr_t)&range,
	};
	u64 unmapped;
	iova_t iova;

	if (is_iommufd(self->iommu))
		ASSERT_EQ(0, ioctl(self->iommu->iommufd, IOMMU_IOAS_ALLOW_IOVAS, &allow));
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < count; i++) {
			ASSERT_EQ(0, map_somewhere(self->iommu, self->block, size,
						   self->iova + i * size, &iova));
			ASSERT_LE(range.start, iova);
			ASSERT_GE(range.last, iova + size - 1);
			ASSERT_TRUE(check_page(&self->copier, self->block, iova, size - PAGE));
		}
		ASSERT_EQ(is_iommufd(self->iommu) ? -ENOSPC : -EEXIST,
			  map_somewhere(self->iommu, self->block, size, self->iova, &iova));
		ASSERT_EQ(0, raw_unmap(self->iommu, self->iova, SMALL_SPACE, &unmapped));
		ASSERT_EQ(SMALL_SPACE, unmapped);
	}
}

int main(int argc, char *argv[])
{
	bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
