"""Service, EndpointSlice, Node and ServiceCIDR: what a Service proxy reads of them, checked and flat.

`netagent.source` makes these from JSON or YAML; whatever could not be represented here was set aside there. All are
immutable, and the many can have no part in a reference cycle (gc=False: the collector passes them by). Addresses are
packed bytes (see `netagent.model.addresses`).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from netagent.model import addresses
from netagent.model.addresses import Prefix


class ServiceType(enum.StrEnum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class TrafficPolicy(enum.StrEnum):
    CLUSTER = "Cluster"
    LOCAL = "Local"


class ServiceName(NamedTuple):
    """Key of a Service, and of everything that belongs to it."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """One port of a Service. `name` is "" for the single unnamed port; `node_port` is 0 when there is none."""

    name: str
    protocol: addresses.Protocol
    port: int
    node_port: int = 0


class Service(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A Service as far as a proxy cares.

    `cluster_ips` holds at most one address a family and is empty for headless and ExternalName Services. `vips` are
    the load balancer's ingress addresses whose ipMode is VIP. `source_ranges` keeps the families apart only by the
    length of its addresses; a family without any is unrestricted, unless `source_ranges_closed`: there were entries
    and not one was valid, so nobody gets in. `affinity_seconds` is None without session affinity. `created` is the
    creation time in RFC 3339, UTC, so that text order is time order; "" when unknown (sorts as oldest). `proxy_name`
    is the value of the label service.kubernetes.io/service-proxy-name: not None means that the Service is somebody
    else's.
    """

    namespace: str
    name: str
    uid: str = ""
    created: str = ""
    type: ServiceType = ServiceType.CLUSTER_IP
    cluster_ips: tuple[bytes, ...] = ()
    external_ips: tuple[bytes, ...] = ()
    vips: tuple[bytes, ...] = ()
    source_ranges: tuple[addresses.Prefix, ...] = ()
    source_ranges_closed: bool = False
    ports: tuple[ServicePort, ...] = ()
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    affinity_seconds: int | None = None
    health_check_node_port: int = 0
    proxy_name: str | None = None

    @property
    def key(self) -> ServiceName:
        return ServiceName(self.namespace, self.name)


class SlicePort(msgspec.Struct, frozen=True, gc=False):
    """A usable port of an EndpointSlice (it has a name, perhaps "", and a number)."""

    name: str
    protocol: addresses.Protocol
    port: int


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of a slice: its first address, its conditions with absent ones defaulted, and its hints.

    `node` is None when the slice does not say where the endpoint runs. `zone` is only shown: hints decide.
    """

    address: bytes
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str | None = None
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()
    zone: str = ""

    @property
    def draining(self) -> bool:
        """Terminating, but still answering: the fallback when nothing is ready."""
        return not self.ready and self.serving and self.terminating


class EndpointSlice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An EndpointSlice of one IP family. `service` is None when no Service owns it (label missing or empty).

    `headless` tells that it carries the label service.kubernetes.io/headless and is none of our business. `family`
    is None for address type FQDN, whose slices have no endpoints here.
    """

    namespace: str
    name: str
    service: ServiceName | None = None
    family: addresses.Family | None = addresses.Family.IPV4
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    headless: bool = False
    trigger_time: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return (self.namespace, self.name)


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """This node. `addresses` are its InternalIPs, then its ExternalIPs, in the API's order; `zone` "" is unknown."""

    name: str
    zone: str = ""
    addresses: tuple[bytes, ...] = ()
    pod_cidrs: tuple[Prefix, ...] = ()
    deleting: bool = False
    taint_keys: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name


class ServiceCIDR(msgspec.Struct, frozen=True, kw_only=True):
    """A range from which cluster IPs are allocated."""

    name: str
    cidrs: tuple[Prefix, ...] = ()

    @property
    def key(self) -> str:
        return self.name


Object = Service | EndpointSlice | Node | ServiceCIDR
