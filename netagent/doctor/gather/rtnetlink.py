"""Interfaces, addresses, routes and routing rules of this network namespace, asked of the kernel (rtnetlink(7)).

/sys/class/net shows the namespace that /sys was mounted in, which need not be ours; netlink always shows ours.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from netagent.doctor import evidence
from netagent.model import addresses
from netagent.nftables import netlink

_NETLINK_ROUTE: Final = 0
_NLMSG_ERROR, _NLMSG_DONE = 2, 3  # linux/netlink.h
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
# linux/rtnetlink.h
_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE, _RTM_GETRULE = 18, 22, 26, 34
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_RT_TABLE_MAIN, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 0, 1
# linux/if_link.h
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 3, 4, 5, 10, 18
_IFLA_INFO_KIND: Final = 1
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8  # linux/if.h
_IFA_ADDRESS, _IFA_LOCAL = 1, 2  # linux/if_addr.h
_FRA_PRIORITY, _FRA_FWMARK, _FRA_FWMASK = 6, 10, 16  # linux/fib_rules.h

_IFINFOMSG = struct.Struct("=BxHiII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_RECEIVE_BYTES: Final = 1 << 18
_SECONDS: Final = 5.0
_FAMILY: Final = {int(socket.AF_INET): addresses.Family.IPV4, int(socket.AF_INET6): addresses.Family.IPV6}


class Route(NamedTuple):
    """A route of the main table to elsewhere. `destination` is "default" or a CIDR, `gateway` "" on a link."""

    family: addresses.Family
    destination: str
    gateway: str
    link: int
    metric: int


def links() -> tuple[evidence.Link, ...]:
    """All interfaces with their global addresses, by index. OSError if the kernel does not answer."""
    found = {link.number: link for link in map(_link, _dump(_RTM_GETLINK, bytes(_IFINFOMSG.size)))}
    owned: dict[int, list[bytes]] = {}
    for payload in _dump(_RTM_GETADDR, bytes(_IFADDRMSG.size)):
        _, _, _, scope, index = _IFADDRMSG.unpack_from(payload)
        parts = _attributes(payload, _IFADDRMSG.size)
        address = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS, b"")
        if scope == _RT_SCOPE_UNIVERSE and len(address) in (4, 16):
            owned.setdefault(index, []).append(address)
    return tuple(found[index]._replace(addresses=tuple(sorted(owned.get(index, ())))) for index in sorted(found))


def _link(payload: bytes) -> evidence.Link:
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    parts = _attributes(payload, _IFINFOMSG.size)
    kind = dict(netlink.attributes(parts.get(_IFLA_LINKINFO, b""))).get(_IFLA_INFO_KIND, b"")
    return evidence.Link(
        number=index,
        name=_text(parts.get(_IFLA_IFNAME, b"?")),
        kind=_text(kind),
        mtu=_number(parts.get(_IFLA_MTU, b"")),
        up=bool(flags & _IFF_UP),
        loopback=bool(flags & _IFF_LOOPBACK),
        lower=_number(parts.get(_IFLA_LINK, b"")),
        master=_number(parts.get(_IFLA_MASTER, b"")),
    )


def routes() -> tuple[Route, ...]:
    """The unicast routes of the main table, IPv4 first, default routes first. OSError if the kernel does not answer."""
    found: list[Route] = []
    for number, family in _FAMILY.items():
        request = _RTMSG.pack(number, 0, 0, 0, 0, 0, 0, 0, 0)
        found += (route for payload in _dump(_RTM_GETROUTE, request) if (route := _route(payload, family)))
    return tuple(
        sorted(
            found, key=lambda each: (each.family.value, each.destination != "default", each.destination, each.metric)
        )
    )


def _route(payload: bytes, family: addresses.Family) -> Route | None:
    number, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(payload)
    parts = _attributes(payload, _RTMSG.size)
    table = _number(parts.get(_RTA_TABLE, b"")) or table
    if table != _RT_TABLE_MAIN or kind != _RTN_UNICAST or _FAMILY.get(number) is not family:
        return None
    destination = parts.get(_RTA_DST)
    gateway = parts.get(_RTA_GATEWAY, b"")
    return Route(
        family,
        f"{addresses.format_address(destination)}/{length}" if destination else "default",
        addresses.format_address(gateway) if len(gateway) == family.address_bytes else "",
        _number(parts.get(_RTA_OIF, b"")),
        _number(parts.get(_RTA_PRIORITY, b"")),
    )


def mark_routes() -> tuple[evidence.MarkRoute, ...]:
    """The routing rules that look at the packet mark. OSError if the kernel does not answer."""
    found: list[evidence.MarkRoute] = []
    for number, family in _FAMILY.items():
        for payload in _dump(_RTM_GETRULE, _RTMSG.pack(number, 0, 0, 0, 0, 0, 0, 0, 0)):
            parts = _attributes(payload, _RTMSG.size)
            if _FRA_FWMARK in parts or _FRA_FWMASK in parts:
                mask = _number(parts[_FRA_FWMASK]) if _FRA_FWMASK in parts else 0xFFFFFFFF
                mark = _number(parts.get(_FRA_FWMARK, b""))
                found.append(evidence.MarkRoute(family, _number(parts.get(_FRA_PRIORITY, b"")), mark, mask))
    return tuple(sorted(set(found)))


def _dump(kind: int, request: bytes) -> Iterator[bytes]:
    """The payloads of a listing; [] where the kernel has no such family. OSError if it refuses, or does not answer."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as asking:
        asking.settimeout(_SECONDS)
        header = struct.pack("=IHHII", 16 + len(request), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        asking.send(header + request)
        while True:
            for answer, _, _, payload in netlink.messages_in(asking.recv(_RECEIVE_BYTES)):
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                        return
                    raise OSError(code, os.strerror(code))
                yield payload


def _attributes(payload: bytes, offset: int) -> dict[int, bytes]:
    return dict(netlink.attributes(payload[offset + 3 & ~3 :]))


def _number(raw: bytes) -> int:
    """A number as rtnetlink has them: in the host's order."""
    return int.from_bytes(raw, sys.byteorder)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")
