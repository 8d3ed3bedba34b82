"""What the soak calls flat, and what it does not."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "lib"))

from soak import figures


def samples(seconds: int = 600, *, leak: float = 0.0, opened: float = 0.0, start: int = 1) -> list[figures.Sample]:
    """A process that fills its caches for a minute, and then loses so many KiB and descriptors a second."""
    return [
        figures.Sample(float(at), start, round(40_000 + min(at, 60) * 100 + leak * at), round(30 + opened * at))
        for at in range(seconds)
    ]


def test_what_is_level_is_flat() -> None:
    assert figures.troubles(samples(), [0.02] * 600, 0) == []


def test_a_leak_is_told() -> None:
    (told,) = figures.troubles(samples(leak=20.0), [0.02] * 600, 0)
    assert told.startswith("memory grew by ")


def test_descriptors_that_are_not_closed_are_told() -> None:
    assert figures.troubles(samples(opened=0.1), [0.02] * 600, 0) == ["descriptors grew from 70 to 90"]


def test_a_lag_that_grows_is_told() -> None:
    lags = [0.02 + 0.005 * at for at in range(600)]
    (told,) = figures.troubles(samples(), lags, 0)
    assert told.startswith("the lag grew from ")


def test_each_connection_that_failed_counts() -> None:
    assert figures.troubles(samples(), [], 1) == ["1 connections to Services with healthy endpoints failed"]


def test_only_the_last_process_is_measured_and_one_that_hardly_ran_proves_nothing() -> None:
    first = samples(leak=1000.0)
    again = [sample._replace(at=sample.at + 600, start=2) for sample in samples()]
    assert figures.troubles([*first, *again], [], 0) == []
    assert figures.troubles([*first, *again[:9]], [], 0) == ["only 6 samples of the last process: soak for longer"]


def test_a_slope_is_that_of_the_line_through_the_points() -> None:
    assert figures.slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) == 2.0
    assert figures.slope([(1.0, 7.0)]) == 0.0
