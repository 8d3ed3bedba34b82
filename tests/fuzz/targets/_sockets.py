"""A kernel that answers with the bytes of the fuzzer, in place of a netlink socket."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_HEADER = struct.Struct("=IHHII")
_DONE = 3  # NLMSG_DONE, linux/netlink.h
# A datagram that begins with this is an error of the call instead.
_ERRORS = {b"!B": BlockingIOError(errno.EAGAIN, "again"), b"!N": OSError(errno.ENOBUFS, "no buffer space")}


def datagrams(data: bytes) -> list[bytes]:
    """Cut an input into datagrams: two bytes of length, and so many bytes."""
    found = []
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2])
        found.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return found


def joined(pieces: list[bytes]) -> bytes:
    """The input that is cut into these datagrams."""
    return b"".join(len(piece).to_bytes(2) + piece for piece in pieces)


class Kernel:
    """What sockets of one family of the fuzzer receive: first to last, then the end of whatever was asked."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers[::-1]
        self._sequence = 0

    def socket(self, *_: object, **__: object) -> Kernel:
        return self

    def bind(self, address: object) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, seconds: float | None) -> None:
        pass

    def setblocking(self, blocking: bool) -> None:
        pass

    def setsockopt(self, *_: object) -> None:
        pass

    def getsockopt(self, *_: object) -> int:
        return 1 << 20

    def getsockname(self) -> tuple[int, int]:
        return (4711, 0)

    def fileno(self) -> int:
        return -1

    def send(self, data: bytes, *_: object) -> int:
        self._sequence = _HEADER.unpack_from(data)[3]
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags & socket.MSG_DONTWAIT:
            raise BlockingIOError(errno.EAGAIN, "again")
        if not self._answers:
            return _HEADER.pack(20, _DONE, 2, self._sequence, 0) + bytes(4)
        return self._in_sequence(self._answers.pop())

    def _in_sequence(self, data: bytes) -> bytes:
        """The datagram with the number of the request that waits, which no fuzzer would guess."""
        made = bytearray(data)
        at = 0
        while at + 16 <= len(made):
            length = int.from_bytes(made[at : at + 4], "little")
            made[at + 8 : at + 12] = self._sequence.to_bytes(4, "little")
            if length < 16:
                break
            at += length + 3 & ~3
        return bytes(made)


class Notices(Kernel):
    """What a socket that never waits receives; in between and at the end there is nothing, or something is lost."""

    def __init__(self, notices: list[bytes]) -> None:
        super().__init__([])
        self._notices = notices[::-1]

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._notices:
            raise BlockingIOError(errno.EAGAIN, "again")
        data = self._notices.pop()
        if data[:2] in _ERRORS:
            raise _ERRORS[data[:2]]
        return data


@contextlib.contextmanager
def speaking(module: ModuleType, kernel: Kernel) -> Iterator[None]:
    """Within, sockets that the module opens are the fuzzer's."""
    real: Any = module.socket
    module.socket = _Module(real, kernel)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.socket = real  # type: ignore[attr-defined]


class _Module:
    """The module `socket` with another class of sockets."""

    def __init__(self, real: Any, kernel: Kernel) -> None:
        self._real = real
        self.socket = kernel.socket

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
