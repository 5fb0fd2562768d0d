// SPDX-License-Identifier: GPL-2.0
/*
 * Results of test suites in debugfs.
 */
#define pr_fmt(fmt) "iommu_test: " fmt

#include <linux/debugfs.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "internal.h"

#define TEXT_SIZE (16 * 1024)
#define REASON_SIZE 256

/* One suite's results */
struct results {
	struct list_head node;
	const char *suite;
	struct debugfs_blob_wrapper blob;
	struct dentry *file;
};

static char *only = "";
module_param(only, charp, 0444);
MODULE_PARM_DESC(only, "only run tests with one of these comma-separated strings in their name");

static LIST_HEAD(all_results);
static DEFINE_MUTEX(results_lock);
static struct dentry *root;

/* Suites run one after the other, so there is one reason at a time. */
static char reason[REASON_SIZE];

static atomic_t warnings;

static int count_warning(struct kprobe *probe, struct pt_regs *regs)
{
	atomic_inc(&warnings);
	return 0;
}

static struct kprobe warning_probe = {
	.symbol_name = "__warn",
	.pre_handler = count_warning,
};

/**
 * test_fail() - set the reason why a test fails
 * @fmt: the reason
 *
 * Returns: what the test must return
 */
int test_fail(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vscnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	return -EIO;
}
EXPORT_SYMBOL_GPL(test_fail);

/**
 * test_skip() - set the reason why a test cannot run
 * @fmt: the reason
 *
 * Returns: what the test must return
 */
int test_skip(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vscnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	return TEST_SKIPPED;
}
EXPORT_SYMBOL_GPL(test_skip);

static int run_set_up(const struct test_case *test)
{
	int ret = test->setup->begin();

	if (ret)
		return ret;
	ret = test->run();
	test->setup->end();
	return ret;
}

static int run_case(const struct test_case *test)
{
	int before = atomic_read(&warnings);
	int ret;

	reason[0] = '\0';
	ret = test->setup ? run_set_up(test) : test->run();
	if (ret < 0 && !reason[0])
		return test_fail("error %d", ret);
	if (ret >= 0 && atomic_read(&warnings) != before)
		return test_fail("the kernel warned, see its log");
	return ret;
}

/* Appends one line. It is also logged, in case the machine hangs later. */
static void add_line(struct results *results, const char *name, int ret)
{
	char *text = results->blob.data;
	size_t used = results->blob.size;
	const char *verdict = ret < 0 ? "not ok" : "ok";
	const char *separator = ret < 0 ? " # " : ret ? " # SKIP " : "";
	const char *why = ret ? reason : "";

	pr_info("%s: %s %s%s%s\n", results->suite, verdict, name, separator, why);
	used += scnprintf(text + used, TEXT_SIZE - used, "%s %s%s%s\n",
			  verdict, name, separator, why);
	results->blob.size = used;
}

static struct results *new_results(const char *suite)
{
	struct results *results = kzalloc_obj(*results);

	if (!results)
		return NULL;
	results->blob.data = kzalloc(TEXT_SIZE, GFP_KERNEL);
	if (!results->blob.data) {
		kfree(results);
		return NULL;
	}
	results->suite = suite;
	return results;
}

static bool is_named(const char *name)
{
	char *copy = kstrdup(only, GFP_KERNEL);
	char *rest = copy;
	bool found = false;
	char *part;

	while (!found && (part = strsep(&rest, ",")))
		found = strstr(name, part);
	kfree(copy);
	return found;
}

static bool is_wanted(const struct test_case *test)
{
	return is_named(test->name) && !(test->breaks && test_is_calm());
}

static void run_list(struct results *results, const struct test_case *test)
{
	for (; test->name || test->list; test++) {
		if (test->list)
			run_list(results, test->list);
		else if (is_wanted(test))
			add_line(results, test->name, run_case(test));
	}
}

/**
 * test_run() - run the tests of a suite
 * @suite: its name
 * @cases: its tests
 *
 * Returns: 0 even if tests fail, or -ENOMEM
 */
int test_run(const char *suite, const struct test_case *cases)
{
	struct results *results = new_results(suite);

	if (!results)
		return -ENOMEM;
	run_list(results, cases);
	results->file = debugfs_create_blob(suite, 0444, root, &results->blob);
	mutex_lock(&results_lock);
	list_add(&results->node, &all_results);
	mutex_unlock(&results_lock);
	return 0;
}
EXPORT_SYMBOL_GPL(test_run);

/**
 * test_forget() - drop a suite's results
 * @suite: its name
 */
void test_forget(const char *suite)
{
	struct results *results, *next;

	mutex_lock(&results_lock);
	list_for_each_entry_safe(results, next, &all_results, node) {
		if (strcmp(results->suite, suite))
			continue;
		debugfs_remove(results->file);
		list_del(&results->node);
		kfree(results->blob.data);
		kfree(results);
	}
	mutex_unlock(&results_lock);
}
EXPORT_SYMBOL_GPL(test_forget);

int results_init(void)
{
	int ret = register_kprobe(&warning_probe);

	if (ret)
		return ret;
	root = debugfs_create_dir("iommu_test", NULL);
	return 0;
}

void results_exit(void)
{
	debugfs_remove(root);
	unregister_kprobe(&warning_probe);
}
