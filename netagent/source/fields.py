"""Checks of single values: the value in the form of the model, or BadField with its path and the reason."""

from __future__ import annotations

import datetime
import functools
import re
import socket
from collections.abc import Mapping
from typing import TypeVar

from netagent.model import addresses
from netagent.model.addresses import Protocol
from netagent.source.faults import quoted

Choice = TypeVar("Choice")

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(rf"{_DNS_LABEL.pattern}(\.{_DNS_LABEL.pattern})*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_UID = re.compile(r"[-A-Za-z0-9_.:]*")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_MAPPED = bytes(10) + b"\xff\xff"

_PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in Protocol}


class BadField(ValueError):
    """A value that makes its whole object unusable."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


# --- names --------------------------------------------------------------------------------------------------


def is_dns_label(text: str) -> bool:
    """Whether text is a DNS-1123 label."""
    return len(text) <= 63 and _DNS_LABEL.fullmatch(text) is not None


def is_dns_subdomain(text: str) -> bool:
    """Whether text is a DNS-1123 subdomain. Its labels may be longer than 63, as in the API server."""
    return len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text) is not None


def is_label_value(text: str) -> bool:
    """Whether text is the value of a label."""
    return len(text) <= 63 and _LABEL_VALUE.fullmatch(text) is not None


def dns_label(text: str | None, field: str) -> str:
    """A DNS-1123 label: what names a namespace, a Service and a port."""
    if not text:
        raise BadField(field, "is missing")
    if not is_dns_label(text):
        raise BadField(field, f"{quoted(text)} is not a DNS-1123 label")
    return text


def dns_subdomain(text: str | None, field: str) -> str:
    """A DNS-1123 subdomain: what names everything else."""
    if not text:
        raise BadField(field, "is missing")
    if not is_dns_subdomain(text):
        raise BadField(field, f"{quoted(text)} is not a DNS-1123 subdomain")
    return text


@functools.lru_cache(maxsize=4096)
def namespace(text: str | None) -> str:
    """metadata.namespace; absent is "default", as kubectl has it."""
    return dns_label(text, "metadata.namespace") if text else "default"


def port_name(text: str | None, field: str) -> str:
    """The name of a port; "" for the unnamed one."""
    return dns_label(text, field) if text else ""


@functools.lru_cache(maxsize=16384)
def node_name(text: str) -> str:
    """A node's name, the same str object for equal names: there are many endpoints to a node."""
    return dns_subdomain(text, "")


@functools.lru_cache(maxsize=4096)
def zones(names: tuple[str, ...]) -> tuple[str, ...]:
    """Zone names of a hint, the same tuple for equal hints."""
    for name in names:
        if not is_label_value(name):
            raise BadField("", f"{quoted(name)} is not the name of a zone")
    return names


@functools.lru_cache(maxsize=4096)
def zone(name: str) -> str:
    """An endpoint's own zone, the same str object for equal names; "" for what is no name: nothing depends on it."""
    return name if is_label_value(name) else ""


@functools.lru_cache(maxsize=4096)
def nodes(names: tuple[str, ...]) -> tuple[str, ...]:
    """Node names of a hint, the same tuple for equal hints."""
    return tuple(node_name(name) for name in names)


def uid(text: str | None) -> str:
    """metadata.uid, "" when absent."""
    if text and (len(text) > 128 or not _UID.fullmatch(text)):
        raise BadField("metadata.uid", f"{quoted(text)} is not a UID")
    return text or ""


# --- numbers and choices ------------------------------------------------------------------------------------


def shown_number(number: int) -> str:
    """A number of any size, fit to be shown."""
    return f"{number}" if abs(number) < 10**12 else "a very large number"


def port(number: int | None, field: str) -> int:
    """A port number that must be there."""
    if number is None:
        raise BadField(field, "is missing")
    if not 1 <= number <= 65535:
        raise BadField(field, f"{shown_number(number)} is not a port (1 to 65535)")
    return number


def optional_port(number: int | None, field: str) -> int:
    """A port number, 0 when it is absent."""
    return port(number, field) if number else 0


def protocol(text: str | None, field: str) -> Protocol:
    """A protocol; absent is TCP."""
    if not text:
        return Protocol.TCP
    try:
        return _PROTOCOLS[text]
    except KeyError:
        raise BadField(field, f"{quoted(text)} is not one of TCP, UDP and SCTP") from None


def choice(text: str | None, choices: Mapping[str, Choice], field: str, *, default: Choice) -> Choice:
    """One of the choices by its spelling in the API; absent is the default."""
    if not text:
        return default
    try:
        return choices[text]
    except KeyError:
        raise BadField(field, f"{quoted(text)} is not one of {', '.join(choices)}") from None


# --- addresses and times ------------------------------------------------------------------------------------


def parse_address(text: str) -> bytes:
    """Like `addresses.parse_address`, but much faster on canonical text. ValueError, fit to be shown."""
    try:
        if ":" not in text:
            return socket.inet_pton(socket.AF_INET, text)
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        try:
            return addresses.parse_address(text)
        except ValueError:
            raise ValueError(f"{quoted(text)} is not an IP address") from None
    return packed[12:] if packed.startswith(_MAPPED) else packed


def parse_prefix(text: str) -> addresses.Prefix:
    """The network that a CIDR names. ValueError, fit to be shown."""
    try:
        return addresses.parse_prefix(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not a CIDR") from None


def address(text: str, field: str) -> bytes:
    """Packed address of a field that is of no use without."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise BadField(field, str(error)) from None


def creation_time(text: str | None) -> str:
    """metadata.creationTimestamp in UTC, to the second, "" when absent; text order is time order."""
    if not text:
        return ""
    moment = _moment(text)
    if moment is None:
        raise BadField("metadata.creationTimestamp", f"{quoted(text)} is not an RFC 3339 time")
    if moment.year < 1000:
        return ""
    # Of this length, with these letters, it has the form already, and strftime takes a fifth of decoding a Service.
    return text if len(text) == 20 and text[10] == "T" and text[19] == "Z" else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def trigger_time(text: str | None) -> str:
    """The time of an annotation as it was written, or "": an annotation may hold anything."""
    return text if text and _moment(text) else ""


def _moment(text: str) -> datetime.datetime | None:
    if not _TIME.fullmatch(text):
        return None
    try:
        return datetime.datetime.fromisoformat(text.upper()).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        return None
