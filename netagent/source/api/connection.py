"""The one door to the API server: requests with the configuration, credentials and transport of `kubernetes`.

The transport is the pool of the package's own `RESTClientObject` (urllib3; with TLS, client certificates, proxies). It
is given two things that it has no settings for: who waits can be woken, and a connection whose peer is gone is found by
the kernel's probes.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import traceback
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError, ReadTimeoutError

from netagent import __version__
from netagent.errors import ConfigError
from netagent.source.api.credentials import Access, Credentials
from netagent.source.api.exchange import Request, SilenceError, TransportError

log = logging.getLogger(__name__)

_READ_BYTES = 256 << 10
# Also for each step of the TLS handshake.
_CONNECT_SECONDS = 3.0
# A peer that the network has lost is known after 15 + 3 x 5 s; what only keeps silent is for the read deadline.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]


class Connection:
    """Requests to one API server.

    Owns: the credentials and the pool of open connections. Use: `get` and `post`; `abort` once, at the end.
    Goals: no call waits longer than its request says; a call in another thread is woken by `abort`; changed
    credentials are in use from the next request on.
    Threading: any number of threads. Reading files and running an exec plugin happen one at a time.
    """

    def __init__(self, access: Access) -> None:
        """ConfigError when there is no usable configuration. Talks to nobody yet."""
        self._lock = threading.Lock()
        self._credentials = Credentials(access)
        self._open = _OpenConnections()
        self._client = self._new_client()
        self._complaint: str | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._credentials.configuration.host)

    def get(self, request: Request) -> HttpAnswer:
        """Send a request and wait for the head of its answer. TransportError when that fails."""
        return self._exchange("GET", request)

    def post(self, request: Request, body: bytes) -> HttpAnswer:
        """Send an object to make, as JSON, and wait for the head of the answer.

        TransportError when that fails; whether the object was made is then unknown.
        """
        return self._exchange("POST", request, body)

    def abort(self) -> None:
        """Break off all exchanges, also those that other threads wait for, and refuse new ones."""
        self._open.abort()

    def _exchange(self, method: str, request: Request, body: bytes | None = None) -> HttpAnswer:
        client, host, authorization = self._prepared(request)
        headers = {"Accept": "application/json", "User-Agent": f"netagent/{__version__}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if authorization:
            headers["Authorization"] = authorization
        try:
            response = client.pool_manager.request(
                method,
                host + request.path + ("?" + urlencode(request.parameters) if request.parameters else ""),
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=request.silence_seconds),
                retries=False,  # the reflector knows when, and tells why
                redirect=False,  # our token is for this server only
                preload_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            reason = _reason(error)
            _let_go(error)
            raise TransportError(f"no answer from {_shown(host)}: {reason}") from error
        return HttpAnswer(response, _shown(host))

    def _prepared(self, request: Request) -> tuple[Any, str, str | None]:
        """Client, URL of the server and authorization for a request now."""
        with self._lock:
            if self._open.aborted:
                raise TransportError("stopped")
            self._refresh(fresh=request.fresh_credentials)
            configuration = self._credentials.configuration
            before = (configuration.cert_file, configuration.key_file)
            try:
                authorization = self._credentials.authorization()
            except (OSError, ValueError, self._credentials.package.ConfigException) as error:
                raise TransportError(f"no credentials for {_shown(self.server)}: {error}") from error
            renewed = before != (configuration.cert_file, configuration.key_file)  # an exec plugin's new certificate
            if renewed or request.fresh_connection:
                self._client = self._new_client()
            return self._client, self.server, authorization

    def _refresh(self, *, fresh: bool) -> None:
        try:
            if self._credentials.refresh(fresh=fresh):
                self._client = self._new_client()
            self._complaint = None
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("%s; going on with what was last read", error)

    def _new_client(self) -> Any:
        configuration = self._credentials.configuration
        configuration.socket_options = _SOCKET_OPTIONS
        client = self._credentials.package.RESTClientObject(configuration)
        self._open.track(client.pool_manager)
        return client


class HttpAnswer:
    """The answer to a request, whose body is still to be read (see exchange.Answer)."""

    def __init__(self, response: urllib3.HTTPResponse, host: str) -> None:
        self._response = response
        self._host = host
        self._ended = False
        self.status: int = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    def read(self) -> bytes:
        """Wait for more of the body and return it, b"" at its end.

        TransportError when it breaks off, SilenceError when nothing comes.
        """
        try:
            # Not stream(): that reads a chunk whole, and (GHSA-vxq7-64xx-v4gw) the line before it of any length.
            data = self._response.read1(_READ_BYTES, decode_content=False)
        except ReadTimeoutError as error:
            raise SilenceError(f"the answer of {self._host} fell silent: {_reason(error)}") from error
        except (HTTPError, OSError, ValueError) as error:
            raise TransportError(f"the answer of {self._host} broke off: {_reason(error)}") from error
        self._ended = not data
        return data or b""

    def interrupt(self) -> None:
        """Break it off, from another thread: whoever reads finds it ended. Never fails."""
        connection = self._response.connection
        if isinstance(connection, HTTPConnection):
            _shut_down(connection)

    def close(self) -> None:
        """Be done with it. The connection is used again only if the body was read to its end."""
        try:
            if not self._ended:
                self._response.close()
            self._response.release_conn()
        except (HTTPError, OSError, ValueError) as error:
            log.debug("closing an answer failed", extra={"reason": str(error)})


class _OpenConnections:
    """Knows the sockets of pools, so that `abort` can wake whoever waits for one of them."""

    def __init__(self) -> None:
        self.aborted = False
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()

    def track(self, manager: urllib3.PoolManager) -> None:
        """Know the connections that a pool manager opens from now on."""
        manager.pool_classes_by_scheme = {
            scheme: self._tracked(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
        }

    def abort(self) -> None:
        with self._lock:
            self.aborted = True
            connections = list(self._connections)
        for connection in connections:
            _shut_down(connection)

    def _tracked(self, pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
        connections = self
        base: Any = pool.ConnectionCls

        def connect(connection: HTTPConnection) -> None:
            with connections._lock:
                connections._connections.add(connection)
            base.connect(connection)
            if connections.aborted:  # abort() came while there was no socket to shut down
                _shut_down(connection)

        tracked = type(base.__name__, (base,), {"connect": connect})
        return type(pool.__name__, (pool,), {"ConnectionCls": tracked})


def _shut_down(connection: HTTPConnection) -> None:
    """Wake who waits for this connection; he finds it ended."""
    sock = getattr(connection.sock, "socket", connection.sock)  # TLS within TLS (a proxy) has a wrapper
    with contextlib.suppress(OSError):  # not connected, or closed meanwhile
        if isinstance(sock, socket.socket):
            # Of the plain socket also under TLS: SSLSocket.shutdown would take the TLS state from under the reader.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _shown(url: str) -> str:
    """The address of a server for messages, which may be anybody's to read: without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else url


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold.

    Those of urllib3 and the error refer to each other, so that a failed TLS handshake keeps its certificates, 0.8 MB,
    until the collector comes by: before the first sync that is next to never, and hundreds of megabytes in an outage.
    """
    if error is None:
        return
    traceback.clear_frames(error.__traceback__)
    _let_go(error.__context__)
    if error.__cause__ is not error.__context__:
        _let_go(error.__cause__)


def _reason(error: BaseException) -> str:
    """An error of the transport in one line, without the objects that urllib3 puts in front of it or behind."""
    first = error.args[0] if error.args else ""
    text = " ".join((first if isinstance(first, str) else str(error)).split())
    return text.partition(">: ")[2] or text.partition("): ")[2] or text or type(error).__name__
