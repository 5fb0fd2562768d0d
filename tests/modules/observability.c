// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "observability", the part in the kernel: successful and refused
 * attaches. The guest's suite of the same name checks the output that they
 * cause.
 */
#include <linux/moduleparam.h>

#include "iommu_test.h"

static bool many;
module_param(many, bool, 0444);
MODULE_PARM_DESC(many, "refuse many attaches");

static struct test_function *fn;
static struct test_domain pair[2];

TEST_SETUP(two_domains, test_pair_claim(pair, fn), test_pair_release(pair));

static int expect_refused(struct test_domain *dom)
{
	int ret;

	inject_refuse(fn, FC_ALL_TABLES);
	ret = test_replace(dom);
	inject_reset();
	return ret ? 0 : test_fail("the attach succeeded although the machine refused");
}

/*
 * Attaches the first domain, then the second, tries the first again (refused),
 * and blocks.
 */
static int test_attaches(void)
{
	unsigned int i;
	int ret;

	ret = test_attach(&pair[0]);
	if (!ret)
		ret = test_attach(&pair[1]);
	if (ret)
		return ret;
	for (i = 0; !ret && i < (many ? 30 : 1); i++)
		ret = expect_refused(&pair[0]);
	test_detach(&pair[1]);
	return ret;
}

static const struct test_case one[] = {
	{ "attach, replace, refused, block", test_attaches, &two_domains },
	{}
};

static const struct test_case lots[] = {
	{ "many attaches are refused", test_attaches, &two_domains },
	{}
};

TEST_SUITE(observability, "Attaches to inspect", many ? lots : one, &fn, NULL);
