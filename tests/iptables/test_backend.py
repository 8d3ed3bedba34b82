"""The backend against the kernel, in both variants: equal after a commit, nothing on the second, drift repaired,
others' rules left alone, and nothing forgotten that was refused."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from netagent import errors
from netagent.iptables import backend, legacy, lock, readback, tools
from netagent.iptables.tools import Variant
from netagent.model.addresses import Family
from netagent.plan import frontends, node
from tests import kernel, patience
from tests.iptables import namespaces
from tests.nftables import strategies

both = pytest.mark.parametrize("variant", namespaces.VARIANTS)


class Agent:
    """A backend with a plan, as the agent has it."""

    def __init__(self, variant: Variant, *, families: tuple[Family, ...] = tuple(Family), watch: bool = True) -> None:
        self.variant = variant
        self.backend = backend.Backend(variant, families, lock_seconds=1)
        self.current: dict[frontends.FrontendKey, frontends.Frontend] = {}
        self.serve(*families)
        self.fileno = self.backend.watch() if watch else None

    def serve(self, *families: Family) -> None:
        self.backend.set_rules(map(strategies.plain_rules, families))

    def plan(self, *found: frontends.Frontend) -> None:
        """These are all frontends that there are."""
        keys = self.current.keys() | {frontend.key for frontend in found}
        self.current = {frontend.key: frontend for frontend in found}
        self.backend.update(sorted(keys), self.current)

    def sync(self) -> backend.Commit:
        self.backend.follow()
        return self.backend.commit()

    def assert_in_line(self) -> None:
        """The kernel holds what is desired, as a fresh process sees it."""
        fresh = Agent(self.variant, families=self.backend.families, watch=False)
        fresh.plan(*self.current.values())
        fresh.backend.read()
        assert list(fresh.backend.describe()) == []
        fresh.backend.close()


def agent(variant: Variant, **options: bool) -> Agent:
    namespaces.need(variant)
    return Agent(variant, **options)


def dual(number: int = 1, **fields: int) -> Iterator[frontends.Frontend]:
    for family in Family:
        yield strategies.cluster_ip_frontend(family, number=number, **fields)


@both
@kernel.isolated
def test_the_second_sync_and_a_fresh_process_do_nothing(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual(1, count=10), *dual(2, count=0), *dual(3, count=3, affinity=10800))
    first = ours.sync()
    assert first.operations > 50
    assert first.transactions == 4
    assert not ours.backend.moved()
    assert ours.sync() == backend.Commit(0, 0, 0)
    ours.assert_in_line()
    served = sorted(ours.backend.served())
    assert served == sorted(key for key, found in ours.current.items() if found.endpoints)


@both
@kernel.isolated
def test_one_endpoint_is_a_small_change_that_is_no_news_to_ourselves(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual(1, count=3), *(frontend for number in range(2, 40) for frontend in dual(number)))
    everything = ours.sync().operations
    ours.plan(*dual(1, count=4), *(frontend for number in range(2, 40) for frontend in dual(number)))
    change = ours.sync()
    assert 0 < change.operations < everything / 10
    if variant is Variant.LEGACY and not legacy.unavailable():
        assert change.bytes == 0  # no text, no fork
    assert not ours.backend.moved()
    ours.assert_in_line()
    ours.plan()
    assert ours.sync().operations
    ours.assert_in_line()


@both
@kernel.isolated
def test_rules_are_counted_by_table_those_of_the_last_commit_apart(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual(1, count=3), *dual(2, count=3))
    ours.sync()
    everything = {(family, table): (total, written) for family, table, total, written in ours.backend.rule_counts()}
    assert everything.keys() == {(family, table) for family in Family for table in readback.TABLES}
    for (family, table), (total, written) in everything.items():
        saved = namespaces.rules(variant, family)
        begin = saved.index(f"*{table}")
        end = next((at for at, line in enumerate(saved) if at > begin and line.startswith("*")), len(saved))
        assert total == written == sum("NETAGENT-" in line and line.startswith("-A") for line in saved[begin:end])
    ours.plan(*dual(1, count=4), *dual(2, count=3))
    ours.sync()
    for family, table, total, written in ours.backend.rule_counts():
        assert 0 <= written < total
        assert (written > 0) is (table == "nat"), family
    ours.sync()
    assert not any(written for _, _, _, written in ours.backend.rule_counts())


@both
@kernel.isolated
def test_drift_is_noticed_named_and_repaired(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual())
    ours.sync()
    namespaces.iptables(variant, "-t", "nat", "-A", "NETAGENT-SERVICES", "-j", "RETURN", family=Family.IPV6)
    patience.until(ours.backend.moved)
    who = ours.backend.follow()
    assert who is not None
    assert variant is Variant.LEGACY or who[0].name.startswith("ip6tables")
    assert any("- -j RETURN" in line for line in ours.backend.describe())
    assert any(line == "*nat" for line in ours.backend.commands())
    assert ours.sync().operations
    ours.assert_in_line()


@both
@kernel.isolated
def test_flushed_tables_are_noticed_without_any_audit_and_come_back(variant: Variant) -> None:
    """As firewalld does when it reloads."""
    ours = agent(variant)
    ours.plan(*dual(count=5))
    ours.sync()
    for table in ("nat", "filter"):
        namespaces.iptables(variant, "-t", table, "-F")
        namespaces.iptables(variant, "-t", table, "-X")
    patience.until(ours.backend.moved)
    assert ours.sync().operations
    ours.assert_in_line()


@both
@kernel.isolated
def test_what_others_do_elsewhere_is_none_of_our_business(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual())
    ours.sync()
    namespaces.iptables(variant, "-t", "mangle", "-A", "FORWARD", "-j", "ACCEPT")
    namespaces.iptables(variant, "-t", "nat", "-N", "DOCKER")
    assert ours.backend.follow() is None
    assert ours.sync() == backend.Commit(0, 0, 0)
    assert variant is Variant.LEGACY or not ours.backend.moved()


@both
@kernel.isolated
def test_what_is_left_to_do_survives_a_look_at_the_kernel(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual(count=2))
    ours.sync()
    ours.plan(*dual(count=3))
    namespaces.iptables(variant, "-t", "nat", "-A", "POSTROUTING", "-j", "ACCEPT")
    assert ours.backend.follow() is None
    assert ours.backend.commit().operations
    ours.assert_in_line()


@both
@kernel.isolated
def test_others_rules_keep_their_order_and_ours_come_first(variant: Variant) -> None:
    ours = agent(variant)
    for number in (1, 2):
        namespaces.iptables(variant, "-t", "nat", "-A", "PREROUTING", "-s", f"10.0.0.{number}/32", "-j", "ACCEPT")
    ours.sync()
    namespaces.iptables(variant, "-t", "nat", "-I", "PREROUTING", "-s", "10.0.0.0/32", "-j", "ACCEPT")
    ours.sync()
    found = [rule for rule in namespaces.rules(variant) if rule.startswith("-A PREROUTING")]
    assert found[0] == "-A PREROUTING -j NETAGENT-SERVICES"
    assert found[1:] == [f"-A PREROUTING -s 10.0.0.{number}/32 -j ACCEPT" for number in range(3)]
    ours.assert_in_line()


@both
@kernel.isolated
def test_cleanup_leaves_everybody_elses_rules(variant: Variant) -> None:
    namespaces.need(variant)
    namespaces.iptables(variant, "-t", "nat", "-N", "DOCKER")
    namespaces.iptables(variant, "-t", "nat", "-A", "PREROUTING", "-j", "DOCKER")
    namespaces.iptables(variant, "-A", "FORWARD", "-s", "10.0.0.0/8", "-j", "DROP")
    before = namespaces.rules(variant)
    ours = Agent(variant)
    ours.plan(*dual(count=5))
    ours.sync()
    assert namespaces.rules(variant) != before
    cleaner = backend.Backend(variant)
    assert cleaner.cleanup()
    assert namespaces.rules(variant) == before
    assert not cleaner.cleanup()
    assert ours.sync().operations  # the agent, if it still runs, puts it back
    ours.assert_in_line()


@both
@kernel.isolated
def test_looking_and_cleaning_up_makes_no_table(variant: Variant) -> None:
    namespaces.need(variant)
    for each in Variant:
        looking = backend.Backend(each)
        looking.read()
        assert not looking.cleanup()
        assert not looking.moved()
        looking.close()
    assert namespaces.rules(Variant.LEGACY) == namespaces.rules(Variant.NFT) == []


@both
@kernel.isolated
def test_a_chain_of_ours_that_others_lead_to_is_emptied(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual())
    ours.sync()
    namespaces.iptables(variant, "-t", "nat", "-N", "DOCKER")
    namespaces.iptables(variant, "-t", "nat", "-A", "DOCKER", "-j", "NETAGENT-SERVICES")
    cleaner = backend.Backend(variant)
    assert cleaner.cleanup()
    assert [rule for rule in namespaces.rules(variant) if "NETAGENT" in rule] == [
        ":NETAGENT-SERVICES -",
        "-A DOCKER -j NETAGENT-SERVICES",
    ]
    assert not cleaner.cleanup()


@both
@kernel.isolated
def test_a_family_that_is_not_served_any_more_has_nothing_of_ours(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual())
    ours.sync()
    ours.serve(Family.IPV4)
    ours.sync()
    assert not readback.read(tools.save(variant, Family.IPV6), Family.IPV6).exists
    assert readback.read(tools.save(variant, Family.IPV4), Family.IPV4).exists


@both
@kernel.isolated
def test_a_refused_commit_is_told_and_done_later(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual(1))
    ours.sync()
    ours.plan(*dual(1, count=5), *dual(2, count=40))
    directory = namespaces.own_lock().parent
    paths = os.environ["PATH"]
    for family in Family:
        refusal = "cat > /dev/null; echo 'line 2: CHAIN_ADD failed (Invalid argument)' >&2; exit 4"
        namespaces.fake(directory, tools.program(family, variant, "restore"), refusal)
    with pytest.raises(errors.CommitRejectedError):
        ours.sync()
    assert ours.backend.moved()
    os.environ["PATH"] = paths
    assert ours.sync().operations
    ours.assert_in_line()


@both
@kernel.isolated
def test_garbage_from_the_tools_is_an_error_and_passes(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual())
    ours.sync()
    directory = namespaces.own_lock().parent
    paths = os.environ["PATH"]
    namespaces.fake(directory, tools.program(Family.IPV6, variant, "save"), "head -c 1000 /dev/urandom")
    with pytest.raises(errors.NetagentError):
        ours.backend.read()
    assert ours.backend.moved()
    os.environ["PATH"] = paths
    assert ours.sync() == backend.Commit(0, 0, 0)


@kernel.isolated
def test_a_lock_held_by_another_process_delays_and_forgets_nothing() -> None:
    ours = agent(Variant.LEGACY)
    ours.plan(*dual(1))
    ours.sync()
    before = namespaces.rules(Variant.LEGACY)
    holder = namespaces.hold_lock(Path(os.environ["XTABLES_LOCKFILE"]))
    try:
        for frontends_then in (list(dual(1, count=3)), [*dual(1, count=3), *dual(2, count=20)]):  # both doors
            ours.plan(*frontends_then)
            with pytest.raises(lock.LockHeldError, match=rf"process {holder.pid}\)"):
                ours.sync()
            assert holder.poll() is None, "who has the lock was not waited for"
            assert namespaces.rules(Variant.LEGACY) == before
    finally:
        holder.kill()
        holder.wait()
    assert ours.sync().operations
    ours.assert_in_line()


@kernel.isolated
def test_without_python_iptables_all_goes_through_the_tools() -> None:
    ours = agent(Variant.LEGACY, watch=False)
    ours.plan(*dual(count=2))
    ours.sync()
    legacy._library = _not_there  # type: ignore[assignment]
    ours.plan(*dual(count=3))
    assert ours.sync().bytes
    ours.assert_in_line()


def _not_there() -> None:
    raise errors.UnsupportedError("python-iptables cannot be loaded")


@both
@kernel.isolated
def test_without_the_capability_it_is_a_matter_of_privilege(variant: Variant) -> None:
    ours = agent(variant, watch=False)
    ours.plan(*dual())
    ours.sync()
    namespaces.lose_privilege()
    stranger = backend.Backend(variant)
    assert stranger.moved()
    with pytest.raises(errors.PrivilegeError, match="CAP_NET_ADMIN"):
        stranger.read()


@both
@kernel.isolated
def test_an_audit_finds_what_no_notice_told(variant: Variant) -> None:
    ours = agent(variant, watch=False)
    ours.plan(*dual(count=3))
    ours.sync()
    done = threading.Event()
    ours.backend.audit(done.set)
    assert done.wait(patience.HANGS)
    assert not ours.backend.moved()
    # What escapes the notice, here by pretending that it was none.
    namespaces.iptables(variant, "-t", "nat", "-A", "NETAGENT-SERVICES", "-j", "RETURN")
    ours.backend._notice.begin()
    assert not ours.backend.moved()
    done.clear()
    ours.backend._next_audit = 0
    ours.backend.audit(done.set)
    assert done.wait(patience.HANGS)
    assert ours.backend.moved()
    assert ours.sync().operations
    assert not ours.backend.moved()
    ours.assert_in_line()


@both
@kernel.isolated
def test_beginning_anew_is_like_a_fresh_process(variant: Variant) -> None:
    ours = agent(variant)
    ours.plan(*dual())
    ours.sync()
    ours.backend.begin_anew()
    ours.serve(*Family)
    ours.plan(*dual())
    assert ours.sync() == backend.Commit(0, 0, 0)


@kernel.isolated
def test_a_host_of_nf_tables_never_sees_a_legacy_table() -> None:
    ours = agent(Variant.NFT)
    for count in range(1, 4):
        ours.plan(*dual(count=count))
        ours.sync()
    ours.backend.cleanup()
    for name in ("ip_tables_names", "ip6_tables_names"):
        assert Path("/proc/self/net", name).read_text() == ""
    assert legacy._loaded is None


@both
@kernel.isolated
def test_the_desired_is_what_iptables_restore_would_make_of_it(variant: Variant) -> None:
    """`--test` accepts the commands that are shown."""
    ours = agent(variant, families=(Family.IPV4,))  # type: ignore[arg-type]
    ours.plan(*(frontend for frontend in dual(count=4) if frontend.key.family is Family.IPV4))
    ours.backend.read()
    commands = "\n".join([*ours.backend.commands(), ""])
    path = tools.which(tools.program(Family.IPV4, variant, "restore"))
    assert path
    subprocess.run([path, "--noflush", "--test"], input=commands, text=True, check=True)


@both
@pytest.mark.parametrize("family", Family)
@kernel.isolated
def test_any_history_ends_in_what_a_fresh_process_would_make(variant: Variant, family: Family) -> None:
    namespaces.need(variant)

    @hypothesis.settings(max_examples=12, deadline=None, database=None)
    @hypothesis.given(strategies.node_rules(family), strategies.histories(family, most=4))
    def check(rules: node.NodeRules, history: list[strategies.State]) -> None:
        kernel.fresh()
        ours = Agent(variant, families=(family,))
        ours.backend.set_rules([rules])
        for state in history:
            ours.plan(*state.values())
            ours.sync()
            assert ours.sync() == backend.Commit(0, 0, 0)
        fresh = Agent(variant, families=(family,), watch=False)
        fresh.backend.set_rules([rules])
        fresh.plan(*history[-1].values())
        fresh.backend.read()
        assert list(fresh.backend.describe()) == []
        ours.backend.close()
        fresh.backend.close()

    check()


@kernel.isolated
def test_nf_tables_tells_which_chains_to_read_anew() -> None:
    ours = agent(Variant.NFT)
    ours.plan(*dual(count=5))
    ours.sync()
    save = tools.save
    tools.save = _not_now
    for family in Family:
        namespaces.iptables(Variant.NFT, "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT", family=family)
        assert ours.backend.follow() is None  # none of ours
        namespaces.iptables(Variant.NFT, "-t", "nat", "-I", "PREROUTING", "-j", "ACCEPT", family=family)
        namespaces.iptables(Variant.NFT, "-t", "nat", "-F", "NETAGENT-SERVICES", family=family)
        assert ours.backend.follow()
        assert ours.sync().operations
    tools.save = save
    ours.assert_in_line()
    namespaces.iptables(Variant.NFT, "-t", "nat", "-F")
    namespaces.iptables(Variant.NFT, "-t", "nat", "-X")
    assert ours.sync().operations
    ours.assert_in_line()


def _not_now(*_: object, **__: object) -> str:
    raise AssertionError("everything was read")
