"""Bytes of the API server to messages: list pages, lines of a watch, the Status of an error. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from msgspec import field

from netagent.source.faults import quoted
from netagent.source.json_text import decoded

_MAX_WORDS = 400
_LONGEST_RETRY_AFTER = 10**9


class BadMessageError(ValueError):
    """What came is not what an API server says."""


class _Message(msgspec.Struct, rename="camel", gc=False):
    """Base of the shapes; as everywhere in Kubernetes null means absent."""


class Cause(_Message):
    reason: str | None = None


class StatusDetails(_Message):
    causes: list[Cause] | None = None
    retry_after_seconds: int | None = None


class Status(_Message):
    """An error of the API server. `code` is 0 when it did not say."""

    kind: str | None = None
    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: StatusDetails | None = None

    @property
    def version_too_large(self) -> bool:
        """Whether the resource version that we named lies in this server's future.

        Servers before 1.19 say so only in the message; lists with a limit ask etcd, whose words are others and whose
        code is 500 (kubernetes #132358).
        """
        causes = (self.details and self.details.causes) or []
        message = self.message or ""
        return (
            any(cause.reason == "ResourceVersionTooLarge" for cause in causes)
            or "Too large resource version" in message
            or "required revision is a future revision" in message
        )

    @property
    def words(self) -> str:
        """Code and message, fit for a log and long enough for "User ... cannot list resource ..."."""
        return f"{self.code} {self.message[:_MAX_WORDS]!a}" if self.message else f"{self.code}"

    @property
    def retry_after_seconds(self) -> float:
        """The pause that it asks for. A number that nobody means is bounded."""
        asked = (self.details and self.details.retry_after_seconds) or 0
        return float(max(0, min(asked, _LONGEST_RETRY_AFTER)))


class ListMetadata(_Message):
    resource_version: str | None = None
    continue_token: str | None = field(default=None, name="continue")


class Page(_Message):
    """A page of a list; the bytes of its objects are left for later."""

    kind: str | None = None
    metadata: ListMetadata | None = None
    items: list[msgspec.Raw] | None = None


class WatchEvent(_Message):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class ObjectMetadata(_Message):
    namespace: str | None = None
    name: str | None = None
    resource_version: str | None = None


class ObjectHead(_Message):
    """What tells which object it is, and which version of it."""

    metadata: ObjectMetadata


_STATUS = msgspec.json.Decoder(Status)
_PAGE = msgspec.json.Decoder(Page)
_EVENT = msgspec.json.Decoder(WatchEvent)
_HEAD = msgspec.json.Decoder(ObjectHead)


def status_of(code: int, body: bytes | bytearray | msgspec.Raw) -> Status:
    """The Status in an error's body; when there is none, one with this code and the first of what came instead."""
    try:
        status = decoded(_STATUS, body)
    except (ValueError, RecursionError):
        text = bytes(body[:200]).decode(errors="replace") if isinstance(body, bytes | bytearray) else ""
        return Status(code=code, message=text.strip() or None)
    if status.code is None or not 100 <= status.code <= 999:  # none of HTTP's
        status.code = code
    return status


def page_of(body: bytes | bytearray, list_kind: str) -> Page:
    """The page of a list of this kind. BadMessageError when it is not one, or has no resource version."""
    try:
        page = decoded(_PAGE, body)
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"the list is not what it should be: {error}") from error
    if page.kind not in (None, "", list_kind):
        raise BadMessageError(f"asked for a {list_kind} and was given a {quoted(page.kind or '')}")
    if page.metadata is None or not page.metadata.resource_version:
        raise BadMessageError("the list has no resource version")
    return page


def event_of(line: bytes | bytearray) -> WatchEvent:
    """The event of one line of a watch. BadMessageError when it is not one."""
    try:
        return decoded(_EVENT, line)
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"a line of the watch is not an event: {error}") from error


def head_of(raw: msgspec.Raw) -> ObjectMetadata:
    """Name and version of an object. BadMessageError when it does not have them."""
    try:
        metadata = decoded(_HEAD, raw).metadata
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"an object of the watch has no metadata: {error}") from error
    if not metadata.resource_version:
        raise BadMessageError("an object of the watch has no resource version")
    return metadata


def retry_after_seconds(header: str) -> float:
    """The pause that a Retry-After header asks for; 0 without one, or for a date, which needs a clock to be right."""
    return float(header) if header.isascii() and header.isdigit() and len(header) < 10 else 0.0


def is_older(version: str, than: str | None) -> bool:
    """Whether a resource version is lower than another one. False when that cannot be told.

    Resource versions are decimal numbers of any size that only grow, as long as nobody restores a backup; that they
    may be compared is promised since Kubernetes 1.35 and was never otherwise with etcd.
    """
    if than is None or not (_VERSION.fullmatch(version) and _VERSION.fullmatch(than)):
        return False
    return int(version) < int(than)


def number_of(version: str) -> int:
    """A resource version as a number, 0 if it is none."""
    return int(version) if _VERSION.fullmatch(version) else 0


# No other digits than these, although Python's int takes them; and no more than anybody counts.
_VERSION = re.compile(r"[0-9]{1,100}")


class Lines:
    """Splits a stream into its lines, with a bound on what it keeps. BadMessageError beyond it.

    Owns: the bytes of the line that has not ended yet.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()

    @property
    def within_line(self) -> bool:
        """Whether the beginning of a line has come, and not its end."""
        return bool(self._rest)

    def split(self, data: bytes) -> Iterator[bytes]:
        """The lines that end in this piece, without empty ones."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            line = data[start:end]
            start = end + 1
            if self._rest:
                self._keep(line)
                line = bytes(self._rest)
                self._rest.clear()
            if len(line) > self._max_bytes:
                raise self._too_long()
            if line and not line.isspace():
                yield line
        self._keep(data[start:] if start else data)

    def _keep(self, piece: bytes) -> None:
        if len(self._rest) + len(piece) > self._max_bytes:
            raise self._too_long()
        self._rest += piece

    def _too_long(self) -> BadMessageError:
        self._rest = bytearray()
        return BadMessageError(f"a line of the watch is longer than {self._max_bytes} bytes")
