"""What nobody expected is told once for each cause, and always counted; and the waits of what is tried again."""

from __future__ import annotations

import contextlib
import logging

import pytest

from netagent import errors
from netagent.agent import backoff, stumbles


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told(clock: Clock, caplog: pytest.LogCaptureFixture) -> stumbles.StumbleLog:
    caplog.set_level(logging.DEBUG)
    return stumbles.StumbleLog(clock=clock)


def raised(error: Exception) -> Exception:
    """With a traceback, always from the same line."""
    with contextlib.suppress(Exception):
        raise error
    return error


def test_a_cause_is_told_once_with_its_traceback_and_then_counted(
    told: stumbles.StumbleLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        clock.now = float(number)
        told.note("feed", raised(OSError(5, f"words that change: {number}")))
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info
    assert told.counts == {"feed": 100}
    clock.now = 301.0
    told.note("feed", raised(OSError(5, "again")))
    assert [record.getMessage() for record in caplog.records[1:]] == ["unexpected error, again; going on"]
    assert not caplog.records[1].exc_info
    assert caplog.records[1].times == 100  # type: ignore[attr-defined]


def test_other_causes_are_told_apart(told: stumbles.StumbleLog, caplog: pytest.LogCaptureFixture) -> None:
    told.note("feed", raised(OSError(5, "one")))
    told.note("sync", raised(OSError(5, "one")))
    told.note("feed", raised(KeyError("one")))
    told.note("feed", raised(errors.NetagentError("one thing")))
    told.note("feed", raised(errors.NetagentError("another")))
    assert len(caplog.records) == 5
    assert [bool(record.exc_info) for record in caplog.records] == [True, True, True, False, False]


def test_a_flood_of_causes_has_a_bound(told: stumbles.StumbleLog) -> None:
    for number in range(1000):
        told.note("feed", errors.NetagentError(f"cause {number}"))
    assert told.counts == {"feed": 1000}
    assert len(told._told) <= 100


def test_what_observers_are_told_is_an_error_of_ours() -> None:
    ours = errors.SourceError("gone")
    assert stumbles.as_netagent_error(ours) is ours
    other = stumbles.as_netagent_error(KeyError("x"))
    assert str(other).startswith("unexpected KeyError: 'x'")
    assert isinstance(other.__cause__, KeyError)


def test_waits_double_from_the_first_to_the_most_and_differ() -> None:
    waits = backoff.BackOff(first=0.1, most=2.0, randomness=lambda: 0.0)
    assert [round(waits.failed(), 3) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    waits.reset()
    assert waits.failed() == 0.1
    assert backoff.BackOff(first=0.1, most=2.0, randomness=lambda: 1.0).failed() == pytest.approx(0.125)
    for _ in range(5000):
        assert waits.failed() <= 2.0
