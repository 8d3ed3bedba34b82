"""What was measured, minute by minute, and whether it stays flat. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

# What the heap may wander, in KiB. In an hour, a leak of 1 KiB for each event would be a hundred times that.
_WANDERS_KIB = 6 << 10
_DESCRIPTORS = 8
# The last third of the lags may be so many times the first, beyond what a busy machine adds (seconds).
_LAG_TIMES = 3.0
_LAG_NOISE = 0.25


class Sample(NamedTuple):
    """The agent at a moment: seconds since the start of the soak, which start of it, memory in KiB, descriptors."""

    at: float
    start: int
    rss: int
    descriptors: int


class Minute(NamedTuple):
    """A line of the report. Lags in seconds: from an event at the API server to a connection to where it points."""

    minute: int
    connections: int
    failed: int
    events: int
    lag: float
    slowest_lag: float
    rss: int
    descriptors: int
    cpu_percent: float
    faults: int


HEAD = (
    "| minute | connections | failed | events | lag, median | lag, most | memory, MiB | descriptors | processor "
    "| faults |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def line(minute: Minute) -> str:
    """A line of the table."""
    return (
        f"| {minute.minute} | {minute.connections} | {minute.failed} | {minute.events} | {minute.lag * 1000:.0f} ms | "
        f"{minute.slowest_lag * 1000:.0f} ms | {minute.rss / 1024:.1f} | {minute.descriptors} | "
        f"{minute.cpu_percent:.0f} % | {minute.faults} |"
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the line through points, by least squares; 0 of fewer than two."""
    if len({at for at, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def troubles(samples: Sequence[Sample], lags: Sequence[float], failed: int) -> list[str]:
    """What is not as it should be. Of the last process, without the first third of its life, in which it fills its
    caches."""
    found = [f"{failed} connections to Services with healthy endpoints failed"] if failed else []
    last = [sample for sample in samples if sample.start == samples[-1].start] if samples else []
    settled = last[len(last) // 3 :]
    if len(settled) < 10:
        return [*found, f"only {len(settled)} samples of the last process: soak for longer"]
    span = settled[-1].at - settled[0].at
    growth = slope([(sample.at, float(sample.rss)) for sample in settled]) * span
    if growth > _WANDERS_KIB:
        found.append(f"memory grew by {growth:.0f} KiB in {span:.0f} s")
    half = len(settled) // 2
    early, late = (max(sample.descriptors for sample in part) for part in (settled[:half], settled[half:]))
    if late > early + _DESCRIPTORS:
        found.append(f"descriptors grew from {early} to {late}")
    third = len(lags) // 3
    if third:
        first, final = statistics.median(lags[:third]), statistics.median(lags[-third:])
        if final > _LAG_TIMES * first + _LAG_NOISE:
            found.append(f"the lag grew from {first:.3f} s to {final:.3f} s")
    return found
