"""Tells the service manager how the process is: the sd_notify protocol, in the few lines that it needs.

The protocol is lines of KEY=VALUE in a datagram to the socket that $NOTIFY_SOCKET names, see sd_notify(3).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

# A manager that does not read for so long does not get the message; the process has other work.
_SEND_SECONDS = 1.0


class Notifier:
    """Messages to the service manager, or nothing at all where there is none (no $NOTIFY_SOCKET).

    Owns: one datagram socket. Use: `ready` when the first sync is committed, `alive` every `watchdog_seconds` for as
    long as the loop turns (from the start on, also before `ready`), `reloading` on SIGHUP and `ready` again when that
    is done, `stopping` at the end.
    Goals: telling can fail, and never harms: what cannot be sent is logged once, and forgotten.
    Threading: any thread, each message is one system call.
    """

    def __init__(self, environment: Mapping[str, str], *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._complained = False
        self._is_ready = False
        self._socket: socket.socket | None = None
        self._watchdog_usec = _watchdog_usec(environment)
        name = environment.get("NOTIFY_SOCKET", "")
        if name.startswith(("/", "@")):
            # "@" stands for the zero byte that abstract socket names start with, unix(7).
            self._address = "\0" + name[1:] if name.startswith("@") else name
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(_SEND_SECONDS)
        elif name:
            log.warning("cannot notify the service manager: NOTIFY_SOCKET is no path", extra={"socket": name})

    @property
    def watchdog_seconds(self) -> float | None:
        """How often `alive` is to be called: half of the manager's patience. None: nobody waits for it."""
        if self._socket is None or self._watchdog_usec is None:
            return None
        return self._watchdog_usec / 2 / 1_000_000

    def ready(self, status: str = "") -> None:
        """The process serves: at the start, and at the end of a reload."""
        self._is_ready = True
        self._send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> None:
        """The configuration is read anew from now on; `ready` must follow, whatever comes of it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}", *_status(status))

    def stopping(self, status: str = "") -> None:
        """The process is about to end."""
        self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """Show a line in `systemctl status`."""
        self._send(*_status(text))

    def alive(self) -> None:
        """The loop turns. Before `ready` this also asks for more time to start, as the API server may be away."""
        if self._watchdog_usec is None:
            return
        more = () if self._is_ready else (f"EXTEND_TIMEOUT_USEC={2 * self._watchdog_usec}",)
        self._send("WATCHDOG=1", *more)

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None or not lines:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("cannot notify the service manager; going on", extra={"reason": str(error)})


def _status(text: str) -> tuple[str, ...]:
    """The STATUS line of a text, which must not bring lines of its own."""
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _watchdog_usec(environment: Mapping[str, str]) -> int | None:
    """Microseconds after which the manager takes silence for a hang; None if it does not watch this process."""
    text = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    # isdecimal alone takes digits of every script.
    return int(text) or None if text.isascii() and text.isdecimal() else None
