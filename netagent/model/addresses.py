"""Addresses, prefixes and protocols: packed bytes inside, text at the edges only.

A packed address is 4 bytes (IPv4) or 16 bytes (IPv6) in network order; its length is its family. An *endpoint key*
is a packed address followed by the port in two bytes, network order: 6 or 18 bytes.
"""

from __future__ import annotations

import enum
import ipaddress
from typing import NamedTuple


class Family(enum.StrEnum):
    """An IP family. Its value is the spelling of the Kubernetes API."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    def __init__(self, spelling: str) -> None:
        # Length of a packed address. Not a property: it is asked for with every Service.
        self.address_bytes = 4 if spelling == "IPv4" else 16


class Protocol(enum.IntEnum):
    """A transport protocol by its number in the IP header (IANA)."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Prefix(NamedTuple):
    """A network: packed address with all host bits zero, and prefix length in bits."""

    address: bytes
    length: int

    @property
    def family(self) -> Family:
        return family_of(self.address)

    def __contains__(self, address: object) -> bool:
        """Whether a packed address lies in this network; one of the other family never does."""
        if not isinstance(address, bytes) or len(address) != len(self.address):
            return False
        shift = len(address) * 8 - self.length
        return int.from_bytes(address) >> shift == int.from_bytes(self.address) >> shift

    @property
    def last(self) -> bytes:
        """The highest address of the network, packed."""
        size = len(self.address)
        return (int.from_bytes(self.address) | ((1 << (size * 8 - self.length)) - 1)).to_bytes(size)

    def __str__(self) -> str:
        return f"{format_address(self.address)}/{self.length}"


def family_of(packed: bytes) -> Family:
    """The family of a packed address or endpoint key."""
    return Family.IPV4 if len(packed) in (4, 6) else Family.IPV6


def parse_address(text: str) -> bytes:
    """Return the packed form of an address, read as leniently as the API server once wrote it.

    Surrounding blanks are ignored, leading zeros in a dotted quad are decimal, and an IPv4-mapped IPv6 address is
    IPv4. Zones (`fe80::1%eth0`) are refused: a Service cannot mean one. ValueError if it is not an address.
    """
    text = text.strip()
    if ":" not in text:
        parts = text.split(".")
        if len(parts) == 4 and all(part.isascii() and part.isdigit() and len(part) <= 8 for part in parts):
            numbers = [int(part) for part in parts]
            if max(numbers) <= 255:
                return bytes(numbers)
        raise ValueError(f"{text!r} is not an IP address")
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which no Service address can have")
    head, _, tail = text.rpartition(":")
    if "." in tail:
        text = f"{head}:{ipaddress.IPv4Address(parse_address(tail))}"
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    return (address.ipv4_mapped or address).packed


def parse_prefix(text: str) -> Prefix:
    """Return the network that a CIDR names; host bits are cleared. ValueError if it is not a CIDR."""
    address_text, slash, length_text = text.strip().partition("/")
    if not slash or not length_text.isascii() or not length_text.isdigit() or len(length_text) > 3:
        raise ValueError(f"{text!r} is not a CIDR")
    address = parse_address(address_text)
    length = int(length_text)
    if ":" in address_text and len(address) == 4:  # ::ffff:10.0.0.0/104 is the IPv4 network 10.0.0.0/8
        length -= 96
    if not 0 <= length <= len(address) * 8:
        raise ValueError(f"{text!r} has an impossible prefix length")
    return network(address, length)


def network(address: bytes, length: int) -> Prefix:
    """The network of `length` bits that a packed address lies in."""
    shift = len(address) * 8 - length
    return Prefix((int.from_bytes(address) >> shift << shift).to_bytes(len(address)), length)


def format_address(packed: bytes) -> str:
    """Canonical text of a packed address (RFC 5952 for IPv6)."""
    if len(packed) == 4:
        return f"{packed[0]}.{packed[1]}.{packed[2]}.{packed[3]}"
    return str(ipaddress.IPv6Address(packed))


def endpoint_key(address: bytes, port: int) -> bytes:
    """The endpoint key of a packed address and a port."""
    return address + port.to_bytes(2)


def endpoint_address(key: bytes) -> bytes:
    """The packed address of an endpoint key."""
    return key[:-2]


def endpoint_port(key: bytes) -> int:
    """The port of an endpoint key."""
    return int.from_bytes(key[-2:])


def format_endpoint(key: bytes) -> str:
    """`address:port` of an endpoint key, an IPv6 address in brackets."""
    return format_socket(key[:-2], int.from_bytes(key[-2:]))


def format_socket(address: bytes, port: int) -> str:
    """`address:port`, an IPv6 address in brackets."""
    text = format_address(address)
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"
