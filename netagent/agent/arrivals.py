"""New connections, one by one, as connection tracking tells of them while somebody listens."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections import Counter
from typing import Final, NamedTuple

from netagent import conntrack, errors
from netagent.model import addresses

_NETLINK_NETFILTER: Final = 12  # linux/netlink.h
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
_NFNLGRP_CONNTRACK_NEW: Final = 1  # linux/netfilter/nfnetlink.h
_CT_NEW: Final = 0x100  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
_HEADER: Final = struct.Struct("=IHHII")
_BODY: Final = _HEADER.size + 4  # struct nfgenmsg
_FAMILIES: Final[dict[int, addresses.Family]] = {
    socket.AF_INET: addresses.Family.IPV4,
    socket.AF_INET6: addresses.Family.IPV6,
}
_DATAGRAM_BYTES: Final = 65536
_BUFFER_BYTES: Final = 8 << 20


class Arrival(NamedTuple):
    """What a client dialled, and the endpoint that answers it: endpoint keys."""

    protocol: int
    destination: bytes
    endpoint: bytes


class Arrivals:
    """Counts new connections that were sent to another place than the one that was dialled.

    Owns: a netlink socket that connection tracking multicasts to. Use: `take` often; `close`, or as a context manager.
    Goals: true numbers, at a cost only while somebody listens; where there are more connections than can be followed,
    `take` counts a sample (`complete` is False), and the kernel is asked for no more until `resume`.
    Threading: none.
    """

    def __init__(self, *, most: int) -> None:
        """Follow at most so many connections from one `resume` to the next.

        PrivilegeError without CAP_NET_ADMIN, UnsupportedError where connection tracking does not tell.
        """
        self._most = most
        self._left = most
        self._socket: socket.socket | None = None
        self.complete = True
        self._join()

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def fileno(self) -> int | None:
        """The descriptor that becomes readable; None while nothing is followed."""
        return self._socket.fileno() if self._socket is not None else None

    def resume(self) -> None:
        """Begin to count anew."""
        self._left, self.complete = self._most, True
        if self._socket is None:
            self._join()

    def take(self) -> Counter[Arrival]:
        """What has come since the last time. Never blocks."""
        found: Counter[Arrival] = Counter()
        while self._socket is not None:
            try:
                datagram = self._socket.recv(_DATAGRAM_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.complete = False
                continue
            self._count(datagram, found)
            if self._left <= 0:
                self.complete = False
                self.close()
        return found

    def _count(self, datagram: bytes, found: Counter[Arrival]) -> None:
        start, end = 0, len(datagram)
        while start + _BODY <= end:
            length, kind, _, _, _ = _HEADER.unpack_from(datagram, start)
            if not _BODY <= length <= end - start:
                return
            family = _FAMILIES.get(datagram[start + _HEADER.size])
            if kind == _CT_NEW and family is not None:
                self._left -= 1
                flow = conntrack.flow_of(datagram[start + _BODY : start + length], family)
                if flow is not None and flow.reply_source != flow.destination:
                    found[Arrival(flow.protocol, flow.destination, flow.reply_source)] += 1
            start += length + 3 & ~3

    def _join(self) -> None:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            with contextlib.suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            made.bind((0, 1 << (_NFNLGRP_CONNTRACK_NEW - 1)))
        except OSError as error:
            made.close()
            if error.errno == errno.EPERM:
                raise errors.PrivilegeError(
                    f"user {os.geteuid()} may not follow new connections: CAP_NET_ADMIN is needed in this namespace "
                    "(run as root, or give the capability)"
                ) from error
            raise errors.UnsupportedError(
                f"connection tracking does not tell of new connections ({error.strerror}): "
                "the kernel needs CONFIG_NF_CT_NETLINK and CONFIG_NF_CONNTRACK_EVENTS"
            ) from error
        self._socket = made
