"""A cluster in the usual layout, as text for `nft -f`: what netagent is compared with.

The layout is that of kube-proxy's nftables mode, as far as ClusterIP Services go: a verdict map from address, protocol
and port to a chain for each Service port, which picks one of its endpoints by an anonymous map; a chain for each
endpoint, which translates. Pure.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator

from . import cluster

TABLE = "usual"
# For the maps: so many elements on a line.
_A_LINE = 50


def script(wanted: cluster.Cluster) -> Iterator[str]:
    """The lines that make the table of a cluster."""
    yield f"table ip {TABLE} {{"
    yield from _maps(wanted)
    yield from _BASE.splitlines()
    for service in wanted.services:
        yield from _service(service)
    yield "}"


def _maps(wanted: cluster.Cluster) -> Iterator[str]:
    served = [service for service in wanted.services if service.endpoints]
    refused = [service for service in wanted.services if not service.endpoints]
    key = "type ipv4_addr . inet_proto . inet_service : verdict"
    yield f"  set cluster-ips {{ type ipv4_addr; {_elements(wanted.services, lambda service: service.cluster_ip)} }}"
    targets = _elements(served, lambda service: f"{_key(service)} : goto {_chain(service)}")
    yield f"  map service-ips {{ {key}; {targets} }}"
    refusals = _elements(refused, lambda service: f"{_key(service)} : goto reject-chain")
    yield f"  map no-endpoint-services {{ {key}; {refusals} }}"
    yield "  map service-nodeports { type inet_proto . inet_service : verdict; }"
    yield "  set nodeport-ips { type ipv4_addr; elements = { 192.0.2.1 } }"


def _elements(
    services: list[cluster.Service] | tuple[cluster.Service, ...], element: Callable[[cluster.Service], str]
) -> str:
    if not services:
        return ""
    lines = [", ".join(map(element, services[start : start + _A_LINE])) for start in range(0, len(services), _A_LINE)]
    return "elements = { " + ",\n    ".join(lines) + " }"


def _key(service: cluster.Service) -> str:
    return f"{service.cluster_ip} . {service.protocol.lower()} . {cluster.PORT}"


def _chain(service: cluster.Service) -> str:
    return f"service-{_hash(service.name)}-default/{service.name}/{service.protocol.lower()}/dns"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8].upper()


def _service(service: cluster.Service) -> Iterator[str]:
    if not service.endpoints:
        return
    protocol = service.protocol.lower()
    targets = [
        f"endpoint-{_hash(service.name + address)}-default/{service.name}/{protocol}/dns"
        f"__{address}/{cluster.TARGET_PORT}"
        for address in service.endpoints
    ]
    choices = ", ".join(f"{index} : goto {target}" for index, target in zip(itertools.count(), targets, strict=False))
    yield f"  chain {_chain(service)} {{"
    yield (
        f"    ip daddr {service.cluster_ip} {protocol} dport {cluster.PORT} "
        f"ip saddr != {cluster.POD_CIDR} jump mark-for-masquerade"
    )
    yield f"    numgen random mod {len(targets)} vmap {{ {choices} }}"
    yield "  }"
    for target, address in zip(targets, service.endpoints, strict=True):
        yield f"  chain {target} {{"
        yield f"    ip saddr {address} jump mark-for-masquerade"
        yield f"    meta l4proto {protocol} dnat to {address}:{cluster.TARGET_PORT}"
        yield "  }"


_BASE = f"""\
  chain filter-prerouting {{
    type filter hook prerouting priority -110;
    ct state new jump firewall-check
  }}
  chain filter-input {{
    type filter hook input priority -110;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority -110;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-output {{
    type filter hook output priority -110;
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
  }}
  chain filter-output-post-dnat {{
    type filter hook output priority -90;
    ct state new jump cluster-ips-check
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority -100;
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100;
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority 100;
    jump masquerading
  }}
  chain firewall-check {{
  }}
  chain nodeport-endpoints-check {{
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain service-endpoints-check {{
    ip daddr . meta l4proto . th dport vmap @no-endpoint-services
  }}
  chain cluster-ips-check {{
    ip daddr @cluster-ips reject
    ip daddr {cluster.SERVICE_CIDR} drop
  }}
  chain reject-chain {{
    reject
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain mark-for-masquerade {{
    mark set mark or 0x4000
  }}
  chain masquerading {{
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }}
"""
