// SPDX-License-Identifier: GPL-2.0
/*
 * Tables are accounted for as long as they exist, and are freed with their
 * owner, however it ends. Needs an igb.
 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "helper.h"
#include "kselftest_harness.h"

/* Pages so far apart that each needs its own page table */
#define TABLES		1024
#define APART		SZ_1M
/* Bytes of a page table */
#define TABLE_SIZE	SZ_2K

static const char *bdf;

FIXTURE(lifetime)
{
	u64 before;
	u8 *block;
};

FIXTURE_VARIANT(lifetime)
{
	const char *iommu_mode;
};

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES(lifetime);

FIXTURE_SETUP(lifetime)
{
	/* Tables of the previous test may not have been freed yet. */
	usleep(500000);
	self->before = table_memory();
	self->block = memory(SZ_1M);
}

FIXTURE_TEARDOWN(lifetime)
{
	munmap(self->block, SZ_1M);
}

/* Maps a page in each of many segments. */
static void map_all(struct iommu *iommu, u8 *block, iova_t first)
{
	for (u64 i = 0; i < TABLES; i++)
		VFIO_ASSERT_EQ(raw_map(iommu, block, first + i * APART, PAGE, MAY_BOTH), 0);
}

/* Opens a device and maps a page in each of many segments. */
static void fill(struct copier *copier, const char *mode, u8 *block, iova_t *first)
{
	struct iommu *iommu = iommu_init(mode);

	copier_open(copier, bdf, iommu, NULL);
	*first = iova_allocator_alloc(copier->allocator, TABLES * (u64)APART);
	map_all(iommu, block, *first);
}

static void release(struct copier *copier)
{
	struct iommu *iommu = copier->iommu;

	copier_close(copier);
	iova_allocator_cleanup(copier->allocator);
	iommu_cleanup(iommu);
}

/* The device works and reaches the last of the mappings. */
static bool works(struct copier *copier, u8 *block, iova_t first)
{
	const iova_t last = first + (TABLES - 1) * (u64)APART;

	memset(block, 0, COPY_SIZE);
	return copy_to(copier, last, 1) && is_filled(block, 1);
}

TEST_F(lifetime, closed)
{
	struct copier copier = {};
	iova_t first;

	fill(&copier, variant->iommu_mode, self->block, &first);
	ASSERT_TRUE(works(&copier, self->block, first));
	ASSERT_LE(self->before + TABLES * TABLE_SIZE / SZ_1K, table_memory());
	/* With all mappings in place */
	release(&copier);
	ASSERT_TRUE(table_memory_settles(self->before));
}

/* Mapping and unmapping repeatedly needs no more tables than once. */
TEST_F(lifetime, reused)
{
	struct copier copier = {};
	u64 unmapped;
	iova_t first;
	u64 full;

	fill(&copier, variant->iommu_mode, self->block, &first);
	full = table_memory();
	for (int round = 0; round < 3; round++) {
		ASSERT_EQ(0, raw_unmap(copier.iommu, first, TABLES * (u64)APART,
				       &unmapped));
		ASSERT_EQ(TABLES * (u64)PAGE, unmapped);
		map_all(copier.iommu, self->block, first);
		ASSERT_TRUE(works(&copier, self->block, first));
		ASSERT_TRUE(table_memory_settles(full));
	}
	release(&copier);
	ASSERT_TRUE(table_memory_settles(self->before));
}

/* A process that dies while its device copies leaves nothing behind. */
TEST_F(lifetime, killed)
{
	struct copier copier = {};
	iova_t first;
	int ready[2];
	int status;
	pid_t pid;
	char c;

	for (int round = 0; round < 3; round++) {
		ASSERT_EQ(0, pipe(ready));
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			/* If the test fails, this must not keep running. */
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			fill(&copier, variant->iommu_mode, self->block, &first);
			for (;;) {
				if (!works(&copier, self->block, first))
					_exit(1);
				/* After the first copy, it may be killed. */
				if (write(ready[1], "x", 1) != 1)
					_exit(1);
			}
		}
		close(ready[1]);
		for (int i = 0; i < 4 + round; i++)
			ASSERT_EQ(1, read(ready[0], &c, 1));
		ASSERT_LT(self->before, table_memory());
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status));
		ASSERT_EQ(SIGKILL, WTERMSIG(status));
		close(ready[0]);
		ASSERT_TRUE(table_memory_settles(self->before));
	}
	/* The device can be used again. */
	fill(&copier, variant->iommu_mode, self->block, &first);
	ASSERT_TRUE(works(&copier, self->block, first));
	release(&copier);
	ASSERT_TRUE(table_memory_settles(self->before));
}

int main(int argc, char *argv[])
{
	bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
