"""Memory: what `netagent run` holds, and what the kernel holds for the tables."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench import agents, cluster, figures, namespaces, report, state, workers
from bench.plan import Plan
from bench.workers import Worker

# For the rest of the start to happen: health servers, a collection, memory given back.
_REST_SECONDS = 1.0
# It varies little, and each takes long.
_MOST_ROUNDS = 3
# What of /proc/meminfo is the kernel's for tables: elements are in slabs, arrays of large hash tables in vmalloc.
_KERNEL = ("SUnreclaim", "VmallocUsed")
_RESIDENT_BUDGETS = {"5,000 x 10": 90e6, "5,000 x 50": 220e6}


class Tables:
    """In a worker: the kernel's memory for the tables of a cluster, by /proc/meminfo before, with and without them."""

    def __init__(self, pages: str) -> None:
        self._state = state.State()
        self._pages = Path(pages)

    def measure(self) -> dict[str, float]:
        """Bytes that programming took, and that came back when the tables were deleted."""
        self._state.list_all(self._pages)
        self._state.reconciler.prepare()
        before = kernel_bytes()
        self._state.sync()
        loaded = kernel_bytes()
        self._state.backend.cleanup()
        after = kernel_bytes()
        taken = {name: loaded[name] - before[name] for name in _KERNEL}
        back = {f"{name} given back": loaded[name] - after[name] for name in _KERNEL}
        return taken | back


def kernel_bytes() -> dict[str, float]:
    """The kernel's memory by kind, once it is quiet."""
    time.sleep(0.1)
    namespaces.settle()
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: float(int(lines[name].split()[0]) << 10) for name in _KERNEL}


def run(plan: Plan) -> report.Section:
    """An agent without objects, and one of every size, in every round."""
    sizes: list[cluster.Size | None] = [None, *plan.sizes]
    resident: dict[str, list[dict[str, int]]] = {_name(size): [] for size in sizes}
    kernel: dict[str, list[dict[str, float]]] = {str(size): [] for size in plan.sizes}
    rounds = min(plan.rounds, _MOST_ROUNDS)
    for number in range(rounds):
        for size in sizes:
            plan.say(f"memory: round {number + 1} of {rounds}, {_name(size)}")
            with agents.Running(plan, size) as running:
                time.sleep(_REST_SECONDS)
                resident[_name(size)].append(workers.memory_bytes(running.pid))
                running.stop()
            plan.settle()
            if size is not None:
                with Worker("sections.memory:Tables", pages=str(plan.pages(size))) as worker:
                    kernel[str(size)].append(worker.ask("measure"))
                plan.settle()
    return section(resident, kernel)


def _name(size: cluster.Size | None) -> str:
    return "nothing" if size is None else str(size)


def section(resident: dict[str, list[dict[str, int]]], kernel: dict[str, list[dict[str, float]]]) -> report.Section:
    """The section for these rounds."""
    empty = figures.summary(one["VmRSS"] for one in resident["nothing"]).median
    rows = []
    checks = []
    for size, rounds in resident.items():
        found = figures.summary(one["VmRSS"] for one in rounds)
        each = "" if size == "nothing" else figures.plain((found.median - empty) / _endpoints(size) * 10_000 / 1e6)
        tables = kernel.get(size)
        rows.append(
            (
                size,
                figures.spread((one["VmRSS"] for one in rounds), factor=1e-6),
                figures.spread((one["VmHWM"] for one in rounds), factor=1e-6),
                each,
                *(figures.spread((one[name] for one in tables), factor=1e-6) if tables else "" for name in _KERNEL),
                _each_kernel(size, tables) if tables else "",
            )
        )
        if size in _RESIDENT_BUDGETS:
            limit = _RESIDENT_BUDGETS[size]
            text = f"{size}: resident set under {limit / 1e6:.0f} MB"
            checks.append(report.Check(text, f"{found.median / 1e6:.0f} MB", found.median < limit))
    table = report.Table(
        "Megabytes (10^6 bytes)",
        (
            "Services x endpoints",
            "resident",
            "most resident",
            "a further 10,000 endpoints",
            *(f"kernel: {name}" for name in _KERNEL),
            "kernel: 10,000 endpoints",
        ),
        rows,
    )
    return report.Section("Memory", (table,), {"resident": resident, "kernel": kernel}, _NOTES, checks)


_NOTES = (
    "`netagent run`, unchanged, when it has been ready for a second: its resident set now and at most (VmRSS, "
    "VmHWM), metrics and health servers included. The kernel's part is the difference in /proc/meminfo before and "
    "after the commit, in another process; whatever else the machine does meanwhile is in it.",
)


def _endpoints(size: str) -> int:
    services, _, endpoints = size.replace(",", "").partition(" x ")
    return int(services) * int(endpoints)


def _each_kernel(size: str, rounds: list[dict[str, Any]]) -> str:
    found = figures.summary(sum(one[name] for name in _KERNEL) for one in rounds)
    return figures.plain(found.median / _endpoints(size) * 10_000 / 1e6)
