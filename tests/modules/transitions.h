/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by the files of the suite "transitions".
 */
#ifndef IOMMU_TEST_TRANSITIONS_H
#define IOMMU_TEST_TRANSITIONS_H

#include "iommu_test.h"

enum state {
	UNREGISTERED,	/* blocked, after a reset */
	EMPTY,		/* blocked, after an attach */
	IDENTITY,
	PAGING_A,
	PAGING_B,
	FORCED,		/* blocked by a deregistration */
	/* Not states but paths: to B and back to A, and through a reset */
	THERE_AND_BACK,
	RESET,
};

extern const char *const state_names[];

extern struct test_function *fn;
extern struct test_queue queue;
extern struct test_domain pair[2];
/* IOTAs of the two domains' tables */
extern u64 tables[2];

extern const struct test_setup two_domains;
extern const struct test_setup with_identity;

int go_to(enum state state);
int start_from(enum state state);
int attach_again(void);
int expect_asked(const char *expected);
int expect_state(enum state state);

extern const struct test_case attach_cases[];
extern const struct test_case recovery_cases[];
extern const struct test_case moment_cases[];

#endif /* IOMMU_TEST_TRANSITIONS_H */
