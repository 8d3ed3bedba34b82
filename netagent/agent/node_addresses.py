"""The addresses of this host, followed: the kernel tells when one comes or goes (rtnetlink(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Final

# linux/netlink.h
_NETLINK_ROUTE: Final = 0
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
# linux/rtnetlink.h
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
# linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_OPTIMISTIC, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x04, 0x08, 0x40

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_DATAGRAM_BYTES: Final = 65536
_TIMEOUT_SECONDS: Final = 2.0
_DUMP_ATTEMPTS: Final = 5


class NodeAddresses:
    """The addresses of all interfaces of this network namespace, and notice of their changes.

    Owns: the socket that the kernel's notices come in by. Use: poll `fileno()` for input, then `take()`; `current` is
    what it found last. `close` it, or use it as a context manager.
    Goals: what is found is at least as new as the notice, and complete, also when the kernel had to drop notices
    (ENOBUFS): a notice says that something changed, and then all addresses are read. An IPv6 address that nobody can
    bind to yet (duplicate address detection goes on) is not there yet.
    Threading: one thread; `current` may be asked by any.
    """

    def __init__(self) -> None:
        """OSError when the kernel gives no such socket, or the addresses cannot be read."""
        self._notices = _socket()
        try:
            self._notices.setblocking(False)
            self._notices.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
            self.current: frozenset[bytes] = read_addresses()
        except BaseException:
            self.close()
            raise
        self._stale = False

    def __enter__(self) -> NodeAddresses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor to poll for input."""
        return self._notices.fileno()

    def close(self) -> None:
        """Stop following; a second time is fine."""
        self._notices.close()

    def take(self) -> bool:
        """Whether `current` is another one than before. OSError when that cannot be read; then the next call does."""
        self._stale |= self._noticed()
        if not self._stale:
            return False
        found = read_addresses()
        self._stale = False
        changed = found != self.current
        self.current = found
        return changed

    def _noticed(self) -> bool:
        """Take all notices that wait. What they say does not matter, as all is read anew."""
        noticed = False
        while True:
            try:
                self._notices.recv(_DATAGRAM_BYTES)
            except BlockingIOError:
                return noticed
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # ENOBUFS: some are lost
                    raise
            noticed = True


def read_addresses() -> frozenset[bytes]:
    """The packed addresses of all interfaces that can be bound to. OSError if they cannot be read."""
    for _ in range(_DUMP_ATTEMPTS - 1):
        try:
            return frozenset(_dump())
        except InterruptedError:
            continue
    return frozenset(_dump())


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)


def _dump() -> Iterator[bytes]:
    """The addresses of one listing. InterruptedError at its end if they changed meanwhile."""
    request = _HEADER.pack(_HEADER.size + _IFADDRMSG.size, _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    interrupted = False
    with _socket() as asking:
        asking.settimeout(_TIMEOUT_SECONDS)
        asking.send(request + bytes(_IFADDRMSG.size))
        while True:
            datagram = asking.recv(_DATAGRAM_BYTES)
            start = 0
            while start + _HEADER.size <= len(datagram):
                length, kind, flags, _, _ = _HEADER.unpack_from(datagram, start)
                if length < _HEADER.size:
                    raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
                payload = datagram[start + _HEADER.size : start + length]
                interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    code = -_ERRNO.unpack_from(payload)[0] if len(payload) >= _ERRNO.size else 0
                    if code > 0 or interrupted:
                        code = code if code > 0 else errno.EINTR
                        raise OSError(code, os.strerror(code))
                    return
                if kind == _RTM_NEWADDR:
                    address = _address_of(payload)
                    if address is not None:
                        yield address
                start += length + 3 & ~3


def _address_of(payload: bytes) -> bytes | None:
    """The host's own address in a message, None when nobody can bind to it now."""
    if len(payload) < _IFADDRMSG.size:
        return None
    flags = _IFADDRMSG.unpack_from(payload)[2]
    attributes: dict[int, bytes] = {}
    start = _IFADDRMSG.size
    while start + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, start)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind] = payload[start + _ATTRIBUTE.size : start + length]
        start += length + 3 & ~3
    if len(attributes.get(_IFA_FLAGS, b"")) == 4:
        flags = int.from_bytes(attributes[_IFA_FLAGS], sys.byteorder)
    if flags & _IFA_F_DADFAILED or (flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC):
        return None
    # On a link from point to point IFA_ADDRESS is the peer's.
    address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    return address if address is not None and len(address) in (4, 16) else None
