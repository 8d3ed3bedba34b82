"""What a service manager hears from the agent: sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from netagent.agent import notify
from tests import patience


class Manager:
    """A service manager's end of the socket, by the name that it would give to the process."""

    def __init__(self, name: str, **more: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.settimeout(patience.HANGS)
        self.environment = {"NOTIFY_SOCKET": name, **more}

    def heard(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def hears_nothing(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@netagent-test-{os.getpid()}"
    made = Manager(name, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    yield made
    made.close()


def test_a_life_is_told_in_order(manager: Manager) -> None:
    notifier = notify.Notifier(manager.environment, monotonic_ns=lambda: 1_234_567_890)
    notifier.status("waiting for the API server")
    assert manager.heard() == ["STATUS=waiting for the API server"]
    notifier.ready("serving 12 Services")
    assert manager.heard() == ["READY=1", "STATUS=serving 12 Services"]
    notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]
    notifier.reloading("reading the configuration")
    assert manager.heard() == ["RELOADING=1", "MONOTONIC_USEC=1234567", "STATUS=reading the configuration"]
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.stopping()
    assert manager.heard() == ["STOPPING=1"]
    notifier.close()
    notifier.alive()
    assert manager.hears_nothing()


def test_a_long_start_asks_for_time_as_long_as_the_loop_turns(manager: Manager) -> None:
    notifier = notify.Notifier(manager.environment)
    notifier.alive()
    assert manager.heard() == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=60000000"]


def test_the_loop_is_to_speak_twice_in_the_time_that_the_manager_waits(manager: Manager) -> None:
    assert notify.Notifier(manager.environment).watchdog_seconds == 15.0


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "²"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
    ids=["none", "zero", "no number", "no ASCII", "another process"],
)
def test_without_a_watchdog_for_this_process_nothing_is_asked_for_and_nothing_sent(
    more: dict[str, str], tmp_path: Path
) -> None:
    manager = Manager(str(tmp_path / "notify"), **more)
    notifier = notify.Notifier(manager.environment)
    assert notifier.watchdog_seconds is None
    notifier.alive()
    assert manager.hears_nothing()
    manager.close()


def test_a_status_stays_on_its_line(manager: Manager) -> None:
    notify.Notifier(manager.environment).status("no route\nREADY=1\n to host")
    assert manager.heard() == ["STATUS=no route READY=1 to host"]


def test_without_a_service_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    notifier = notify.Notifier({"WATCHDOG_USEC": "30000000"})
    assert notifier.watchdog_seconds is None
    notifier.ready()
    notifier.alive()
    notifier.reloading()
    notifier.stopping()
    assert caplog.records == []


def test_a_manager_that_is_gone_is_said_once_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = notify.Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.stopping()
    assert [record.getMessage() for record in caplog.records] == ["cannot notify the service manager; going on"]


def test_a_socket_that_is_no_path_is_refused_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    notifier = notify.Notifier({"NOTIFY_SOCKET": "vsock:2:1234"})
    notifier.ready()
    assert "vsock:2:1234" in vars(caplog.records[0])["socket"]
