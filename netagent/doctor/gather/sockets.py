"""Sockets of this network namespace that wait for others, from /proc/net."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from netagent.doctor import evidence
from netagent.model import addresses

_TCP_LISTEN, _UDP_UNCONNECTED = "0A", "07"  # TCP_LISTEN and TCP_CLOSE, net/tcp_states.h
_FILES: Final = (
    ("tcp", addresses.Protocol.TCP, _TCP_LISTEN),
    ("tcp6", addresses.Protocol.TCP, _TCP_LISTEN),
    ("udp", addresses.Protocol.UDP, _UDP_UNCONNECTED),
    ("udp6", addresses.Protocol.UDP, _UDP_UNCONNECTED),
)


def listening(directory: Path = Path("/proc/thread-self/net")) -> tuple[evidence.Listener, ...]:
    """Listening TCP sockets, and UDP sockets without a peer. A file that cannot be read has none."""
    found: set[evidence.Listener] = set()
    for name, protocol, state in _FILES:
        try:
            with (directory / name).open() as lines:
                found.update(of_lines(lines, protocol, state))
        except OSError:
            continue
    return tuple(sorted(found))


def of_lines(lines: Iterator[str], protocol: int, state: str) -> Iterator[evidence.Listener]:
    """The sockets in this state of a file of /proc/net."""
    for line in lines:
        words = line.split()
        if len(words) > 3 and words[3] == state and ":" in words[1]:
            raw, _, port = words[1].partition(":")
            yield evidence.Listener(protocol, _address(raw), int(port, 16))


def _address(raw: str) -> bytes:
    """A packed address from hexadecimal words, each of them in the host's order of bytes."""
    words = [int(raw[start : start + 8], 16) for start in range(0, len(raw), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return packed[12:] if packed[:12] == bytes(10) + b"\xff\xff" else packed
