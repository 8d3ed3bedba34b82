"""One agent for each network namespace, and who is who at its socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from netagent import errors
from netagent.agent import presence
from tests import kernel

_HOLDER = """
import sys, time
from netagent.agent import presence
with presence.claimed() as listening:
    print("here", flush=True)
    time.sleep(600)
"""
_SQUATTER = """
import os, socket, sys, time
if sys.argv[1:]:
    os.setuid(int(sys.argv[1]))
taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
taken.bind("\\0netagent")
if "deaf" not in sys.argv:
    taken.listen()
print("here", flush=True)
time.sleep(600)
"""


def _started(script: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    return process


@kernel.isolated
def test_the_second_agent_is_told_who_the_first_one_is() -> None:
    first = _started(_HOLDER)
    try:
        there = presence.holder()
        assert there is not None
        assert (there.pid, there.uid) == (first.pid, os.geteuid())
        with pytest.raises(errors.HeldError, match=f"process {first.pid} "), presence.claimed():
            pass
    finally:
        first.kill()
        first.wait()


@kernel.isolated
def test_an_agent_that_was_killed_is_in_nobodys_way() -> None:
    first = _started(_HOLDER)
    first.send_signal(signal.SIGKILL)
    first.wait()
    with presence.claimed() as listening:
        assert listening is not None


@kernel.isolated
def test_an_agent_that_is_just_ending_is_waited_for() -> None:
    first = _started(_HOLDER)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        first.kill()
        first.wait()

    with presence.claimed(sleep=sleep) as listening:
        assert listening is not None
    assert len(waited) == 1


@kernel.isolated
def test_each_network_namespace_has_a_place_of_its_own() -> None:
    with presence.claimed() as listening:
        assert listening is not None
        kernel.fresh()
        assert presence.holder() is None
        with presence.claimed() as another:
            assert another is not None


@kernel.isolated
def test_whoever_has_no_rights_keeps_no_agent_out() -> None:
    if os.geteuid() or not _can_become_another_user():
        pytest.skip("needs another user's id")
    squatter = _started(_SQUATTER, "1000")
    try:
        assert presence.holder() is None
        with presence.claimed() as listening:
            assert listening is None
    finally:
        squatter.kill()
        squatter.wait()


def _can_become_another_user() -> bool:
    """In a user namespace that maps root alone, nobody can."""
    return (
        subprocess.run(
            [sys.executable, "-c", "import os; os.setuid(1000)"], stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


@kernel.isolated
def test_a_place_that_is_taken_by_something_deaf_keeps_no_agent_out() -> None:
    squatter = _started(_SQUATTER, str(os.geteuid()), "deaf")
    times = iter((0.0, 0.0, 60.0, 60.0))
    try:
        with presence.claimed(sleep=lambda seconds: None, clock=lambda: next(times)) as listening:
            assert listening is None
    finally:
        squatter.kill()
        squatter.wait()
