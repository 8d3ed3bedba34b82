"""What it means that the kernel equals the plan: element by element, and packet by packet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netagent import settings
from netagent.agent import planner, reconciler
from netagent.model import addresses
from netagent.model.addresses import Family, Protocol
from netagent.nftables import backend, layout, report, ruleset, tables, unwire, walk
from netagent.plan import frontends, node

# Where packets come from: a pod of this node and one of another, somebody outside, and this host itself.
_PODS = {Family.IPV4: ("10.180.0.1", "10.180.9.9"), Family.IPV6: ("fd00:180::1", "fd00:180::9:9")}
_OUTSIDE = {Family.IPV4: ("198.51.100.7", "10.7.0.9"), Family.IPV6: ("2001:db8:51::7", "fd00:7::9")}
HOST = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8:2::1"}
# Ports and addresses that no Service has, one of them in the ServiceCIDR.
_NOBODYS = {Family.IPV4: ("10.96.77.77", "203.0.113.99"), Family.IPV6: ("fd00:96::7777", "2001:db8:99::1")}


def differences(plan: planner.Planner, wanted: settings.Settings) -> list[str]:
    """What a fresh process with a fresh plan would change in the kernel, and every packet that the kernel's rules treat
    otherwise than the plan's: nothing, if they are equal."""
    held = backend.Backend(affinity_clients=wanted.affinity_clients)
    try:
        fresh = reconciler.Reconciler(plan, held, stale_flow_protocols=frozenset())
        fresh.prepare()
        found = list(report.lines(held.pending(), held.tables.desired(), map(held.actual, Family)))
        if held.pending() and not found:
            found.append(f"{held.pending().count} operations that nobody describes")
        return found or list(_packets(plan, wanted, held))
    finally:
        held.close()


def _packets(plan: planner.Planner, wanted: settings.Settings, held: backend.Backend) -> Iterator[str]:
    made = tables.Tables(affinity_clients=wanted.affinity_clients)
    made.set_rules(plan.rules)
    made.update(plan.forwarding.frontends, plan.forwarding.frontends)
    specs = layout.sets(affinity_clients=wanted.affinity_clients)
    for desired in made.desired():
        readable = unwire.table_of(held.actual(desired.family), specs)
        if readable.strange:
            yield f"rules that nobody of us wrote: {readable.strange}"
        for packet in packets(plan.forwarding.frontends, plan.rules, desired.family):
            host = walk.Host(frozenset({addresses.parse_address(HOST[desired.family])}))
            expected, found = (_odds(table, packet, host) for table in (desired, readable.table))
            if expected != found:
                yield f"{packet}: planned {expected}, and the kernel does {found}"


def _odds(table: ruleset.Table, packet: walk.Packet, host: walk.Host) -> object:
    return walk.odds(walk.outcomes(table, packet, host))


def packets(
    current: Iterable[frontends.FrontendKey], rules: tuple[node.NodeRules, ...], family: Family
) -> Iterator[walk.Packet]:
    """The first packets of connections to every frontend of a family, from everywhere, and to nobody's."""
    own = addresses.parse_address(HOST[family])
    targets = {(key.address or own, key.protocol, key.port) for key in current if key.family is family}
    targets |= {(addresses.parse_address(text), Protocol.TCP, 80) for text in _NOBODYS[family]}
    targets |= {(address, protocol, 9) for address, protocol, _ in targets}
    interface = _pod_interface(rules)
    for address, protocol, port in sorted(targets):
        for text in _PODS[family]:
            yield _packet(text, address, protocol, port, interface)
        for text in _OUTSIDE[family]:
            yield _packet(text, address, protocol, port, "eth0")
        yield _packet(HOST[family], address, protocol, port, "")


def _packet(source: str, destination: bytes, protocol: Protocol, port: int, interface: str) -> walk.Packet:
    return walk.Packet(
        source=addresses.parse_address(source),
        destination=destination,
        protocol=protocol,
        destination_port=port,
        source_port=40000,
        input_interface=interface,
    )


def _pod_interface(rules: tuple[node.NodeRules, ...]) -> str:
    for wanted in rules:
        if isinstance(wanted.local_pods, node.InputInterface | node.InputInterfacePrefix):
            return wanted.local_pods.name if isinstance(wanted.local_pods, node.InputInterface) else "veth1"
    return "veth1"
