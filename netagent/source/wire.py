"""The shape of objects on the wire: the fields that we use, and no other.

Everything may be absent or null, as for a Kubernetes API server that decodes Go structs; a wrong JSON type is
an error that msgspec reports with its path. Labels and annotations are Structs too, so that the ones nobody
asked for (and a megabyte of annotations) are skipped without being built. Meaning is given to the values in
`decode`.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType, field


class Wire(msgspec.Struct, rename="camel", gc=False):
    """Base of the wire shapes; none of them can be part of a reference cycle."""


class WirePort(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """Base of the ports: frozen ones have a hash, by which `decode` knows a list of ports again."""


# --- Service ------------------------------------------------------------------------------------------------


class ServiceLabels(Wire):
    proxy_name: str | UnsetType | None = field(default=UNSET, name="service.kubernetes.io/service-proxy-name")


class ServiceMetadata(Wire):
    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    creation_timestamp: str | None = None
    labels: ServiceLabels | None = None


class ServicePort(WirePort, frozen=True):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ClientIPConfig(Wire):
    timeout_seconds: int | None = None


class SessionAffinityConfig(Wire):
    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(Wire):
    type: str | None = None
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ports: tuple[ServicePort, ...] | None = None
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str] | None = None
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None


class Ingress(Wire):
    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Wire):
    ingress: list[Ingress] | None = None


class ServiceStatus(Wire):
    load_balancer: LoadBalancerStatus | None = None


class Service(Wire):
    metadata: ServiceMetadata | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


# --- EndpointSlice ------------------------------------------------------------------------------------------


class SliceLabels(Wire):
    service_name: str | None = field(default=None, name="kubernetes.io/service-name")
    headless: str | UnsetType | None = field(default=UNSET, name="service.kubernetes.io/headless")


class SliceAnnotations(Wire):
    trigger_time: str | None = field(default=None, name="endpoints.kubernetes.io/last-change-trigger-time")


class SliceMetadata(Wire):
    name: str | None = None
    namespace: str | None = None
    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None


class SlicePort(WirePort, frozen=True):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class Conditions(Wire):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Wire):
    name: str | None = None


class Hints(Wire):
    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(Wire):
    addresses: list[str] | None = None
    conditions: Conditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: Hints | None = None


class EndpointSlice(Wire):
    metadata: SliceMetadata | None = None
    address_type: str | None = None
    ports: tuple[SlicePort, ...] | None = None
    endpoints: list[Endpoint] | None = None


# --- Node ---------------------------------------------------------------------------------------------------


class NodeLabels(Wire):
    zone: str | None = field(default=None, name="topology.kubernetes.io/zone")


class NodeMetadata(Wire):
    name: str | None = None
    deletion_timestamp: str | None = None
    labels: NodeLabels | None = None


class Taint(Wire):
    key: str | None = None


class NodeSpec(Wire):
    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeAddress(Wire):
    type: str | None = None
    address: str | None = None


class NodeStatus(Wire):
    addresses: list[NodeAddress] | None = None


class Node(Wire):
    metadata: NodeMetadata | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


# --- ServiceCIDR --------------------------------------------------------------------------------------------


class ServiceCIDRMetadata(Wire):
    name: str | None = None


class ServiceCIDRSpec(Wire):
    cidrs: list[str] | None = None


class ServiceCIDR(Wire):
    metadata: ServiceCIDRMetadata | None = None
    spec: ServiceCIDRSpec | None = None


# --- what an object says about itself -----------------------------------------------------------------------


class Header(Wire):
    """What tells how to read a document."""

    kind: str | None = None
    api_version: str | None = None


class ListHeader(Header):
    """The header with the items of a list, whose bytes are left for later; UNSET when there are none."""

    items: list[msgspec.Raw] | UnsetType | None = UNSET
