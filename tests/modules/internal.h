/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by the files of iommu_test.ko.
 */
#ifndef IOMMU_TEST_INTERNAL_H
#define IOMMU_TEST_INTERNAL_H

#include "iommu_test.h"

int results_init(void);
void results_exit(void);

int inject_init(void);
void inject_exit(void);

#endif /* IOMMU_TEST_INTERNAL_H */
