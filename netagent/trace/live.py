"""Tracing as it happens: arms, listens, and takes away what it armed, whatever comes between."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final

from netagent import errors
from netagent.nftables import constants as c
from netagent.nftables import netlink, wire
from netagent.trace import arming, events, rules, story
from netagent.trace.flow import Flow

_RECEIVE_BYTES: Final = 1 << 18
_RECEIVE_BUFFER: Final = 4 << 20
# A packet is through when nothing more has been told for so long.
_QUIET_SECONDS: Final = 0.3


class Trace:
    """Some flows being traced, in the network namespace of the thread that opened it.

    Owns: the table `netagent-trace` in the kernel, and two sockets. Use: as a context manager; `stories` once.
    Goals: nothing stays in the kernel: the table is taken away at the end, and it belongs to a socket, so the kernel
    takes it away when the process dies. Nothing but that table is written. Threading: none.
    """

    def __init__(self, flows: Sequence[Flow], *, every_packet: bool = False) -> None:
        """PrivilegeError without CAP_NET_ADMIN, HeldError if another trace is at work, UnsupportedError if the kernel
        cannot do it."""
        self._flows = flows
        self._families = sorted({flow.family for flow in flows})
        self._every_packet = every_packet
        self._armed = False
        self.lost = False  # whether the kernel told more than we could take
        self._door = netlink.NftablesSocket()
        try:
            self._listener = _listener()
        except OSError as error:
            self._door.close()
            raise _refusal(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO)) from error

    def __enter__(self) -> Trace:
        try:
            self._arm()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything away; a second time is fine."""
        try:
            self._disarm()
        finally:
            self._door.close()
            self._listener.close()

    def stories(
        self, *, count: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> Iterator[story.Story]:
        """The stories of the first `count` packets, each as soon as it is complete; ends after `seconds` at most.

        OSError if the kernel does not let us read the rules."""
        packets = story.Packets(count, name_of=link_name)
        known = rules.read(self._door, self._families)
        until = clock() + seconds
        told = 0
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while told < count:
            left = until - clock()
            if left <= 0 or packets.begun >= count:
                self._disarm()
            if self._armed:
                left = max(0.0, min(left, _QUIET_SECONDS))
            if poll.poll((left if self._armed else _QUIET_SECONDS) * 1000):
                for event in self._take():
                    packets.feed(event)
                continue
            for packet in packets.take():
                known = self._with_rules_of(packet, known)
                told += 1
                yield story.tell(packet, known, name_of=link_name)
            if not self._armed:
                return

    def _arm(self) -> None:
        for family in self._families:
            for body in self._dumped(family):
                if dict(netlink.attributes(body)).get(c.NFTA_TABLE_NAME, b"").rstrip(b"\0") == arming.TABLE.encode():
                    raise errors.HeldError(
                        "another netagent trace is at work in this network namespace; wait for its end"
                    )
        failures = self._door.commit(arming.messages(self._flows, every_packet=self._every_packet))
        if failures and failures[0].errno == errno.ENOENT:  # a kernel without CONFIG_NFT_LIMIT
            failures = self._door.commit(arming.messages(self._flows, every_packet=self._every_packet, limited=False))
        if failures:
            raise _refusal(failures[0].errno, failures[0].text)
        self._armed = True

    def _dumped(self, family: object) -> list[bytes]:
        try:
            return self._door.dump_all(c.NFT_MSG_GETTABLE, wire.NFPROTO[family])  # type: ignore[index]
        except OSError as error:
            raise _refusal(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO)) from error

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._door.commit(arming.removal(self._families))

    def _take(self) -> Iterator[events.Event]:
        while True:
            try:
                data = self._listener.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            for kind, _, _, payload in netlink.messages_in(data):
                if kind == c.NFNL_SUBSYS_NFTABLES << 8 | events.NFT_MSG_TRACE:
                    event = events.decode(payload)
                    if event:
                        yield event

    def _with_rules_of(self, packet: story.Packet, known: rules.Rules) -> rules.Rules:
        """The rules, read again if the packet came by one that is newer than they are."""
        places = (
            rules.Place(event.family, event.table, event.chain, event.handle or 0)
            for event in packet.events
            if event.of_a_rule and event.table != arming.TABLE
        )
        if all(place in known.by_place for place in places):
            return known
        return rules.read(self._door, self._families)


def link_name(index: int) -> str:
    """The name of an interface by its index; "" for none, "#7" for one that is gone."""
    if not index:
        return ""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"#{index}"


def _listener() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, c.NETLINK_NETFILTER)
    try:
        made.setblocking(False)
        made.bind((0, 0))
        netlink.grow_buffer(made, c.SO_RCVBUFFORCE, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        made.setsockopt(c.SOL_NETLINK, c.NETLINK_ADD_MEMBERSHIP, events.NFNLGRP_NFTRACE)
    except OSError:
        made.close()
        raise
    return made


def _refusal(code: int, said: str) -> errors.NetagentError:
    if code in (errno.EPERM, errno.EACCES):
        return errors.PrivilegeError("tracing takes CAP_NET_ADMIN in this network namespace; run it as root")
    if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
        return errors.UnsupportedError(
            f"this kernel cannot trace so ({said}): it needs nf_tables of Linux 5.12 or newer"
        )
    return errors.NetagentError(f"cannot arm the trace: {said}")
