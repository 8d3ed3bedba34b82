"""The xtables lock: waited for with a deadline, and who has it is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netagent import errors
from netagent.iptables import lock
from tests import patience
from tests.iptables import namespaces


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock file of the test's own."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    return tmp_path / "xtables.lock"


def test_the_file_is_that_of_iptables(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock.path() == str(path)
    monkeypatch.delenv("XTABLES_LOCKFILE")
    assert lock.path() == "/run/xtables.lock"


def test_it_can_be_held_again_and_again(path: Path) -> None:
    for _ in range(3):
        with lock.held(0):
            assert path.exists()
            assert lock.holders() == []  # ourselves are not told


def test_a_lock_held_too_long_is_an_error_that_names_who_has_it(path: Path) -> None:
    holder = namespaces.hold_lock(path)
    now, tries = 1000.0, 0

    def sleep(seconds: float) -> None:
        nonlocal now, tries
        now += seconds
        tries += 1

    try:
        with pytest.raises(lock.LockHeldError) as failure, lock.held(0.2, clock=lambda: now, sleep=sleep):
            pass
        assert holder.poll() is None, "it was not waited for"
    finally:
        holder.kill()
        holder.wait()
    assert now == pytest.approx(1000.2, abs=0.02 + 1e-6), "so long, and one look longer at most"
    assert tries >= 10, "it looks again and again whether the lock is free"
    name = Path("/proc/self/comm").read_text().strip()  # the same interpreter
    assert str(path) in str(failure.value)
    assert f"(process {holder.pid})" in str(failure.value)
    assert name[:6] in str(failure.value)
    with lock.held(0):
        pass  # free again


def test_a_lock_that_is_let_go_in_time_is_taken(path: Path) -> None:
    holder = namespaces.hold_lock(path, 0.1)
    with lock.held(patience.HANGS):
        pass
    holder.wait()


def test_a_file_that_cannot_be_is_an_error_that_says_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path.parent / "missing" / "xtables.lock"))
    with pytest.raises(errors.UnsupportedError, match="FileOrCreate"), lock.held(0):
        pass

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(errors.PrivilegeError, match="run as root"), lock.held(0):
        pass


def test_a_watch_notices_who_lets_go(path: Path) -> None:
    watch = lock.Watch()
    try:
        assert watch.take() == 0
        holder = namespaces.hold_lock(path, 0)
        holder.wait()
        assert watch.take() == 1
        with lock.held(0):
            assert watch.take() == 0
        assert watch.take() == 1
        path.unlink()
        assert watch.take() is None
    finally:
        watch.close()


def test_a_watch_where_no_file_can_be_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path.parent / "missing" / "xtables.lock"))
    with pytest.raises(OSError, match="No such file"):
        lock.Watch()
