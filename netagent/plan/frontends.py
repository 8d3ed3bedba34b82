"""The Frontend: what clients dial, and what this node does with it. The one language between plan and
backends."""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from netagent.model import addresses, objects


class FrontendKind(enum.StrEnum):
    CLUSTER_IP = "cluster-ip"
    EXTERNAL_IP = "external-ip"
    LOAD_BALANCER = "load-balancer"
    NODE_PORT = "node-port"


class FrontendKey(NamedTuple):
    """What a packet is matched by. `address` is packed; b"" means any accepted node address of the family."""

    family: addresses.Family
    address: bytes
    protocol: addresses.Protocol
    port: int

    def __str__(self) -> str:
        protocol = self.protocol.name.lower()
        if not self.address:
            return f"node-port {self.port}/{protocol} ({self.family.value})"
        return f"{addresses.format_socket(self.address, self.port)}/{protocol}"


class Verdict(enum.StrEnum):
    """What happens to a new connection. SERVE needs endpoints; REJECT answers at once, DROP is silence."""

    SERVE = "serve"
    REJECT = "reject"
    DROP = "drop"


class Masquerade(enum.StrEnum):
    """Whose connections get the node's own address as source (hairpin connections always do)."""

    CLUSTER_IP = "cluster-ip"  # as the settings say for cluster IPs: all, everybody but local pods, or nobody
    ALWAYS = "always"
    NEVER_LOCAL = "local-policy"  # local pods and outside never, processes of this host always


class ServicePortName(NamedTuple):
    """Key of one port of a Service, per the API: namespace, name, port name and protocol."""

    namespace: str
    service: str
    port: str
    protocol: addresses.Protocol

    @property
    def owner(self) -> objects.ServiceName:
        return objects.ServiceName(self.namespace, self.service)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service}:{self.port}" if self.port else f"{self.namespace}/{self.service}"


class Frontend(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One frontend and its decided behaviour. Endpoints are endpoint keys, sorted, without duplicates.

    * `verdict` SERVE: new connections go to one of `endpoints` with equal probability.
    * `local_endpoints` is None unless the external traffic policy is Local. Then `endpoints` serves local
      pods and this host (the short circuit) and everybody else gets one of `local_endpoints`; when that is
      empty they are dropped.
    * `affinity_seconds`: a client address keeps its endpoint for so long after its last new connection. The
      record belongs to the Service port (`owner`), shared by all its frontends of one list.
    * `source_ranges`: None lets everybody in; otherwise sources outside are dropped before anything else.
    * `hairpin_addresses`: addresses (packed) of those endpoints that can run on this node: a connection from
      one of them to itself must be masqueraded.
    * `endpoints_are_local`: `endpoints` is the list of local ones (internal traffic policy Local).
    * `serving_endpoints`: for UDP and SCTP, every endpoint of the port that is ready or serving, whatever
      policy and topology make of it: a connection to any other endpoint is stale. Empty for TCP, which ends
      by itself.
    """

    key: FrontendKey
    kind: FrontendKind
    owner: ServicePortName
    verdict: Verdict
    masquerade: Masquerade
    endpoints: tuple[bytes, ...] = ()
    local_endpoints: tuple[bytes, ...] | None = None
    affinity_seconds: int | None = None
    source_ranges: tuple[addresses.Prefix, ...] | None = None
    hairpin_addresses: tuple[bytes, ...] = ()
    serving_endpoints: tuple[bytes, ...] = ()
    endpoints_are_local: bool = False
    created: str = ""

    @property
    def seniority(self) -> tuple[str, str, str]:
        """Sort key that decides who keeps a frontend that two Services claim: the older one, then by name."""
        return (self.created, self.owner.namespace, self.owner.service)
