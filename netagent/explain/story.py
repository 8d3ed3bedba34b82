"""What explaining comes to: a story of parts, one for each address that is dialled; a tale for each kind of client."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from netagent.model import addresses, objects
from netagent.nftables import walk
from netagent.plan import frontends


class Fate(enum.StrEnum):
    """What a client notices."""

    SERVED = "served"
    REFUSED = "refused"  # at once: "connection refused"
    DROPPED = "dropped"  # in silence: the client waits until it gives up
    UNHANDLED = "not handled"  # goes on to where it was sent, as without netagent


class Cause(enum.StrEnum):
    """The one reason that has to be known to change something. The values are for programs, and stay as they are."""

    SERVES = "serves"
    NO_ENDPOINTS = "no-endpoints"
    NOT_READY = "no-ready-endpoint"
    TERMINATING = "all-endpoints-terminating"
    PORT_MISMATCH = "endpoint-port-mismatch"
    OTHER_FAMILY = "endpoints-of-other-family"
    INTERNAL_LOCAL = "internal-policy-local-without-local-endpoint"
    EXTERNAL_LOCAL = "external-policy-local-without-local-endpoint"
    SOURCE_RANGES = "source-not-allowed"
    PORT_UNDEFINED = "port-not-defined"
    WRONG_PROTOCOL = "wrong-protocol"
    SET_ASIDE = "object-set-aside"
    UNKNOWN_SERVICE = "service-unknown"
    NO_PORTS = "service-without-ports"
    HEADLESS = "headless"
    NO_CLUSTER_IP = "no-cluster-ip"
    EXTERNAL_NAME = "external-name"
    OTHER_PROXY = "other-service-proxy"
    PROXY_MODE = "load-balancer-ip-mode-proxy"
    UNALLOCATED = "unallocated-cluster-ip"
    NODE_PORT_ADDRESS = "address-without-node-ports"
    NODE_PORT_LOOPBACK = "node-port-on-loopback"
    NOT_A_NODE_PORT = "not-a-node-port"
    CONFLICT = "claimed-by-older-service"
    EXTERNAL_IPS_OFF = "external-ips-off"
    FAMILY_NOT_SERVED = "family-not-served"
    NOBODYS_ADDRESS = "address-of-no-service"
    ENDPOINT_ITSELF = "address-of-an-endpoint"
    KERNEL_DIFFERS = "kernel-differs"


class SourceKind(enum.StrEnum):
    POD = "pod"
    NODE = "node"
    OUTSIDE = "outside"


class Source(NamedTuple):
    """Who dials: what it is, and its packed address."""

    kind: SourceKind
    address: bytes

    def __str__(self) -> str:
        return f"{self.kind.value}:{addresses.format_address(self.address)}"


class Client(NamedTuple):
    """Who dials. `address` is None where any will do."""

    kind: SourceKind
    address: bytes | None


class Dialled(NamedTuple):
    """What a client dials. `address` is packed."""

    address: bytes
    protocol: addresses.Protocol
    port: int

    @property
    def family(self) -> addresses.Family:
        return addresses.family_of(self.address)

    def __str__(self) -> str:
        return f"{addresses.format_socket(self.address, self.port)}/{self.protocol.name.lower()}"


class Missing(NamedTuple):
    """What was dialled, and is no frontend. `port` is None if the address alone was asked about."""

    address: bytes
    protocol: addresses.Protocol
    port: int | None

    @property
    def family(self) -> addresses.Family:
        return addresses.family_of(self.address)


class Share(NamedTuple):
    """An endpoint (key) that a new connection may go to, how probable that is, and whether the endpoint sees this
    node's address in place of the client's."""

    endpoint: bytes
    probability: Fraction
    masquerade: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A cause, what it is about (sentences), and what can be done about it (sentences, commands)."""

    cause: Cause
    why: tuple[str, ...] = ()
    change: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tale:
    """What becomes of a new connection from each of `sources`, who all fare alike.

    `shares` are sorted by endpoint, and add up to 1 if the fate is SERVED. `notes`: what the client should know beside
    (source address, affinity). `possibilities` are those of the walk through the desired rules, of the first source.
    `kernel` is what the kernel's own rules do otherwise, a sentence each, None if that was not looked at; `actual` are
    the possibilities of the walk through those.
    """

    sources: tuple[Source, ...]
    fate: Fate
    reason: Reason
    shares: tuple[Share, ...] = ()
    notes: tuple[str, ...] = ()
    possibilities: tuple[walk.Possibility, ...] = ()
    kernel: tuple[str, ...] | None = None
    actual: tuple[walk.Possibility, ...] = ()


class Condition(enum.StrEnum):
    """What a slice says of an endpoint."""

    READY = "ready"
    NOT_READY = "not ready"
    DRAINING = "terminating, still serving"
    GONE = "terminating, no longer serving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An endpoint of a slice of the Service, whether or not it can be used.

    `key` is its endpoint key, None if its slice has no port for the Service port. `used`: some client gets it. `reason`
    says why or why not.
    """

    endpoint: objects.Endpoint
    slice: str
    key: bytes | None
    condition: Condition
    used: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One address that is dialled. `frontend` is None if nobody's. `setting`: what of the Service decides here.
    `reason`: why nobody can dial it for the Service that claims it; then there are no tales."""

    dialled: Dialled
    title: str
    frontend: frontends.Frontend | None = None
    setting: tuple[str, ...] = ()
    tales: tuple[Tale, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The whole. `reason` is what is to be said of the target as such, where no part can say it. `known` is False if
    nothing is known of the target: nobody has it."""

    target: str
    headline: str
    reason: Reason | None = None
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    known: bool = True
