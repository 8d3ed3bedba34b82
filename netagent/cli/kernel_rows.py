"""What this node does for each Service port as far as the kernel alone tells, as rows. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from netagent.cli import rows
from netagent.cli.rows import EndpointRow, FrontendRow, ServiceRow
from netagent.model import addresses, objects
from netagent.nftables import layout, lower, readback, report, ruleset, shapes
from netagent.plan import frontends

_SHAPE: Final = re.compile(
    r"(?P<ranges>ranges-)?(?P<node_port>nodeport-)?(?P<policy>cluster-ip|external|local)-random-[0-9]+"
    r"(?P<two_lists>-[0-9]+)?(-affinity-(?P<affinity>[0-9]+)(?P<local_first>-local)?)?"
)


def in_kernel(tables: Iterable[readback.ActualTable]) -> rows.InKernel:
    """Whose each frontend of the kernel's tables is, and the chain that it leads to ("" drops, None leads nowhere)."""
    return {key: (owner, shape) for _, _, _, key, owner, shape in _dispatched(tables)}


def _dispatched(
    tables: Iterable[readback.ActualTable],
) -> Iterator[tuple[readback.ActualTable, str, bytes, frontends.FrontendKey, str, str | None]]:
    for table in tables:
        for name in (layout.FRONTENDS, layout.NODEPORTS):
            for packed, value in table.elements.get(name, {}).items():
                key = lower.frontend_key(table.family, name, packed)
                if key is not None:
                    owner = value.owner if isinstance(value, ruleset.Owned) else ""
                    yield table, name, packed, key, owner, shapes.chain_of(table.elements, value)


def of_kernel(tables: Sequence[readback.ActualTable], *, counts: rows.Counts | None = None) -> list[FrontendRow]:
    """The frontends that the kernel's tables hold, as far as these tell."""
    views = {table.family: report.View(table.elements) for table in tables}
    found = []
    for table, name, packed, key, owner, chain in _dispatched(tables):
        everywhere, local = views[table.family].endpoints(name, packed)
        is_cluster_ip = key.address in table.elements.get(layout.CLUSTER_IPS, {})
        kind = _kind_of(key, chain, is_cluster_ip=is_cluster_ip)
        found.append(_kernel_row(key, owner, chain, kind, everywhere, local, (counts or {}).get(key)))
    return sorted(
        found, key=lambda row: (row.namespace, row.service, row.port_name, row.protocol, row.family, row.kind)
    )


def _kernel_row(
    key: frontends.FrontendKey,
    owner: str,
    chain: str | None,
    kind: str,
    everywhere: set[bytes],
    local: set[bytes],
    connections: int | None,
) -> FrontendRow:
    service, _, port_name = owner.partition(":")
    namespace, _, name = service.rpartition("/")
    bare = (chain or "").removeprefix("ranges-")
    shape = _SHAPE.fullmatch(chain or "")
    common: dict[str, Any] = {
        "namespace": namespace,
        "service": name,
        "port_name": port_name,
        "protocol": key.protocol.name,
        "family": key.family.value,
    }

    def listed(keys: set[bytes]) -> tuple[EndpointRow, ...]:
        texts = map(addresses.format_endpoint, sorted(keys))
        return tuple(EndpointRow(**common, endpoint=text, used_by=(kind,)) for text in texts)

    does = "nothing" if chain is None else "reject" if bare == layout.REFUSE else "serve" if shape else "drop"
    two_lists = shape is not None and shape["two_lists"] is not None
    return FrontendRow(
        **common,
        kind=kind,
        address=addresses.format_address(key.address) if key.address else None,
        port=key.port,
        frontend=rows.address_text(key),
        does=does,
        policy=_policy_of(shape),
        affinity_seconds=int(shape["affinity"]) if shape and shape["affinity"] else None,
        endpoints=listed(everywhere),
        local_endpoints=listed(local) if two_lists else None,
        connections=connections,
    )


def _kind_of(key: frontends.FrontendKey, chain: str | None, *, is_cluster_ip: bool) -> str:
    """The kind of a frontend as far as it can be told: an external IP looks like a load balancer's without ranges."""
    if not key.address:
        return frontends.FrontendKind.NODE_PORT.value
    if is_cluster_ip:
        return frontends.FrontendKind.CLUSTER_IP.value
    return frontends.FrontendKind.LOAD_BALANCER.value if (chain or "").startswith("ranges-") else "external"


def _policy_of(shape: re.Match[str] | None) -> str:
    """What the name of a chain tells of the policy: under the external one Local it has rules of its own."""
    if shape is None or shape["policy"] == "cluster-ip":
        return ""
    return objects.TrafficPolicy.LOCAL.value if shape["policy"] == "local" else objects.TrafficPolicy.CLUSTER.value


def endpoints_of(found: Iterable[FrontendRow]) -> list[EndpointRow]:
    """The endpoints of frontends that the kernel holds, each once for a Service port."""
    users: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for row in found:
        for one in (*row.endpoints, *(row.local_endpoints or ())):
            where = (one.namespace, one.service, one.port_name, one.protocol, one.family, one.endpoint)
            users[where][row.kind] = None
    return [
        EndpointRow(
            namespace=namespace,
            service=service,
            port_name=port,
            protocol=protocol,
            family=family,
            endpoint=endpoint,
            used_by=tuple(kinds),
        )
        for (namespace, service, port, protocol, family, endpoint), kinds in sorted(users.items())
    ]


def services_of(found: Iterable[FrontendRow]) -> list[ServiceRow]:
    """The Services of frontends that the kernel holds; what it does not tell is empty."""
    by_name: dict[tuple[str, str], list[FrontendRow]] = defaultdict(list)
    for row in found:
        by_name[row.namespace, row.service].append(row)
    made = []
    for (namespace, service), mine in sorted(by_name.items()):
        cluster_ips = {row.address for row in mine if row.kind == "cluster-ip" and row.address}
        ports = dict.fromkeys(f"{row.port}/{row.protocol}" for row in mine)
        counted = [row.connections for row in mine if row.connections is not None]
        made.append(
            ServiceRow(
                namespace=namespace,
                service=service,
                type="",
                cluster_ips=tuple(sorted(cluster_ips)),
                external=tuple(sorted({row.address for row in mine if row.address} - cluster_ips)),
                ports=tuple(ports),
                internal_policy="",
                external_policy=next((row.policy for row in mine if row.policy), ""),
                affinity_seconds=next((row.affinity_seconds for row in mine if row.affinity_seconds), None),
                used=len(endpoints_of(mine)),
                connections=sum(counted) if counted else None,
            )
        )
    return made
