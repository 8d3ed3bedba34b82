"""Minutes to hours of it. Exit code 0: flat, and no connection failed; 1: not so; 69: it cannot run here."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import yaml
from demo import universe
from demo.__main__ import MORE_WEB_PODS, TOP, _require_privacy
from demo.clients import Target, ask
from demo.cluster import Manifests, Pod
from demo.pods import PodServers

from soak import figures
from soak.agent import Agent
from soak.churn import PROBE_ADDRESS, PROBE_PORT, Churn
from soak.faults import Faults
from soak.traffic import Traffic
from tests.apiserver import ApiServer, Cluster

_CLIENT = Pod("soak-client", universe.NODE, ("10.244.1.100", "fd00:10:244:1::100"))
_EVENTS_PER_SECOND = 20
_CONNECTIONS_PER_SECOND = 20
_SECONDS_TO_FAULT = (2.0, 6.0)
_PATIENCE = 60.0
EX_UNAVAILABLE = 69  # sysexits.h


def main() -> int:
    arguments = _arguments()
    # As SystemExit, so that what was begun is ended. A shell may have begun us with SIGINT ignored.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda number, frame: sys.exit(128 + number))
    try:
        _require_privacy()
        with tempfile.TemporaryDirectory(prefix="netagent-soak-") as scratch, ExitStack() as stack:
            return _Soak(Path(scratch), stack, random.Random(arguments.seed)).run(arguments.minutes * 60)
    except (OSError, RuntimeError) as error:
        print(f"the soak cannot run here: {error}", file=sys.stderr)
        return EX_UNAVAILABLE


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="netagent run with churn, traffic and faults. Exit code 1 if a connection to a Service with "
        "healthy endpoints failed, or if memory, descriptors or lag grew.",
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--seed", type=int, default=6, help="for another order of things")
    return parser.parse_args()


class _Soak:
    """The stage, and what happens on it. Owns: the agent, the API server, the traffic. Threading: the main thread's,
    but for traffic and the clock of the probe."""

    def __init__(self, scratch: Path, stack: ExitStack, dice: random.Random) -> None:
        (scratch / "examples").mkdir()
        manifests = Manifests(TOP / "examples", scratch / "examples")
        web = manifests.pods("web")
        more = [dataclasses.replace(pod, ports=web[0].ports) for pod in MORE_WEB_PODS]
        pods = {pod.name: pod for pod in (*manifests.pods(), *more, _CLIENT)}
        self._universe = universe.Universe(pods.values())
        stack.enter_context(PodServers(self._universe))
        paths = sorted((TOP / "examples").glob("*.yaml"))
        documents = [one for path in paths for one in yaml.safe_load_all(path.read_text()) if one]
        cluster = Cluster(*(one for one in documents if one["kind"] != "KubeProxyConfiguration"))
        server = stack.enter_context(ApiServer(cluster, bookmark_seconds=5))
        steady = next(one for one in manifests.slices("web") if one["addressType"] == "IPv4")
        steady["metadata"].setdefault("namespace", "default")
        self._churn = Churn(server, dice, steady, more)
        self._agent = Agent(server.url, scratch / "log")
        self._faults = Faults(self._agent, server, dice)
        self._dice = dice
        self._stack = stack
        self._probe_pods = (web[0], web[1])
        service = manifests.service("web")["spec"]
        shop = manifests.service("shop")["spec"]
        self._targets = [
            (self._universe.pod(_CLIENT.name), Target(service["clusterIPs"][0], 80)),
            (self._universe.pod(_CLIENT.name), Target(service["clusterIPs"][-1], 80)),
            (self._universe.node, Target(service["clusterIPs"][0], 80)),
            (self._universe.outside, Target(universe.NODE_ADDRESSES[universe.NODE][0], shop["ports"][0]["nodePort"])),
            (self._universe.outside, Target(shop["externalIPs"][0], 80)),
        ]
        self._traffic: list[Traffic] = []
        self._lags: list[float] = []
        self._moved = threading.Event()
        self._samples: list[figures.Sample] = []
        self._begun = 0.0

    def run(self, seconds: float) -> int:
        """All of it; the exit code."""
        self._agent.start()
        self._stack.callback(self._agent.kill)
        self._until_served()
        rate = _CONNECTIONS_PER_SECOND
        self._traffic = [self._stack.enter_context(Traffic(*one, per_second=rate)) for one in self._targets]
        probing = threading.Thread(target=self._probe, name="probe", daemon=True)
        probing.start()
        print(self._heading(seconds), flush=True)
        self._begun = time.monotonic()
        failed: Counter[str] = Counter()
        for minute in range(1, max(1, round(seconds / 60)) + 1):
            failed += self._minute(minute, min(60.0, seconds), kills=minute <= max(1, seconds // 240))
            if self._agent.exit_code is not None:
                failed[f"the agent ended with {self._agent.exit_code}"] += 1
                break
        self._moved.set()
        probing.join(_PATIENCE)
        return self._end(failed)

    def _heading(self, seconds: float) -> str:
        return (
            f"`scripts/soak --minutes {seconds / 60:g}`: Linux {platform.release()}, {os.cpu_count()} processors, "
            f"Python {platform.python_version()}\n\n{figures.HEAD}"
        )

    def _until_served(self) -> None:
        """RuntimeError if the Services never answer."""
        until = time.monotonic() + _PATIENCE
        for place, target in self._targets:
            while True:
                try:
                    with place.entered():
                        ask(target, patience=1.0)
                    break
                except OSError as error:
                    if time.monotonic() > until:
                        raise RuntimeError(f"{target} does not answer: {error}\n{self._agent.said()}") from error
                    time.sleep(0.05)

    def _minute(self, number: int, seconds: float, *, kills: bool) -> Counter[str]:
        """A minute of it; the connections that failed."""
        self._faults.kills = kills
        before = self._agent.usage()
        events, faults, lags = self._churn.events, self._faults.counts.total(), len(self._lags)
        ends = time.monotonic() + seconds
        next_fault = next_sample = time.monotonic()
        while (now := time.monotonic()) < ends and self._agent.exit_code is None:
            self._churn.change()
            if now >= next_fault:
                self._faults.happen()
                next_fault = time.monotonic() + self._dice.uniform(*_SECONDS_TO_FAULT)
            if now >= next_sample and (usage := self._agent.usage()):
                sample = figures.Sample(now - self._begun, self._agent.starts, usage.rss, usage.descriptors)
                self._samples.append(sample)
                next_sample = now + 1
            time.sleep(self._dice.uniform(0, 2 / _EVENTS_PER_SECOND))
        taken = [traffic.take() for traffic in self._traffic]
        failed = sum((one for _, one, _ in taken), Counter[str]())
        after, found = self._agent.usage(), self._lags[lags:]
        used = after.cpu - before.cpu if before and after else 0.0
        minute = figures.Minute(
            number,
            sum(done for done, _, _ in taken),
            failed.total(),
            self._churn.events - events,
            statistics.median(found) if found else 0.0,
            max(found, default=0.0),
            after.rss if after else 0,
            after.descriptors if after else 0,
            max(0.0, used) / seconds * 100,
            self._faults.counts.total() - faults,
        )
        print(figures.line(minute), flush=True)
        return failed

    def _probe(self) -> None:
        """Move the probe's Service to and fro, and see how long it takes until a connection gets there."""
        self._universe.pod(_CLIENT.name).enter()
        number = 0
        while not self._moved.wait(0.5):
            number += 1
            pod = self._probe_pods[number % 2]
            begun = time.monotonic()
            self._churn.move_probe(pod)
            while not self._moved.is_set() and time.monotonic() < begun + _PATIENCE:
                try:
                    if ask(Target(PROBE_ADDRESS, PROBE_PORT), patience=1.0).pod == pod.name:
                        break
                except OSError:
                    pass
                time.sleep(0.005)
            self._lags.append(time.monotonic() - begun)

    def _end(self, failed: Counter[str]) -> int:
        print(f"\nFaults: {', '.join(f'{n} {what}' for what, n in sorted(self._faults.counts.items()))}.")
        print(f"Lines of log: {self._agent.lines()}. Starts of the agent: {self._agent.starts}.")
        troubles = figures.troubles(self._samples, self._lags, failed.total())
        code = self._agent.stop()
        if code:
            troubles.append(f"the agent ended with exit code {code}")
        for trouble in troubles:
            print(f"NOT as it should be: {trouble}")
        for reason, times in failed.most_common(10):
            print(f"  {times} times: {reason}")
        if troubles:
            print(self._agent.said(), file=sys.stderr)
        else:
            print("No connection failed; memory, descriptors and lag stayed flat.")
        return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
