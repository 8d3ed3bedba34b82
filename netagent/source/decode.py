"""Raw objects, as JSON bytes or as what YAML gives, to checked and flat objects of the model.

`decode` and `convert` either return an object that the rest of the program can trust, or raise BadObject.
What is merely useless in an otherwise good object is left out, with a Remark: an external IP that is not an
address must not cost the Service its cluster IP.
"""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from netagent.model import addresses, objects
from netagent.model.addresses import Family, Prefix
from netagent.model.objects import ServiceType, TrafficPolicy
from netagent.source import fields, wire
from netagent.source.faults import BadObject, Remark, quoted
from netagent.source.fields import BadField
from netagent.source.json_text import decoded
from netagent.source.kinds import Kind

DEFAULT_AFFINITY_SECONDS = 10800  # what the API server writes (DefaultClientIPServiceAffinitySeconds)
MAX_AFFINITY_SECONDS = 86400  # what the API server accepts (MaxClientIPServiceAffinitySeconds)

# (field, reason) of what was left out of the object at hand.
Skipped = list[tuple[str, str]]

Port = TypeVar("Port", wire.ServicePort, wire.SlicePort)
Result = TypeVar("Result")

_ANYTHING = msgspec.json.Decoder()
_TYPES = {one.value: one for one in ServiceType}
_POLICIES = {one.value: one for one in TrafficPolicy}
_FAMILIES: Mapping[str, Family] = {one.value: one for one in Family}
_ADDRESS_TYPES: Mapping[str, Family | None] = {**_FAMILIES, "FQDN": None}
_AFFINITIES = {"None": False, "ClientIP": True}


def decode(kind: Kind, data: bytes | msgspec.Raw, remarks: list[Remark]) -> objects.Object:
    """Return the object of this kind that JSON text describes; add to `remarks` what was left out of it.

    BadObject when it cannot be used, whatever the bytes are.
    """
    decoder = _DECODERS[kind]
    try:
        raw = decoded(decoder.json, data)
    except (ValueError, RecursionError) as error:  # ValueError: msgspec's errors, and UnicodeDecodeError
        raise _not_of_the_shape(kind, error, lambda: decoded(_ANYTHING, data)) from None
    return _checked(kind, decoder, raw, remarks, lambda: decoded(_ANYTHING, data))


def convert(kind: Kind, value: object, remarks: list[Remark]) -> objects.Object:
    """Like `decode`, for an object that is already made of dicts, lists and scalars."""
    decoder = _DECODERS[kind]
    try:
        raw = msgspec.convert(value, decoder.shape)
    except (ValueError, RecursionError) as error:
        raise _not_of_the_shape(kind, error, lambda: value) from None
    return _checked(kind, decoder, raw, remarks, lambda: value)


def _checked(
    kind: Kind, decoder: _Decoder, raw: Any, remarks: list[Remark], content: Callable[[], object]
) -> objects.Object:
    skipped: Skipped = []
    try:
        checked = decoder.check(raw, skipped)
    except BadField as bad:
        metadata = raw.metadata
        namespace, name = _identity(kind, getattr(metadata, "namespace", None), getattr(metadata, "name", None))
        uid = _uid(_metadata(content))
        raise BadObject(
            kind, namespace=namespace, name=name, field=bad.field, reason=bad.reason, uid=uid if name else ""
        ) from None
    if skipped:
        namespace = getattr(checked, "namespace", "")
        remarks.extend(Remark(kind, namespace, checked.name, field, reason) for field, reason in skipped)
    return checked


def _not_of_the_shape(kind: Kind, error: Exception, content: Callable[[], object]) -> BadObject:
    """The error for an object that msgspec refused, with its name if that much can be read."""
    field, reason = "", str(error)
    if isinstance(error, RecursionError):
        reason = "is nested too deeply"
    elif isinstance(error, msgspec.ValidationError):
        field, reason = field_and_reason(error)
    metadata = _metadata(content)
    namespace, name = _identity(kind, metadata.get("namespace"), metadata.get("name"))
    uid = _uid(metadata) if name else ""
    return BadObject(kind, namespace=namespace, name=name, field=field, reason=reason, uid=uid)


def _metadata(content: Callable[[], object]) -> Mapping[str, object]:
    """The metadata of an object that is bad, as it was written; empty when there are none to read."""
    try:
        found = content()
    except (ValueError, RecursionError):
        return {}
    metadata = found.get("metadata") if isinstance(found, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _uid(metadata: Mapping[str, object]) -> str:
    """The UID if it is one, else "". Only Events need it, so that the shapes of most kinds do without."""
    found = metadata.get("uid")
    try:
        return fields.uid(found) if isinstance(found, str) else ""
    except BadField:
        return ""


def field_and_reason(error: msgspec.ValidationError) -> tuple[str, str]:
    """Field path and sentence of msgspec's "Expected `int`, got `str` - at `$.spec.ports[0].port`"."""
    sentence, _, where = str(error).partition(" - at ")
    path = re.search(r"\$([^`]*)", where)
    return (path[1].removeprefix(".") if path else "", sentence[:1].lower() + sentence[1:].replace("`", ""))


def _identity(kind: Kind, namespace: object, name: object) -> tuple[str, str]:
    """Namespace and name if they can be told, else two empty strings."""
    if not isinstance(name, str) or not fields.is_dns_subdomain(name):
        return ("", "")
    if not kind.namespaced:
        return ("", name)
    if not namespace:
        return ("default", name)
    return (namespace, name) if isinstance(namespace, str) and fields.is_dns_label(namespace) else ("", "")


def _remembering(check: Callable[[tuple[Port, ...]], Result]) -> Callable[[tuple[Port, ...]], Result]:
    """The check of a list of ports, with one result for equal lists: most objects have one of a few.

    What nobody needs is not kept, lest somebody fills our memory with it: long lists, and names that are none.
    """
    remembered = functools.lru_cache(maxsize=2048)(check)

    def checked(ports: tuple[Port, ...]) -> Result:
        if len(ports) > 4:
            return check(ports)
        for one in ports:
            if one.name and len(one.name) > 63:
                return check(ports)
        return remembered(ports)

    return checked


# --- Service ------------------------------------------------------------------------------------------------


def _service(raw: wire.Service, skipped: Skipped) -> objects.Service:
    metadata = raw.metadata or wire.ServiceMetadata()
    spec = raw.spec or wire.ServiceSpec()
    name = fields.dns_label(metadata.name, "metadata.name")
    service_type = fields.choice(spec.type, _TYPES, "spec.type", default=ServiceType.CLUSTER_IP)
    vips = _vips(raw.status, skipped)
    ranges, closed = _source_ranges(spec.load_balancer_source_ranges or (), vips, skipped)
    return objects.Service(
        namespace=fields.namespace(metadata.namespace),
        name=name,
        uid=fields.uid(metadata.uid),
        created=fields.creation_time(metadata.creation_timestamp),
        type=service_type,
        cluster_ips=_cluster_ips(spec, service_type),
        external_ips=_external_ips(spec.external_ips or (), skipped),
        vips=vips,
        source_ranges=ranges,
        source_ranges_closed=closed,
        ports=_service_ports(spec.ports or ()),
        internal_policy=_policy(spec.internal_traffic_policy, "spec.internalTrafficPolicy"),
        external_policy=_policy(spec.external_traffic_policy, "spec.externalTrafficPolicy"),
        affinity_seconds=_affinity_seconds(spec),
        health_check_node_port=fields.optional_port(spec.health_check_node_port, "spec.healthCheckNodePort"),
        proxy_name=_proxy_name(metadata.labels),
    )


def _policy(text: str | None, field: str) -> TrafficPolicy:
    return fields.choice(text, _POLICIES, field, default=TrafficPolicy.CLUSTER)


def _proxy_name(labels: wire.ServiceLabels | None) -> str | None:
    """The label's value; its presence counts, so null is "" as in the API server."""
    if labels is None or isinstance(labels.proxy_name, msgspec.UnsetType):
        return None
    value = labels.proxy_name or ""
    if not fields.is_label_value(value):
        raise BadField(
            "metadata.labels.service.kubernetes.io/service-proxy-name",
            f"{quoted(value)} is not the value of a label",
        )
    return value


def _cluster_ips(spec: wire.ServiceSpec, service_type: ServiceType) -> tuple[bytes, ...]:
    """At most one address a family: clusterIPs[i] is of ipFamilies[i]; without the latter clusterIP alone counts.

    Hand-written manifests may give only clusterIP or only clusterIPs; the API server would have filled in the
    other.
    """
    listed = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    list_name = "spec.clusterIPs[%d]" if spec.cluster_ips else "spec.clusterIP"
    first = spec.cluster_ip or (listed[0] if listed else "")
    if service_type is ServiceType.EXTERNAL_NAME or first in ("", "None"):
        return ()
    if not spec.ip_families:
        return (fields.address(first, "spec.clusterIP" if spec.cluster_ip else "spec.clusterIPs[0]"),)
    found: dict[str, bytes] = {}
    for index, family in enumerate(spec.ip_families):
        if family not in _FAMILIES:
            raise BadField(f"spec.ipFamilies[{index}]", f"{quoted(family)} is not one of IPv4, IPv6")
        if index >= len(listed) or family in found:
            continue
        try:
            found[family] = packed = fields.parse_address(listed[index])
            if addresses.family_of(packed) is not _FAMILIES[family]:
                raise ValueError(f"{quoted(listed[index])} is not {family}, but spec.ipFamilies[{index}] is")
        except ValueError as error:
            raise BadField(list_name % index if spec.cluster_ips else list_name, str(error)) from None
    return tuple(found.values())


def _external_ips(texts: list[str] | tuple[()], skipped: Skipped) -> tuple[bytes, ...]:
    if not texts:
        return ()
    found: dict[bytes, None] = {}
    for index, text in enumerate(texts):
        try:
            found[fields.parse_address(text)] = None
        except ValueError as error:
            skipped.append((f"spec.externalIPs[{index}]", f"{error}; left out"))
    return tuple(found)


def _vips(status: wire.ServiceStatus | None, skipped: Skipped) -> tuple[bytes, ...]:
    if status is None or status.load_balancer is None or not status.load_balancer.ingress:
        return ()
    found: dict[bytes, None] = {}
    for index, ingress in enumerate(status.load_balancer.ingress):
        if not ingress.ip or ingress.ip_mode == "Proxy":
            continue  # a host name, or a balancer that wants the traffic itself
        field = f"status.loadBalancer.ingress[{index}]"
        if ingress.ip_mode not in (None, "", "VIP"):
            skipped.append((f"{field}.ipMode", f"{quoted(ingress.ip_mode)} is not VIP or Proxy; left out"))
            continue
        try:
            found[fields.parse_address(ingress.ip)] = None
        except ValueError as error:
            skipped.append((f"{field}.ip", f"{error}; left out"))
    return tuple(found)


def _source_ranges(
    texts: list[str] | tuple[()], vips: tuple[bytes, ...], skipped: Skipped
) -> tuple[tuple[Prefix, ...], bool]:
    """The ranges that restrict, and whether the list shuts everybody out because no entry of it is valid.

    A family that is allowed from anywhere (/0) has no range left, which reads as unrestricted.
    """
    if not texts:
        return ((), False)
    field = "spec.loadBalancerSourceRanges"
    kept: dict[Prefix, None] = {}
    for index, text in enumerate(texts):
        try:
            kept[fields.parse_prefix(text)] = None
        except ValueError as error:
            skipped.append((f"{field}[{index}]", f"{error}; left out"))
    if not kept:
        skipped.append((field, "has no valid entry; nobody can reach the load balancer's addresses"))
        return ((), True)
    for family in sorted({addresses.family_of(vip).value for vip in vips}):
        if all(prefix.family.value != family for prefix in kept):
            skipped.append((field, f"has no {family} entry; the {family} addresses are open to everybody"))
    open_families = {prefix.family for prefix in kept if prefix.length == 0}
    return (tuple(prefix for prefix in kept if prefix.family not in open_families), False)


@_remembering
def _service_ports(raw: tuple[wire.ServicePort, ...]) -> tuple[objects.ServicePort, ...]:
    """The ports, the same tuple for equal lists: most Services have one of a few."""
    ports = []
    seen: set[object] = set()
    for index, one in enumerate(raw):
        field = f"spec.ports[{index}]"
        port = objects.ServicePort(
            name=fields.port_name(one.name, f"{field}.name"),
            protocol=fields.protocol(one.protocol, f"{field}.protocol"),
            port=fields.port(one.port, f"{field}.port"),
            node_port=fields.optional_port(one.node_port, f"{field}.nodePort"),
        )
        claims: list[tuple[str, object]] = [("name", port.name), ("port", port.port)]
        if port.node_port:
            claims.append(("nodePort", port.node_port))
        for what, value in claims:
            claim = (what, port.protocol, value)
            if claim in seen:  # the API server lets none of these pass: two frontends would be one
                raise BadField(f"{field}.{what}", f"{value!r} appears twice among the {port.protocol.name} ports")
            seen.add(claim)
        ports.append(port)
    return tuple(ports)


def _affinity_seconds(spec: wire.ServiceSpec) -> int | None:
    if not fields.choice(spec.session_affinity, _AFFINITIES, "spec.sessionAffinity", default=False):
        return None
    client_ip = spec.session_affinity_config and spec.session_affinity_config.client_ip
    seconds = client_ip.timeout_seconds if client_ip else None
    if seconds is None:
        return DEFAULT_AFFINITY_SECONDS
    if not 1 <= seconds <= MAX_AFFINITY_SECONDS:
        raise BadField(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            f"{fields.shown_number(seconds)} is not in 1 to {MAX_AFFINITY_SECONDS}",
        )
    return seconds


# --- EndpointSlice ------------------------------------------------------------------------------------------


def _endpoint_slice(raw: wire.EndpointSlice, skipped: Skipped) -> objects.EndpointSlice:
    metadata = raw.metadata or wire.SliceMetadata()
    name = fields.dns_subdomain(metadata.name, "metadata.name")
    namespace = fields.namespace(metadata.namespace)
    labels = metadata.labels or wire.SliceLabels()
    service = None
    if labels.service_name:
        service_name = fields.dns_label(labels.service_name, "metadata.labels.kubernetes.io/service-name")
        service = objects.ServiceName(namespace, service_name)
    if not raw.address_type:
        raise BadField("addressType", "is missing")
    family = fields.choice(raw.address_type, _ADDRESS_TYPES, "addressType", default=None)
    ports, skipped_ports = _slice_ports(raw.ports or ())
    skipped += skipped_ports
    return objects.EndpointSlice(
        namespace=namespace,
        name=name,
        service=service,
        family=family,
        ports=ports,
        endpoints=() if family is None else _endpoints(raw.endpoints or (), family),
        headless=not isinstance(labels.headless, msgspec.UnsetType),
        trigger_time=fields.trigger_time(metadata.annotations.trigger_time if metadata.annotations else None),
    )


@_remembering
def _slice_ports(raw: tuple[wire.SlicePort, ...]) -> tuple[tuple[objects.SlicePort, ...], tuple[tuple[str, str], ...]]:
    """The usable ports, the same tuple for equal lists, and what was skipped."""
    ports = []
    skipped: Skipped = []
    for index, one in enumerate(raw):
        field = f"ports[{index}]"
        protocol = fields.protocol(one.protocol, f"{field}.protocol")
        if one.name is None or not one.port:
            missing = "port" if one.name is not None else "name"
            skipped.append((f"{field}.{missing}", "is missing; the port is left out"))
            continue
        ports.append(
            objects.SlicePort(
                name=fields.port_name(one.name, f"{field}.name"),
                protocol=protocol,
                port=fields.port(one.port, f"{field}.port"),
            )
        )
    return (tuple(ports), tuple(skipped))


def _endpoints(raw: list[wire.Endpoint] | tuple[()], family: Family) -> tuple[objects.Endpoint, ...]:
    """The endpoints that have an address. The hot path: there may be a quarter of a million of them."""
    pton = socket.inet_pton
    af = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    size = family.address_bytes
    endpoint, node_name, zone_name = objects.Endpoint, fields.node_name, fields.zone
    found = []
    for one in raw:
        if not one.addresses:
            continue
        text = one.addresses[0]
        try:
            address = pton(af, text)
            if size == 16:
                address = fields.parse_address(text)  # which knows that a mapped address is IPv4
        except (OSError, ValueError):
            address = fields.address(text, f"endpoints[{_index(raw, one)}].addresses[0]")
        if len(address) != size:
            raise BadField(
                f"endpoints[{_index(raw, one)}].addresses[0]",
                f"{quoted(text)} is not {family.value}, but addressType is",
            )
        zones: tuple[str, ...] = ()
        nodes: tuple[str, ...] = ()
        try:
            node = node_name(one.node_name) if one.node_name else None
            if hints := one.hints:
                if hints.for_zones:
                    zones = fields.zones(tuple([hint.name or "" for hint in hints.for_zones]))
                if hints.for_nodes:
                    nodes = fields.nodes(tuple([hint.name or "" for hint in hints.for_nodes]))
        except BadField as bad:
            what = "hints" if one.node_name is None or fields.is_dns_subdomain(one.node_name) else "nodeName"
            raise BadField(f"endpoints[{_index(raw, one)}].{what}", bad.reason) from None
        zone = zone_name(one.zone) if one.zone else ""
        if conditions := one.conditions:
            found.append(
                endpoint(
                    address,
                    conditions.ready is not False,
                    conditions.serving is not False,
                    conditions.terminating is True,
                    node,
                    zones,
                    nodes,
                    zone,
                )
            )
        else:
            found.append(endpoint(address, True, True, False, node, zones, nodes, zone))
    return tuple(found)


def _index(raw: list[wire.Endpoint] | tuple[()], one: wire.Endpoint) -> int:
    return next(index for index, other in enumerate(raw) if other is one)


# --- Node and ServiceCIDR -----------------------------------------------------------------------------------


def _node(raw: wire.Node, skipped: Skipped) -> objects.Node:
    metadata = raw.metadata or wire.NodeMetadata()
    spec = raw.spec or wire.NodeSpec()
    zone = (metadata.labels and metadata.labels.zone) or ""
    if not fields.is_label_value(zone):
        field = "metadata.labels.topology.kubernetes.io/zone"
        skipped.append((field, f"{quoted(zone)} is not the name of a zone; left out"))
        zone = ""
    cidrs = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    keys = [taint.key or "" for taint in spec.taints or ()]
    return objects.Node(
        name=fields.dns_subdomain(metadata.name, "metadata.name"),
        zone=zone,
        addresses=_node_addresses(raw.status, skipped),
        pod_cidrs=_prefixes(cidrs, "spec.podCIDRs" if spec.pod_cidrs else "spec.podCIDR", skipped),
        deleting=metadata.deletion_timestamp is not None,
        taint_keys=tuple(key for key in keys if key.isascii() and key.isprintable()),
    )


def _node_addresses(status: wire.NodeStatus | None, skipped: Skipped) -> tuple[bytes, ...]:
    found: dict[bytes, None] = {}
    raw = (status and status.addresses) or []
    for wanted in ("InternalIP", "ExternalIP"):
        for index, one in enumerate(raw):
            if one.type != wanted:
                continue
            try:
                found[fields.parse_address(one.address or "")] = None
            except ValueError as error:
                skipped.append((f"status.addresses[{index}].address", f"{error}; left out"))
    return tuple(found)


def _service_cidr(raw: wire.ServiceCIDR, skipped: Skipped) -> objects.ServiceCIDR:
    return objects.ServiceCIDR(
        name=fields.dns_subdomain(raw.metadata.name if raw.metadata else None, "metadata.name"),
        cidrs=_prefixes((raw.spec and raw.spec.cidrs) or [], "spec.cidrs", skipped),
    )


def _prefixes(texts: list[str], field: str, skipped: Skipped) -> tuple[Prefix, ...]:
    found: dict[Prefix, None] = {}
    for index, text in enumerate(texts):
        try:
            found[fields.parse_prefix(text)] = None
        except ValueError as error:
            skipped.append((f"{field}[{index}]", f"{error}; left out"))
    return tuple(found)


# --- the decoders, made once --------------------------------------------------------------------------------


class _Decoder(NamedTuple):
    shape: type[Any]
    json: msgspec.json.Decoder[Any]
    check: Callable[[Any, Skipped], objects.Object]


def _decoder(shape: type[Any], check: Callable[[Any, Skipped], objects.Object]) -> _Decoder:
    return _Decoder(shape, msgspec.json.Decoder(shape), check)


_DECODERS: Mapping[Kind, _Decoder] = {
    Kind.SERVICE: _decoder(wire.Service, _service),
    Kind.ENDPOINT_SLICE: _decoder(wire.EndpointSlice, _endpoint_slice),
    Kind.NODE: _decoder(wire.Node, _node),
    Kind.SERVICE_CIDR: _decoder(wire.ServiceCIDR, _service_cidr),
}
