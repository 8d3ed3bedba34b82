"""Numbers that were measured several times: their median and spread, and how a person reads them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """Values of one kind: how many, the middle one, the quartiles, the extremes."""

    number: int
    median: float
    low: float
    high: float
    least: float
    most: float

    def scaled(self, factor: float) -> Summary:
        """The same in another unit."""
        return Summary(self.number, *(value * factor for value in self[1:]))


def summary(values: Iterable[float]) -> Summary:
    """Return the summary of at least one value. ValueError without any."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("nothing was measured")
    return Summary(
        len(ordered),
        percentile(ordered, 50),
        percentile(ordered, 25),
        percentile(ordered, 75),
        ordered[0],
        ordered[-1],
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the sorted values lie, interpolated between neighbours."""
    if not ordered:
        raise ValueError("nothing was measured")
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    if place == below:
        return ordered[below]
    above = below + 1
    if math.isinf(ordered[above]):
        return ordered[above]
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratios(values: Sequence[float], over: Sequence[float]) -> list[float]:
    """Round by round, how many times as much. Pairs of one round share what disturbed it."""
    return [value / base for value, base in zip(values, over, strict=True)]


def spread(values: Iterable[float], unit: str = "", *, factor: float = 1.0) -> str:
    """Median and range, for a cell of a table: `12.3 (11.9 .. 14.0) ms`."""
    found = summary(values).scaled(factor)
    tail = f" {unit}" if unit else ""
    if found.number == 1:
        return f"{plain(found.median)}{tail}"
    return f"{plain(found.median)} ({plain(found.least)} .. {plain(found.most)}){tail}"


def plain(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{digits}f}" if digits > 0 else f"{value:,.0f}"
