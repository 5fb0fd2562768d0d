// SPDX-License-Identifier: GPL-2.0
/*
 * Asks the host of this machine what it has mapped for a function.
 *
 * A function that is passed through must not cause errors, because the
 * hypervisor would stop this machine. So a test does not access memory after an
 * unmap. Instead it asks the host by a line on the console, and the reply is
 * written to the parameter "answer".
 */
#define pr_fmt(fmt) "iommu_test: " fmt

#include <linux/module.h>

#include "internal.h"

#define ANSWER_LIMIT (300 * HZ)

static bool calm;
module_param(calm, bool, 0444);
MODULE_PARM_DESC(calm, "provoke no error events; ask the host what is mapped");

static unsigned int mapped_outside;
static DECLARE_COMPLETION(answered);

static int set_answer(const char *text, const struct kernel_param *param)
{
	int ret = kstrtouint(strstrip((char *)text), 10, &mapped_outside);

	if (!ret)
		complete(&answered);
	return ret;
}

static const struct kernel_param_ops answer_ops = { .set = set_answer };
module_param_cb(answer, &answer_ops, NULL, 0200);
MODULE_PARM_DESC(answer, "how many pages the host has mapped");

/**
 * test_is_calm() - check whether tests must not provoke error events
 *
 * Returns: true if they must not, and must use test_expect_outside() instead
 */
bool test_is_calm(void)
{
	return calm;
}
EXPORT_SYMBOL_GPL(test_is_calm);

/**
 * test_expect_outside() - check that the host has mapped only our pages
 * @pages: number of pages in the domain of the first function under test
 *
 * Returns: 0 or a failed test
 */
int test_expect_outside(unsigned int pages)
{
	reinit_completion(&answered);
	pr_info("how many pages are mapped outside?\n");
	if (!wait_for_completion_timeout(&answered, ANSWER_LIMIT))
		return test_fail("the host did not reply how many pages it has mapped");
	if (mapped_outside != pages)
		return test_fail("the host has mapped %u pages, not %u",
				 mapped_outside, pages);
	return 0;
}
EXPORT_SYMBOL_GPL(test_expect_outside);
