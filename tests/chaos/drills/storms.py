"""Others that never rest: flushes, reloads of firewalls, commits and dumps all the time."""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from netagent import errors
from netagent.model.addresses import Family
from netagent.nftables import backend, monitor, netlink, ruleset, transaction, wire
from netagent.nftables import constants as c
from tests import kernel
from tests.agent import live_agent
from tests.chaos import agents, states
from tests.chaos.framework import Run, drill
from tests.nftables import test_mirror
from tests.nftables.test_backend_kernel import want

_PER_SECOND = 20
_SECONDS = 10
# A storm of 200 flushes, told in full, would be thousands of lines.
_LINES_MOST = 100


@drill("flush-storm", 1, full=1)
def flush_storm(run: Run) -> None:
    """`nft flush ruleset`, 20 times a second for 10 s, with ownership off: the agent lives, its log stays short, names
    who it was and counts the rest, it uses no more of the processor than the storm, and the rules are back after it."""
    with agents.Cluster() as cluster:
        for _ in run.rounds():
            with agents.Agent(cluster) as agent:
                agent.until_right()
                rss, cpu = agent.rss_bytes(), agent.cpu_seconds()
                flushes = agents.repeatedly(
                    lambda: kernel.nft("flush ruleset"), per_second=_PER_SECOND, seconds=run.at_most(_SECONDS)
                )
                run.measured("processor time of the agent in the storm", agent.cpu_seconds() - cpu)
                run.measured("from the end of the storm to right", agent.until_right())
                said = agent.said()
                run.count("flushes", flushes)
                run.count("lines of log", len(said.splitlines()))
                run.count("growth of memory, KiB", max(0, agent.rss_bytes() - rss) // 1024)
                assert "by=nft[" in said or "by='nft[" in said, "it does not say who it was"
                assert len(said.splitlines()) <= _LINES_MOST, f"{len(said.splitlines())} lines of log"
                assert agent.alive()


@drill("flush-storm-owned", 1, full=1)
def flush_storm_owned(run: Run) -> None:
    """The same with ownership: nothing happens. The tables are the same objects after it, and nothing is logged."""
    with agents.Cluster() as cluster:
        for _ in run.rounds():
            with agents.Agent(cluster, owned=True) as agent:
                agent.until_right()
                _needs_owner()
                before, said = live_agent.listings(), agent.said()
                run.count(
                    "flushes",
                    agents.repeatedly(
                        lambda: kernel.nft("flush ruleset"), per_second=_PER_SECOND, seconds=run.at_most(_SECONDS)
                    ),
                )
                refused = sum(not agents.quietly(f"delete table {name}") for name in before)
                run.count("deletions that the kernel refused", refused)
                assert refused == len(before) > 0
                assert live_agent.listings() == before
                assert agent.said() == said


def _needs_owner() -> None:
    import pytest

    if "owner" not in kernel.nft("list table ip netagent"):
        pytest.skip("this kernel has no owners of tables (Linux 6.9)")


@drill("firewall-reload", 3, quick=1, full=20)
def firewall_reload(run: Run) -> None:
    """A firewall that reloads (iptables-nft -F, -X in every table, `iptables-restore` of nothing, its own nft table
    made anew) changes nothing of ours, owned or not."""
    agents.needs("iptables-nft")
    commands = [["iptables-nft", "-t", table, flag] for table in ("nat", "filter", "mangle") for flag in ("-F", "-X")]
    with states.opened() as ours:
        want(ours, states.before_and_after()[0], *Family)
        ours.commit()
        before = live_agent.listings()
        for _ in run.rounds():
            for command in commands:
                subprocess.run(command, check=True, timeout=60, capture_output=True)
            subprocess.run(["iptables-nft-restore"], input="*nat\nCOMMIT\n*filter\nCOMMIT\n", text=True, check=True)
            kernel.nft("add table inet firewall; delete table inet firewall; add table inet firewall")
            run.count("reloads")
            assert live_agent.listings() == before


@drill("busy-neighbour", 8, 9, quick=1, full=10)
def busy_neighbour(run: Run) -> None:
    """Commits between those of a neighbour that never rests: what depends on a reading is tried again a bounded number
    of times when the kernel says that it is stale, and then lands; a table that we own is read whole all the same."""
    before, after = states.before_and_after()
    for _ in run.rounds():
        kernel.fresh()
        with states.opened(owns=True) as ours, _neighbour(*_TABLE) as commits:
            landed = before
            want(ours, before)
            ours.commit()
            for state in (after, before, after) * 10:
                if not _read(run, ours):
                    continue
                landed = state
                want(ours, state)
                ours.update({**before, **after}, state)
                done = ours.commit()
                assert done.conflicts <= backend._GUARDED_ATTEMPTS
                run.count("commits that depended on a reading")
                run.count("conflicts", done.conflicts)
            run.count("commits of the neighbour", int.from_bytes(commits[:]))
        with states.opened() as fresh:
            assert not states.differences(fresh, landed)
        assert run.counts["commits that depended on a reading"], "not one reading was whole"


def _read(run: Run, ours: backend.Backend) -> bool:
    """Read everything; False if others did not let us, which it says."""
    try:
        ours.read()
    except errors.NetagentError:
        run.count("readings that were given up, and said so")
        return False
    return True


@drill("unguarded-commits", 8, full=10)
def unguarded_commits(run: Run) -> None:
    """Commits that depend on nothing but our own earlier ones, beside a neighbour that never rests: none is refused as
    stale, and nothing is read for them."""
    before, after = states.before_and_after()
    for _ in run.rounds():
        kernel.fresh()
        with test_mirror.watching(states.CLIENTS) as ours:
            want(ours, before)
            ours.commit()
            with _neighbour(*_TABLE, pause=0.001) as commits, test_mirror.counted_dumps(ours) as dumps:
                for state in (after, before) * 20:
                    ours.follow()
                    ours.update({**before, **after}, state)
                    done = ours.commit()
                    assert done.operations
                    assert done.conflicts == 0
                    run.count("commits")
                run.count("commits of the neighbour", int.from_bytes(commits[:]))
            run.count("listings", len(dumps))
            assert not dumps
        with states.opened() as fresh:
            assert not states.differences(fresh, before)


_TABLE = (transaction.AddTable(Family.IPV4), transaction.DeleteTable(Family.IPV4))


@contextmanager
def _neighbour(
    *operations: transaction.Operation, table: bytes = b"netprobe", pause: float = 0.0
) -> Iterator[mmap.mmap]:
    """A process that commits these operations again and again, to a table of this name, which is as long as ours; how
    often so far is in the memory that it shares."""
    ours = ruleset.TABLE_NAME.encode()
    messages = [raw.replace(ours, table) for operation in operations for raw in wire.messages(operation)]
    counter = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        try:
            agents.die_with_parent()
            with netlink.NftablesSocket() as socket:
                for number in itertools.count(1):
                    socket.commit(messages)
                    counter[:] = number.to_bytes(8)
                    time.sleep(pause)
        finally:
            os._exit(1)
    try:
        yield counter
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@drill("disturbed-readings", 9, quick=1, full=10)
def disturbed_readings(run: Run) -> None:
    """Readings while others commit a thousand times a second: each is whole or an error, and never shows drift where
    there is none."""
    state = states.before_and_after(120)[0]
    for _ in run.rounds():
        kernel.fresh()
        with states.opened() as ours:
            want(ours, state)
            ours.commit()
        with _neighbour(*_TABLE, pause=0.001) as commits, states.opened() as held:
            interrupted = _counted_interruptions(held)
            for _ in range(40):
                if not _read(run, held):
                    continue
                pending = states.differences(held, state)
                run.count("whole readings")
                assert pending.count == 0, [type(operation).__name__ for operation in pending.operations]
            run.count("interrupted listings", len(interrupted))
            run.count("commits of the neighbour", int.from_bytes(commits[:]))


def _counted_interruptions(held: backend.Backend) -> list[int]:
    """The kinds of listings that are interrupted from now on."""
    found: list[int] = []
    original = held.socket.dump

    def dump(kind: int, family: int, payload: bytes = b"") -> Iterator[tuple[int, bytes]]:
        try:
            yield from original(kind, family, payload)
        except InterruptedError:
            found.append(kind)
            raise

    held.socket.dump = dump  # type: ignore[method-assign]
    return found


@drill("lost-notices", 10, quick=1, full=10)
def lost_notices(run: Run) -> None:
    """A burst of 50,000 elements of somebody else, and a receive buffer that holds a few: the kernel says that notices
    are lost, everything is read anew, and what was done to our tables meanwhile is put right."""
    held = monitor._RECEIVE_BUFFER
    state = states.before_and_after()[0]
    monitor._RECEIVE_BUFFER = 4096
    try:
        for _ in run.rounds():
            kernel.fresh()
            with test_mirror.watching(states.CLIENTS) as ours:
                want(ours, state)
                ours.commit()
                _burst(then="delete element ip netagent cluster_ips { 10.96.0.2 }")
                with test_mirror.counted_dumps(ours) as dumps:
                    assert ours.follow() is not None
                run.count("notices of the burst", 50_000)
                run.count("listings", len(dumps))
                assert c.NFT_MSG_GETSETELEM in dumps, "it did not read anew"
                assert ours.commit().operations == 1
                assert not ours.moved()
            with states.opened() as fresh:
                assert not states.differences(fresh, state)
    finally:
        monitor._RECEIVE_BUFFER = held


def _burst(*, then: str) -> None:
    """50,000 elements of somebody else, in pieces that fit into anybody's send buffer, and then this."""
    kernel.nft("add table ip theirs; add set ip theirs s { type ipv4_addr; }")
    for first in range(0, 50_000, 2000):
        numbers = range(first, first + 2000)
        elements = ", ".join(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in numbers)
        kernel.nft(f"add element ip theirs s {{ {elements} }}")
    kernel.nft(then)
