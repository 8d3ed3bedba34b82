"""Cold sync: everything from the bytes of the lists to the kernel, in a fresh process and a fresh namespace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench import figures, report, seams, state
from bench.plan import Plan
from bench.workers import Worker

_COMMIT = ("encode", "send")
_SECONDS_BUDGETS = {"5,000 x 50": 2.0, "30,000 x 2": 1.5, "44,000 x 1": 1.5}


class Cold:
    """In a worker: one cold sync."""

    def __init__(self, pages: str) -> None:
        self._pages = Path(pages)
        self._state = state.State()

    def measure(self) -> dict[str, Any]:
        """Do it, and tell how long each stage took and what was sent."""
        measured = self._state
        processor = time.process_time()
        measured.list_all(self._pages)
        listed = measured.probe.clock.take()
        started = time.perf_counter()
        done = measured.sync()
        ended = time.perf_counter()
        processor = time.process_time() - processor
        stages = measured.probe.clock.take()
        acknowledged = measured.probe.acknowledged_at or ended
        collections = measured.collector.take()
        return {
            "stages": {name: listed.get(name, 0.0) + stages.get(name, 0.0) for name in seams.STAGES},
            "acknowledged": listed["store"] + acknowledged - started,
            "processor": processor,
            "operations": done.operations,
            "transactions": done.transactions,
            "sent": measured.probe.take_sends()._asdict(),
            "collector": collections._asdict(),
        }


def run(plan: Plan) -> report.Section:
    """Every size in every round, in a process of its own."""
    found: dict[str, list[dict[str, Any]]] = {str(size): [] for size in plan.sizes}
    for size in plan.sizes:
        plan.pages(size)
    for number in range(plan.rounds):
        for size in plan.sizes:
            plan.say(f"cold: round {number + 1} of {plan.rounds}, {size}")
            with Worker("sections.cold:Cold", pages=str(plan.pages(size))) as worker:
                plan.settle()
                found[str(size)].append(worker.ask("measure"))
            plan.settle()
    return section(found)


def section(found: dict[str, list[dict[str, Any]]]) -> report.Section:
    """The section for these rounds of these sizes."""
    checks: list[report.Check] = []
    for size, rounds in found.items():
        checks += _checks(size, rounds)
    stages = report.Table(
        "Milliseconds of each stage, and its share of all",
        ("Services x endpoints", *seams.STAGES),
        [(size, *(_stage(rounds, name) for name in seams.STAGES)) for size, rounds in found.items()],
    )
    sums = report.Table(
        "Sums (ms) and ratios",
        (
            "Services x endpoints",
            "decoded to acknowledged",
            "commit (encode + send)",
            "commit / send",
            "Python before / commit",
            "of that without decode / commit",
            "processor",
            "Python's collector",
            "operations",
            "transactions",
            "bytes",
        ),
        [_sums(size, rounds) for size, rounds in found.items()],
    )
    return report.Section("Cold sync", (stages, sums), found, _NOTES, checks)


_NOTES = (
    "A fresh process in a fresh network namespace, for each round. `read`: asking the kernel what it has. "
    "`decode`: the bytes of list pages to checked objects. `store`, `plan`, `lower`, `diff`: objects to a "
    "transaction. `encode`: transaction to bytes, framing and answers. `send`: the kernel's own time, within the "
    "send call. `mirror`: noting what the kernel now has, after its acknowledgement. `other`: what no stage "
    "claims, flows to be dropped mostly. Python's garbage collector runs as it does in `netagent run`; its time "
    "is in the stage in which it happened to run.",
)


def _stage(rounds: list[dict[str, Any]], name: str) -> str:
    shares = [one["stages"][name] / sum(one["stages"].values()) for one in rounds]
    seconds = [one["stages"][name] for one in rounds]
    return f"{figures.spread(seconds, factor=1e3)}, {figures.summary(shares).median:.0%}"


def _of(one: dict[str, Any], names: tuple[str, ...]) -> float:
    stages: dict[str, float] = one["stages"]
    return sum(stages[name] for name in names)


def _commit_over_send(rounds: list[dict[str, Any]]) -> list[float]:
    return [_of(one, _COMMIT) / one["stages"]["send"] for one in rounds]


def _before_over_commit(rounds: list[dict[str, Any]], *, decode: bool) -> list[float]:
    commits = [_of(one, _COMMIT) for one in rounds]
    before = [
        one["acknowledged"] - commit + (one["stages"]["decode"] if decode else 0.0)
        for one, commit in zip(rounds, commits, strict=True)
    ]
    return figures.ratios(before, commits)


def _sums(size: str, rounds: list[dict[str, Any]]) -> tuple[str, ...]:
    first = rounds[0]
    return (
        size,
        figures.spread((one["acknowledged"] for one in rounds), factor=1e3),
        figures.spread((_of(one, _COMMIT) for one in rounds), factor=1e3),
        figures.spread(_commit_over_send(rounds)),
        figures.spread(_before_over_commit(rounds, decode=True)),
        figures.spread(_before_over_commit(rounds, decode=False)),
        figures.spread((one["processor"] for one in rounds), factor=1e3),
        figures.spread((one["collector"]["seconds"] for one in rounds), factor=1e3),
        f"{first['operations']:,}",
        f"{first['transactions']:,}",
        f"{first['sent']['bytes']:,}",
    )


def _checks(size: str, rounds: list[dict[str, Any]]) -> list[report.Check]:
    commit = figures.summary(_commit_over_send(rounds)).median
    before = figures.summary(_before_over_commit(rounds, decode=True)).median
    bare = figures.summary(_before_over_commit(rounds, decode=False)).median
    found = [
        report.Check(f"{size}: commit at most 1.3 times the send call", f"{commit:.2f}", commit <= 1.3),
        report.Check(f"{size}: Python before it at most 1.5 times the commit", f"{before:.2f}", before <= 1.5),
        report.Check(f"{size}: the same without decoding", f"{bare:.2f}", bare <= 1.5),
    ]
    if size in _SECONDS_BUDGETS:
        limit = _SECONDS_BUDGETS[size]
        seconds = figures.summary(one["acknowledged"] for one in rounds).median
        text = f"{size}: decoded objects to acknowledged under {limit:g} s"
        found.append(report.Check(text, f"{seconds:.2f} s", seconds < limit))
    return found
