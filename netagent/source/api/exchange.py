"""One request and its answer, as the reflector wants them and a transport gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from netagent.errors import SourceError
from netagent.source.api.resources import Parameters


class TransportError(SourceError):
    """An exchange that broke: no connection, cut, or nothing came for too long."""


class SilenceError(TransportError):
    """Nothing came for as long as the request allows, on a connection that seems to be well."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask for, and how.

    `silence_seconds`: the answer may pause for so long. `fresh_credentials`: the present ones were refused.
    `fresh_connection`: no connection that is open already, since nobody knows how good it is.
    """

    path: str
    parameters: Parameters = ()
    silence_seconds: float
    fresh_credentials: bool = False
    fresh_connection: bool = False


class Answer(Protocol):
    """The answer to a request, whose body is still to be read."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields by lower-case name."""
        ...

    def read(self) -> bytes:
        """Wait for more of the body and return it, b"" at its end.

        TransportError when it breaks off, SilenceError when nothing comes.
        """
        ...

    def interrupt(self) -> None:
        """Break it off, from another thread: whoever reads finds it ended. Never fails."""
        ...

    def close(self) -> None:
        """Be done with it, read or not. Never fails."""
        ...


class Transport(Protocol):
    """What carries requests. Any number of threads may use it."""

    def get(self, request: Request) -> Answer:
        """Send a request and wait for the head of its answer. TransportError when that fails."""
        ...

    def post(self, request: Request, body: bytes) -> Answer:
        """Send an object to make, as JSON, and wait for the head of the answer.

        TransportError when that fails; whether the object was made is then unknown.
        """
        ...

    def abort(self) -> None:
        """Break off all exchanges, also those that other threads wait for, and refuse new ones."""
        ...
