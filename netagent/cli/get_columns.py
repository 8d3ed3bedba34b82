"""The fields of the rows that `netagent get` compares with, and its columns. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from netagent.cli import rows, selectors


def _yes(value: bool) -> tuple[str, ...]:
    return ("yes",) if value else ("no",)


_COMMON: Final[dict[str, Callable[[Any], Iterable[str]]]] = {
    "namespace": lambda row: (row.namespace,),
    "service": lambda row: (row.service,),
}
_OF_PORTS: Final[dict[str, Callable[[Any], Iterable[str]]]] = {
    **_COMMON,
    "port": lambda row: (row.port_name,),
    "protocol": lambda row: (row.protocol,),
    "family": lambda row: (row.family,),
}
FIELDS: Final[dict[str, selectors.Fields]] = {
    "frontends": {
        **_OF_PORTS,
        "port": lambda row: (row.port_name, str(row.port)),
        "kind": lambda row: (row.kind,),
        "does": lambda row: (row.does,),
        "policy": lambda row: (row.policy,),
        "kernel": lambda row: (row.kernel or "unknown",),
        "affinity": lambda row: _yes(row.affinity_seconds is not None),
        "node": lambda row: (one.node or "" for one in _serving(row)),
        "zone": lambda row: (one.zone for one in _serving(row)),
        "state": lambda row: (one.state for one in _serving(row)),
    },
    "endpoints": {
        **_OF_PORTS,
        "node": lambda row: (row.node or "",),
        "zone": lambda row: (row.zone,),
        "state": lambda row: (row.state,),
        "used": lambda row: _yes(bool(row.used_by)),
        "local": lambda row: _yes(bool(row.local)),
        "kind": lambda row: row.used_by,
    },
    "services": {
        **_COMMON,
        "type": lambda row: (row.type,),
        "policy": lambda row: (row.internal_policy, row.external_policy),
        "affinity": lambda row: _yes(row.affinity_seconds is not None),
        "protocol": lambda row: (port.rpartition("/")[2] for port in row.ports),
    },
}


def _serving(row: rows.FrontendRow) -> list[rows.EndpointRow]:
    """The endpoints of both lists of a frontend, each once."""
    return list(dict.fromkeys((*row.endpoints, *(row.local_endpoints or ()))))


def _share(row: rows.FrontendRow) -> str:
    """How many endpoints serve, of how many that are ready; with two lists, the local ones first."""
    used = f"{len(row.endpoints)}" if row.ready is None else f"{len(row.endpoints)}/{row.ready}"
    return used if row.local_endpoints is None else f"{len(row.local_endpoints)} local, {used}"


def _deed(row: rows.FrontendRow) -> str:
    if row.to:
        return f"yields to {row.to}"
    return f"{row.does}, outside drop" if row.local_endpoints == () else row.does


Column = tuple[str, Callable[[Any], object]]
NAMESPACE: Final[Column] = ("NAMESPACE", lambda row: row.namespace)
NAME: Final[Column] = ("NAME", lambda row: row.service)
COLUMNS: Final[dict[str, tuple[Sequence[Column], Sequence[Column]]]] = {
    "frontends": (
        (
            ("PORT", lambda row: row.port_name),
            ("KIND", lambda row: row.kind),
            ("FRONTEND", lambda row: row.frontend),
            ("POLICY", lambda row: row.policy),
            ("DOES", _deed),
            ("ENDPOINTS", _share),
            ("CONNECTIONS", lambda row: row.connections),
        ),
        (
            ("ALGORITHM", lambda row: row.algorithm if row.does == "serve" else None),
            ("AFFINITY", lambda row: row.affinity_seconds and f"{row.affinity_seconds}s"),
            ("MASQUERADE", lambda row: row.masquerade),
            ("RANGES", lambda row: row.source_ranges),
            ("KERNEL", lambda row: row.kernel),
            ("SERVED BY", lambda row: tuple(one.endpoint for one in _serving(row))),
        ),
    ),
    "endpoints": (
        (
            ("PORT", lambda row: row.port_name),
            ("ENDPOINT", lambda row: f"{row.endpoint}/{row.protocol}"),
            ("NODE", lambda row: row.node),
            ("ZONE", lambda row: row.zone),
            ("STATE", lambda row: row.state),
            ("USED", lambda row: bool(row.used_by)),
        ),
        (
            ("LOCAL", lambda row: row.local),
            ("USED BY", lambda row: row.used_by),
            ("WHY NOT", lambda row: row.unused),
        ),
    ),
    "services": (
        (
            ("TYPE", lambda row: row.type),
            ("CLUSTER-IP", lambda row: row.cluster_ips),
            ("EXTERNAL", lambda row: row.external),
            ("PORTS", lambda row: row.ports),
            (
                "ENDPOINTS",
                lambda row: "/".join(str(one) for one in (row.used, row.ready, row.endpoints) if one is not None),
            ),
            ("CONNECTIONS", lambda row: row.connections),
        ),
        (
            ("INTERNAL POLICY", lambda row: row.internal_policy),
            ("EXTERNAL POLICY", lambda row: row.external_policy),
            ("AFFINITY", lambda row: row.affinity_seconds and f"{row.affinity_seconds}s"),
        ),
    ),
}
NAMES: Final[dict[str, Callable[[Any], str]]] = {
    "frontends": lambda row: row.frontend,
    "endpoints": lambda row: row.endpoint,
    "services": lambda row: f"{row.namespace}/{row.service}",
}
