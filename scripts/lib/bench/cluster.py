"""Clusters of any size, as the bytes that an API server would send: pages of lists and lines of watches. Pure.

Objects are as large as real ones: with the metadata, references and managed fields that nobody reads. The same size
gives the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from netagent.source.kinds import Kind

NODE = "node-0"
# Pods, and so the sources of connections that are not masqueraded. Cluster IPs are in 172.16.0.0/12.
POD_CIDR = "10.0.0.0/8"
SERVICE_CIDR = "172.16.0.0/12"
PORT = 53
TARGET_PORT = 5353
# Endpoints of a slice that the control plane writes.
SLICE_ENDPOINTS = 100
PAGE_OBJECTS = 500

_FIRST_CLUSTER_IP = 172 << 24 | 16 << 16 | 256
_FIRST_ENDPOINT = 10 << 24 | 1 << 16
# Those that come later, in their order: 10.128.0.0 + number.
_FIRST_LATER = 10 << 24 | 128 << 16
_ZONES = ("zone-a", "zone-b", "zone-c")
_TIME = "2025-11-21T10:00:00Z"
_MANAGED = (
    '"managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"%s","time":"'
    + _TIME
    + '","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:a":{}},"f:generateName":{},'
    '"f:labels":{".":{},"f:endpointslice.kubernetes.io/managed-by":{},"f:kubernetes.io/service-name":{}},'
    '"f:ownerReferences":{".":{},"k:{\\"uid\\":\\"u\\"}":{}}},"f:spec":{"f:ports":{".":{},"f:selector":{}}}}}]'
)


class Size(NamedTuple):
    """So many Services with so many endpoints each."""

    services: int
    endpoints: int

    def __str__(self) -> str:
        return f"{self.services:,} x {self.endpoints:,}"

    @property
    def total(self) -> int:
        """Number of endpoints."""
        return self.services * self.endpoints


def size(text: str) -> Size:
    """`5000x10` as a Size. ValueError for anything else."""
    services, cross, endpoints = text.lower().replace(",", "").replace("_", "").partition("x")
    if not cross:
        raise ValueError(f"{text!r} is not SERVICESxENDPOINTS, as 5000x10")
    found = Size(int(services), int(endpoints))
    if not (1 <= found.services <= 500_000 and 1 <= found.endpoints <= 100_000):
        raise ValueError(f"{text!r}: so many Services or endpoints are not to be had here")
    return found


def address(number: int) -> str:
    """An IPv4 address of its number."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def later_address(number: int) -> str:
    """The address of an endpoint that comes later: the higher the number, the higher the address."""
    return address(_FIRST_LATER + number)


def later_number(packed: bytes) -> int:
    """The number of the endpoint with this packed address, negative for one that was there from the beginning."""
    return int.from_bytes(packed[:4]) - _FIRST_LATER


class Service(NamedTuple):
    """A Service of the cluster, and the addresses of its endpoints."""

    number: int
    endpoints: tuple[str, ...]
    protocol: str = "TCP"

    @property
    def name(self) -> str:
        return f"service-{self.number}"

    @property
    def cluster_ip(self) -> str:
        return address(_FIRST_CLUSTER_IP + self.number)

    def slice_of(self, position: int) -> tuple[int, tuple[str, ...]]:
        """Number and endpoints of the slice that has the endpoint at this position."""
        number = position // SLICE_ENDPOINTS
        return number, self.endpoints[number * SLICE_ENDPOINTS : (number + 1) * SLICE_ENDPOINTS]

    def slices(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """All slices."""
        for start in range(0, max(len(self.endpoints), 1), SLICE_ENDPOINTS):
            yield start // SLICE_ENDPOINTS, self.endpoints[start : start + SLICE_ENDPOINTS]


class Cluster(NamedTuple):
    """All Services, by index."""

    services: tuple[Service, ...]

    @property
    def endpoints(self) -> int:
        return sum(len(service.endpoints) for service in self.services)


def cluster(wanted: Size, *, more: tuple[int, ...] = (), protocol: str = "TCP") -> Cluster:
    """The cluster of a size, and behind it one more Service for each number of endpoints in `more`."""
    counts = (*(wanted.endpoints for _ in range(wanted.services)), *more)
    found: list[Service] = []
    first = _FIRST_ENDPOINT
    for index, count in enumerate(counts):
        found.append(Service(index, tuple(address(number) for number in range(first, first + count)), protocol))
        first += count
    if first > _FIRST_LATER:
        raise ValueError(f"{wanted} needs more endpoints than there are addresses")
    return Cluster(tuple(found))


# --- objects ----------------------------------------------------------------------------------------------------


def service_json(service: Service, version: int) -> str:
    """The Service as JSON."""
    return (
        f'{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"{service.name}","namespace":"default",'
        f'"uid":"{_uid(1, service.number)}","resourceVersion":"{version}","creationTimestamp":"{_TIME}",'
        f'"labels":{{"app":"{service.name}","app.kubernetes.io/managed-by":"bench"}},{_MANAGED % "v1"}}},'
        f'"spec":{{"ports":[{{"name":"dns","protocol":"{service.protocol}","port":{PORT},"targetPort":{TARGET_PORT}}}],'
        f'"selector":{{"app":"{service.name}"}},"clusterIP":"{service.cluster_ip}",'
        f'"clusterIPs":["{service.cluster_ip}"],"type":"ClusterIP","sessionAffinity":"None","ipFamilies":["IPv4"],'
        f'"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}}}'
    )


def endpoint_json(text: str, number: int, nodes: int) -> str:
    """One endpoint of a slice as JSON: a pod on one of so many nodes."""
    node = number % nodes
    return (
        f'{{"addresses":["{text}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},'
        f'"targetRef":{{"kind":"Pod","namespace":"default","name":"pod-{number}-x7x9z","uid":"{_uid(3, number)}"}},'
        f'"nodeName":"node-{node}","zone":"{_ZONES[node % 3]}"}}'
    )


def slice_head(service: Service, number: int, version: int) -> str:
    """An EndpointSlice as JSON, up to its endpoints; SLICE_TAIL and `slice_tail` end it."""
    name = f"{service.name}-{number}"
    return (
        f'{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{{"name":"{name}",'
        f'"generateName":"{service.name}-","namespace":"default","uid":"{_uid(2, service.number * 1000 + number)}",'
        f'"resourceVersion":"{version}","generation":3,"creationTimestamp":"{_TIME}","labels":{{"app":"{service.name}",'
        f'"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io",'
        f'"kubernetes.io/service-name":"{service.name}"}},'
        f'"annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"{_TIME}"}},'
        f'"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"{service.name}",'
        f'"uid":"{_uid(1, service.number)}","controller":true,"blockOwnerDeletion":true}}],'
        f'{_MANAGED % "discovery.k8s.io/v1"}}},"addressType":"IPv4","endpoints":['
    )


def slice_tail(service: Service) -> str:
    """What follows the endpoints."""
    return f'],"ports":[{{"name":"dns","port":{TARGET_PORT},"protocol":"{service.protocol}"}}]}}'


def slice_json(service: Service, number: int, endpoints: tuple[str, ...], version: int, *, nodes: int) -> str:
    """An EndpointSlice as JSON."""
    first = service.number * 31 + number * SLICE_ENDPOINTS
    listed = ",".join(endpoint_json(text, first + index, nodes) for index, text in enumerate(endpoints))
    return slice_head(service, number, version) + listed + slice_tail(service)


def node_json(version: int, *, zone: str = _ZONES[0], label: str = "none") -> str:
    """Our Node as JSON."""
    return (
        f'{{"kind":"Node","apiVersion":"v1","metadata":{{"name":"{NODE}","uid":"{_uid(4, 0)}",'
        f'"resourceVersion":"{version}","creationTimestamp":"{_TIME}","labels":{{"kubernetes.io/hostname":"{NODE}",'
        f'"topology.kubernetes.io/zone":"{zone}","example.org/label":"{label}"}},{_MANAGED % "v1"}}},'
        f'"spec":{{"podCIDR":"10.1.0.0/24","podCIDRs":["10.1.0.0/24"]}},'
        f'"status":{{"addresses":[{{"type":"InternalIP","address":"192.0.2.1"}},{{"type":"Hostname","address":"{NODE}"}}]'
        f',"conditions":[{{"type":"Ready","status":"True","lastHeartbeatTime":"{_TIME}"}}]}}}}'
    )


def service_cidr_json(version: int) -> str:
    """The only ServiceCIDR as JSON."""
    return (
        '{"kind":"ServiceCIDR","apiVersion":"networking.k8s.io/v1","metadata":{"name":"kubernetes",'
        f'"resourceVersion":"{version}"}},"spec":{{"cidrs":["{SERVICE_CIDR}"]}}}}'
    )


def nodes_of(endpoints: int) -> int:
    """How many nodes a cluster with so many endpoints has: one for each hundred."""
    return max(10, endpoints // 100)


def _uid(kind: int, number: int) -> str:
    return f"{kind:08x}-0000-4000-8000-{number:012x}"


# --- lists and watches ------------------------------------------------------------------------------------------

FIRST_VERSION = 1000


def pages(wanted: Cluster) -> Iterator[tuple[Kind, bytes]]:
    """The pages of the lists of all kinds, in turn; those of one kind follow each other."""
    nodes = nodes_of(wanted.endpoints)
    services = (service_json(service, FIRST_VERSION) for service in wanted.services)
    slices = (
        slice_json(service, number, endpoints, FIRST_VERSION, nodes=nodes)
        for service in wanted.services
        for number, endpoints in service.slices()
    )
    yield from _paged(Kind.NODE, "v1", iter([node_json(FIRST_VERSION)]))
    yield from _paged(Kind.SERVICE_CIDR, "networking.k8s.io/v1", iter([service_cidr_json(FIRST_VERSION)]))
    yield from _paged(Kind.SERVICE, "v1", services)
    yield from _paged(Kind.ENDPOINT_SLICE, "discovery.k8s.io/v1", slices)


def _paged(kind: Kind, api_version: str, objects: Iterator[str]) -> Iterator[tuple[Kind, bytes]]:
    page: list[str] = []
    number = 0
    waiting = next(objects, None)
    while waiting is not None or not number:
        while waiting is not None and len(page) < PAGE_OBJECTS:
            page.append(waiting)
            waiting = next(objects, None)
        number += 1
        token = f',"continue":"page-{number}"' if waiting is not None else ""
        head = f'{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{FIRST_VERSION}"'
        yield kind, f'{head}{token}}},"items":[{",".join(page)}]}}'.encode()
        page = []


def watch_line(type_: str, json_text: str) -> bytes:
    """One line of a watch, with its end."""
    return f'{{"type":"{type_}","object":{json_text}}}\n'.encode()


class Storm:
    """Replaces endpoints of random Services, one after the other, and tells each as a line of a watch.

    Owns: the endpoints as they are, as text. Use: `line` for every change; change number n brings the endpoint with
    `later_address(n)`. Threading: none.
    """

    def __init__(self, wanted: Cluster, *, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._services = wanted.services
        self._nodes = nodes_of(wanted.endpoints)
        self._listed: dict[tuple[int, int], list[str]] = {}

    def line(self, number: int) -> bytes:
        """The line of the next change."""
        service = self._services[self._random.randrange(len(self._services))]
        position = self._random.randrange(len(service.endpoints))
        of_slice, endpoints = service.slice_of(position)
        first = service.number * 31 + of_slice * SLICE_ENDPOINTS
        listed = self._listed.get((service.number, of_slice))
        if listed is None:
            listed = [endpoint_json(text, first + index, self._nodes) for index, text in enumerate(endpoints)]
            self._listed[service.number, of_slice] = listed
        index = position - of_slice * SLICE_ENDPOINTS
        listed[index] = endpoint_json(later_address(number), first + index, self._nodes)
        head = slice_head(service, of_slice, FIRST_VERSION + 1 + number)
        return watch_line("MODIFIED", head + ",".join(listed) + slice_tail(service))
