"""What is asked: a target and a client, from text."""

from __future__ import annotations

import re
from typing import NamedTuple

from netagent import errors
from netagent.explain.story import Client, SourceKind
from netagent.model import addresses, objects

_PROTOCOLS = {protocol.name.lower(): protocol for protocol in addresses.Protocol}
_NAME = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
_BY_NAME = re.compile(
    rf"(?:(?P<namespace>{_NAME})/)?(?P<name>{_NAME})(?::(?P<port>[-a-z0-9]+)(?:/(?P<protocol>[a-zA-Z]+))?)?"
)
# As a Service is called in the cluster's DNS: web.shop.svc.cluster.local
_BY_DNS = re.compile(
    r"(?P<name>[a-z0-9][-a-z0-9]*)\.(?P<namespace>[a-z0-9][-a-z0-9]*)\.svc(?:\.[-a-z0-9.]+)?"
    r"(?::(?P<port>[-a-z0-9]+)(?:/(?P<protocol>[a-zA-Z]+))?)?"
)
_BY_ADDRESS = re.compile(
    r"(?:\[(?P<bracketed>[^\[\]/]*)\]|(?P<plain>[0-9.]+|[0-9a-fA-F:.]*::?[0-9a-fA-F:.]*?))"
    r"(?::(?P<port>[0-9]+)(?:/(?P<protocol>[a-zA-Z]+))?)?"
)


class AddressTarget(NamedTuple):
    """An address, and what is dialled there; without a port, all that is known of the address."""

    address: bytes
    port: int | None
    protocol: addresses.Protocol


class ServiceTarget(NamedTuple):
    """A Service, one of its ports (name, or number as text), and a protocol; None: all of them."""

    service: objects.ServiceName
    port: str | None = None
    protocol: addresses.Protocol | None = None


Target = AddressTarget | ServiceTarget


def target_of(text: str, *, namespace: str) -> Target:
    """Read `10.96.0.10:53/udp`, `[fd00::1]:80`, `namespace/name`, `name:port`, or the name of a Service in DNS.

    The protocol is TCP if an address has none. `namespace` is that of a bare name. ConfigError if it is none of these.
    """
    target = _address_target(text) or _service_target(text, namespace)
    if target is None:
        raise errors.ConfigError(
            f"cannot explain {text!r}: give ADDRESS:PORT[/PROTOCOL] (10.96.0.10:53/udp, [fd00::1]:80) "
            "or [NAMESPACE/]SERVICE[:PORT]"
        )
    return target


def client_of(text: str) -> Client:
    """Read `pod:10.180.0.4`, `node` or `outside:192.0.2.7`; a kind alone means any of that kind. ConfigError."""
    word, colon, rest = text.partition(":")
    try:
        kind = SourceKind(word)
        address = addresses.parse_address(rest.strip("[]")) if colon else None
    except ValueError:
        raise errors.ConfigError(
            f"--from {text!r} is no client: give pod:ADDRESS, node, or outside:ADDRESS (the address may be left out)"
        ) from None
    return Client(kind, address)


def _address_target(text: str) -> AddressTarget | None:
    if text.count(":") > 1 and "[" not in text and "/" not in text:
        try:  # an IPv6 address without a port needs no brackets
            return AddressTarget(addresses.parse_address(text), None, addresses.Protocol.TCP)
        except ValueError:
            return None
    found = _BY_ADDRESS.fullmatch(text)
    if not found:
        return None
    try:
        address = addresses.parse_address(found["bracketed"] or found["plain"] or "")
    except ValueError:
        return None
    protocol = _protocol(found["protocol"] or "tcp", text)
    return AddressTarget(address, _number(found["port"], text), protocol)


def _service_target(text: str, namespace: str) -> ServiceTarget | None:
    found = _BY_DNS.fullmatch(text) or _BY_NAME.fullmatch(text)
    if not found or re.fullmatch(r"[0-9.]+", found["name"]):
        return None
    protocol = _protocol(found["protocol"], text) if found["protocol"] else None
    if found["port"] and found["port"].isdigit():
        _number(found["port"], text)
    return ServiceTarget(objects.ServiceName(found["namespace"] or namespace, found["name"]), found["port"], protocol)


def _protocol(name: str, text: str) -> addresses.Protocol:
    protocol = _PROTOCOLS.get(name.lower())
    if protocol is None:
        raise errors.ConfigError(f"cannot explain {text!r}: {name} is not one of {', '.join(sorted(_PROTOCOLS))}")
    return protocol


def _number(port: str | None, text: str) -> int | None:
    if port is None:
        return None
    if not 1 <= int(port) <= 65535:
        raise errors.ConfigError(f"cannot explain {text!r}: {port} is not a port number, 1 to 65535")
    return int(port)
