"""HTTP requests and responses as bytes: as much of RFC 9112 as health checks and scrapes need, and no socket.

One request a connection: whatever follows the head of the request is not read, and every response closes.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HEAD_BYTES_MOST: Final = 8192
_FIELDS_MOST: Final = 100

_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])")
_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN: Final = re.compile(rb"[\0\r]")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Request(NamedTuple):
    """The head of a request. `fields` are its header fields by lower-case name, repeated ones joined with commas."""

    method: str
    target: str
    fields: dict[str, str]

    @property
    def path(self) -> str:
        """The path of the target, without query; "/" if it has none."""
        target = self.target
        if not target.startswith("/") and "://" in target:
            target = "/" + target.partition("://")[2].partition("/")[2]
        return target.partition("?")[0] or "/"

    @property
    def query(self) -> str:
        """The query of the target as it was sent; "" if it has none."""
        return self.target.partition("?")[2]


class Response(NamedTuple):
    """An answer. `headers` come in addition to those that every response has."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class RequestError(ValueError):
    """The bytes are no request that can be answered otherwise than with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} {_REASONS[status]}")
        self.status = status


def has_head(received: bytes | bytearray, *, searched: int = 0) -> bool:
    """Whether these bytes hold all of a head, or more than a head may be; the first `searched` bytes did not.

    To look only at what is new keeps the cost of a head in proportion to its length, however it is cut into pieces.
    """
    return len(received) >= HEAD_BYTES_MOST or _HEAD_END.search(received, max(0, searched - 3)) is not None


def request_of(received: bytes | bytearray) -> Request | None:
    """Return the request that these bytes begin with; None while its head is incomplete.

    RequestError if it cannot become one. Lines may end in LF alone, and blank lines may stand before the request.
    """
    head = bytes(received).lstrip(b"\r\n")
    end = _HEAD_END.search(head, 0, HEAD_BYTES_MOST)
    if end is None:
        if len(received) >= HEAD_BYTES_MOST:
            raise RequestError(431)
        return None
    first, *lines = head[: end.start()].replace(b"\r\n", b"\n").split(b"\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise RequestError(400)
    if match[3] != b"1":
        raise RequestError(505)
    return Request(match[1].decode("ascii"), match[2].decode("latin-1"), _fields_of(lines))


def _fields_of(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > _FIELDS_MOST:
        raise RequestError(431)
    fields: dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        if not colon or not _FIELD_NAME.fullmatch(raw_name) or _FORBIDDEN.search(raw_value):
            raise RequestError(400)
        name, value = raw_name.decode("ascii").lower(), raw_value.strip(b" \t").decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def bytes_of(response: Response, *, date: str, with_body: bool = True) -> bytes:
    """Return a response as it is sent. `with_body` is False for HEAD: then its length is told all the same."""
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}",
        f"Date: {date}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "X-Content-Type-Options: nosniff",
        *(f"{name}: {value}" for name, value in response.headers),
        "Connection: close",
    ]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head + response.body if with_body else head
