"""An API server that says what it was told to, as fast as it can: lists from a file of pages, watches from a storm.

`tests/apiserver` behaves like a real one, which costs as much as the agent that is measured; this one does not.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from netagent.source.api.resources import resource_of
from netagent.source.kinds import Kind

from . import cluster, state

_HEALTH_PORT = 10256
# Lines that are due are sent together, as often as this.
_TICK_SECONDS = 0.001


class ApiServer:
    """In a worker: an API server on a port of the loopback.

    Owns: the listening socket, a thread for each connection. Use: `url`; `ready`, when an agent follows it; then
    `storm`. Threading: its own.
    """

    def __init__(self, pages: str | None, services: int, endpoints: int) -> None:
        self._pages = Path(pages) if pages else None
        self._size = cluster.Size(services, endpoints)
        self._storm: cluster.Storm | None = None
        self._sent = 0
        self._kinds = {resource_of(kind, node_name=cluster.NODE).path: kind for kind in Kind}
        self._watching: dict[Kind, list[socket.socket]] = {kind: [] for kind in Kind}
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def ready(self) -> bool:
        """Whether the agent in this namespace says that it is ready."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            health = http.client.HTTPConnection("127.0.0.1", _HEALTH_PORT, timeout=5)
            health.request("GET", "/readyz")
            return health.getresponse().status == 200
        return False

    def storm(self, rate: float, seconds: float) -> list[tuple[int, float]]:
        """Replace endpoints at this rate (a second). Return (number of the change, when it was due) of each.

        What is late because the agent does not read stays due when it was: the wait counts.
        """
        if self._storm is None:
            self._storm = cluster.Storm(cluster.cluster(self._size))
        watchers = self._watching[Kind.ENDPOINT_SLICE]
        if not watchers:
            raise RuntimeError("nobody watches the EndpointSlices")
        started = time.monotonic() + 0.05
        due: list[tuple[int, float]] = []
        for number in range(round(rate * seconds)):
            due.append((self._sent + number, started + number / rate))
        waiting = iter(due)
        upcoming = next(waiting, None)
        while upcoming is not None:
            now = time.monotonic()
            lines: list[bytes] = []
            while upcoming is not None and upcoming[1] <= now and len(lines) < 500:
                lines.append(self._storm.line(upcoming[0]))
                upcoming = next(waiting, None)
            if lines:
                self._tell(watchers, b"".join(lines))
            elif upcoming is not None:
                time.sleep(min(max(upcoming[1] - now, 0.0), _TICK_SECONDS))
        self._sent += len(due)
        return due

    def _tell(self, watchers: list[socket.socket], data: bytes) -> None:
        for watcher in list(watchers):
            watcher.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    # --- connections -------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as requests:
            while True:
                request = requests.readline().decode()
                if not request:
                    return
                length = 0
                while (header := requests.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    length = int(value) if name.lower() == "content-length" else length
                body = requests.read(length)
                method, target, _ = request.split(" ", 2)
                if method == "POST":  # an Event: taken, and forgotten
                    _answer(connection, "201 Created", body)
                    continue
                parts = urlsplit(target)
                kind = self._kinds.get(parts.path)
                query = parse_qs(parts.query)
                if kind is None:
                    _answer(connection, "404 Not Found", b'{"kind":"Status","code":404}')
                elif "watch" in query:
                    self._watch(connection, kind)
                else:
                    _answer(connection, "200 OK", self._page(kind, query))

    def _watch(self, connection: socket.socket, kind: Kind) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        self._watching[kind].append(connection)

    def _page(self, kind: Kind, query: dict[str, Any]) -> bytes:
        token = query.get("continue", ["page-0"])[0]
        number = int(token.removeprefix("page-"))
        # A limit of 1 is a look whether we went back in time: the Node must be there, the rest has no path of its own.
        if self._pages is not None and (query.get("limit") != ["1"] or not kind.namespaced):
            with self._pages.open("rb") as file:
                pages = (page for found, page in state.read_pages(file) if found is kind)
                return next(itertools.islice(pages, number, None))
        version = cluster.FIRST_VERSION + self._sent
        return f'{{"kind":"{kind}List","metadata":{{"resourceVersion":"{version}"}},"items":[]}}'.encode()


def _answer(connection: socket.socket, status: str, body: bytes) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
