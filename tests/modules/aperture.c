// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "aperture": dma-iommu never returns an IOVA that the function cannot
 * reach, and fails cleanly when there are no more.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/sizes.h>
#include <linux/vmalloc.h>

#include "iommu_test.h"

/* One buffer is mapped many times; its pages are not accessed. */
#define BUFFER		SZ_4M
#define MAX_MAPPINGS	8192

/* The DMA API's flush queue holds unmapped IOVAs for up to a second. */
#define QUEUE_AGE_MS	1500

static struct test_function *fn;
static struct page *buffer;
static dma_addr_t *mappings;

static int check_mapping(dma_addr_t iova)
{
	if (iova < fn->first || iova + BUFFER - 1 > fn->last)
		return test_fail("%pad is outside the window %pad to %pad",
				 &iova, &fn->first, &fn->last);
	return 0;
}

/* Returns how many mappings fit into the window, or a failed test. */
static int fill(void)
{
	struct device *dev = &fn->pdev->dev;
	int count = 0;
	int ret = 0;

	while (!ret && count < MAX_MAPPINGS) {
		dma_addr_t iova = dma_map_page(dev, buffer, 0, BUFFER, DMA_TO_DEVICE);

		if (dma_mapping_error(dev, iova))
			return count;
		mappings[count++] = iova;
		ret = check_mapping(iova);
		cond_resched();
	}
	return ret ? ret : test_fail("the window never fills up");
}

static void empty(void)
{
	struct device *dev = &fn->pdev->dev;
	unsigned int i;

	for (i = 0; i < MAX_MAPPINGS; i++) {
		if (!mappings[i])
			continue;
		dma_unmap_page(dev, mappings[i], BUFFER, DMA_TO_DEVICE);
		mappings[i] = 0;
		cond_resched();
	}
}

static bool is_small(void)
{
	return (fn->last - fn->first) / BUFFER < MAX_MAPPINGS;
}

/* Other mappings may fragment the window: allow for a few missing ones. */
static int expect_full(int count)
{
	int most = (fn->last - fn->first + 1) / BUFFER;

	if (count < most - 8)
		return test_fail("%d mappings fit, only %d succeeded", most, count);
	return 0;
}

static int test_exhaust(void)
{
	unsigned int round;
	int ret = 0;

	if (!is_small())
		return test_skip("the window is too large to fill: use s390_iommu_aperture=");
	/* The second round shows that all IOVAs were freed. */
	for (round = 0; !ret && round < 2; round++) {
		ret = fill();
		empty();
		if (ret >= 0)
			ret = expect_full(ret);
		msleep(QUEUE_AGE_MS);
	}
	return ret;
}

static void free_buffer(void)
{
	vfree(mappings);
	if (buffer)
		__free_pages(buffer, get_order(BUFFER));
}

static int alloc_buffer(void)
{
	buffer = alloc_pages(GFP_KERNEL, get_order(BUFFER));
	mappings = vcalloc(MAX_MAPPINGS, sizeof(*mappings));
	if (buffer && mappings)
		return 0;
	free_buffer();
	return -ENOMEM;
}

static const struct test_setup with_buffer = { alloc_buffer, free_buffer };

static const struct test_case cases[] = {
	{ "the DMA API stays in the window to the last IOVA", test_exhaust, &with_buffer },
	{}
};

TEST_SUITE(aperture, "Test of the DMA API's address space", cases, &fn, NULL);
