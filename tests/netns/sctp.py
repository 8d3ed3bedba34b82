"""SCTP INIT chunks and ICMP echo requests as bytes. No I/O.

This kernel may have no SCTP sockets; conntrack and NAT need none, only packets that are right to the last checksum.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PROTOCOL = 132  # IANA
INIT_CHUNK = 1  # RFC 9260, 3.3.2
ECHO_REQUEST = {4: 8, 6: 128}  # RFC 792, RFC 4443
ECHO_REPLY = {4: 0, 6: 129}

_HEADER = struct.Struct("!HHI")  # source port, destination port, verification tag; the checksum follows
_INIT = struct.Struct("!BBHIIHHI")  # type, flags, length, initiate tag, window, streams out, streams in, first TSN


class Init(NamedTuple):
    """What is read of an INIT chunk."""

    source_port: int
    destination_port: int
    tag: int


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of RFC 9260, appendix A."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def make_init(source_port: int, destination_port: int, tag: int) -> bytes:
    """Return an SCTP packet with one INIT chunk that names `tag` (not 0) as its initiate tag."""
    header = _HEADER.pack(source_port, destination_port, 0)
    chunk = _INIT.pack(INIT_CHUNK, 0, _INIT.size, tag, 65536, 1, 1, 1)
    checksum = crc32c(header + bytes(4) + chunk)
    return header + struct.pack("<I", checksum) + chunk


def parse_init(packet: bytes) -> Init | None:
    """Return what an SCTP packet (without IP header) says, None unless it is an intact INIT."""
    if len(packet) < _HEADER.size + 4 + _INIT.size or packet[_HEADER.size + 4] != INIT_CHUNK:
        return None
    (checksum,) = struct.unpack_from("<I", packet, _HEADER.size)
    if crc32c(packet[: _HEADER.size] + bytes(4) + packet[_HEADER.size + 4 :]) != checksum:
        return None
    source, destination, _ = _HEADER.unpack_from(packet)
    return Init(source, destination, _INIT.unpack_from(packet, _HEADER.size + 4)[3])


def make_echo(version: int, identifier: int, token: bytes) -> bytes:
    """Return an ICMP echo request; for IPv6 the kernel fills the checksum in."""
    packet = struct.pack("!BBHHH", ECHO_REQUEST[version], 0, 0, identifier, 1) + token
    if version == 6:
        return packet
    return packet[:2] + struct.pack("!H", internet_checksum(packet)) + packet[4:]


def is_echo_reply(version: int, packet: bytes, token: bytes) -> bool:
    """Whether an ICMP packet (IPv4: with its IP header) answers the request that carried `token`."""
    body = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
    return len(body) > 8 and body[0] == ECHO_REPLY[version] and body[8:] == token


def internet_checksum(data: bytes) -> int:
    """The ones' complement checksum of RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
