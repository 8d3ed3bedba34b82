"""TCP ports for servers of tests."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from typing import Final

# Below what the kernel gives to whoever asks for any port (ip_local_port_range), so that no client of another test
# takes a port between `free_port` and its use, or while its server refuses. Another test process begins elsewhere.
_FIRST: Final = 12000
_HOW_MANY: Final = 20000
_NUMBERS: Final = itertools.count(os.getpid() * 4001)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has; each call gives another one. OSError when the host has no such address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in _NUMBERS:
        port = _FIRST + number % _HOW_MANY
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise AssertionError("there is no end of numbers")
