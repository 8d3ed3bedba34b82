"""A cluster in the usual layout, as text for `iptables-restore`: what mode iptables is compared with.

The layout is that of kube-proxy's iptables mode, as far as ClusterIP Services go: one list of all Services, a chain for
each Service port, which picks an endpoint by a cascade of probabilities, and a chain for each endpoint. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from . import cluster

_MARK = "0x4000"


def script(wanted: cluster.Cluster) -> Iterator[str]:
    """The lines that make everything."""
    yield "*nat"
    for chain in ("KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"):
        yield f":{chain} - [0:0]"
    for service in wanted.services:
        yield from _declarations(service)
    yield '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    yield '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    yield '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'
    yield f"-A KUBE-MARK-MASQ -j MARK --or-mark {_MARK}"
    yield f"-A KUBE-POSTROUTING -m mark ! --mark {_MARK}/{_MARK} -j RETURN"
    yield f"-A KUBE-POSTROUTING -j MARK --xor-mark {_MARK}"
    yield "-A KUBE-POSTROUTING -j MASQUERADE --random-fully"
    yield from _dispatch(wanted.services)
    for service in wanted.services:
        yield from _rules(service)
    yield "COMMIT"


def change(wanted: cluster.Cluster, service: cluster.Service) -> Iterator[str]:
    """The lines of `iptables-restore --noflush` that a changed Service costs: its own chains, and the list of all."""
    yield "*nat"
    yield ":KUBE-SERVICES - [0:0]"
    yield from _declarations(service)
    yield from _dispatch(wanted.services)
    yield from _rules(service)
    yield "COMMIT"


def _dispatch(services: Sequence[cluster.Service]) -> Iterator[str]:
    for service in services:
        yield f"-A KUBE-SERVICES {_frontend(service)} -j {_chain(service)}"


def _declarations(service: cluster.Service) -> Iterator[str]:
    yield f":{_chain(service)} - [0:0]"
    yield from (f":{_endpoint_chain(service, address)} - [0:0]" for address in service.endpoints)


def _rules(service: cluster.Service) -> Iterator[str]:
    chain, name, protocol = _chain(service), f"default/{service.name}:dns", service.protocol.lower()
    yield f"-A {chain} ! -s {cluster.POD_CIDR} {_frontend(service)} -j KUBE-MARK-MASQ"
    count = len(service.endpoints)
    for index, address in enumerate(service.endpoints):
        socket, endpoint = f"{address}:{cluster.TARGET_PORT}", _endpoint_chain(service, address)
        chance = f" -m statistic --mode random --probability {1 / (count - index):.10f}" if index < count - 1 else ""
        yield f'-A {chain} -m comment --comment "{name} -> {socket}"{chance} -j {endpoint}'
        yield f'-A {endpoint} -s {address}/32 -m comment --comment "{name}" -j KUBE-MARK-MASQ'
        yield (
            f'-A {endpoint} -p {protocol} -m comment --comment "{name}" -m {protocol} -j DNAT --to-destination {socket}'
        )


def _frontend(service: cluster.Service) -> str:
    protocol = service.protocol.lower()
    comment = f'-m comment --comment "default/{service.name}:dns cluster IP"'
    return f"-d {service.cluster_ip}/32 -p {protocol} {comment} -m {protocol} --dport {cluster.PORT}"


def _chain(service: cluster.Service) -> str:
    return f"KUBE-SVC-{_hash(service.name)}"


def _endpoint_chain(service: cluster.Service, address: str) -> str:
    return f"KUBE-SEP-{_hash(service.name + address)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16].upper()
