// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "transitions": from each thing that can be attached to each other one,
 * what the machine is asked, and in which order; what a recovery without a
 * reset and a reset bring back; and unmaps at each moment of a transition.
 *
 * The emulator offers no function that may skip translation. For the tests of
 * identity one is made to look as if, and what would register identity does
 * not reach the machine: they show what it is asked, not that DMA works so.
 */
#define pr_fmt(fmt) "transitions: " fmt

#include <linux/module.h>
#include <linux/sizes.h>

#include "iommu-priv.h"
#include "iommu_test.h"

static struct test_function *fn;
static struct test_queue queue;
static struct test_domain pair[2];
static struct iommu_attach_handle identity_handle;
/* The table of blocked functions, and those of the two domains */
static u64 empty_table;
static u64 tables[2];

enum state {
	UNREGISTERED,	/* blocked, after a reset */
	EMPTY,		/* blocked, after an attach */
	IDENTITY,
	PAGING_A,
	PAGING_B,
	FORCED,		/* blocked by a deregistration */
};

static const char *const names[] = {
	[UNREGISTERED] = "blocked, not registered",
	[EMPTY] = "blocked, empty table",
	[IDENTITY] = "identity",
	[PAGING_A] = "paging A",
	[PAGING_B] = "paging B",
	[FORCED] = "blocked by force",
};

/* Going to a state */

static struct iommu_domain *identity_domain(void)
{
	return dev_iommu_ops(&fn->pdev->dev)->domain_alloc_identity(&fn->pdev->dev);
}

static int go_to(enum state state)
{
	struct iommu_domain *identity;
	int ret;

	switch (state) {
	case FORCED:
		ret = test_replace(&pair[1]);
		inject_refuse(fn, BIT(FC_REGISTER) | BIT(FC_REREGISTER));
		test_detach(&pair[1]);
		inject_reset();
		return ret;
	case UNREGISTERED:
		test_detach(&pair[0]);
		return test_reset(fn);
	case EMPTY:
		test_detach(&pair[0]);
		return 0;
	case IDENTITY:
		identity = identity_domain();
		if (IS_ERR(identity))
			return PTR_ERR(identity);
		return iommu_replace_group_handle(fn->group, identity, &identity_handle);
	default:
		return test_replace(&pair[state - PAGING_A]);
	}
}

static int start_from(enum state state)
{
	int ret = 0;

	/* The empty table is there once something was attached. From identity,
	 * the machine must have something that can be replaced.
	 */
	if (state == EMPTY || state == IDENTITY)
		ret = go_to(PAGING_B);
	if (!ret)
		ret = go_to(state);
	return ret ? test_fail("to start from %s: error %d", names[state], ret) : 0;
}

/* What is not asked for by the core: it attaches again what is attached. */
static int attach_again(void)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(&fn->pdev->dev);

	return domain->ops->attach_dev(domain, &fn->pdev->dev, domain);
}

/* What is asked of the machine, as text */

static const char *name_of(u64 table)
{
	if (!table)
		return "identity";
	if (table == empty_table)
		return "empty";
	if (table == tables[0])
		return "A";
	return table == tables[1] ? "B" : "something else";
}

/* All that is mapped in each domain, and maybe more */
static bool covers_mapped(const struct inject_step *step)
{
	return step->start <= sq_iova(fn) &&
		step->start + step->size >= data_iova(fn) + PAGE_SIZE;
}

/* More than one refresh of all that is mapped is as good as one. */
static bool is_repeated(const struct inject_step *step)
{
	return !step[-1].operation && !step->operation && !step[-1].refused &&
		!step->refused && covers_mapped(step - 1) && covers_mapped(step);
}

static int add_step(char *text, size_t size, const struct inject_step *step)
{
	const char *refused = step->refused ? " refused" : "";

	switch (step->operation) {
	case FC_REGISTER:
		return scnprintf(text, size, "REG %s%s", name_of(step->table), refused);
	case FC_REREGISTER:
		return scnprintf(text, size, "REREG %s%s", name_of(step->table), refused);
	case FC_DEREGISTER:
		return scnprintf(text, size, "DEREG%s", refused);
	default:
		if (covers_mapped(step))
			return scnprintf(text, size, "refresh%s", refused);
		return scnprintf(text, size, "refresh of a part%s", refused);
	}
}

static int expect_asked(const char *expected)
{
	static struct inject_step steps[INJECT_STEPS];
	unsigned int i, count = inject_steps(steps);
	char text[256] = "";
	size_t used = 0;

	for (i = 0; i < count; i++) {
		if (i && is_repeated(&steps[i]))
			continue;
		if (i)
			used += scnprintf(text + used, sizeof(text) - used, ", ");
		used += add_step(text + used, sizeof(text) - used, &steps[i]);
	}
	if (strcmp(text, expected))
		return test_fail("asked: \"%s\", not \"%s\"", text, expected);
	return 0;
}

/* Two domains with mappings, their tables known */

static int find_tables(void)
{
	unsigned int i;

	inject_reset();
	for (i = 0; i < ARRAY_SIZE(pair); i++) {
		if (test_replace(&pair[i]))
			return test_fail("attach failed");
		tables[i] = inject_table();
	}
	test_detach(&pair[0]);
	empty_table = inject_table();
	if (!tables[0] || tables[0] == tables[1] || !empty_table ||
	    empty_table == tables[1])
		return test_fail("tables %#llx, %#llx and, blocked, %#llx",
				 tables[0], tables[1], empty_table);
	return 0;
}

static void end(void)
{
	inject_reset();
	test_pair_release(pair);
	inject_offer_identity(fn, false);
}

static int begin(void)
{
	int ret;

	inject_reset();
	ret = test_pair_claim_mapped(pair, fn, &queue);
	if (ret)
		return ret;
	ret = find_tables();
	if (ret)
		end();
	return ret;
}

static int begin_with_identity(void)
{
	int ret = begin();

	if (!ret)
		inject_offer_identity(fn, true);
	return ret;
}

/* Where the machine needs a refresh after maps. */
static int begin_refreshed_after_maps(void)
{
	int ret = test_sees_no_maps(fn);

	return ret ? ret : begin();
}

static const struct test_setup two_domains = { begin, end };
static const struct test_setup refreshed_after_maps = { begin_refreshed_after_maps, end };
static const struct test_setup with_identity = { begin_with_identity, end };

/* Whether the function is where it was sent */

/* Flushes of a domain that was left must not look for the function. */
static int expect_left(struct test_domain *dom)
{
	struct inject_counts before, after;
	int ret;

	inject_counts(&before);
	ret = iommu_map(dom->domain, data_iova(fn) + SZ_1M, virt_to_phys(dom->data),
			PAGE_SIZE, IOMMU_READ, GFP_KERNEL);
	if (ret)
		return test_fail("map: error %d", ret);
	iommu_unmap(dom->domain, data_iova(fn) + SZ_1M, PAGE_SIZE);
	inject_counts(&after);
	if (after.refreshes != before.refreshes)
		return test_fail("a flush of a domain that is not attached hit the function");
	return 0;
}

static int expect_identity(void)
{
	int ret;

	if (iommu_get_domain_for_dev(&fn->pdev->dev) != identity_domain())
		return test_fail("the core has another domain than identity");
	ret = expect_left(&pair[0]);
	return ret ? ret : expect_left(&pair[1]);
}

static int expect_state(enum state state)
{
	struct test_domain *other = &pair[state == PAGING_A];
	struct test_domain *dom;
	int ret;

	switch (state) {
	case UNREGISTERED:
	case EMPTY:
		return test_expect_blocked(&pair[0], &queue, pair[0].data);
	case IDENTITY:
		return expect_identity();
	default:
		dom = &pair[state - PAGING_A];
		page_poison(other->data);
		ret = expect_left(other);
		if (!ret)
			ret = test_domain_start(dom, &queue);
		if (!ret)
			ret = test_expect_running(dom);
		if (!ret && !page_is_poison(other->data))
			ret = test_fail("the other domain's page was written to");
		return ret;
	}
}

struct transition {
	enum state from;
	enum state to;
	const char *asked;
};

static int run_transition(const struct transition *transition)
{
	int ret = start_from(transition->from);

	if (ret)
		return ret;
	inject_record(fn);
	ret = transition->from == transition->to ? attach_again() : go_to(transition->to);
	if (ret)
		return test_fail("%s to %s: error %d", names[transition->from],
				 names[transition->to], ret);
	ret = expect_asked(transition->asked);
	inject_reset();
	return ret ? ret : expect_state(transition->to);
}

static int run_transitions(const struct transition *list, unsigned int count)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < count; i++)
		ret = run_transition(&list[i]);
	return ret;
}

static int test_from_unregistered(void)
{
	static const struct transition list[] = {
		{ UNREGISTERED, UNREGISTERED, "" },
		{ UNREGISTERED, PAGING_A, "REG empty, REREG A, refresh" },
	};

	return run_transitions(list, ARRAY_SIZE(list));
}

static int test_from_empty(void)
{
	static const struct transition list[] = {
		{ EMPTY, EMPTY, "REREG empty" },
		{ EMPTY, PAGING_A, "REREG A, refresh" },
	};

	return run_transitions(list, ARRAY_SIZE(list));
}

static int test_from_paging(void)
{
	static const struct transition list[] = {
		{ PAGING_A, EMPTY, "REREG empty, refresh" },
		{ PAGING_A, PAGING_A, "REREG A, refresh" },
		{ PAGING_A, PAGING_B, "REREG B, refresh" },
		{ PAGING_B, PAGING_A, "REREG A, refresh" },
	};

	return run_transitions(list, ARRAY_SIZE(list));
}

static int test_to_identity(void)
{
	static const struct transition list[] = {
		{ UNREGISTERED, IDENTITY, "REG identity" },
		{ EMPTY, IDENTITY, "REREG empty, REREG identity" },
		{ PAGING_A, IDENTITY, "REREG empty, refresh, REREG identity" },
	};

	return run_transitions(list, ARRAY_SIZE(list));
}

static int test_from_identity(void)
{
	static const struct transition list[] = {
		{ IDENTITY, EMPTY, "REREG empty, REREG empty" },
		{ IDENTITY, PAGING_A, "REREG empty, REREG A, refresh" },
		{ IDENTITY, IDENTITY, "REREG empty, REREG empty, REREG identity" },
	};

	return run_transitions(list, ARRAY_SIZE(list));
}

/* Only where the function may skip translation */
static int test_no_identity(void)
{
	struct iommu_domain *identity;
	int ret = go_to(PAGING_A);

	if (ret)
		return test_fail("attach: error %d", ret);
	if (!IS_ERR(identity_domain()))
		return test_fail("a function that must not skip translation has identity");
	/* The core could still have it from another function. */
	inject_offer_identity(fn, true);
	identity = identity_domain();
	inject_offer_identity(fn, false);
	if (IS_ERR(identity))
		return test_fail("a function that may skip translation has no identity");
	inject_record(fn);
	if (iommu_replace_group_handle(fn->group, identity, &identity_handle) != -EINVAL)
		return test_fail("identity was not refused with EINVAL");
	ret = expect_asked("");
	inject_reset();
	return ret ? ret : expect_state(PAGING_A);
}

/* Resets: what is attached is registered, with the first instruction again. */

static int reset_in(enum state state, const char *asked)
{
	int ret = start_from(state);

	if (ret)
		return ret;
	inject_record(fn);
	ret = test_reset(fn);
	if (!ret)
		ret = expect_asked(asked);
	inject_reset();
	return ret ? ret : expect_state(state);
}

static int test_resets(void)
{
	int ret = reset_in(PAGING_A, "REG empty, REREG A, refresh");

	return ret ? ret : reset_in(EMPTY, "");
}

static int test_reset_identity(void)
{
	return reset_in(IDENTITY, "REG identity");
}

/* Recovery without a reset */

static int break_on(struct test_domain *dom)
{
	int ret = test_domain_start(dom, &queue);

	if (!ret)
		ret = test_domain_check(dom);
	return ret ? ret : test_break(fn);
}

/* While the function is in the error state, and before the kernel recovers it */
static int recover_after(bool keeps_state, int (*meanwhile)(void))
{
	int ret = start_from(PAGING_A);

	if (ret)
		return ret;
	fn->keeps_state = keeps_state;
	device_lock(&fn->pdev->dev);
	ret = break_on(&pair[0]);
	if (!ret && meanwhile)
		ret = meanwhile();
	inject_record(fn);
	device_unlock(&fn->pdev->dev);
	if (!ret)
		ret = test_wait_recovery(fn);
	atomic_set(&fn->errors, 0);
	return ret;
}

static int expect_resets(int expected)
{
	int resets = atomic_read(&fn->resets);

	if (resets != expected)
		return test_fail("recovered with %d resets, not %d", resets, expected);
	return 0;
}

/* What the recovery asks for, if there is one, and where the function is then */
static int check_recovery(bool keeps_state, int (*meanwhile)(void), const char *asked,
			  enum state state)
{
	int ret = recover_after(keeps_state, meanwhile);

	if (!ret)
		ret = expect_resets(keeps_state ? 0 : 1);
	if (!ret && asked)
		ret = expect_asked(asked);
	inject_reset();
	return ret ? ret : expect_state(state);
}

static int test_resume(void)
{
	return check_recovery(true, NULL, "", PAGING_A);
}

static int attach_b(void)
{
	int ret = test_replace(&pair[1]);

	return ret ? test_fail("attach in the error state: error %d", ret) : 0;
}

static int block_now(void)
{
	test_detach(&pair[0]);
	return 0;
}

static int test_resume_attached(void)
{
	return check_recovery(true, attach_b, NULL, PAGING_B);
}

static int attach_identity(void)
{
	int ret = go_to(IDENTITY);

	return ret ? test_fail("identity in the error state: error %d", ret) : 0;
}

static int test_resume_identity(void)
{
	return check_recovery(true, attach_identity, "REREG identity", IDENTITY);
}

/* With a reset, the driver is asked to register what was attached last. */
static int test_recover(void)
{
	return check_recovery(false, NULL, "REG empty, REREG A, refresh", PAGING_A);
}

static int test_recover_blocked(void)
{
	return check_recovery(false, block_now, "", UNREGISTERED);
}

static int test_recover_attached(void)
{
	return check_recovery(false, attach_b, "REG empty, REREG B, refresh", PAGING_B);
}

static int test_recover_identity(void)
{
	return check_recovery(false, attach_identity, "REG identity", IDENTITY);
}

static int test_resume_blocked(void)
{
	return check_recovery(true, block_now, NULL, EMPTY);
}

/* Flushes pass a function in the error state by; it has to see what they were
 * about when it comes back.
 */
static void *fresh_page;

static int remap_data(void)
{
	int ret;

	if (iommu_unmap(pair[0].domain, data_iova(fn), PAGE_SIZE) != PAGE_SIZE)
		return test_fail("unmap in the error state did nothing");
	ret = test_map_page(&pair[0], data_iova(fn), fresh_page);
	return ret ? test_fail("map in the error state: error %d", ret) : 0;
}

static int test_resume_remapped(void)
{
	void *old = pair[0].data;
	int ret;

	fresh_page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!fresh_page)
		return -ENOMEM;
	ret = recover_after(true, remap_data);
	page_poison(old);
	if (!ret)
		ret = expect_resets(0);
	inject_reset();
	pair[0].data = fresh_page;
	if (!ret)
		ret = expect_state(PAGING_A);
	if (!ret && !page_is_poison(old))
		ret = test_fail("the page that was unmapped was written to");
	admin_stop(fn);
	free_page((unsigned long)old);
	return ret;
}

/* The machine refuses what the recovery registers: a reset is next. */
static int test_resume_refused(void)
{
	int ret = start_from(PAGING_A);

	if (ret)
		return ret;
	fn->keeps_state = true;
	device_lock(&fn->pdev->dev);
	ret = break_on(&pair[0]);
	/* Without a flush that was missed, it asks for nothing. */
	test_unmap_page(&pair[0], data_iova(fn));
	if (!ret)
		ret = test_map_page(&pair[0], data_iova(fn), pair[0].data);
	inject_refuse_refresh(fn, -EIO, 1);
	device_unlock(&fn->pdev->dev);
	if (!ret)
		ret = test_wait_recovery(fn);
	atomic_set(&fn->errors, 0);
	if (!ret && !inject_refused())
		ret = test_fail("the recovery asked for nothing that could be refused");
	if (!ret)
		ret = expect_resets(1);
	inject_reset();
	return ret ? ret : expect_state(PAGING_A);
}

/* Gone: the machine does not know the handle (any more). */

static u32 lose_handle(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	u32 handle = zdev->fh;

	/* Another generation of the handle, still that of an enabled function */
	WRITE_ONCE(zdev->fh, handle ^ 0x00010000);
	return handle;
}

static int change_when_gone(int (*change)(void))
{
	struct inject_counts before, after;
	u32 handle;
	int ret = start_from(PAGING_A);

	if (ret)
		return ret;
	handle = lose_handle();
	ret = change();
	inject_counts(&before);
	/* Flushes leave it alone. */
	if (!ret && iommu_unmap(pair[1].domain, data_iova(fn), PAGE_SIZE) != PAGE_SIZE)
		ret = test_fail("unmap did nothing");
	if (!ret)
		ret = test_map_page(&pair[1], data_iova(fn), pair[1].data);
	inject_counts(&after);
	WRITE_ONCE(to_zpci(fn->pdev)->fh, handle);
	if (!ret && after.refreshes != before.refreshes)
		ret = test_fail("a flush looked for a function that is gone");
	/* It comes back as any function does. */
	return ret ? ret : test_reset(fn);
}

static int test_attach_gone(void)
{
	int ret = change_when_gone(attach_b);

	return ret ? ret : expect_state(PAGING_B);
}

static int test_block_gone(void)
{
	int ret = change_when_gone(block_now);

	return ret ? ret : expect_state(UNREGISTERED);
}

/* Refusals, from each state: everything is as before. */

struct refusal {
	enum state from;
	enum state to;
	unsigned long operations; /* to refuse; none is the refresh */
	const char *asked; /* NULL: how it comes back is the driver's affair */
};

static int run_refusal(const struct refusal *refusal)
{
	int ret = start_from(refusal->from);

	if (ret)
		return ret;
	if (refusal->operations)
		inject_refuse(fn, refusal->operations);
	else
		inject_refuse_refresh(fn, -EIO, 1);
	inject_record(fn);
	ret = go_to(refusal->to);
	if (ret != -EIO)
		ret = test_fail("%s to %s: refused, and the result is %d",
				names[refusal->from], names[refusal->to], ret);
	else
		ret = refusal->asked ? expect_asked(refusal->asked) : 0;
	inject_reset();
	if (!ret)
		ret = expect_state(refusal->from);
	if (!ret && go_to(refusal->to))
		ret = test_fail("the attach fails when it is not refused");
	return ret ? ret : expect_state(refusal->to);
}

static int run_refusals(const struct refusal *list, unsigned int count)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < count; i++)
		ret = run_refusal(&list[i]);
	return ret;
}

static int test_refused_refresh(void)
{
	static const struct refusal list[] = {
		{ UNREGISTERED, PAGING_A, 0,
		  "REG empty, REREG A, refresh refused, REREG empty, refresh" },
		{ EMPTY, PAGING_A, 0, "REREG A, refresh refused, REREG empty, refresh" },
		{ PAGING_A, PAGING_B, 0, "REREG B, refresh refused, REREG A, refresh" },
	};

	return run_refusals(list, ARRAY_SIZE(list));
}

static int test_refused_registration(void)
{
	static const struct refusal list[] = {
		{ UNREGISTERED, PAGING_A, BIT(FC_REGISTER), "REG empty refused" },
		{ EMPTY, PAGING_A, BIT(FC_REGISTER) | BIT(FC_REREGISTER), NULL },
		{ PAGING_A, PAGING_B, BIT(FC_REGISTER) | BIT(FC_REREGISTER), NULL },
	};

	return run_refusals(list, ARRAY_SIZE(list));
}

static int test_refused_identity(void)
{
	static const struct refusal list[] = {
		{ UNREGISTERED, IDENTITY, BIT(FC_REGISTER), "REG identity refused" },
		{ PAGING_A, IDENTITY, BIT(FC_REGISTER) | BIT(FC_REREGISTER), NULL },
		{ PAGING_A, IDENTITY, 0,
		  "REREG empty, refresh refused, REREG A, refresh" },
	};

	return run_refusals(list, ARRAY_SIZE(list));
}

/* The second of the two re-registrations: the function is on the empty table
 * by then, and has to come back.
 */
static int test_refused_identity_late(void)
{
	static const char asked[] =
		"REREG empty, refresh, REREG identity refused, REREG A, refresh";
	int ret = start_from(PAGING_A);

	if (ret)
		return ret;
	inject_refuse_identity(fn);
	inject_record(fn);
	ret = go_to(IDENTITY);
	if (ret != -EIO)
		ret = test_fail("identity was refused, and the result is %d", ret);
	else
		ret = expect_asked(asked);
	inject_reset();
	return ret ? ret : expect_state(PAGING_A);
}

/* A map that the hypervisor has no resources for: everything, once. */

static int map_without_room(unsigned int refusals)
{
	int ret = start_from(PAGING_A);

	if (ret)
		return ret;
	inject_refuse_refresh(fn, -ENOMEM, refusals);
	inject_record(fn);
	return test_map_page(&pair[0], data_iova(fn) + SZ_1M, pair[0].data);
}

static int test_no_resources_once(void)
{
	int ret = map_without_room(1);

	if (ret)
		ret = test_fail("map: error %d", ret);
	if (!ret)
		ret = expect_asked("refresh of a part refused, refresh");
	inject_reset();
	test_unmap_page(&pair[0], data_iova(fn) + SZ_1M);
	return ret ? ret : expect_state(PAGING_A);
}

static int test_no_resources_at_all(void)
{
	int ret = map_without_room(2);

	if (ret != -ENOMEM)
		ret = test_fail("map: %d where there is no resources, not ENOMEM", ret);
	else if (iommu_iova_to_phys(pair[0].domain, data_iova(fn) + SZ_1M))
		ret = test_fail("map failed and left a translation");
	else
		ret = 0;
	inject_reset();
	return ret ? ret : expect_state(PAGING_A);
}

/* A map and an unmap on A, complete, at each moment of a transition */

static void *extra_page;
static unsigned int hits;
static u64 table_then;
static bool must_not_hit;
static int job_result;

static dma_addr_t extra_iova(void)
{
	return data_iova(fn) + SZ_2M;
}

static void unmap_and_map(void)
{
	struct inject_counts before, after;

	inject_counts(&before);
	job_result = iommu_unmap(pair[0].domain, data_iova(fn), PAGE_SIZE) == PAGE_SIZE ?
		0 : -EIO;
	inject_counts(&after);
	hits = after.refreshes - before.refreshes;
	table_then = before.table;
	if (!job_result)
		job_result = test_map_page(&pair[0], extra_iova(), extra_page);
}

/* On A: what was mapped is there, what was unmapped is not. */
static int expect_mapped_now(void)
{
	int ret;

	if (iommu_get_domain_for_dev(&fn->pdev->dev) != pair[0].domain)
		return 0;
	ret = test_domain_start(&pair[0], &queue);
	if (ret)
		return ret;
	page_poison(extra_page);
	page_poison(pair[0].data);
	if (admin_identify(fn, extra_iova()) || !page_is_identity(fn, extra_page))
		return test_fail("the function does not see what was mapped");
	reinit_completion(&fn->resumed);
	if (!admin_identify(fn, data_iova(fn)) || !page_is_poison(pair[0].data))
		return test_fail("the function has what was unmapped");
	ret = test_wait_recovery(fn);
	atomic_set(&fn->errors, 0);
	return ret;
}

/* As long as the machine has A's table, an unmap on A has to refresh it. */
static int expect_flushed_then(void)
{
	if (job_result)
		return test_fail("unmap or map: error %d", job_result);
	if (table_then == tables[0] && !hits)
		return test_fail("the unmap was not flushed, and A's table was registered");
	if (hits && must_not_hit)
		return test_fail("a flush hit a function that is about to stop translating");
	if (atomic_read(&fn->errors))
		return test_fail("a flush hit the function when it must not");
	return 0;
}

static int undo(void)
{
	int ret;

	inject_reset();
	test_unmap_page(&pair[0], extra_iova());
	ret = test_map_page(&pair[0], data_iova(fn), pair[0].data);
	return ret ? test_fail("map: error %d", ret) : 0;
}

static int reset_now(void)
{
	return test_reset(fn);
}

static int to_identity(void)
{
	return go_to(IDENTITY);
}

/* Before the last of three instructions, which ends translation, flushes must
 * have left the function alone. Returns 1 if the transition has no such moment.
 */
static int interrupt_at(unsigned int moment, enum state from, int (*change)(void))
{
	int reached, ret = start_from(from);

	if (ret)
		return ret;
	/* The table that is registered is known from here on; by a reset it is
	 * lost.
	 */
	inject_reset();
	if (from == PAGING_A && change != reset_now)
		ret = attach_again();
	if (!ret)
		ret = inject_pause_start(fn, moment, unmap_and_map);
	if (ret)
		return ret;
	ret = change();
	reached = inject_pause_end();
	must_not_hit = change == to_identity && moment == 2;
	if (ret)
		return test_fail("moment %u: error %d", moment, ret);
	if (!reached)
		return 1;
	ret = expect_flushed_then();
	if (!ret)
		ret = expect_mapped_now();
	admin_stop(fn);
	return ret ? ret : undo();
}

static int interrupt_everywhere(enum state from, int (*change)(void), unsigned int moments)
{
	unsigned int moment = 0;
	int ret;

	extra_page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!extra_page)
		return -ENOMEM;
	do {
		ret = interrupt_at(moment, from, change);
	} while (!ret && ++moment);
	if (ret == 1)
		ret = moment == moments ? 0 :
			test_fail("there were %u moments, not %u", moment, moments);
	inject_reset();
	admin_stop(fn);
	test_unmap_page(&pair[0], extra_iova());
	free_page((unsigned long)extra_page);
	return ret;
}

static int to_a(void)
{
	return go_to(PAGING_A);
}

static int to_b(void)
{
	return go_to(PAGING_B);
}

static int there_and_back(void)
{
	int ret = go_to(PAGING_B);

	return ret ? ret : go_to(PAGING_A);
}

static int to_blocked(void)
{
	return go_to(EMPTY);
}

static int test_beside_first_attach(void)
{
	return interrupt_everywhere(UNREGISTERED, to_a, 3);
}

/* The machine refused to block the function, and has no table. */
static int test_beside_attach_after_force(void)
{
	return interrupt_everywhere(FORCED, to_a, 3);
}

static int test_beside_attach(void)
{
	return interrupt_everywhere(EMPTY, to_a, 2);
}

static int test_beside_replace_from(void)
{
	return interrupt_everywhere(PAGING_B, to_a, 2);
}

static int test_beside_replace_to(void)
{
	return interrupt_everywhere(PAGING_A, to_b, 2);
}

static int test_beside_there_and_back(void)
{
	return interrupt_everywhere(PAGING_A, there_and_back, 4);
}

static int test_beside_block(void)
{
	return interrupt_everywhere(PAGING_A, to_blocked, 2);
}

static int test_beside_identity(void)
{
	return interrupt_everywhere(PAGING_A, to_identity, 3);
}

static int test_beside_reset(void)
{
	return interrupt_everywhere(PAGING_A, reset_now, 3);
}

static const struct test_case cases[] = {
	{ "from blocked, not registered", test_from_unregistered, &two_domains },
	{ "from blocked, empty table", test_from_empty, &two_domains },
	{ "from a paging domain", test_from_paging, &two_domains },
	{ "no identity for who must translate", test_no_identity, &two_domains },
	{ "to identity", test_to_identity, &with_identity },
	{ "from identity", test_from_identity, &with_identity },
	{ "reset", test_resets, &two_domains },
	{ "reset with identity", test_reset_identity, &with_identity },
	{ "recovery without a reset", test_resume, &two_domains },
	{ "recovery without a reset, attached meanwhile", test_resume_attached, &two_domains },
	{ "recovery without a reset, blocked meanwhile", test_resume_blocked, &two_domains },
	{ "recovery without a reset, mapped anew meanwhile", test_resume_remapped,
	  &two_domains },
	{ "recovery without a reset, identity meanwhile", test_resume_identity,
	  &with_identity },
	{ "recovery with a reset", test_recover, &two_domains },
	{ "recovery with a reset, attached meanwhile", test_recover_attached, &two_domains },
	{ "recovery with a reset, blocked meanwhile", test_recover_blocked, &two_domains },
	{ "recovery with a reset, identity meanwhile", test_recover_identity, &with_identity },
	{ "recovery without a reset is refused", test_resume_refused, &two_domains },
	{ "attach of a function that is gone", test_attach_gone, &two_domains },
	{ "block of a function that is gone", test_block_gone, &two_domains },
	{ "refused registration, from each state", test_refused_registration, &two_domains },
	{ "refused refresh, from each state", test_refused_refresh, &two_domains },
	{ "refused identity", test_refused_identity, &with_identity },
	{ "refused identity, after the empty table", test_refused_identity_late,
	  &with_identity },
	{ "map: no resources, then there are", test_no_resources_once, &refreshed_after_maps },
	{ "map: no resources at all", test_no_resources_at_all, &refreshed_after_maps },
	{ "unmap beside the first attach", test_beside_first_attach, &two_domains },
	{ "unmap beside an attach", test_beside_attach, &two_domains },
	{ "unmap beside an attach after a refused block", test_beside_attach_after_force,
	  &two_domains },
	{ "unmap beside an attach from another domain", test_beside_replace_from,
	  &two_domains },
	{ "unmap beside an attach to another domain", test_beside_replace_to, &two_domains },
	{ "unmap beside an attach there and back", test_beside_there_and_back,
	  &two_domains },
	{ "unmap beside block", test_beside_block, &two_domains },
	{ "unmap beside identity", test_beside_identity, &with_identity },
	{ "unmap beside a reset", test_beside_reset, &two_domains },
	{}
};

TEST_SUITE(transitions, cases, &fn, &queue);
MODULE_IMPORT_NS("IOMMUFD_INTERNAL");
MODULE_DESCRIPTION("Tests of what is asked of the machine, and when");
MODULE_LICENSE("GPL");
