"""Time that stands still, runs slowly, or jumps; and signals that come all at once."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time

import pytest

from tests import builders, kernel, patience
from tests.agent import live_agent
from tests.apiserver import ApiServer
from tests.chaos import agents
from tests.chaos.framework import Run, drill


@drill("stopped", 39, full=1)
def stopped(run: Run) -> None:
    """An agent that is stopped (SIGSTOP) for a minute while its cluster changes and others delete its tables is right
    after SIGCONT, and lives: nothing that happened meanwhile is lost."""
    dice = random.Random(39)
    with agents.Cluster() as cluster, agents.Agent(cluster) as agent:
        agent.until_right()
        for _ in run.rounds():
            agent.process.send_signal(signal.SIGSTOP)
            ends = time.monotonic() + run.at_most(60)
            while time.monotonic() < ends:
                cluster.change(dice)
                run.count("changes")
                if run.counts["changes"] % 20 == 1:
                    run.count("tables deleted by others", agents.quietly("delete table ip netagent"))
                time.sleep(0.1)
            agent.process.send_signal(signal.SIGCONT)
            run.measured("from SIGCONT to right", agent.until_right())


@drill("starved", 39, full=1)
def starved(run: Run) -> None:
    """An agent that gets a twentieth of a processor (stopped 95 ms of each 100) falls behind and catches up: it ends
    exactly right, with what came in crowds committed together."""
    dice = random.Random(38)
    with agents.Cluster() as cluster, agents.Agent(cluster) as agent:
        agent.until_right()
        ended = threading.Event()

        def starve() -> None:
            while not ended.is_set():
                agent.process.send_signal(signal.SIGSTOP)
                time.sleep(0.095)
                agent.process.send_signal(signal.SIGCONT)
                time.sleep(0.005)

        thread = threading.Thread(target=starve)
        thread.start()
        try:
            for _ in run.rounds():
                for _ in range(200):
                    cluster.change(dice)
                    run.count("changes")
                    time.sleep(0.01)
                run.measured("from the last change to right, starved", agent.until_right())
        finally:
            ended.set()
            thread.join()
        run.count("syncs that changed something", len(agent.operations()))


# Wall time that jumps an hour to and fro each time that somebody looks; the monotonic clock never does.
_JUMPS = """
import itertools, time
_time, _hours = time.time, itertools.cycle((0.0, 3600.0, -3600.0, 86400.0))
time.time = lambda: _time() + next(_hours)
"""


@drill("clock-jumps", 38, full=1)
def clock_jumps(run: Run) -> None:
    """A wall clock that jumps by hours, and trigger times in the future: rules follow at once, no metric is negative,
    and health stays good."""
    live_agent.begin()
    with ApiServer(live_agent.small_cluster()) as server, live_agent.Agent(server.url, preface=_JUMPS) as agent:
        agent.until_listening()
        live_agent.until_right(server)
        for number in run.rounds():
            for change in range(20):
                changed = builders.slice_manifest("s1", f"10.180.{number}.{change + 1}")
                when = {"endpoints.kubernetes.io/last-change-trigger-time": "2999-01-01T00:00:00Z"}
                changed["metadata"]["annotations"] = when
                server.apply(changed)
                live_agent.until_right(server)
                run.count("changes")
            metrics = live_agent.get(f"{live_agent.METRICS}/metrics").body
            negative = [line for line in metrics.splitlines() if not line.startswith("#") and " -" in line]
            assert not negative, negative
            run.count("metrics looked at", len(metrics.splitlines()))
            assert live_agent.get(f"{live_agent.HEALTH}/livez").status == 200
            assert live_agent.get(f"{live_agent.HEALTH}/healthz").status == 200


@drill("another-uptime", 38, quick=1, full=2)
def another_uptime(run: Run) -> None:
    """A monotonic clock of another epoch (a time namespace: a host that was just booted, or has run for years) makes no
    difference."""
    for number in run.rounds():
        offset = ("100000000", "0")[number % 2]
        shell = ["unshare", "--time", "--monotonic", offset, "--boottime", offset]
        if subprocess.run([*shell, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no time namespaces here (Linux 5.6, util-linux 2.36)")
        with agents.Cluster(services=2) as cluster, agents.Agent(cluster, before=shell) as agent:
            agent.until_right()
            cluster.serve(0, [7])
            cluster.write()
            agent.until_right()
            assert agents.quietly("delete table ip netagent")
            agent.until_right()
            run.count("clocks")


@drill("signal-storm", 47, quick=1, full=5)
def signal_storm(run: Run) -> None:
    """1,000 SIGHUPs are some reloads and no end of it; SIGTERM at any moment, once or twice, ends it with exit code 0,
    and its rules stay whole."""
    dice = random.Random(47)
    with agents.Cluster(services=4) as cluster:
        for number in run.rounds():
            with agents.Agent(cluster, talk="-vv") as agent:
                agent.until_synced()  # a signal before Python has begun ends any process
                for _ in range(1000):
                    agent.process.send_signal(signal.SIGHUP)
                run.count("SIGHUPs", 1000)
                cluster.serve(0, [number % 200 + 1])
                cluster.write()
                agent.until_right()
                for _ in range(dice.randrange(3)):
                    cluster.change(dice, services=4)
                time.sleep(dice.uniform(0, 0.05))
                agent.process.send_signal(signal.SIGTERM)
                if number % 2:
                    agent.process.send_signal(signal.SIGTERM)
                assert agent.process.wait(patience.HANGS) == 0
                run.count("ends by SIGTERM with exit code 0")
                assert "netagent" in kernel.nft("list tables")


@drill("term-at-start", 47, full=40)
def term_at_start(run: Run) -> None:
    """SIGTERM at any moment from the first on ends it with exit code 0, or before Python has begun by the signal; what
    the kernel has is all of the cluster or nothing of it."""
    dice = random.Random(46)
    with agents.Cluster() as cluster:
        for _ in run.rounds():
            kernel.fresh()
            with agents.Agent(cluster) as agent:
                time.sleep(dice.uniform(0.0, 0.6))
                code = agent.end()
                run.count(f"exit code {code}")
                assert code in (0, -signal.SIGTERM), code
            whole = not agents.right(cluster)
            assert whole or "netagent" not in kernel.nft("list tables")
            run.count("all of the cluster" if whole else "nothing of it")
