// SPDX-License-Identifier: GPL-2.0
/*
 * Suite "transitions": attaches and blocks, from each state to every other one,
 * both successful and refused.
 */
#include "transitions.h"

/* The refresh, as a bit among the refused operations */
#define REFRESH		BIT(0)

#define PAGING		(BIT(PAGING_A) | BIT(PAGING_B))
#define BLOCKED		(BIT(UNREGISTERED) | BIT(EMPTY))
#define ANY		(PAGING | BLOCKED | BIT(IDENTITY))

/**
 * struct transition - from one state to another
 * @from: the state before
 * @to: the state after; the same as @from to attach again
 * @asked: the instructions; NULL if the driver may choose how to go back
 * @refused: operations to refuse; then the state must not change
 */
struct transition {
	enum state from;
	enum state to;
	const char *asked;
	unsigned long refused;
};

static const struct transition transitions[] = {
	{ UNREGISTERED, UNREGISTERED, "" },
	{ UNREGISTERED, PAGING_A, "REG empty, REREG A, refresh" },
	{ UNREGISTERED, IDENTITY, "REG identity" },

	{ EMPTY, EMPTY, "REREG empty" },
	{ EMPTY, PAGING_A, "REREG A, refresh" },
	{ EMPTY, IDENTITY, "REREG empty, REREG identity" },

	{ PAGING_A, EMPTY, "REREG empty, refresh" },
	{ PAGING_A, PAGING_A, "REREG A, refresh" },
	{ PAGING_A, PAGING_B, "REREG B, refresh" },
	{ PAGING_B, PAGING_A, "REREG A, refresh" },
	{ PAGING_A, IDENTITY, "REREG empty, refresh, REREG identity" },

	{ IDENTITY, EMPTY, "REREG empty, REREG empty" },
	{ IDENTITY, PAGING_A, "REREG empty, REREG A, refresh" },
	{ IDENTITY, IDENTITY, "REREG empty, REREG empty, REREG identity" },

	{ UNREGISTERED, PAGING_A, "REG empty refused", BIT(FC_REGISTER) },
	{ EMPTY, PAGING_A, NULL, FC_ATTACH },
	{ PAGING_A, PAGING_B, NULL, FC_ATTACH },
	{ UNREGISTERED, IDENTITY, "REG identity refused", BIT(FC_REGISTER) },
	{ PAGING_A, IDENTITY, NULL, FC_ATTACH },

	{ UNREGISTERED, PAGING_A,
	  "REG empty, REREG A, refresh refused, REREG empty, refresh", REFRESH },
	{ EMPTY, PAGING_A, "REREG A, refresh refused, REREG empty, refresh", REFRESH },
	{ PAGING_A, PAGING_B, "REREG B, refresh refused, REREG A, refresh", REFRESH },
	{ PAGING_A, IDENTITY, "REREG empty, refresh refused, REREG A, refresh", REFRESH },
};

static int run_transition(const struct transition *transition)
{
	int ret = start_from(transition->from);

	if (ret)
		return ret;
	inject_record(fn);
	ret = transition->from == transition->to ? attach_again() : go_to(transition->to);
	if (ret)
		return test_fail("%s to %s: error %d", state_names[transition->from],
				 state_names[transition->to], ret);
	ret = expect_asked(transition->asked);
	inject_reset();
	return ret ? ret : expect_state(transition->to);
}

/* Nothing changes, and nothing makes the next attach fail. */
static int run_refused(const struct transition *transition)
{
	int ret = start_from(transition->from);

	if (ret)
		return ret;
	if (transition->refused == REFRESH)
		inject_refuse_refresh(fn, -EIO, 1);
	else
		inject_refuse(fn, transition->refused);
	inject_record(fn);
	ret = go_to(transition->to);
	if (ret != -EIO)
		ret = test_fail("%s to %s: refused, but the result is %d",
				state_names[transition->from], state_names[transition->to], ret);
	else
		ret = transition->asked ? expect_asked(transition->asked) : 0;
	inject_reset();
	if (!ret)
		ret = expect_state(transition->from);
	if (!ret && go_to(transition->to))
		ret = test_fail("the attach fails although it is not refused");
	return ret ? ret : expect_state(transition->to);
}

/*
 * Runs all transitions from and to these states: those that refuse some of
 * these operations, or if @refused is 0, those that refuse nothing.
 */
static int run_all(unsigned long from, unsigned long to, unsigned long refused)
{
	const struct transition *transition = transitions;
	int ret = 0;

	for (; !ret && transition < transitions + ARRAY_SIZE(transitions); transition++) {
		if (!(from & BIT(transition->from)) || !(to & BIT(transition->to)))
			continue;
		if (!refused && !transition->refused)
			ret = run_transition(transition);
		else if (refused & transition->refused)
			ret = run_refused(transition);
	}
	return ret;
}

TEST_CALL(from_unregistered, run_all(BIT(UNREGISTERED), PAGING | BLOCKED, 0))
TEST_CALL(from_empty, run_all(BIT(EMPTY), PAGING | BLOCKED, 0))
TEST_CALL(from_paging, run_all(PAGING, PAGING | BLOCKED, 0))
TEST_CALL(to_identity, run_all(PAGING | BLOCKED, BIT(IDENTITY), 0))
TEST_CALL(from_identity, run_all(BIT(IDENTITY), ANY, 0))
TEST_CALL(refused_registration, run_all(ANY, PAGING, FC_ATTACH))
TEST_CALL(refused_refresh, run_all(ANY, PAGING, REFRESH))
TEST_CALL(refused_identity, run_all(ANY, BIT(IDENTITY), FC_ATTACH | REFRESH))

static int without_identity(void)
{
	struct iommu_domain *identity;
	int ret = go_to(PAGING_A);

	if (ret)
		return test_fail("attach: error %d", ret);
	if (!IS_ERR(test_identity_domain(fn)))
		return test_fail("a function that must translate has an identity domain");
	/* The core could still have it from another function. */
	inject_offer_identity(fn, true);
	identity = test_identity_domain(fn);
	inject_offer_identity(fn, false);
	if (IS_ERR(identity))
		return test_fail("a function that may skip translation has no identity domain");
	inject_record(fn);
	if (test_replace_by_identity(fn, identity) != -EINVAL)
		return test_fail("identity was not refused with EINVAL");
	ret = expect_asked("");
	inject_reset();
	return ret ? ret : expect_state(PAGING_A);
}

/* Identity is only for functions that may skip translation. */
static int test_no_identity(void)
{
	struct zpci_dev *zdev = to_zpci(fn->pdev);
	bool offered = zdev->rtr_avail;
	int ret;

	zdev->rtr_avail = false;
	ret = without_identity();
	zdev->rtr_avail = offered;
	return ret;
}

/*
 * The second of the two re-registrations is refused: the function has the empty
 * table by then and must go back.
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
		ret = test_fail("identity was refused, but the result is %d", ret);
	else
		ret = expect_asked(asked);
	inject_reset();
	return ret ? ret : expect_state(PAGING_A);
}

const struct test_case attach_cases[] = {
	{ "from blocked, not registered", test_from_unregistered, &two_domains },
	{ "from blocked, empty table", test_from_empty, &two_domains },
	{ "from a paging domain", test_from_paging, &two_domains },
	{ "no identity for who must translate", test_no_identity, &two_domains },
	{ "to identity", test_to_identity, &with_identity },
	{ "from identity", test_from_identity, &with_identity },
	{ "refused registration, from each state", test_refused_registration, &two_domains },
	{ "refused refresh, from each state", test_refused_refresh, &two_domains },
	{ "refused identity", test_refused_identity, &with_identity },
	{ "refused identity, after the empty table", test_refused_identity_late,
	  &with_identity },
	{}
};
