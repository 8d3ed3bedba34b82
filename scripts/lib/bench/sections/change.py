"""One change: from the bytes of a line of a watch to the kernel's acknowledgement, in tables of every size."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import cluster, figures, report, state
from bench.plan import Plan
from bench.workers import Worker
from netagent.source.kinds import Kind

# A Service of this many endpoints is in every cluster.
LARGE = 1000
# Changes that every worker makes before it is the next one's turn.
_TURN = 20
# A change of the zone concerns every Service, so a few of them tell enough.
_ZONE_CHANGES = 5

# What is changed, in this order: what is added is removed again by the next one.
CHANGES = {
    "endpoint replaced": "",
    "endpoint added": "",
    "endpoint removed": "",
    "endpoint added, a number of its own": "no other Service has that many",
    "endpoint removed, a number of its own": "",
    "endpoint replaced, of 1,000": "slices of 100",
    "endpoint added, of 1,000": "",
    "endpoint removed, of 1,000": "",
    "Service added": "with its slice",
    "Service removed": "with its slice",
    "node label changed": "one that nothing depends on",
    "node zone changed": "every Service is planned anew",
}

Lines = list[tuple[Kind, bytes]]


# Those that are changed have 10 endpoints, whatever the size, so that sizes can be compared.
_CHANGED, _CHANGED_ENDPOINTS = 100, 10
# Behind them: Services that have the numbers of endpoints which changes lead to, as others have in a real cluster, and
# the large one.
MORE = (_CHANGED_ENDPOINTS,) * _CHANGED + (LARGE, LARGE, LARGE + 1, _CHANGED_ENDPOINTS + 1, _CHANGED_ENDPOINTS + 1)


class Measured(NamedTuple):
    """One change. Seconds to the acknowledgement (to the end, if nothing was committed), and of the processor."""

    latency: float
    processor: float
    operations: int
    transactions: int
    bytes: int


class Change:
    """In a worker: a programmed cluster, and changes to it."""

    def __init__(self, pages: str, services: int, endpoints: int) -> None:
        size = cluster.Size(services, endpoints)
        found = cluster.cluster(size, more=MORE)
        self._services = list(found.services[services : services + _CHANGED])
        self._large = found.services[services + _CHANGED]
        self._nodes = cluster.nodes_of(found.endpoints)
        self._state = state.State()
        self._pages = Path(pages)
        self._random = random.Random(1)
        self._later = 0
        self._added: list[int] = []
        self._alone = 0
        self._zone = "zone-a"

    def load(self) -> None:
        """Program the cluster."""
        self._state.list_all(self._pages)
        self._state.sync()
        self._take_measurements()

    def batch(self, change: str, count: int) -> list[Measured]:
        """Make so many changes of a kind, one after the other."""
        return [self.measured(lines) for lines in self.prepared(change, count)]

    def prepared(self, change: str, count: int) -> list[Lines]:
        """What comes over the watches for so many changes of a kind; they have to be made in this order."""
        return list(self._lines(change, count))

    def measured(self, lines: Lines) -> Measured:
        """Make one change."""
        found = self._state
        processor = time.process_time()
        started = time.perf_counter()
        for kind, line in lines:
            found.hear(kind, line)
        done = found.sync()
        ended = time.perf_counter()
        processor = time.process_time() - processor
        if done.operations and found.probe.acknowledged_at:
            ended = found.probe.acknowledged_at
        sends = self._take_measurements()
        return Measured(ended - started, processor, done.operations, done.transactions, sends)

    def _take_measurements(self) -> int:
        self._state.probe.clock.take()
        return self._state.probe.take_sends().bytes

    # --- what comes over the watch -----------------------------------------------------------------------------

    def _lines(self, change: str, count: int) -> Iterator[Lines]:
        match change:
            case "endpoint replaced":
                return (self._replaced(self._random.randrange(len(self._services))) for _ in range(count))
            case "endpoint added":
                self._added = self._random.sample(range(len(self._services)), min(count, len(self._services)))
                return (self._grown(index) for index in self._added)
            case "endpoint removed":
                return (self._shrunk(index) for index in self._added)
            case "endpoint added, a number of its own":
                return (self._alone_grown() for _ in range(count))
            case "endpoint removed, a number of its own":
                return (self._shrunk(self._alone) for _ in range(count))
            case "endpoint replaced, of 1,000":
                return (self._large_replaced() for _ in range(count))
            case "endpoint added, of 1,000" | "endpoint removed, of 1,000":
                return (self._large_last(added=change.startswith("endpoint added")) for _ in range(count))
            case "Service added":
                return (self._added_service(number) for number in range(count))
            case "Service removed":
                return (self._removed_service(number) for number in range(count))
            case "node label changed":
                return (self._node(label=f"value-{self._state.version}") for _ in range(count))
            case "node zone changed":
                return (self._node(zone=f"zone-{self._state.version}") for _ in range(count))
            case _:
                raise ValueError(change)

    def _slice(self, service: cluster.Service, number: int, type_: str = "MODIFIED") -> tuple[Kind, bytes]:
        endpoints = service.endpoints[number * cluster.SLICE_ENDPOINTS : (number + 1) * cluster.SLICE_ENDPOINTS]
        text = cluster.slice_json(service, number, endpoints, self._state.next_version(), nodes=self._nodes)
        return Kind.ENDPOINT_SLICE, cluster.watch_line(type_, text)

    def _next_address(self) -> str:
        self._later += 1
        return cluster.later_address(self._later)

    def _replace(self, service: cluster.Service, position: int) -> cluster.Service:
        found = list(service.endpoints)
        found[position] = self._next_address()
        return service._replace(endpoints=tuple(found))

    def _replaced(self, index: int) -> Lines:
        service = self._services[index]
        position = self._random.randrange(len(service.endpoints))
        self._services[index] = service = self._replace(service, position)
        return [self._slice(service, position // cluster.SLICE_ENDPOINTS)]

    def _grown(self, index: int) -> Lines:
        service = self._services[index]
        self._services[index] = service = service._replace(endpoints=(*service.endpoints, self._next_address()))
        return [self._slice(service, (len(service.endpoints) - 1) // cluster.SLICE_ENDPOINTS)]

    def _shrunk(self, index: int) -> Lines:
        service = self._services[index]
        last = (len(service.endpoints) - 1) // cluster.SLICE_ENDPOINTS
        self._services[index] = service = service._replace(endpoints=service.endpoints[:-1])
        return [self._slice(service, last)]

    def _alone_grown(self) -> Lines:
        """The same Service again and again, so that every change leads to a number that nobody had."""
        self._alone = 0
        return self._grown(self._alone)

    def _large_replaced(self) -> Lines:
        position = self._random.randrange(len(self._large.endpoints))
        self._large = self._replace(self._large, position)
        return [self._slice(self._large, position // cluster.SLICE_ENDPOINTS)]

    def _large_last(self, *, added: bool) -> Lines:
        """Only ever one more than 1,000: called for one change at a time."""
        endpoints = self._large.endpoints
        last = (len(endpoints) if added else len(endpoints) - 1) // cluster.SLICE_ENDPOINTS
        self._large = self._large._replace(
            endpoints=(*endpoints, self._next_address()) if added else endpoints[:-1],
        )
        return [self._slice(self._large, last)]

    def _newcomer(self, number: int) -> cluster.Service:
        endpoints = tuple(
            cluster.later_address((1 << 22) + number * _CHANGED_ENDPOINTS + index)
            for index in range(_CHANGED_ENDPOINTS)
        )
        return cluster.Service(900_000 + number, endpoints)

    def _added_service(self, number: int) -> Lines:
        service = self._newcomer(number)
        text = cluster.service_json(service, self._state.next_version())
        return [(Kind.SERVICE, cluster.watch_line("ADDED", text)), self._slice(service, 0, "ADDED")]

    def _removed_service(self, number: int) -> Lines:
        service = self._newcomer(number)
        text = cluster.service_json(service, self._state.next_version())
        return [(Kind.SERVICE, cluster.watch_line("DELETED", text)), self._slice(service, 0, "DELETED")]

    def _node(self, *, zone: str | None = None, label: str = "none") -> Lines:
        self._zone = zone or self._zone
        text = cluster.node_json(self._state.next_version(), zone=self._zone, label=label)
        return [(Kind.NODE, cluster.watch_line("MODIFIED", text))]


def run(plan: Plan) -> report.Section:
    """All sizes at the same time, in turns of a few changes."""
    found: dict[str, dict[str, list[Measured]]] = {str(size): {name: [] for name in CHANGES} for size in plan.sizes}
    workers: dict[str, Worker] = {}
    try:
        for size in plan.sizes:
            plan.say(f"change: programming {size}")
            pages = plan.pages(size, MORE)
            worker = Worker(
                "sections.change:Change", pages=str(pages), services=size.services, endpoints=size.endpoints
            )
            workers[str(size)] = worker
            worker.ask("load")
        plan.settle()
        plan.say(f"change: {plan.changes} of each kind at each size")
        left = {name: min(plan.changes, _ZONE_CHANGES) if "zone" in name else plan.changes for name in CHANGES}
        while any(left.values()):
            for name in CHANGES:
                count = min(left[name], _TURN)
                left[name] -= count
                for size_text, worker in workers.items():
                    found[size_text][name] += [Measured(*one) for one in _turn(worker, name, count)]
    finally:
        for worker in workers.values():
            worker.close()
    return section(found)


def _turn(worker: Worker, name: str, count: int) -> list[Any]:
    found: list[Any] = []
    if not count:
        return found
    opposite = name.replace("added", "removed")
    if name.endswith(", of 1,000") and "replaced" not in name:
        # One of each at a time. The partner's are thrown away: it has a turn of its own.
        for _ in range(count):
            if name == opposite:
                worker.ask("batch", change=name.replace("removed", "added"), count=1)
            found += worker.ask("batch", change=name, count=1)
            if name != opposite:
                worker.ask("batch", change=opposite, count=1)
        return found
    return worker.ask("batch", change=name, count=count)  # type: ignore[no-any-return]


def section(found: dict[str, dict[str, list[Measured]]]) -> report.Section:
    """The section for these changes at these sizes."""
    rows = [
        (size, name, *_row(values)) for name in CHANGES for size, changes in found.items() if (values := changes[name])
    ]
    table = report.Table(
        "",
        (
            "Services x endpoints",
            "change",
            "changes",
            "p50 (quartiles), ms",
            "p99, ms",
            "most, ms",
            "processor p50, ms",
            "operations",
            "transactions",
            "bytes",
        ),
        rows,
    )
    data = {
        size: {name: [one._asdict() for one in values] for name, values in all_.items()} for size, all_ in found.items()
    }
    return report.Section("One change", (table,), data, _NOTES, _checks(found))


_NOTES = (
    "From the first byte of the watch's line to the answer of the kernel, without the loop's poll and the thread "
    "that reads the socket (Storm has these). The clusters of all sizes are programmed at the same time, in a "
    "namespace each, and take turns. In each of them the Services that change are 100 of 10 endpoints, and one of "
    '1,000 in slices of 100; others have the numbers of endpoints that changes lead to, but in "a number of its '
    'own".',
)


def _row(values: list[Measured]) -> tuple[str, ...]:
    latencies = sorted(one.latency * 1e3 for one in values)
    found = figures.summary(latencies)
    return (
        f"{len(values)}",
        f"{figures.plain(found.median)} ({figures.plain(found.low)} .. {figures.plain(found.high)})",
        figures.plain(figures.percentile(latencies, 99)),
        figures.plain(found.most),
        figures.plain(figures.summary(one.processor * 1e3 for one in values).median),
        *(
            _middle_and_range([getattr(one, name) for one in values])
            for name in ("operations", "transactions", "bytes")
        ),
    )


def _middle_and_range(values: list[int]) -> str:
    found = figures.summary(values)
    if found.least == found.most:
        return f"{found.median:,.0f}"
    return f"{found.median:,.0f} ({found.least:,.0f} .. {found.most:,.0f})"


def _checks(found: dict[str, dict[str, list[Measured]]]) -> list[report.Check]:
    checks = []
    p50s: dict[str, dict[str, float]] = {}
    for name in CHANGES:
        if "zone" in name:
            continue
        for percent, limit in ((50, 1.0), (99, 5.0)):
            worst, size = max(
                (figures.percentile(sorted(one.latency for one in changes[name]), percent) * 1e3, size)
                for size, changes in found.items()
            )
            text = f"{name}: p{percent} under {limit:g} ms at every size"
            checks.append(report.Check(text, f"{figures.plain(worst)} ms ({size})", worst < limit))
        p50s[name] = {
            size: figures.summary(one.latency for one in changes[name]).median for size, changes in found.items()
        }
    if len(found) > 1:
        for name, medians in p50s.items():
            few, many = min(medians, key=_services), max(medians, key=_services)
            grown = medians[many] / medians[few]
            text = f"{name}: p50 equal at {few} and at {many} (within 20 %)"
            checks.append(report.Check(text, f"{grown:.2f} times", grown <= 1.2))
    return checks


def _services(size: str) -> int:
    return int(size.partition(" ")[0].replace(",", ""))
