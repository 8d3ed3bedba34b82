"""Builders of test objects: plain functions with defaults, so that a test names only what it is about.

Each noun has two: `service()` gives the model object, `service_manifest()` the dict that the API would send.
Their defaults describe the same cluster: Service default/web on 10.96.0.1 port 80, endpoint 10.180.0.1:8080,
node-1. Addresses and prefixes are given as text. Manifest builders take further `spec` (or top-level) fields
as keywords.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from netagent.model import addresses, objects
from netagent.model.addresses import Protocol
from netagent.model.objects import ServiceType, TrafficPolicy

Manifest = dict[str, Any]

CREATED = "2024-01-01T00:00:00Z"


def packed(*texts: str) -> tuple[bytes, ...]:
    """Packed addresses from text."""
    return tuple(addresses.parse_address(text) for text in texts)


def prefixes(*texts: str) -> tuple[addresses.Prefix, ...]:
    """Prefixes from CIDR text."""
    return tuple(addresses.parse_prefix(text) for text in texts)


# --- model objects ------------------------------------------------------------------------------------------


def port(
    number: int = 80, *, name: str = "", protocol: Protocol = Protocol.TCP, node_port: int = 0
) -> objects.ServicePort:
    return objects.ServicePort(name=name, protocol=protocol, port=number, node_port=node_port)


def service(
    name: str = "web",
    *,
    namespace: str = "default",
    cluster_ips: Iterable[str] = ("10.96.0.1",),
    ports: Iterable[objects.ServicePort] | None = None,
    type: ServiceType = ServiceType.CLUSTER_IP,
    external_ips: Iterable[str] = (),
    vips: Iterable[str] = (),
    source_ranges: Iterable[str] = (),
    source_ranges_closed: bool = False,
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER,
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER,
    affinity_seconds: int | None = None,
    health_check_node_port: int = 0,
    proxy_name: str | None = None,
    uid: str = "",
    created: str = CREATED,
) -> objects.Service:
    return objects.Service(
        namespace=namespace,
        name=name,
        uid=uid,
        created=created,
        type=type,
        cluster_ips=packed(*cluster_ips),
        external_ips=packed(*external_ips),
        vips=packed(*vips),
        source_ranges=prefixes(*source_ranges),
        source_ranges_closed=source_ranges_closed,
        ports=(port(),) if ports is None else tuple(ports),
        internal_policy=internal_policy,
        external_policy=external_policy,
        affinity_seconds=affinity_seconds,
        health_check_node_port=health_check_node_port,
        proxy_name=proxy_name,
    )


def slice_port(number: int = 8080, *, name: str = "", protocol: Protocol = Protocol.TCP) -> objects.SlicePort:
    return objects.SlicePort(name=name, protocol=protocol, port=number)


def endpoint(
    address: str = "10.180.0.1",
    *,
    ready: bool = True,
    serving: bool | None = None,
    terminating: bool = False,
    node: str | None = "node-1",
    zones: Iterable[str] = (),
    nodes: Iterable[str] = (),
    zone: str = "",
) -> objects.Endpoint:
    """An endpoint; `serving` follows `ready` when it is not given."""
    return objects.Endpoint(
        address=addresses.parse_address(address),
        ready=ready,
        serving=ready if serving is None else serving,
        terminating=terminating,
        node=node,
        hint_zones=tuple(zones),
        hint_nodes=tuple(nodes),
        zone=zone,
    )


def draining_endpoint(address: str = "10.180.0.1", **fields: Any) -> objects.Endpoint:
    """An endpoint that terminates and still answers."""
    return endpoint(address, ready=False, serving=True, terminating=True, **fields)


def endpoint_slice(
    service: str | None = "web",
    *endpoints: objects.Endpoint | str,
    name: str | None = None,
    namespace: str = "default",
    ports: Iterable[objects.SlicePort] | None = None,
    family: addresses.Family | None = None,
    headless: bool = False,
    trigger_time: str = "",
) -> objects.EndpointSlice:
    """A slice of a Service; endpoints as objects or as text. Its family is that of its first endpoint."""
    made = tuple(endpoint(one) if isinstance(one, str) else one for one in endpoints)
    if family is None:
        family = addresses.family_of(made[0].address) if made else addresses.Family.IPV4
    return objects.EndpointSlice(
        namespace=namespace,
        name=name if name is not None else f"{service or 'orphan'}-1",
        service=objects.ServiceName(namespace, service) if service else None,
        family=family,
        ports=(slice_port(),) if ports is None else tuple(ports),
        endpoints=made,
        headless=headless,
        trigger_time=trigger_time,
    )


def node(
    name: str = "node-1",
    *,
    zone: str = "",
    addresses: Iterable[str] = ("192.0.2.1",),
    pod_cidrs: Iterable[str] = (),
    deleting: bool = False,
    taint_keys: Iterable[str] = (),
) -> objects.Node:
    return objects.Node(
        name=name,
        zone=zone,
        addresses=packed(*addresses),
        pod_cidrs=prefixes(*pod_cidrs),
        deleting=deleting,
        taint_keys=tuple(taint_keys),
    )


def service_cidr(name: str = "kubernetes", *cidrs: str) -> objects.ServiceCIDR:
    return objects.ServiceCIDR(name=name, cidrs=prefixes(*(cidrs or ("10.96.0.0/12",))))


# --- manifests ----------------------------------------------------------------------------------------------


def port_manifest(number: int = 80, **fields: Any) -> Manifest:
    """A port of a Service or a slice, e.g. `port_manifest(53, name="dns", protocol="UDP")`."""
    return {"name": "", "protocol": "TCP", "port": number} | fields


def service_manifest(
    name: str = "web",
    *,
    namespace: str = "default",
    cluster_ip: str = "10.96.0.1",
    ports: Iterable[Manifest] | None = None,
    labels: Mapping[str, str] | None = None,
    created: str = CREATED,
    ingress: Iterable[Manifest] | None = None,
    **spec: Any,
) -> Manifest:
    """A Service; `spec` fields by their API names. `ingress` becomes status.loadBalancer.ingress."""
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv6" if ":" in cluster_ip else "IPv4"],
            "ports": [port_manifest()] if ports is None else list(ports),
        }
        | spec,
    }
    if labels:
        manifest["metadata"]["labels"] = dict(labels)
    if ingress is not None:
        manifest["status"] = {"loadBalancer": {"ingress": list(ingress)}}
    return manifest


def endpoint_manifest(address: str = "10.180.0.1", *, node: str | None = "node-1", **fields: Any) -> Manifest:
    """A ready endpoint; further fields by their API names (conditions, hints)."""
    manifest: Manifest = {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False},
    }
    if node is not None:
        manifest["nodeName"] = node
    return manifest | fields


def slice_manifest(
    service: str | None = "web",
    *endpoints: Manifest | str,
    name: str | None = None,
    namespace: str = "default",
    ports: Iterable[Manifest] | None = None,
    labels: Mapping[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    """A slice of a Service; endpoints as dicts or as text; `fields` are top-level (addressType, ...)."""
    made = [endpoint_manifest(one) if isinstance(one, str) else one for one in endpoints]
    first = made[0]["addresses"][0] if made and made[0].get("addresses") else ""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name if name is not None else f"{service or 'orphan'}-1",
            "namespace": namespace,
            "labels": ({"kubernetes.io/service-name": service} if service else {}) | dict(labels or {}),
        },
        "addressType": "IPv6" if ":" in first else "IPv4",
        "ports": [port_manifest(8080)] if ports is None else list(ports),
        "endpoints": made,
    } | fields


def node_manifest(
    name: str = "node-1",
    *,
    zone: str = "",
    internal_ips: Iterable[str] = ("192.0.2.1",),
    external_ips: Iterable[str] = (),
    pod_cidrs: Iterable[str] = (),
    **spec: Any,
) -> Manifest:
    cidrs = list(pod_cidrs)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone} if zone else {}},
        "spec": ({"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {}) | spec,
        "status": {
            "addresses": [
                *({"type": "InternalIP", "address": text} for text in internal_ips),
                *({"type": "ExternalIP", "address": text} for text in external_ips),
                {"type": "Hostname", "address": name},
            ]
        },
    }


def service_cidr_manifest(name: str = "kubernetes", *cidrs: str) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs or ("10.96.0.0/12",))},
    }


def list_manifest(*items: Manifest) -> Manifest:
    """`kind: List`, as `kubectl get -o json` prints several objects."""
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def as_json(manifest: object) -> bytes:
    """The bytes of a manifest."""
    return json.dumps(manifest).encode()
