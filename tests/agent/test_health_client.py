"""A client for the servers under test: raw, so that it can misbehave."""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple

from tests import patience
from tests.ports import free_port

__all__ = ["Answer", "answer_of", "ask", "connect", "free_port", "has_ipv6", "is_closed", "read_all"]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), timeout=patience.HANGS)


def read_all(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(65536):
        received += data
    return received


def answer_of(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return Answer(int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body)


def ask(
    port: int, path: str = "/", *, method: str = "GET", host: str = "127.0.0.1", accept: str = "", body: bytes = b""
) -> Answer:
    lines = [f"{method} {path} HTTP/1.1", "Host: node", *([f"Accept: {accept}"] if accept else [])]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    with connect(port, host) as client:
        client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        return answer_of(read_all(client))


def is_closed(port: int, host: str = "127.0.0.1") -> bool:
    try:
        connect(port, host).close()
    except ConnectionRefusedError:
        return True
    return False


def has_ipv6() -> bool:
    try:
        free_port("::1")
    except OSError:
        return False
    return True
