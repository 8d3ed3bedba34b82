"""A world of the kernel's tables alone: what rules and elements tell of Services, without objects."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping

from netagent import settings as configuration
from netagent.explain.world import World, own_address
from netagent.model import addresses
from netagent.nftables import layout, lower, ruleset, shapes, unwire, walk
from netagent.nftables.ruleset import Field
from netagent.plan import frontends
from netagent.plan import node as nodes

_SHAPE = re.compile(
    r"(?P<ranges>ranges-)?(?:nodeport-)?(?P<policy>cluster-ip|external|local)-random-\d+(?P<local>-\d+)?"
    r"(?:-affinity-(?P<seconds>\d+)(?P<local_first>-local)?)?"
)
_POLICIES = {
    "cluster-ip": frontends.Masquerade.CLUSTER_IP,
    "external": frontends.Masquerade.ALWAYS,
    "local": frontends.Masquerade.NEVER_LOCAL,
}


def world_of_kernel(
    tables: Mapping[addresses.Family, unwire.Readable],
    *,
    settings: configuration.Settings,
    node_name: str,
    host: walk.Host,
    records: Callable[[addresses.Family], Mapping[bytes, bytes]] | None = None,
) -> World:
    """What can be told from tables: `tables` are those that are in force. Services are known by the comments of their
    elements; slices, policies and everything set aside are not known at all."""
    found = {
        frontend.key: frontend
        for readable in tables.values()
        for frontend in sorted(_frontends(readable.table), key=lambda one: str(one.key))
    }
    rules = {family: rules_of(readable.table) for family, readable in tables.items()}
    return World(
        settings=settings,
        context=nodes.NodeContext(
            name=node_name,
            node_ips=tuple(own for found_rules in rules.values() if (own := _own_address(found_rules, host))),
        ),
        node=None,
        rules=rules,
        services={},
        slices={},
        frontends=found,
        tables={family: readable.table for family, readable in tables.items()},
        host=host,
        actual=tables,  # so that rules of others are pointed out
        kernel_only=True,
        records=records,
    )


def _own_address(rules: nodes.NodeRules, host: walk.Host) -> bytes | None:
    """This node's address: the one that alone accepts node ports, else any that others can reach."""
    for prefix in rules.node_port_prefixes:
        if prefix.length == len(prefix.address) * 8:
            return prefix.address
    return own_address(host, rules.family)


def rules_of(table: ruleset.Table) -> nodes.NodeRules:
    """The rules of the node as a table has them."""
    cidrs: list[addresses.Prefix] = []
    accepting: list[addresses.Prefix] = []
    services = table.chains.get(layout.SERVICES)
    for rule in services.rules if services else ():
        destination = next(
            (one.prefix for one in rule if isinstance(one, ruleset.InPrefix) and not one.negate),
            addresses.Prefix(bytes(table.family.address_bytes), 0),
        )
        if rule and isinstance(rule[-1], ruleset.Drop):
            cidrs.append(destination)
        elif any(_looks_up(one, layout.NODEPORTS) for one in rule):
            accepting.append(destination)
    marks = [one.bits for one in _statements(table) if isinstance(one, ruleset.SetMark)]
    return nodes.NodeRules(
        family=table.family,
        local_pods=_local_pods(table),
        masquerade_all=any(
            chain.name.startswith("cluster-ip-")
            and any(rule[:1] == (ruleset.SetMark(marks[0]),) for rule in chain.rules)
            for chain in table.chains.values()
            if marks
        ),
        masquerade_mark=marks[0] if marks else 0,
        node_port_prefixes=tuple(accepting),
        service_cidrs=tuple(cidrs),
        drop_invalid="forward" in table.chains,
    )


def _statements(table: ruleset.Table) -> Iterator[ruleset.Statement]:
    for _, chain in sorted(table.chains.items()):
        for rule in chain.rules:
            yield from rule


def _looks_up(statement: ruleset.Statement, name: str) -> bool:
    return (
        isinstance(statement, ruleset.SetPriority)
        and isinstance(statement.value, ruleset.Lookup)
        and statement.value.map == name
    )


def _local_pods(table: ruleset.Table) -> nodes.LocalPods | None:
    """How the table tells pods from others; None if nothing in it does."""
    for statement in _statements(table):
        match statement:
            case ruleset.InPrefix(Field.SOURCE, prefix):
                return nodes.SourcePrefix(prefix)
            case ruleset.InputName(name, prefix=True):
                return nodes.InputInterfacePrefix(name)
            case ruleset.InputName(name):
                return nodes.InputInterface(name)
    return None


def _frontends(table: ruleset.Table) -> Iterator[frontends.Frontend]:
    ranges = _source_ranges(table)
    for name in (layout.FRONTENDS, layout.NODEPORTS):
        for packed, value in table.elements.get(name, {}).items():
            key = lower.frontend_key(table.family, name, packed)
            chain = shapes.chain_of(table.elements, value)
            if key is None or chain is None or not isinstance(value, ruleset.Owned):
                continue
            yield _frontend(table, key, chain, value.owner, tuple(ranges.get(packed, ())))


def _frontend(
    table: ruleset.Table,
    key: frontends.FrontendKey,
    chain: str,
    comment: str,
    ranges: tuple[addresses.Prefix, ...],
) -> frontends.Frontend:
    """A frontend as far as an element and the name of its chain tell. Its endpoints are left to the walk."""
    shape = _SHAPE.fullmatch(chain)
    inner = chain.removeprefix("ranges-")
    verdict = frontends.Verdict.SERVE
    if inner == layout.REFUSE:
        verdict = frontends.Verdict.REJECT
    elif inner in ("", "drop"):
        verdict = frontends.Verdict.DROP
    kind = frontends.FrontendKind.EXTERNAL_IP
    if not key.address:
        kind = frontends.FrontendKind.NODE_PORT
    elif key.address in table.elements.get(layout.CLUSTER_IPS, {}):
        kind = frontends.FrontendKind.CLUSTER_IP
    seconds = shape["seconds"] if shape else None
    return frontends.Frontend(
        key=key,
        kind=kind,
        owner=owner_of(comment, key.protocol),
        verdict=verdict,
        masquerade=_POLICIES[shape["policy"]] if shape else frontends.Masquerade.CLUSTER_IP,
        local_endpoints=() if shape and shape["local"] else None,
        affinity_seconds=int(seconds) if seconds else None,
        source_ranges=ranges if chain.startswith("ranges-") else None,
        endpoints_are_local=bool(shape and shape["local_first"]),
    )


def owner_of(comment: str, protocol: addresses.Protocol) -> frontends.ServicePortName:
    """The Service port that an element's comment names."""
    namespace, _, rest = comment.partition("/")
    service, _, port = rest.partition(":")
    return frontends.ServicePortName(namespace, service, port, protocol)


def _source_ranges(table: ruleset.Table) -> dict[bytes, list[addresses.Prefix]]:
    """The networks that may use a frontend, by its key in FRONTENDS."""
    found: dict[bytes, list[addresses.Prefix]] = {}
    size = table.family.address_bytes
    for element in sorted(table.elements.get(layout.SOURCE_RANGES, {})):
        half = len(element) // 2
        first, last = element[:half], element[half:]
        if first[:-size] != last[:-size]:
            continue
        for network in ipaddress.summarize_address_range(
            ipaddress.ip_address(first[-size:]), ipaddress.ip_address(last[-size:])
        ):
            prefix = addresses.Prefix(network.network_address.packed, network.prefixlen)
            found.setdefault(first[:-size], []).append(prefix)
    return found
