"""The in-process door to legacy tables: the same rules as through iptables-restore, and nothing else touched."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from netagent import errors
from netagent.iptables import diff, legacy, lock, readback, ruleset, tools, variant
from netagent.iptables.ruleset import ChainName
from netagent.iptables.tools import Variant
from netagent.model.addresses import Family
from tests import kernel
from tests.iptables import namespaces

A, B = ChainName("nat", "NETAGENT-A"), ChainName("nat", "NETAGENT-B")
_RECENT = "--name NETAGENT-X --mask {} --rsource"
_MASKS = {Family.IPV4: "255.255.255.255", Family.IPV6: ":".join(["ffff"] * 8)}

COMMON = (
    "-m statistic --mode random --probability 0.33333333349 -j NETAGENT-B",
    "-j MARK --set-xmark 0x4000/0x4000",
    "-j MARK --set-xmark 0x4000/0x0",
    "-m mark --mark 0x4000/0x4000 -j RETURN",
    "-m mark ! --mark 0x4000/0x4000 -j RETURN",
    '-m comment --comment "default/web:http it is -j DROP" -j RETURN',
    "-m comment --comment plain -j ACCEPT",
    "-m addrtype --dst-type LOCAL -j NETAGENT-B",
    "-m addrtype ! --src-type LOCAL -g NETAGENT-B",
    "-m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctstate DNAT -j ACCEPT",
    "-p sctp -m sctp --dport 9 -j NETAGENT-B",
    "! -p tcp -j NETAGENT-B",
    "-p udp -m udp --dport 1024:2047 -g NETAGENT-B",
)
RULES = {
    Family.IPV4: (
        *COMMON,
        "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -m comment --comment a_b -j NETAGENT-B",
        "! -s 10.1.0.0/16 -j NETAGENT-B",
        "-s 10.0.0.1/32 -d 10.0.0.1/32 -g NETAGENT-B",
        "-s 10.0.0.1/32 -d 10.0.0.1/32 -j MASQUERADE --random-fully",
        "-i eth0 -j RETURN",
        "! -i cali+ -j RETURN",
        "-p tcp -j DNAT --to-destination 10.1.2.3:8080",
        "-p udp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.1.2.3:53",
        f"-p tcp -m recent --update --seconds 10800 --reap {_RECENT.format(_MASKS[Family.IPV4])} "
        "-j DNAT --to-destination 10.1.2.3:8080",
        f"-p tcp -m recent --set {_RECENT.format(_MASKS[Family.IPV4])} -j DNAT --to-destination 10.1.2.3:8080",
    ),
    Family.IPV6: (
        *COMMON,
        "-d fd00::a/128 -p tcp -m tcp --dport 80 -m comment --comment a_b -j NETAGENT-B",
        "! -s fd00:1::/64 -j NETAGENT-B",
        "-s fd00::1/128 -d fd00::1/128 -j MASQUERADE --random-fully",
        "-m mark --mark 0x4000/0x4000 -j MASQUERADE",
        "-p tcp -j DNAT --to-destination [fd00::1]:8080",
        "-p udp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination [fd00::1]:53",
        f"-p tcp -m recent --update --seconds 10800 --reap {_RECENT.format(_MASKS[Family.IPV6])} "
        "-j DNAT --to-destination [fd00::1]:8080",
    ),
}


def changes(family: Family, **chains: tuple[str, ...] | None) -> diff.Changes:
    """What writes these chains of the nat table (None: deletes)."""
    done = diff.Changes(family)
    for name, rules in chains.items():
        where = ChainName("nat", f"NETAGENT-{name}")
        if rules is None:
            done.deleted[where] = ()
        else:
            done.written[where] = rules
    return done


def commit(done: diff.Changes) -> None:
    legacy.commit(legacy.build(done), lock_seconds=60)


def state(family: Family) -> dict[ChainName, ruleset.Rules]:
    return readback.read(tools.save(Variant.LEGACY, family), family).chains


@pytest.mark.parametrize("first", Family)
@kernel.isolated
def test_every_form_of_rule_is_the_same_as_through_iptables_restore(first: Family) -> None:
    namespaces.need_python_iptables()
    # Both in one process, as the agent does, and whichever changes first.
    for family in (*sorted(Family, key=lambda found: found is not first), *Family):
        commit(changes(family, B=(), A=RULES[family]))
        in_process = state(family)
        done = changes(family, B=(), A=RULES[family])
        tools.restore(Variant.LEGACY, family, "\n".join([*diff.restore_lines(done), ""]), lock_seconds=60)
        assert in_process == state(family) == {A: RULES[family], B: ()}


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        (Family.IPV4, "-m bogus -j ACCEPT"),
        (Family.IPV4, "-m tcp --dport 80 -j BOGUS"),
        (Family.IPV4, "-p tcp -m tcp --no-such-option 80 -j ACCEPT"),
        (Family.IPV4, "-p tcp -m tcp --dport nonsense -j ACCEPT"),
        (Family.IPV4, "-j DNAT --to-destination 10.0.0.1:80"),  # without a protocol
        (Family.IPV4, "-s nonsense -j ACCEPT"),
        (Family.IPV4, "-s 10.0.0.0/8"),
        (Family.IPV4, "-m statistic -j ACCEPT"),
        (Family.IPV4, "-m"),
        (Family.IPV4, ""),
        (Family.IPV6, "-i eth0 -j ACCEPT"),
        (Family.IPV6, "-p tcp -j DNAT --to-destination fd00::1"),
        (Family.IPV6, "-j DNAT --to-destination [fd00::1]:80"),
        (Family.IPV6, "-p tcp -j MASQUERADE --to-ports 1-2"),
    ],
)
@kernel.isolated
def test_what_cannot_be_made_here_is_left_to_iptables_and_nothing_is_done(family: Family, rule: str) -> None:
    namespaces.need_python_iptables()
    with pytest.raises(legacy.UnbuildableError):
        legacy.build(changes(family, A=(rule,)))
    assert variant.legacy_tables(family) == ()


@kernel.isolated
def test_jumps_and_many_rules_are_left_to_iptables() -> None:
    namespaces.need_python_iptables()
    done = changes(Family.IPV4)
    done.jumps_inserted = (ruleset.Jump("nat", "PREROUTING", "-j NETAGENT-A", first=True),)
    with pytest.raises(legacy.UnbuildableError):
        legacy.build(done)
    assert legacy.worth_it(changes(Family.IPV4, A=("-j ACCEPT",) * legacy.RULES))
    assert not legacy.worth_it(changes(Family.IPV4, A=("-j ACCEPT",) * (legacy.RULES + 1)))


@kernel.isolated
def test_a_commit_touches_its_chains_and_no_other_table() -> None:
    namespaces.need_python_iptables()
    namespaces.iptables(Variant.LEGACY, "-t", "nat", "-N", "DOCKER")
    namespaces.iptables(Variant.LEGACY, "-t", "nat", "-A", "DOCKER", "-s", "10.9.0.0/16", "-j", "RETURN")
    commit(changes(Family.IPV4, A=("-j NETAGENT-B",), B=("-p tcp -j RETURN",)))
    assert set(variant.legacy_tables(Family.IPV4)) == {"nat"}
    assert variant.legacy_tables(Family.IPV6) == ()
    assert "table" not in kernel.nft("list ruleset")
    commit(changes(Family.IPV4, A=None, B=None))
    commit(changes(Family.IPV4, A=None))  # deleting the absent succeeds
    assert not state(Family.IPV4)
    assert "-A DOCKER -s 10.9.0.0/16 -j RETURN" in namespaces.rules(Variant.LEGACY)


@kernel.isolated
def test_what_others_did_meanwhile_is_not_undone() -> None:
    namespaces.need_python_iptables()
    commit(changes(Family.IPV4, A=()))
    namespaces.iptables(Variant.LEGACY, "-t", "nat", "-N", "DOCKER")
    commit(changes(Family.IPV4, A=("-j ACCEPT",)))
    assert ":DOCKER -" in namespaces.rules(Variant.LEGACY)


@kernel.isolated
def test_a_refused_commit_names_the_chain_and_changes_nothing() -> None:
    namespaces.need_python_iptables()
    commit(changes(Family.IPV4, A=("-j NETAGENT-B",), B=()))
    with pytest.raises(errors.CommitRejectedError, match="delete chain NETAGENT-B"):
        commit(changes(Family.IPV4, C=("-j ACCEPT",), B=None))
    assert state(Family.IPV4) == {A: ("-j NETAGENT-B",), B: ()}


@kernel.isolated
def test_a_lock_held_by_another_process_is_told() -> None:
    namespaces.need_python_iptables()
    holder = namespaces.hold_lock(Path(os.environ["XTABLES_LOCKFILE"]))
    try:
        with pytest.raises(lock.LockHeldError, match=rf"process {holder.pid}\)"):
            legacy.commit(legacy.build(changes(Family.IPV4, A=())), lock_seconds=0.1)
        assert holder.poll() is None, "it was not waited for"
    finally:
        holder.kill()
        holder.wait()
    assert variant.legacy_tables(Family.IPV4) == ()


@kernel.isolated
def test_without_the_capability_it_is_a_matter_of_privilege() -> None:
    namespaces.need_python_iptables()
    commit(changes(Family.IPV4, A=()))
    namespaces.lose_privilege()
    with pytest.raises(errors.PrivilegeError):
        legacy.size(Family.IPV4, "nat")
    with pytest.raises(errors.PrivilegeError):
        commit(changes(Family.IPV4, A=("-j ACCEPT",)))


@kernel.isolated
def test_a_table_says_its_size_and_its_chains() -> None:
    namespaces.need_python_iptables()
    commit(changes(Family.IPV4, A=("-j ACCEPT",), B=()))
    before = legacy.size(Family.IPV4, "nat")
    assert before
    assert before.entries == 5 + 3 + 2
    assert legacy.chains(Family.IPV4, "nat")["NETAGENT-A"] == 1
    commit(changes(Family.IPV4, A=("-j ACCEPT", "-j DROP")))
    assert legacy.size(Family.IPV4, "nat") != before


@kernel.isolated
def test_each_commit_is_for_the_namespace_that_its_thread_is_in() -> None:
    namespaces.need_python_iptables()
    for _ in range(2):
        commit(changes(Family.IPV4, A=()))
        assert state(Family.IPV4) == {A: ()}
        kernel.fresh()
        assert not state(Family.IPV4)


@kernel.isolated
def test_threads_take_turns() -> None:
    namespaces.need_python_iptables()
    failures: list[BaseException] = []

    def work(letter: str) -> None:
        try:
            for number in range(20):
                commit(changes(Family.IPV4, **{letter: (f"-p tcp -j DNAT --to-destination 10.0.0.{number}:80",)}))
        except BaseException as failure:  # noqa: BLE001 - a thread's failure is to be the test's
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "ABCD"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(state(Family.IPV4).values()) == {("-p tcp -j DNAT --to-destination 10.0.0.19:80",)}
    assert len(state(Family.IPV4)) == 4


@kernel.isolated
def test_a_host_without_python_iptables_is_told_so() -> None:
    namespaces.need_python_iptables()
    legacy._loaded = None
    import sys

    sys.modules["iptc"] = None  # type: ignore[assignment]
    assert "small changes go through iptables-restore" in legacy.unavailable()
