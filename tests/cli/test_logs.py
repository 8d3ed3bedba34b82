"""Lines for people, wherever they go."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from netagent.cli import logs


class Full(io.StringIO):
    """A file on a full disk."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_cannot_be_written_is_given_up_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to the interpreter, it would end with 120 instead of 0."""
    monkeypatch.setattr(sys, "stderr", Full())
    logs.end()
    sys.stderr.write("more")
    sys.stderr.flush()


def test_a_log_that_can_be_written_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = io.StringIO()
    monkeypatch.setattr(sys, "stderr", fine)
    logs.end()
    assert sys.stderr is fine
