"""What a Service's own manifest says beside what netagent keeps of it: selector, host names, addresses it asks for.

netagent does not keep these, as no rule depends on them and every Service would cost memory. To name a cause they help,
so they are read again from the manifests where there are any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from netagent.model import addresses, objects
from netagent.source import yaml_documents

_DEPTH = 8


class Ingress(NamedTuple):
    """An entry of status.loadBalancer.ingress; "" for what it does not have."""

    ip: str
    hostname: str
    mode: str


class Facts(NamedTuple):
    """What one manifest says. `addresses` are all that it asks for, packed, as far as they can be read."""

    selector: Mapping[str, str]
    headless: bool
    external_name: str
    ingress: tuple[Ingress, ...]
    addresses: frozenset[bytes]


def facts_in(data: bytes) -> dict[objects.ServiceName, Facts]:
    """The facts of all Services of a manifest file, JSON or YAML. What cannot be read is passed over: it has been
    complained about already."""
    found: dict[objects.ServiceName, Facts] = {}
    for document in _documents(data):
        for manifest in _services(document, "", 0):
            metadata = _mapping(manifest.get("metadata"))
            name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
            if isinstance(name, str) and isinstance(namespace, str):
                found[objects.ServiceName(namespace, name)] = facts_of(manifest)
    return found


def facts_of(manifest: Mapping[str, Any]) -> Facts:
    """The facts of one Service."""
    spec, status = _mapping(manifest.get("spec")), _mapping(manifest.get("status"))
    balancer = _mapping(status.get("loadBalancer"))
    ingress = tuple(
        Ingress(_text(one.get("ip")), _text(one.get("hostname")), _text(one.get("ipMode")))
        for one in map(_mapping, _listed(balancer.get("ingress")))
    )
    texts = [
        spec.get("clusterIP"),
        *_listed(spec.get("clusterIPs")),
        *_listed(spec.get("externalIPs")),
        *(one.ip for one in ingress),
    ]
    selector = {str(key): _text(value) for key, value in _mapping(spec.get("selector")).items()}
    return Facts(
        selector=selector,
        headless=spec.get("clusterIP") == "None" or "None" in _listed(spec.get("clusterIPs")),
        external_name=_text(spec.get("externalName")),
        ingress=ingress,
        addresses=frozenset(packed for text in texts if (packed := _packed(text)) is not None),
    )


def _documents(data: bytes) -> Iterator[Any]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return
    if text.lstrip().startswith("{"):
        try:
            yield json.loads(text)
            return
        except (ValueError, RecursionError):
            pass  # YAML's flow style, or several documents
    for document in yaml_documents.split(text):
        try:
            yield yaml_documents.load(document)
        except yaml_documents.BadText:
            continue


def _services(value: Any, implied: str, depth: int) -> Iterator[Mapping[str, Any]]:
    if not isinstance(value, dict) or depth > _DEPTH:
        return
    kind = _text(value.get("kind")) or implied
    if kind == "Service":
        yield value
    elif kind.endswith("List"):
        for item in _listed(value.get("items")):
            yield from _services(item, kind.removesuffix("List"), depth + 1)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _packed(text: Any) -> bytes | None:
    try:
        return addresses.parse_address(text) if isinstance(text, str) else None
    except ValueError:
        return None
