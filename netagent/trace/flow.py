"""The flow that is traced: to where, by which protocol, and from where. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from netagent import errors
from netagent.model import addresses
from netagent.plan import frontends

_TARGET: Final = re.compile(
    r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})(?:/(?P<protocol>\w+))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """Packets to one address (packed), protocol and port; `source` None is anybody."""

    destination: bytes
    protocol: addresses.Protocol
    port: int
    source: bytes | None = None

    @property
    def family(self) -> addresses.Family:
        return addresses.family_of(self.destination)

    def __str__(self) -> str:
        text = f"{addresses.format_socket(self.destination, self.port)}/{self.protocol.name.lower()}"
        return f"{text} from {addresses.format_address(self.source)}" if self.source is not None else text


def parse(text: str, *, source: bytes | None = None) -> Flow | None:
    """The flow that a text such as `10.96.0.10:53/udp` or `[fd00::1]:80` names (TCP if it does not say); None if it is
    no address, for instance the name of a Service. ConfigError if it is a wrong one."""
    found = _TARGET.fullmatch(text)
    if not found:
        if text[:1].isdigit() and "/" not in text:
            raise errors.ConfigError(f"{text!r}: give an address with a port, as 10.96.0.10:53/udp")
        return None
    try:
        destination = addresses.parse_address(found["v6"] or found["v4"])
    except ValueError as error:
        raise errors.ConfigError(str(error)) from None
    port = int(found["port"])
    if not 0 < port < 65536:
        raise errors.ConfigError(f"{text!r}: {port} is not a port")
    protocol = (found["protocol"] or "tcp").upper()
    if protocol not in addresses.Protocol.__members__:
        raise errors.ConfigError(f"{text!r}: the protocol must be tcp, udp or sctp")
    flow = Flow(destination, addresses.Protocol[protocol], port, source)
    if source is not None and addresses.family_of(source) is not flow.family:
        raise errors.ConfigError(f"{addresses.format_address(source)} and {text} are of different IP families")
    return flow


def of_service(
    text: str,
    served: Iterable[tuple[str, frontends.FrontendKey]],
    *,
    node_addresses: frozenset[bytes],
    source: bytes | None = None,
) -> tuple[Flow, ...]:
    """The flows to a Service (`namespace/name`, or with the name or number of a port: `namespace/name:port`), sorted.
    A name alone is one of the namespace `default`.

    `served` are the frontends of this node, each with the Service port that owns it. Node ports are flows to every
    address of the node that is not a loopback one. ConfigError if there is no such Service or port.
    """
    name, _, port = text.partition(":")
    name = name if "/" in name else f"default/{name}"
    owned = [(owner.partition(":")[2], key) for owner, key in served if owner.partition(":")[0] == name]
    if not owned:
        raise errors.ConfigError(
            f"{text}: this node serves no Service of that name, and it is no address with a port; `netagent explain "
            f"{name}` tells why"
        )
    chosen = [key for word, key in owned if not port or port in (word, str(key.port))]
    if not chosen:
        ports = ", ".join(sorted({word or str(key.port) for word, key in owned}))
        raise errors.ConfigError(f"{name} has no port {port}; it has {ports}")
    flows: set[Flow] = set()
    for key in chosen:
        places = {key.address} if key.address else {found for found in node_addresses if _answers(found, key.family)}
        flows |= {Flow(place, key.protocol, key.port, source) for place in places}
    if source is not None:
        flows = {flow for flow in flows if flow.family is addresses.family_of(source)}
    if not flows:
        raise errors.ConfigError(f"{text}: it has no address that can be dialled so")
    return tuple(sorted(flows))


def _answers(address: bytes, family: addresses.Family) -> bool:
    loopback = address[:1] == b"\x7f" if len(address) == 4 else address == bytes(15) + b"\1"
    return addresses.family_of(address) is family and not loopback
