"""Everything that explaining looks at: objects, plan, rules, and what was set aside. Facts, and no judgement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netagent import settings as configuration
from netagent.agent import planner
from netagent.explain.facts import Facts
from netagent.explain.story import Dialled, Source, SourceKind
from netagent.model import addresses, objects
from netagent.nftables import layout, readback, ruleset, tables, unwire, walk
from netagent.nftables.constants import IFNAMSIZ
from netagent.plan import forwarding, frontends
from netagent.plan import node as nodes


class SetAside(NamedTuple):
    """An object that cannot be used as it is now, with the field at fault. `kept`: an older version is in use.

    `kind`, `namespace`, `name` are "" as far as they are unknown: then a whole text could not be read.
    """

    kind: str
    namespace: str
    name: str
    field: str
    reason: str
    origin: str = ""
    kept: bool = False

    def __str__(self) -> str:
        full = f"{self.namespace}/{self.name}" if self.namespace else self.name
        what = " ".join(part for part in (self.kind, full) if part)
        fault = ": ".join(part for part in (self.field, self.reason) if part)
        return f"{what}: {fault}" if what else f"{self.origin}: {fault}" if self.origin else fault


class Noted(NamedTuple):
    """What was left out of an object that is used otherwise."""

    kind: str
    namespace: str
    name: str
    field: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is, and what should be.

    `services` and `slices` are all that are known, also those of other proxies; `orphans` are slices without a Service;
    `frontends` what this node does.
    `tables` are the desired ones, by family; so are `rules`. `host` has this host's addresses as far as they are known.
    `facts`: what manifests say beside, None where there are none to read. `actual`: what the kernel holds, None for a
    family without a table in force; None as a whole if that is unknown. `kernel_only`: there are no objects, and
    `tables` are what the kernel holds. `records` reads which endpoint each client has by session affinity, None if that
    is unknown.
    """

    settings: configuration.Settings
    context: nodes.NodeContext
    node: objects.Node | None
    rules: Mapping[addresses.Family, nodes.NodeRules]
    services: Mapping[objects.ServiceName, objects.Service]
    slices: Mapping[objects.ServiceName, tuple[objects.EndpointSlice, ...]]
    orphans: tuple[objects.EndpointSlice, ...] = ()
    frontends: Mapping[frontends.FrontendKey, frontends.Frontend]
    conflicts: tuple[forwarding.Conflict, ...] = ()
    tables: Mapping[addresses.Family, ruleset.Table]
    host: walk.Host
    set_aside: tuple[SetAside, ...] = ()
    noted: tuple[Noted, ...] = ()
    facts: Callable[[], Mapping[objects.ServiceName, Facts]] | None = None
    actual: Mapping[addresses.Family, unwire.Readable | None] | None = None
    kernel_only: bool = False
    records: Callable[[addresses.Family], Mapping[bytes, bytes]] | None = None

    def facts_of(self, name: objects.ServiceName) -> Facts | None:
        """What the Service's manifest says beside; None if that is unknown."""
        return self.facts().get(name) if self.facts else None

    def slices_of(self, name: objects.ServiceName) -> tuple[objects.EndpointSlice, ...]:
        """The slices of a Service, sorted by name."""
        return self.slices.get(name, ())

    @property
    def families(self) -> tuple[addresses.Family, ...]:
        """The families that are served."""
        return tuple(self.rules)

    @property
    def this_node(self) -> str:
        """This node by its name, which rules alone do not tell."""
        return "this node" if self.kernel_only else self.context.name

    @property
    def node_in_brackets(self) -> str:
        """ " (NAME)", to be put behind the words "this node"; "" where the name is unknown."""
        return "" if self.kernel_only else f" ({self.context.name})"

    def is_ours(self, service: objects.Service) -> bool:
        """Whether netagent is the proxy that the Service is for."""
        return service.proxy_name == self.context.proxy_name

    def accepts_node_ports(self, address: bytes) -> bool:
        """Whether the settings let an address of this node answer on node ports."""
        found = self.rules.get(addresses.family_of(address))
        return found is not None and any(address in prefix for prefix in found.node_port_prefixes)


def world_of(
    plan: planner.Planner,
    *,
    others: Iterable[objects.Object] = (),
    host_addresses: Iterable[bytes] = (),
    set_aside: Iterable[SetAside] = (),
    noted: Iterable[Noted] = (),
    facts: Callable[[], Mapping[objects.ServiceName, Facts]] | None = None,
    found: Mapping[addresses.Family, readback.ActualTable] | None = None,
    records: Callable[[addresses.Family], Mapping[bytes, bytes]] | None = None,
) -> World:
    """The world of a planner that has planned. `others` are objects that it was given and does not follow (those of
    other proxies, headless slices). `found` is what the kernel holds, None if that is unknown."""
    services = dict(plan.store.services)
    slices = {one.key: one for one in plan.store.all_slices()}
    for item in others:
        match item:
            case objects.Service():
                services.setdefault(item.key, item)
            case objects.EndpointSlice():
                slices.setdefault(item.key, item)
    current = plan.forwarding.frontends
    made = tables.Tables(affinity_clients=plan.settings.affinity_clients)
    made.set_rules(plan.rules, {family: table.elements for family, table in (found or {}).items()})
    made.update(current, current)
    own = plan.node.addresses if plan.node else ()
    return World(
        settings=plan.settings,
        context=plan.context,
        node=plan.node,
        rules={rules.family: rules for rules in plan.rules},
        services=services,
        slices=_by_service(slices.values()),
        orphans=tuple(item for _, item in sorted(slices.items()) if item.service not in services and not item.headless),
        frontends=current,
        conflicts=plan.forwarding.conflicts(),
        tables={table.family: table for table in made.desired()},
        host=walk.Host(frozenset((*own, *plan.context.node_ips, *host_addresses))),
        set_aside=tuple(set_aside),
        noted=tuple(noted),
        facts=facts,
        records=records,
        actual=None if found is None else {family: _in_force(found.get(family), plan) for family in addresses.Family},
    )


def _in_force(table: readback.ActualTable | None, plan: planner.Planner) -> unwire.Readable | None:
    if table is None or not table.exists or table.dormant:
        return None
    return unwire.table_of(table, layout.sets(affinity_clients=plan.settings.affinity_clients))


def _by_service(
    slices: Iterable[objects.EndpointSlice],
) -> dict[objects.ServiceName, tuple[objects.EndpointSlice, ...]]:
    found: dict[objects.ServiceName, list[objects.EndpointSlice]] = {}
    for item in slices:
        if item.service is not None:
            found.setdefault(item.service, []).append(item)
    return {name: tuple(sorted(items, key=lambda item: item.name)) for name, items in found.items()}


def own_address(host: walk.Host, family: addresses.Family) -> bytes | None:
    """An address of this host that others can reach, if it has one."""
    found = [
        address
        for address in sorted(host.addresses)
        if addresses.family_of(address) is family and not any(address in prefix for prefix in _HOST_ONLY)
    ]
    return next(iter(found), None)


_HOST_ONLY = tuple(map(addresses.parse_prefix, ("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10")))


# Clients ------------------------------------------------------------------------------------------------------

_LOOPBACK = {addresses.Family.IPV4: "127.0.0.1", addresses.Family.IPV6: "::1"}
# Documentation addresses (RFC 5737, RFC 3849, RFC 9637), which no cluster has.
_OUTSIDE = {
    addresses.Family.IPV4: ("203.0.113.10", "198.51.100.10", "192.0.2.10"),
    addresses.Family.IPV6: ("2001:db8::10", "3fff::10", "2001:db8:ffff::10"),
}
_POD = {addresses.Family.IPV4: "198.51.100.0/24", addresses.Family.IPV6: "2001:db8:1::/64"}


def default_source(
    world: World, kind: SourceKind, family: addresses.Family, *, avoiding: Sequence[addresses.Prefix] = ()
) -> Source:
    """A client of this kind, where any will do. One from outside is in none of the networks in `avoiding`, if possible.

    A pod has an address that hardly any pod has, lest it is an endpoint of the Service.
    """
    match kind:
        case SourceKind.NODE:
            loopback = addresses.parse_address(_LOOPBACK[family])
            return Source(kind, world.context.node_ip(family) or own_address(world.host, family) or loopback)
        case SourceKind.POD:
            return Source(kind, _last_of(_pod_prefix(world.rules[family], world.node)))
        case SourceKind.OUTSIDE:
            candidates = [addresses.parse_address(text) for text in _OUTSIDE[family]]
            free = [one for one in candidates if not any(one in prefix for prefix in avoiding)]
            return Source(kind, next(iter(free), candidates[0]))


def _pod_prefix(rules: nodes.NodeRules, node: objects.Node | None) -> addresses.Prefix:
    """A network that pods of this node are in."""
    own = [prefix for prefix in (node.pod_cidrs if node else ()) if prefix.family is rules.family]
    if isinstance(rules.local_pods, nodes.SourcePrefix):
        whole = rules.local_pods.prefix
        return next((prefix for prefix in own if prefix.address in whole), whole)
    return own[0] if own else addresses.parse_prefix(_POD[rules.family])


def _last_of(prefix: addresses.Prefix) -> bytes:
    """An address near the end of a network, where few pods are."""
    room = (1 << (len(prefix.address) * 8 - prefix.length)) - 1
    return (int.from_bytes(prefix.last) - min(5, room)).to_bytes(len(prefix.address))


def packet_of(source: Source, dialled: Dialled, rules: nodes.NodeRules) -> walk.Packet:
    """The first packet of a connection."""
    return walk.Packet(
        source=source.address,
        destination=dialled.address,
        protocol=dialled.protocol,
        destination_port=dialled.port,
        input_interface=_interface(source.kind, rules.local_pods),
    )


def _interface(kind: SourceKind, local_pods: nodes.LocalPods | None) -> str:
    """The name of the interface that a packet comes in by; "" for what this host sends."""
    match kind, local_pods:
        case SourceKind.NODE, _:
            return ""
        case SourceKind.POD, nodes.InputInterface(name):
            return name
        case SourceKind.POD, nodes.InputInterfacePrefix(prefix=name):
            return f"{name}0"[: IFNAMSIZ - 1]
        case _, nodes.InputInterfacePrefix(prefix=name) | nodes.InputInterface(name) if "eth0".startswith(name):
            return "uplink" if not "uplink".startswith(name) else "0"
        case _:
            return "eth0"


def counts_as_pod(source: Source, rules: nodes.NodeRules) -> bool:
    """Whether this node takes a client for one of its pods."""
    match rules.local_pods:
        case None:
            return False
        case nodes.SourcePrefix(prefix):
            return source.address in prefix
        case _:
            return source.kind is SourceKind.POD
