"""Ports: those of outgoing connections, node ports, and what listens on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from netagent import settings
from netagent.doctor import findings
from netagent.doctor.evidence import Evidence, Listener, NodePort
from netagent.doctor.judge.forwarding import dotted
from netagent.model import addresses

_NODE_PORTS: Final = range(30000, 32768)  # the API server's default, --service-node-port-range
_RANGE: Final = "net/ipv4/ip_local_port_range"
_RESERVED: Final = "net/ipv4/ip_local_reserved_ports"
_SHOWN: Final = 10


def outgoing(seen: Evidence) -> Iterator[findings.Finding]:
    """Can a connection that this host opens take a node port as its own port?"""
    local = _range_of(seen.sysctls.get(_RANGE, ""))
    if local is None:
        return
    reserved = _ports_of(seen.sysctls.get(_RESERVED, ""))
    used = {port.port for port in seen.ruleset.node_ports}
    taken = sorted(port for port in {*used, *_NODE_PORTS} if port in local and port not in reserved)
    facts = [
        f"{dotted(_RANGE)} = {local.start} {local.stop - 1}",
        f"{dotted(_RESERVED)} = {seen.sysctls.get(_RESERVED) or '(none)'}",
    ]
    if not taken:
        yield findings.ok("port-range", "no outgoing connection can take a node port", *facts)
        return
    facts.append(f"node ports that it can take: {_spelled(taken)}")
    in_use = sorted(used.intersection(taken))
    if in_use:
        facts.append(f"of these, Services use: {_spelled(in_use)}")
    yield findings.warning(
        "port-range",
        "the ports of outgoing connections overlap with node ports: now and then a connection of this host gets a port "
        "that belongs to a Service, and its answers go there",
        *facts,
        remedy='Keep them apart: sysctl -w net.ipv4.ip_local_port_range="32768 60999", or reserve the node ports: '
        f"sysctl -w net.ipv4.ip_local_reserved_ports={_spelled(taken)}; and the same into /etc/sysctl.d.",
    )


def shadowed(seen: Evidence) -> Iterator[findings.Finding]:
    """Does something listen on a node port, which Service traffic then never reaches?"""
    hidden = [each for each in seen.listeners if _answers(each, seen) and _key(each) in seen.ruleset.node_ports]
    if not hidden:
        yield findings.ok("node-port-listener", "nothing on this host listens on a node port")
        return
    yield findings.warning(
        "node-port-listener",
        "something on this host listens on a node port, and what comes from outside goes to the Service instead",
        *map(str, hidden[:_SHOWN]),
        *((f"and {len(hidden) - _SHOWN} more",) if len(hidden) > _SHOWN else ()),
        remedy="Move the program to another port, or give the Service another nodePort; `ss -lntup` names the program.",
    )


def _answers(listener: Listener, seen: Evidence) -> bool:
    """Whether packets to a listener come by the rules for node ports: not on loopback, but for mode iptables."""
    loopback = listener.address[:1] == b"\x7f" if len(listener.address) == 4 else listener.address == bytes(15) + b"\1"
    return not loopback or (seen.wanted.mode is settings.Mode.IPTABLES and seen.wanted.localhost_node_ports)


def _key(listener: Listener) -> NodePort:
    return NodePort(addresses.Protocol(listener.protocol), listener.port)


def _range_of(text: str) -> range | None:
    words = text.split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    return range(int(words[0]), int(words[1]) + 1)


def _ports_of(text: str) -> set[int]:
    """The ports of a list as the kernel prints it: "8080,9000-9002"."""
    ports: set[int] = set()
    for part in text.replace("\t", ",").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not last):
            ports.update(range(int(first), int(last or first) + 1))
    return ports


def _spelled(ports: Iterable[int]) -> str:
    """Sorted ports as a list of ranges: "30000-32767,40000"."""
    ranges: list[list[int]] = []
    for port in ports:
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
