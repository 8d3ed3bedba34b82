"""A day of churn in minutes: the agent's memory stays flat, and in the end the rules are exactly right.

20,000 events, or as many as NETAGENT_CHURN_EVENTS says (200,000 is what a day of a large cluster has).
"""

from __future__ import annotations

import os
import signal
import time
from random import Random

import pytest

from tests import builders, kernel
from tests.agent import live_agent
from tests.agent.live_agent import HEALTH, Agent, get, until_right
from tests.apiserver import ApiServer, faults

EVENTS = int(os.environ.get("NETAGENT_CHURN_EVENTS", "20000"))
# So many are told before we look whether the agent has kept up; by then a twentieth of a run has gone at least.
BURST = 500
# What the heap may wander. A leak of 100 bytes for each event would be 20 MB in the long run.
TOLERANCE_BYTES = 6 << 20
SERVICES = 100
# A watch ends after 2 to 4 s and a list follows every 5 s: what happens in a day happens within a minute.
PACING = {"watch_seconds": 2.0, "audit_seconds": 5.0}


class Churn:
    """Changes of all sorts, most of them to endpoints. Names of jobs never come back, as in a real cluster.

    Owns: the number of jobs so far, and which are there. Use: `change`, as often as events are wanted.
    """

    def __init__(self, server: ApiServer, random: Random) -> None:
        self._server = server
        self._random = random
        self._jobs: list[str] = []
        self._made = 0
        self.events = 0

    def change(self) -> None:
        """One to four events."""
        before = self._server.cluster.version
        match self._random.randrange(20):
            case 0 | 1:
                self._make_job()
            case 2 | 3 if self._jobs:
                self._end_job()
            case 4:
                self._service()
            case 5:
                self._bad_then_good()
            case 6:
                self._server.apply(builders.node_manifest(zone=self._random.choice("ab")))
            case _:
                self._endpoints(f"s{self._random.randrange(SERVICES)}")
        self.events += self._server.cluster.version - before

    def _endpoints(self, service: str) -> None:
        addresses = [f"10.180.{self._random.randrange(250)}.{self._random.randrange(1, 250)}" for _ in range(3)]
        changed = builders.slice_manifest(service, *dict.fromkeys(addresses))
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        changed["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": now}
        self._server.apply(changed)

    def _service(self) -> None:
        number = self._random.randrange(SERVICES)
        port = builders.port_manifest(self._random.randrange(80, 90))
        self._server.apply(builders.service_manifest(f"s{number}", cluster_ip=f"10.96.0.{number + 1}", ports=[port]))

    def _bad_then_good(self) -> None:
        name = f"bad-{self._made}"
        self._made += 1
        bad = builders.service_manifest(name, cluster_ip="10.96.0.999")
        self._server.apply(bad)
        self._server.delete("Service", name)

    def _make_job(self) -> None:
        name = f"job-{self._made}"
        address = f"10.97.{self._made // 250 % 250}.{self._made % 250 + 1}"
        self._made += 1
        self._server.apply(builders.service_manifest(name, cluster_ip=address))
        self._endpoints(name)
        self._jobs.append(name)
        while len(self._jobs) > SERVICES:
            self._end_job()

    def _end_job(self) -> None:
        name = self._jobs.pop(self._random.randrange(len(self._jobs)))
        self._server.delete("EndpointSlice", f"{name}-1")
        self._server.delete("Service", name)


@pytest.mark.slow
@kernel.isolated
def test_a_day_of_churn_leaves_memory_flat_and_rules_right() -> None:
    signal.alarm(max(600, EVENTS // 50))  # instead of the time that other tests have
    live_agent.begin()
    random = Random(20)
    cluster = live_agent.small_cluster(services=SERVICES)
    with ApiServer(cluster, bookmark_seconds=0.5) as server, Agent(server.url, **PACING) as agent:
        until_right(server)
        churn = Churn(server, random)
        sizes: list[int] = []
        begun, slowest, bursts = time.monotonic(), 0.0, 0
        while churn.events < EVENTS:
            goal = churn.events + BURST
            while churn.events < goal:
                churn.change()
            bursts += 1
            if bursts % 8 == 3:
                server.cut_connections()
            elif bursts % 8 == 5:
                server.fault(faults.status(500, times=6))
            elif bursts % 8 == 7:
                server.compact()  # also of the test's own memory
            slowest = max(slowest, until_right(server))
            get("http://127.0.0.1:10249/metrics")  # as Prometheus would
            sizes.append(agent.rss_bytes())
        seconds = time.monotonic() - begun
        warm, end = max(sizes[: max(1, len(sizes) // 5)]), sizes[-1]
        print(  # noqa: T201 - for whoever wants to know (pytest -s)
            f"\nmeasured: {churn.events} events in {seconds:.1f} s, slowest burst right after {slowest:.3f} s; "
            f"RSS after start {sizes[0] >> 10} KiB, warm {warm >> 10} KiB, most {max(sizes) >> 10} KiB, "
            f"end {end >> 10} KiB; {agent.metric('process_cpu_seconds_total'):.1f} s of CPU"
        )
        assert end - warm < TOLERANCE_BYTES, f"RSS over time, in KiB: {[size >> 10 for size in sizes]}"
        assert max(sizes) < 120 << 20
        assert get(f"{HEALTH}/livez").status == 200
        assert "Traceback" not in agent.said()
        done = live_agent.diff_process(server)
        assert (done.returncode, done.stdout) == (0, b"")
