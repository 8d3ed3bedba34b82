"""Names that never come back leave nothing behind: whatever keeps things by the name of an object forgets them."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from netagent import errors, settings
from netagent.agent import announcing, api_feed, notify, planner, reconciler, reporting, telling
from netagent.agent.health import checks, state
from netagent.agent.metrics import collectors, connections
from netagent.model import objects
from netagent.source import manifests
from netagent.source.api import events, recorder
from netagent.source.api.exchange import Request
from netagent.source.faults import Remark
from netagent.source.kinds import Kind
from tests import builders
from tests.agent.test_loop import Kernel
from tests.agent.test_telling import FAMILIES, Listening

ROUNDS = 200
# By then everything that is kept once for all is there.
WARM = 20
OURS = ("netagent.", "prometheus_client", "tests.agent.test_loop")


class Source:
    """What an ApiSource is to its feed; it tells what the test says."""

    kinds = tuple(Kind)

    def __init__(self) -> None:
        self.waiting: list[events.Event] = []

    def start(self) -> None: ...

    def in_sync(self, kind: Kind) -> bool:
        return True

    def drain(self) -> list[events.Event]:
        drained, self.waiting = self.waiting, []
        return drained


class Transport:
    """An API server that takes every Event."""

    status = 201
    headers: Mapping[str, str] = types.MappingProxyType({})

    def post(self, request: Request, body: bytes) -> Transport:
        return self

    def get(self, request: Request) -> Transport:
        raise NotImplementedError

    def read(self) -> bytes:
        return b""

    def close(self) -> None: ...

    def abort(self) -> None: ...


class TakenPorts:
    """A Server whose every port is taken."""

    def open(self, *_: object, **__: object) -> None:
        raise OSError(98, "Address already in use")

    def close(self, *_: object) -> None: ...


class Agent:
    """The agent but for its sockets, threads of the source and kernel: see netagent.agent.live."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.source, self.kernel = Source(), Kernel()
        source: Any = self.source
        kernel: Any = self.kernel
        taken: Any = TakenPorts()
        listening: Any = Listening()
        self.planner = planner.Planner(settings.Settings(), node_name="node-1")
        self.reconciler = reconciler.Reconciler(self.planner, kernel, stale_flow_protocols=frozenset())
        health = state.AgentHealth(FAMILIES, sync_period_seconds=30, sources=(), clock=self.clock)
        self.metrics = collectors.Metrics(
            health,
            mode=settings.Mode.NFTABLES,
            families=FAMILIES,
            read_connections=self._counts,
            series_most=5,
            clock=self.clock,
            wall=lambda: 1_700_000_000.0 + self.now,
        )
        self.checks = checks.ServiceHealthChecks(taken, healthy=lambda: True)
        self.telling = telling.Telling(
            self.planner,
            agent=health,
            metrics=self.metrics,
            listening=listening,
            service_checks=self.checks,
            notifier=notify.Notifier({}),
            local_addresses=lambda: builders.packed("192.0.2.1"),
            clock=self.clock,
        )
        limits = recorder.Limits(spread_seconds=0.0, node_seconds=0.0)
        self.recorder = recorder.EventRecorder(Transport(), node_name="node-1", limits=limits, clock=self.clock)
        self.metrics.count_events(lambda: self.recorder.counts)
        self.announcing = announcing.Announcing(
            self.planner,
            node_name="node-1",
            record=self.recorder.record,
            listen_failures=lambda: self.checks.failures,
        )
        self.feed = api_feed.ApiFeed(source, listen=self._hear, clock=self.clock)
        self.telling.count_quarantined(lambda: self.feed.quarantined)
        self.conflicts = reporting.ConflictLog()
        self.files = reporting.SourceReporter()

    def clock(self) -> float:
        return self.now

    def _hear(self, drained: Iterable[events.Event]) -> None:
        self.telling.heard(drained)
        self.announcing.heard(drained)

    def _counts(self) -> Iterator[connections.ElementCount]:
        for key, frontend in self.planner.forwarding.frontends.items():
            yield connections.ElementCount(key, frontend.owner, key.family, int(self.now))

    def hear(self, *heard: events.Event) -> None:
        """What the loop does in a turn. Each is a while after the one before."""
        self.now += 400.0
        self.source.waiting += heard
        self.feed.take(self.planner.store)
        for observer in (self.telling, self.announcing):
            observer.turned()
        if self.planner.store.dirty:
            self.sync()
        self.kernel.commits.clear()  # the diary of the one that plays the kernel
        assert self.recorder.flush(60.0)

    def sync(self) -> None:
        try:
            report = self.reconciler.sync()
        except errors.NetagentError as error:
            for observer in (self.telling, self.announcing):
                observer.failed(error)
            return
        self.conflicts.synced(report, self.planner.forwarding)
        for observer in (self.telling, self.announcing):
            observer.synced(report)
            observer.turned()


def sizes(root: object) -> dict[str, int]:
    """How much is in each container that can be reached from here, by the way to it; items are not told apart."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    todo: list[tuple[str, object]] = [("", root)]
    while todo:
        way, one = todo.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | type | types.ModuleType | None):
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            found[way] = found.get(way, 0) + len(one)
            todo += [(f"{way}[]", item) for pair in one.items() for item in pair]
        elif isinstance(one, list | tuple | set | frozenset) or hasattr(one, "popleft"):
            found[way] = found.get(way, 0) + len(one)  # type: ignore[arg-type]
            todo += [(f"{way}[]", item) for item in one]  # type: ignore[union-attr]
        elif type(one).__module__.startswith(OURS) or isinstance(one, Agent):
            names = [*getattr(one, "__dict__", ()), *getattr(type(one), "__slots__", ())]
            todo += [(f"{way}.{name}", getattr(one, name, None)) for name in names]
    return found


def round_of(number: int) -> Iterator[list[events.Event]]:
    """What comes and goes in a round, of names that no other round has."""
    name, uid = f"job-{number}", f"u-{number}"
    key = ("default", name)
    bad = events.Quarantined(Kind.SERVICE, "default", f"bad-{name}", "spec.type", f"{number} is none", uid)
    bad_slice = events.Quarantined(Kind.ENDPOINT_SLICE, "default", f"by-hand{number}", "endpoints", "are none", uid)
    bad_node = events.Quarantined(Kind.NODE, "", f"node-{name}", "spec", "is none", uid)
    job = builders.service(
        name,
        uid=uid,
        created="2025-01-01T00:00:00Z",
        cluster_ips=["10.96.0.1"],  # which is default/web's
        external_ips=[f"198.51.100.{number % 250 + 1}"],
        type=objects.ServiceType.LOAD_BALANCER,
        external_policy=objects.TrafficPolicy.LOCAL,
        internal_policy=objects.TrafficPolicy.LOCAL,
        health_check_node_port=30000 + number,
    )
    remark = Remark(Kind.SERVICE, "default", name, "spec.loadBalancerSourceRanges[0]", "'x' is not a prefix; left out")
    there = builders.endpoint("10.180.1.1", node="node-2")
    trigger = "2023-11-15T22:13:21Z"
    slices = [
        builders.endpoint_slice(name, there, trigger_time=trigger),
        builders.endpoint_slice(name, there, name=f"other-{number}", trigger_time=trigger),
        builders.endpoint_slice(f"foreign-{number}", there, trigger_time=trigger),
        builders.endpoint_slice(name, there, name=f"by-hand{number}", trigger_time=trigger),
    ]
    applied = [events.Applied(Kind.ENDPOINT_SLICE, item) for item in slices]
    yield [bad, bad_node, *applied]
    yield [events.Applied(Kind.SERVICE, job, (remark,)), bad_slice]
    yield [msgspec.structs.replace(bad, name=name), events.Quarantined(Kind.SERVICE, reason="has no name")]
    if number % 2:  # each in a message of its own
        yield [events.Deleted(Kind.ENDPOINT_SLICE, item.key) for item in slices]
        yield [
            events.Deleted(Kind.SERVICE, key),
            events.Deleted(Kind.SERVICE, ("default", f"bad-{name}")),
            events.Deleted(Kind.NODE, f"node-{name}"),
        ]
    else:  # while nobody watched
        yield [events.Listed(kind=Kind.ENDPOINT_SLICE), events.Listed(kind=Kind.NODE)]
    yield [events.Listed(kind=Kind.SERVICE, objects=(builders.service(uid="u-web"),))]


def churn(agent: Agent, *, before_round: Callable[[int], None] = lambda number: None) -> dict[int, dict[str, int]]:
    """The sizes after each of the first rounds and after the last."""
    found: dict[int, dict[str, int]] = {}
    with agent.recorder:
        agent.hear(events.Applied(Kind.SERVICE, builders.service(uid="u-web")))
        for number in range(ROUNDS):
            before_round(number)
            for heard in round_of(number):
                agent.hear(*heard)
            bad = manifests.Quarantined(f"{number}.yaml", reason="is not YAML")
            agent.files.report(
                manifests.Reading(quarantined=(bad,), remarks=(Remark(Kind.NODE, "", f"{number}", "", ""),))
            )
            if agent.planner.store.dirty:
                agent.sync()
            if number < WARM or number == ROUNDS - 1:
                agent.metrics.exposition()
                found[number] = sizes(agent)
    return found


def grown(found: dict[int, dict[str, int]]) -> dict[str, tuple[int, int]]:
    """What is larger in the end than it ever was at the beginning."""
    warm = {way: max(found[number].get(way, 0) for number in range(WARM)) for way in found[ROUNDS - 1]}
    return {way: (warm[way], size) for way, size in found[ROUNDS - 1].items() if size > warm[way]}


def test_200_rounds_of_bad_objects_with_other_names_leave_all_sizes_flat() -> None:
    agent = Agent()
    found = churn(agent)
    assert grown(found) == {}
    # It was told of all that, and the walk saw where it is kept.
    assert agent.recorder.counts.sent >= 5 * ROUNDS
    for way in (".telling._complaints", ".announcing._facts", ".recorder._buckets", ".feed._set_aside"):
        assert way in found[ROUNDS - 1]
    assert sum(found[ROUNDS - 1].values()) > 500
    for family in FAMILIES:
        assert [agent.metrics.silent.count(policy, family) for policy in ("internal", "external")] == [0, 0]


def test_a_kernel_that_refuses_every_other_commit_changes_nothing_of_that() -> None:
    agent = Agent()

    def refuse(number: int) -> None:
        agent.kernel.refuse = number % 2

    assert grown(churn(agent, before_round=refuse)) == {}


def test_the_walk_would_see_a_leak() -> None:
    agent = Agent()
    leak: dict[str, frozenset[str]] = agent.telling._complaints
    found = churn(agent, before_round=lambda number: leak.__setitem__(f"{number}", frozenset()))
    assert list(grown(found)) == [".telling._complaints"]
