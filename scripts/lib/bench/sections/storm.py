"""A storm of changes through the whole agent: lag, coalescing, processor; and a trickle, and a trickle with audits."""

from __future__ import annotations

import bisect
import time
from typing import NamedTuple

from bench import agents, figures, report, workers
from bench.plan import Plan

_TRICKLE_RATE = 100.0
_TRICKLE_SECONDS = 3.0
_AUDIT_SECONDS = 2.0
# An agent that used less of a processor than this, for so long, has caught up.
_IDLE = 0.05
_QUIET_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0


class Phase(NamedTuple):
    """Changes at a rate for a while: when each was due and the syncs of that time, and what the agent used."""

    name: str
    rate: float
    due: list[tuple[int, float]]
    syncs: list[tuple[float, int, int, int, int, float]]
    seconds: float
    processor: float
    loop_processor: float
    resident: int


def lags(due: list[tuple[int, float]], syncs: list[tuple[float, int, int, int, int, float]]) -> list[float]:
    """Seconds from when each change was due to the end of the first sync that brought it, or one that came after it.

    Changes come in their order, so a sync that brings a change brings all before it, or what replaced them. A change
    that no sync brought lasts for ever.
    """
    ends: list[float] = []
    numbers: list[int] = []
    for at, number, *_ in syncs:
        if number > (numbers[-1] if numbers else -1):
            numbers.append(number)
            ends.append(at)
    found = []
    for number, when in due:
        place = bisect.bisect_left(numbers, number)
        found.append(ends[place] - when if place < len(ends) else float("inf"))
    return found


def run(plan: Plan) -> report.Section:
    """One agent for trickle and storm, one that audits."""
    phases: list[Phase] = []
    with agents.Running(plan, plan.storm_size, order=agents.WATCHED) as running:
        plan.say(f"storm: a trickle at {plan.storm_size}")
        plan.settle()
        trickle = _measure(running, "trickle", _TRICKLE_RATE, min(_TRICKLE_SECONDS, plan.storm_seconds))
        plan.say(f"storm: {plan.storm_rate} changes a second for {plan.storm_seconds:g} s")
        storm = _measure(running, "storm", plan.storm_rate, plan.storm_seconds)
        syncs = running.stop()
    phases += (phase._replace(syncs=syncs) for phase in (trickle, storm))
    with agents.Running(plan, plan.storm_size, order=agents.WATCHED, audit_seconds=_AUDIT_SECONDS) as running:
        plan.say(f"storm: a trickle, with an audit every {_AUDIT_SECONDS:g} s")
        audited = _measure(running, "trickle with audits", _TRICKLE_RATE, 2 * _AUDIT_SECONDS + 1)
        syncs = running.stop()
    phases.append(audited._replace(syncs=syncs))
    return section(f"{plan.storm_size}", phases)


def _measure(running: agents.Running, name: str, rate: float, seconds: float) -> Phase:
    pid = running.pid
    threads = workers.thread_seconds(pid)
    processor = workers.cpu_seconds(pid)
    started = time.monotonic()
    due = [(number, when) for number, when in running.server.ask("storm", rate=rate, seconds=seconds)]
    took = time.monotonic() - started
    _await_idle(pid)  # what was late comes now, and is in the lag
    processor = workers.cpu_seconds(pid) - processor
    loop = workers.thread_seconds(pid)[pid] - threads[pid]
    return Phase(name, rate, due, [], took, processor, loop, workers.memory_bytes(pid)["VmRSS"])


def _await_idle(pid: int) -> None:
    """Wait until a process has nothing to do any more, or for as long as anybody would."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    before = workers.cpu_seconds(pid)
    while time.monotonic() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = workers.cpu_seconds(pid)
        if now - before < _IDLE * _QUIET_SECONDS:
            return
        before = now


def section(size: str, phases: list[Phase]) -> report.Section:
    """The section for these phases."""
    rows = []
    data = []
    checks = []
    for phase in phases:
        found = sorted(lags(phase.due, phase.syncs))
        began, last = phase.due[0][1], phase.due[-1][0]
        syncs = [sync for sync in phase.syncs if began <= sync[0] and sync[1] <= last and sync[3]]
        operations = sum(sync[3] for sync in syncs)
        rows.append(
            (
                phase.name,
                f"{len(phase.due):,} at {phase.rate:,.0f} a second",
                figures.plain(phase.seconds),
                *(figures.plain(figures.percentile(found, percent) * 1e3) for percent in (50, 99, 100)),
                f"{len(syncs):,}",
                figures.plain(len(phase.due) / max(len(syncs), 1)),
                f"{operations:,}",
                f"{phase.processor / phase.seconds:.0%}",
                f"{phase.loop_processor / phase.seconds:.0%}",
                figures.plain(phase.resident / 1e6),
            )
        )
        data.append(
            {
                **phase._asdict(),
                "due": [phase.due[0][1], phase.due[-1][1]],
                "syncs": syncs,
                "lag_percentiles": {percent: figures.percentile(found, percent) for percent in (50, 90, 99, 100)},
            }
        )
        checks += _checks(phase, found)
    table = report.Table(
        f"{size}",
        (
            "phase",
            "changes",
            "sent in, s",
            "lag p50, ms",
            "p99, ms",
            "most, ms",
            "commits",
            "changes a commit",
            "operations",
            "processor",
            "of that the loop's thread",
            "resident, MB",
        ),
        rows,
    )
    return report.Section("Storm", (table,), data, _NOTES, checks)


_NOTES = (
    "`netagent run` follows an API server in the same namespace; each change replaces one endpoint of a random "
    "Service. The lag is from the moment when the change was due at the server to the end of the sync that "
    "brought it. `processor` is of one core; the server runs on the other. An audit is a pass that reads the "
    f"kernel's tables anew (configSyncPeriod, here {_AUDIT_SECONDS:g} s).",
)


def _checks(phase: Phase, found: list[float]) -> list[report.Check]:
    if phase.name == "storm":
        rate, seconds = phase.rate, len(phase.due) / phase.rate
        text = f"storm of {rate:,.0f} changes a second for {seconds:g} s: all are brought (no budget for the lag)"
        return [report.Check(text, f"most {figures.plain(found[-1] * 1e3)} ms", found[-1] < float("inf"))]
    if phase.name == "trickle":
        return []
    text = "audit: events wait at most 50 ms"
    return [report.Check(text, f"{figures.plain(found[-1] * 1e3)} ms", found[-1] <= 0.05)]
