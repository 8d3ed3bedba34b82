"""Desired against actual: nothing for equals, and what is done leads from the one to the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.iptables import diff, readback, ruleset
from netagent.iptables.ruleset import ChainName, Jump
from netagent.model.addresses import Family

PREROUTING = ChainName("nat", "PREROUTING")
A, B = ChainName("nat", "NETAGENT-A"), ChainName("nat", "NETAGENT-B")
JUMP = Jump("nat", "PREROUTING", "-j NETAGENT-A", first=True)
BEHIND = Jump("nat", "PREROUTING", "-j NETAGENT-B", first=False)

names = st.builds(
    ChainName, st.sampled_from(readback.TABLES), st.sampled_from(["NETAGENT-A", "NETAGENT-B", "NETAGENT-C"])
)
rules = st.lists(st.sampled_from(["-j ACCEPT", "-j DROP", "-p tcp -j RETURN"]), max_size=3).map(tuple)
jumps = st.lists(
    st.sampled_from([JUMP, BEHIND, Jump("filter", "FORWARD", "-j NETAGENT-A", first=True)]), unique=True
).map(tuple)
foreign = st.lists(st.sampled_from(["-j ACCEPT", "-j DOCKER", JUMP.rule, BEHIND.rule]), max_size=4).map(tuple)


@st.composite
def desired_rulesets(draw: st.DrawFn) -> ruleset.Ruleset:
    return ruleset.Ruleset(Family.IPV4, draw(st.dictionaries(names, rules)), draw(jumps))


@st.composite
def actual_states(draw: st.DrawFn) -> readback.Actual:
    builtin = {PREROUTING: draw(foreign), ChainName("filter", "FORWARD"): draw(foreign)}
    return readback.Actual(Family.IPV4, draw(st.dictionaries(names, rules)), builtin)


@given(desired_rulesets(), actual_states())
def test_applying_a_difference_gives_the_desired(desired: ruleset.Ruleset, actual: readback.Actual) -> None:
    others = {name: [rule for rule in found if not readback.is_ours(rule)] for name, found in actual.builtin.items()}
    done = diff.changes(desired, actual)
    assert bool(done) == (done.count > 0)
    diff.applied(actual, done)
    assert actual.chains == desired.chains
    assert {jump.rule for jump in actual.jumps()} == {jump.rule for jump in desired.jumps}
    in_front = {(jump.table, jump.chain, jump.rule) for jump in desired.jumps if jump.first}
    assert in_front <= {(jump.table, jump.chain, jump.rule) for jump in actual.jumps() if jump.first}
    assert not diff.changes(desired, actual)
    assert others == {
        name: [rule for rule in found if not readback.is_ours(rule)] for name, found in actual.builtin.items()
    }


@given(actual_states())
def test_nothing_differs_from_itself(actual: readback.Actual) -> None:
    assert not diff.changes(actual.ruleset, actual)


def test_only_what_was_touched_is_compared() -> None:
    desired = ruleset.Ruleset(Family.IPV4, {A: ("-j ACCEPT",), B: ("-j DROP",)})
    actual = readback.Actual(Family.IPV4)
    assert diff.changes(desired, actual, {B}).written == {B: ("-j DROP",)}
    assert not diff.changes(desired, actual, set())


def test_operations_count_rules_and_chains() -> None:
    desired = ruleset.Ruleset(Family.IPV4, {A: ("-j ACCEPT", "-j DROP"), B: ()}, (JUMP,))
    assert diff.changes(desired, readback.Actual(Family.IPV4)).count == 2 + 2 + 1
    actual = readback.Actual(Family.IPV4, {A: ("-j DROP",), B: ()}, {PREROUTING: (JUMP.rule,)})
    assert diff.changes(desired, actual).count == 2
    assert diff.removal(actual).count == 2 + 1 + 1


def test_a_jump_that_others_came_before_is_put_in_front_again() -> None:
    desired = ruleset.Ruleset(Family.IPV4, {}, (JUMP, BEHIND))
    actual = readback.Actual(Family.IPV4, {}, {PREROUTING: ("-j DOCKER", JUMP.rule, "-j OTHER", BEHIND.rule)})
    done = diff.changes(desired, actual)
    diff.applied(actual, done)
    assert actual.builtin[PREROUTING] == (JUMP.rule, "-j DOCKER", "-j OTHER", BEHIND.rule)


def test_what_others_put_behind_us_later_stays_there() -> None:
    actual = readback.Actual(Family.IPV4, {}, {PREROUTING: (JUMP.rule, BEHIND.rule, "-j LATER")})
    assert not diff.changes(ruleset.Ruleset(Family.IPV4, {}, (JUMP, BEHIND)), actual)


def test_a_jump_that_is_there_twice_goes_once() -> None:
    actual = readback.Actual(Family.IPV4, {}, {PREROUTING: (JUMP.rule, JUMP.rule)})
    done = diff.changes(ruleset.Ruleset(Family.IPV4, {}, (JUMP,)), actual)
    diff.applied(actual, done)
    assert actual.builtin[PREROUTING] == (JUMP.rule,)


def test_a_chain_that_others_lead_to_is_emptied_and_not_deleted() -> None:
    actual = readback.Actual(Family.IPV4, {A: ("-j DROP",)}, {}, {ChainName("nat", "DOCKER"): ("NETAGENT-A",)})
    done = diff.removal(actual)
    assert list(diff.restore_lines(done)) == ["*nat", ":NETAGENT-A - [0:0]", "COMMIT"]
    diff.applied(actual, done)
    assert not diff.removal(actual)


def test_the_commands_declare_before_they_use_and_delete_last() -> None:
    actual = readback.Actual(Family.IPV4, {B: ("-j DROP",)}, {PREROUTING: ("-j DOCKER", "-j NETAGENT-B")})
    done = diff.changes(ruleset.Ruleset(Family.IPV4, {A: ("-j ACCEPT",)}, (JUMP,)), actual)
    assert list(diff.restore_lines(done)) == [
        "*nat",
        ":NETAGENT-A - [0:0]",
        ":NETAGENT-B - [0:0]",
        "-A NETAGENT-A -j ACCEPT",
        "-D PREROUTING -j NETAGENT-B",
        "-I PREROUTING 1 -j NETAGENT-A",
        "-X NETAGENT-B",
        "COMMIT",
    ]
    assert list(diff.lines(done, actual)) == [
        "iptables: 6 operations",
        "  - nat PREROUTING: -j NETAGENT-B",
        "  + nat PREROUTING: -j NETAGENT-A (first)",
        "  + nat NETAGENT-A: 1 rules",
        "      + -j ACCEPT",
        "  - nat NETAGENT-B",
    ]


def test_spellings_that_mean_the_same_are_no_difference() -> None:
    actual = readback.Actual(Family.IPV4, {A: ("-j accept",)}, {PREROUTING: ("-j NETAGENT-A",)})
    desired = ruleset.Ruleset(Family.IPV4, {A: ("-j ACCEPT",)}, (JUMP,))
    assert diff.changes(desired, actual)
    assert not diff.changes(desired, actual, same=lambda one, other: one.lower() == other.lower())


@pytest.mark.parametrize("table", readback.TABLES)
def test_no_difference_makes_no_lines(table: str) -> None:
    actual = readback.Actual(Family.IPV6, {ChainName(table, "NETAGENT-A"): ()})
    done = diff.changes(actual.ruleset, actual)
    assert not list(diff.lines(done))
    assert not list(diff.restore_lines(done))
