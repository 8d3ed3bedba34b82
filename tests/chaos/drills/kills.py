"""SIGKILL, whenever it hurts most."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from typing import NoReturn

from netagent.nftables import backend, transaction
from tests import patience
from tests.chaos import agents, states
from tests.chaos.framework import Run, drill
from tests.nftables.test_backend_kernel import want

# A kill comes at most so many commits after the child has begun.
_COMMITS = 2


@drill("kill-at-commit", 4, 45, quick=15, full=1000)
def kill_at_commit(run: Run) -> None:
    """A process that is killed at any moment around a commit leaves the state before or after a transaction, never
    one in between; the next process makes it right with no more operations than differ, and with none if none do."""
    dice = random.Random(4)
    before, after = states.before_and_after()
    with states.opened(owns=_can_own()) as ours:
        want(ours, before)
        ours.commit()
    usual = _usual_seconds(before, after)
    for _ in run.rounds():
        child = _committing(before, after)
        time.sleep(dice.uniform(0, _COMMITS * usual))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        run.count("kills")
        target = after if dice.random() < 0.5 else before
        expected = _check_state(run, before, after, target)
        _restart(run, target, expected)


def _can_own() -> bool:
    from netagent.model.addresses import Family
    from netagent.nftables import netlink, probe

    with netlink.NftablesSocket() as socket:
        return probe.can_own(socket, Family.IPV4)


def _usual_seconds(before: states.State, after: states.State) -> float:
    """How long a commit with all its planning takes here."""
    begun = time.monotonic()
    with states.opened(owns=_can_own()) as ours:
        for state in (after, before, after, before):
            _change(ours, before, after, state)
    return (time.monotonic() - begun) / 4


def _change(ours: backend.Backend, before: states.State, after: states.State, state: states.State) -> None:
    want(ours, state)
    ours.update({**before, **after}, state)
    ours.commit()


def _committing(before: states.State, after: states.State) -> int:
    """A process that goes from one state to the other and back, for ever; it has begun when this returns."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _commit_for_ever(before, after, writer)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return child


def _commit_for_ever(before: states.State, after: states.State, begun: int) -> NoReturn:
    try:
        agents.die_with_parent()
        with states.opened(owns=_can_own()) as ours:
            os.write(begun, b"\0")
            while True:
                _change(ours, before, after, after)
                _change(ours, before, after, before)
    finally:
        os._exit(1)


def _check_state(run: Run, before: states.State, after: states.State, target: states.State) -> int:
    """See what the kernel holds; the number of operations from there to the target."""
    found: dict[str, transaction.Transaction] = {}
    for name, state in (("before", before), ("after", after)):
        with states.opened() as held:
            found[name] = states.differences(held, state)
    served = [name for name, pending in found.items() if not states.of_frontends(pending)]
    assert served, "the kernel holds neither the state before nor the one after"
    exact = [name for name, pending in found.items() if not pending]
    # A change that needs new shapes is several transactions, and one of them alone is what packets notice.
    run.count(f"exactly the state {exact[0]}" if exact else "between two transactions of a change, as it shall be")
    return found["after" if target is after else "before"].count


def _restart(run: Run, target: states.State, expected: int) -> None:
    """A new process adopts what is there and makes it the target; and another one finds nothing to do."""
    with states.opened(owns=_can_own()) as ours:
        want(ours, target)
        operations = ours.commit().operations
    assert operations == expected, f"{operations} operations, where {expected} differed"
    run.count("restarts with zero operations" if not operations else "restarts with some operations")
    run.count("operations of restarts", operations)
    with states.opened(owns=_can_own()) as again:
        want(again, target)
        assert again.commit() == backend.Commit(0, 0, 0), "nothing had changed"


_EDITS = (
    "delete table ip netagent",
    "flush map ip netagent backends",
    "add rule ip netagent services counter",
    "add element ip netagent cluster_ips { 10.9.9.9 }",
)


@drill("kill-agent", 4, 5, full=25)
def kill_agent(run: Run) -> None:
    """`netagent run` that is killed at any moment while its cluster changes is right again after a restart; a restart
    on an unchanged cluster changes nothing."""
    dice = random.Random(5)
    with agents.Cluster() as cluster:
        for number in run.rounds():
            owned = bool(number % 2)
            with agents.Agent(cluster, owned=owned) as agent:
                run.measured("from start to right", agent.until_right())
                for _ in range(dice.randrange(1, 6)):
                    cluster.change(dice)
                    if not owned and dice.random() < 0.5:
                        run.count("edits by others", agents.quietly(dice.choice(_EDITS)))
                    time.sleep(dice.uniform(0, 0.03))
                agent.process.kill()
                run.count("kills")
            with agents.Agent(cluster, owned=owned, talk="-vv") as agent:
                agent.until_right()
                agent.until_synced()
                run.count("operations of restarts", sum(agent.operations()))
                agent.process.kill()
            with agents.Agent(cluster, owned=owned, talk="-vv") as agent:
                agent.until_said("sync committed operations=0 ")
                assert not sum(agent.operations()), "nothing had changed"
                run.count("restarts with zero operations")


# The process dies at the very moment when it has committed and would have stale flows looked for.
_DIES = """
import os, signal
from netagent.agent import sweeper
sweeper.FlowSweeper.submit = lambda self, rules: os.kill(os.getpid(), signal.SIGKILL)
"""


@drill("kill-before-cleanup", 5, 37, quick=1, full=10)
def kill_before_cleanup(run: Run) -> None:
    """An agent that is killed after a commit and before the flows of an endpoint that went are dropped: the next one
    drops them, and those of the endpoints that stay go on."""
    agents.needs("conntrack")
    for command in ("link set lo up", "addr add 192.0.2.1/32 dev lo", "route add local 10.0.0.0/8 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    for _ in run.rounds():
        with agents.Cluster(services=0) as cluster:
            cluster.serve(1, [1, 2], protocol="UDP")
            cluster.write()
            with agents.Agent(cluster) as agent:
                agent.until_right()
            while len(_flow_endpoints()) < 2:
                _send_datagrams()
            with agents.Agent(cluster, preface=_DIES) as agent:
                cluster.serve(1, [2], protocol="UDP")
                cluster.write()
                patience.until(lambda dying=agent: not dying.alive(), "it is killed")
                assert agent.process.returncode == -signal.SIGKILL
            run.count("kills between commit and cleanup")
            with agents.Agent(cluster) as agent:
                agent.until_right()
                patience.until(lambda: _flow_endpoints() == {"10.180.1.2"}, lambda: f"flows to {_flow_endpoints()}")
                run.count("restarts that dropped the stale flows, and no other")
                assert agent.end() == 0
            subprocess.run(["conntrack", "-F"], check=True, capture_output=True)


def _send_datagrams() -> None:
    for _ in range(8):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("192.0.2.1", 0))
            with contextlib.suppress(ConnectionRefusedError):  # nobody listens
                sender.sendto(b"?", (agents.cluster_ip(1), 80))


def _flow_endpoints() -> set[str]:
    """The endpoints that flows to the Service lead to."""
    command = ["conntrack", "-L", "-p", "udp", "--orig-dst", agents.cluster_ip(1)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {line.split("src=")[2].split()[0] for line in listed.splitlines() if line.count("src=") == 2}
