"""Restart on programmed state, and audit: reading the kernel's tables back and comparing them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench import cluster, figures, report, seams, state
from bench.plan import Plan
from bench.workers import Worker

_STAGES = tuple(name for name in seams.STAGES if name not in ("encode", "send"))
_AUDIT_BUDGET_ENDPOINTS, _AUDIT_BUDGET_SECONDS = 250_000, 3.0


class Restart:
    """In a worker: a process that starts where another one has programmed all there is (or that one itself)."""

    def __init__(self, pages: str) -> None:
        self._pages = Path(pages)
        self._state = state.State()

    def sync(self) -> dict[str, Any]:
        """From the bytes of the lists to a sync. `ended` is by time.monotonic, for the parent to subtract from."""
        self._state.list_all(self._pages)
        done = self._state.sync()
        return self._told(done.operations) | {"ended": time.monotonic()}

    def audit(self) -> dict[str, Any]:
        """Read the kernel's tables and compare all of them, as the loop's audit does."""
        started = time.perf_counter()
        self._state.backend.read()
        done = self._state.sync()
        return self._told(done.operations) | {"seconds": time.perf_counter() - started}

    def _told(self, operations: int) -> dict[str, Any]:
        stages = self._state.probe.clock.take()
        return {"stages": {name: stages.get(name, 0.0) for name in _STAGES}, "operations": operations}


def run(plan: Plan) -> report.Section:
    """For each size one process that programs, and for each round a fresh one in its namespace."""
    restarts: dict[str, list[dict[str, Any]]] = {str(size): [] for size in plan.sizes}
    audits: dict[str, list[dict[str, Any]]] = {str(size): [] for size in plan.sizes}
    holders: dict[cluster.Size, Worker] = {}
    try:
        for size in plan.sizes:
            plan.say(f"restart: programming {size}")
            holders[size] = Worker("sections.restart:Restart", pages=str(plan.pages(size)))
            holders[size].ask("sync")
        for number in range(plan.rounds):
            for size, holder in holders.items():
                plan.say(f"restart: round {number + 1} of {plan.rounds}, {size}")
                plan.settle()
                began = time.monotonic()
                with Worker("sections.restart:Restart", join=holder.pid, pages=str(plan.pages(size))) as worker:
                    found = worker.ask("sync")
                    found |= {"interpreter": worker.started - began, "seconds": found["ended"] - began}
                    restarts[str(size)].append(found)
                    audits[str(size)].append(worker.ask("audit"))
    finally:
        for holder in holders.values():
            holder.close()
    return section(restarts, audits)


def section(restarts: dict[str, list[dict[str, Any]]], audits: dict[str, list[dict[str, Any]]]) -> report.Section:
    """The section for these rounds."""
    checks = []
    for size, rounds in restarts.items():
        most = max(one["operations"] for one in rounds)
        checks.append(report.Check(f"{size}: a restart commits nothing", f"{most} operations", most == 0))
    for size, rounds in audits.items():
        services, _, endpoints = size.replace(",", "").partition(" x ")
        if int(services) * int(endpoints) == _AUDIT_BUDGET_ENDPOINTS:
            seconds = figures.summary(one["seconds"] for one in rounds).median
            text = f"{size}: read-back and diff under {_AUDIT_BUDGET_SECONDS:g} s"
            checks.append(report.Check(text, f"{seconds:.2f} s", seconds < _AUDIT_BUDGET_SECONDS))
    return report.Section(
        "Restart and audit",
        (
            report.Table(
                "Restart: a fresh process on programmed tables, ms",
                ("Services x endpoints", "all", "operations", "interpreter, imports", *_STAGES),
                [
                    (
                        size,
                        figures.spread((one["seconds"] for one in rounds), factor=1e3),
                        f"{max(one['operations'] for one in rounds)}",
                        figures.spread((one["interpreter"] for one in rounds), factor=1e3),
                        *_stages(rounds, _STAGES),
                    )
                    for size, rounds in restarts.items()
                ],
            ),
            report.Table(
                "Audit: a process that is running reads all back and compares, ms",
                ("Services x endpoints", "all", "operations", "read", "diff"),
                [
                    (
                        size,
                        figures.spread((one["seconds"] for one in rounds), factor=1e3),
                        f"{max(one['operations'] for one in rounds)}",
                        *_stages(rounds, ("read", "diff")),
                    )
                    for size, rounds in audits.items()
                ],
            ),
        ),
        {"restarts": restarts, "audits": audits},
        ("`all` of a restart is from the start of the process to the end of the sync; the lists are in a file.",),
        checks,
    )


def _stages(rounds: list[dict[str, Any]], names: tuple[str, ...]) -> list[str]:
    return [figures.spread((one["stages"][name] for one in rounds), factor=1e3) for name in names]
