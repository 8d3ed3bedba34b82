"""The plan as JSON, YAML, a table, or a script for a data plane's tool. Sorted: the same plan gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from netagent.model import addresses
from netagent.plan import frontends, node


def in_order(current: Mapping[frontends.FrontendKey, frontends.Frontend]) -> list[frontends.Frontend]:
    """Frontends by Service port, then by kind and address."""
    return sorted(
        current.values(),
        key=lambda frontend: (
            frontend.owner.namespace,
            frontend.owner.service,
            frontend.owner.port,
            frontend.key.family.value,
            frontend.kind.value,
            frontend.key.address,
            frontend.key.protocol,
            frontend.key.port,
        ),
    )


def plan_document(node_name: str, current: Mapping[frontends.FrontendKey, frontends.Frontend]) -> dict[str, Any]:
    """The plan as plain data, in the API's spelling of words."""
    return {"node": node_name, "frontends": [_frontend(frontend) for frontend in in_order(current)]}


def as_json(document: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def as_yaml(document: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False)


def as_table(current: Mapping[frontends.FrontendKey, frontends.Frontend]) -> Iterator[str]:
    """Lines of a table with a heading; columns are separated by two blanks or more."""
    rows = [("SERVICE PORT", "KIND", "FRONTEND", "DOES", "ENDPOINTS")]
    for frontend in in_order(current):
        rows.append(
            (
                str(frontend.owner),
                frontend.kind.value,
                str(frontend.key),
                _deed(frontend),
                ",".join(map(addresses.format_endpoint, frontend.endpoints)) or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[4]])


def as_nft(
    rules: Iterable[node.NodeRules],
    current: Mapping[frontends.FrontendKey, frontends.Frontend],
    *,
    affinity_clients: int,
) -> Iterator[str]:
    """Lines of a script for `nft -f`."""
    from netagent.nftables import tables, text

    desired = tables.Tables(affinity_clients=affinity_clients)
    desired.set_rules(rules)
    desired.update((frontend.key for frontend in in_order(current)), current)
    return text.script(desired.desired())


def as_iptables(
    rules: Iterable[node.NodeRules], current: Mapping[frontends.FrontendKey, frontends.Frontend]
) -> Iterator[str]:
    """Lines of a script for `iptables-restore --noflush` and its twin for IPv6."""
    from netagent.iptables import tables, text

    desired = tables.Tables()
    desired.set_rules(rules)
    desired.update((frontend.key for frontend in in_order(current)), current)
    return iter(text.script(desired.desired()).splitlines())


def _deed(frontend: frontends.Frontend) -> str:
    if frontend.verdict is not frontends.Verdict.SERVE:
        return frontend.verdict.value
    words = [frontend.verdict.value]
    if frontend.local_endpoints is not None:
        words.append(f"local={len(frontend.local_endpoints)}")
    if frontend.affinity_seconds is not None:
        words.append(f"affinity={frontend.affinity_seconds}s")
    if frontend.source_ranges is not None:
        words.append("ranges")
    return ",".join(words)


def _frontend(frontend: frontends.Frontend) -> dict[str, Any]:
    key = frontend.key
    result: dict[str, Any] = {
        "namespace": frontend.owner.namespace,
        "service": frontend.owner.service,
        "portName": frontend.owner.port,
        "kind": frontend.kind.value,
        "family": key.family.value,
        "address": addresses.format_address(key.address) if key.address else None,
        "port": key.port,
        "protocol": key.protocol.name,
        "verdict": frontend.verdict.value,
        "endpoints": [addresses.format_endpoint(endpoint) for endpoint in frontend.endpoints],
    }
    if frontend.verdict is frontends.Verdict.SERVE:
        result["masquerade"] = frontend.masquerade.value
    if frontend.local_endpoints is not None:
        result["localEndpoints"] = [addresses.format_endpoint(endpoint) for endpoint in frontend.local_endpoints]
    if frontend.affinity_seconds is not None:
        result["affinitySeconds"] = frontend.affinity_seconds
    if frontend.source_ranges is not None:
        result["sourceRanges"] = [str(prefix) for prefix in frontend.source_ranges]
    return result
