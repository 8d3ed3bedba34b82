"""HTTP/1.1 in front of a Cluster: what a kube-apiserver says to list and watch requests, and what faults make of it."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Collection, Iterator
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qsl, urlsplit

from tests import ports
from tests.apiserver import cluster, faults
from tests.apiserver.cluster import Cluster, GoneError, Manifest, Snapshot
from tests.apiserver.faults import LIST, PAGE, WATCH, Fault

CREATE = "create"
_NAMESPACE = re.compile(r"/namespaces/([^/]+)(?=/[^/]+$)")
_EVENTS = re.compile(r"/apis/events\.k8s\.io/v1/namespaces/([^/]+)/events")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class Seen(NamedTuple):
    """A request that came: when (monotonic), what, and the status of its answer."""

    at: float
    verb: str
    kind: str
    parameters: dict[str, str]
    headers: dict[str, str]
    status: int


class ApiServer:
    """An API server on a port of its own.

    Owns: the listening socket, the connections, a thread for each. Use: as a context manager; change `cluster` or use
    the shortcuts; `fault(...)` makes things go wrong until the fault ends.
    Settings that may be changed at any time: `tokens` (None = everybody may), `missing` (kinds that it does not have),
    `gone_as_event` (410 at the start of a watch as ERROR event), `bookmark_seconds`, `known_cluster_ip_field`,
    `cluster_event_namespaces` (where Events on what has no namespace may be).
    `announced` are the Events that were posted.
    """

    def __init__(
        self,
        cluster: Cluster | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        bookmark_seconds: float = 60.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.cluster = cluster or Cluster()
        self.bookmark_seconds = bookmark_seconds
        self.tokens: set[str] | None = None
        self.missing: set[str] = set()
        self.gone_as_event = False
        self.known_cluster_ip_field = True
        self.cluster_event_namespaces = {"default", "kube-system"}
        self.seen: list[Seen] = []
        self.announced: list[Manifest] = []
        self.stopping = False
        self._tls = tls
        self._faults: list[Fault] = []
        self._host = host
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.lost: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        # One that nobody else gets while this server refuses.
        self.port = port or ports.free_port(host)
        self.accept()

    def __enter__(self) -> ApiServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    # --- the cluster -------------------------------------------------------------------------------------------

    def apply(self, *manifests: Manifest) -> None:
        """Make or change objects."""
        for manifest in manifests:
            self.cluster.apply(manifest)

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        self.cluster.delete(kind, name, namespace)

    def compact(self) -> None:
        """Forget the history."""
        self.cluster.compact()

    def snapshot(self) -> Snapshot:
        return self.cluster.snapshot()

    def restore(self, snapshot: Snapshot, *, cut: bool = True) -> None:
        """Restore a backup; unless `cut` is false all connections break, as when the server is started again."""
        self.cluster.restore(snapshot)
        if cut:
            self.cut_connections()

    # --- trouble -----------------------------------------------------------------------------------------------

    def fault(self, fault: Fault) -> Fault:
        """Let this go wrong from now on, on open watches too."""
        with self._lock:
            self._faults = [one for one in self._faults if not one.ended.is_set()] + [fault]
        with self.cluster.changed:
            self.cluster.changed.notify_all()
        return fault

    def struck(self, verb: str, kind: str, *names: str) -> Fault | None:
        """The fault of these names that hits a request now."""
        with self._lock:
            candidates = [fault for fault in self._faults if fault.name in names]
        return next((fault for fault in candidates if fault.strikes(verb, kind)), None)

    def refuse(self, *, cut: bool = True) -> None:
        """Refuse connections (and break the open ones) until `accept`."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        if cut:
            self.cut_connections()

    def accept(self) -> None:
        """Take connections, on the same port as ever."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        with self._lock:
            self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut_connections(self) -> None:
        """Break all connections with a reset."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        with self.cluster.changed:
            self.cluster.changed.notify_all()

    def lose_connections(self) -> None:
        """Say nothing any more on the connections that are open now, and do not close them."""
        with self._lock:
            self.lost = set(self._connections)

    def close(self) -> None:
        """End it all."""
        self.stopping = True
        self.refuse()

    # --- what was asked ----------------------------------------------------------------------------------------

    def requests(self, verb: str | None = None, kind: str | None = None) -> list[Seen]:
        """The requests so far."""
        return [one for one in list(self.seen) if verb in (None, one.verb) and kind in (None, one.kind)]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = self._tls.wrap_socket(connection, server_side=True) if self._tls else connection
            with self._lock:
                self._connections.add(stream)
            with stream:
                _Handler(stream, address, self)  # type: ignore[arg-type]
            with self._lock:
                self._connections.discard(stream)
        except (OSError, ValueError):  # ValueError: written to after it was closed
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()


class _CutError(OSError):
    """The answer ends here."""


class _Handler(BaseHTTPRequestHandler):
    """The exchanges of one connection."""

    protocol_version = "HTTP/1.1"
    server: ApiServer  # type: ignore[assignment]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.parameters = dict(parse_qsl(url.query, keep_blank_values=True))
        namespace = _NAMESPACE.search(url.path)
        collection = _NAMESPACE.sub("", url.path)
        self.namespace = namespace[1] if namespace else None
        self.kind = next((kind for kind, path in cluster.COLLECTIONS.items() if path == collection), "")
        self.verb = WATCH if self.parameters.get("watch") in ("1", "true") else LIST
        try:
            self._answer()
        except _CutError:
            self.close_connection = True

    def do_POST(self) -> None:
        """Take an Event, and nothing else, by the rules of a real one (faults: verb "create", kind "Event")."""
        self.parameters, self.verb = {}, CREATE
        posted = _EVENTS.fullmatch(urlsplit(self.path).path)
        self.kind = "Event" if posted else ""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if self._let_pass() and posted:
                self._create(json.loads(content), posted[1])
        except _CutError:
            self.close_connection = True

    def _create(self, event: Manifest, namespace: str) -> None:
        metadata = event["metadata"]
        if wrong := faults_of_event(event, namespace, self.server.cluster_event_namespaces):
            self._refuse(422, "Invalid", f"Event {metadata.get('name')!r} is invalid: {', '.join(wrong)}")
        elif any(metadata["name"] == one["metadata"]["name"] for one in self.server.announced):
            self._refuse(409, "AlreadyExists", f"events.events.k8s.io {metadata['name']!r} already exists")
        else:
            self.server.announced.append(event)
            self._send(201, json.dumps(event).encode())

    def _let_pass(self) -> bool:
        """Whether the request may be served; else it was answered."""
        api = self.server
        if api.tokens is not None and self.headers.get("Authorization", "").partition(" ")[2] not in api.tokens:
            self._refuse(401, "Unauthorized", "Unauthorized")
            return False
        if not self.kind or self.kind in api.missing:
            self._refuse(404, "NotFound", "the server could not find the requested resource")
            return False
        fault = self._struck("status", "body")
        if fault is not None and fault.name == "status":
            details = fault.details
            self._refuse(details["code"], details["reason"], details["message"], details["retry_after"])
            return False
        if fault is not None:
            self._send(200, fault.details["content"], fault.details["headers"])
            return False
        return True

    def _struck(self, *names: str) -> Fault | None:
        """The fault that hits this request."""
        hit = self.server.struck(self.verb, self.kind, *names)
        if hit is None and self.verb == LIST and "continue" in self.parameters:
            hit = self.server.struck(PAGE, self.kind, *names)
        return hit

    def _answer(self) -> None:
        api = self.server
        if not self._let_pass():
            return
        try:
            if not api.known_cluster_ip_field and "spec.clusterIP" in self.parameters.get("fieldSelector", ""):
                raise ValueError("field label not supported: spec.clusterIP")
            fields = self.parameters.get("fieldSelector", "")
            if self.namespace is not None:
                fields += f",metadata.namespace={self.namespace}"
            matches = cluster.selector(self.parameters.get("labelSelector", ""), fields)
        except ValueError as error:
            self._refuse(400, "BadRequest", str(error))
            return
        if self.verb == LIST:
            self._list(matches)
        else:
            self._watch(matches)

    # --- list --------------------------------------------------------------------------------------------------

    def _list(self, matches: cluster.Matches) -> None:
        named = self.parameters.get("resourceVersion", "")
        limit = int(self.parameters.get("limit", "0") or 0)
        at, after = None, None
        if token := self.parameters.get("continue"):
            at, *last = json.loads(base64.urlsafe_b64decode(token))
            after = tuple(last)
            if self.server.struck(LIST, self.kind, "gone_while_paging"):
                self._refuse(410, "Expired", "The provided continue parameter is too old")
                return
        elif named and int(named) > self.server.cluster.version:
            self._refuse(504, "Timeout", f"Too large resource version: {named}", 1)
            return
        try:
            version, found = self.server.cluster.listing(self.kind, at=at)
        except GoneError:
            self._refuse(410, "Expired", "The provided continue parameter is too old")
            return
        chosen = [(key, stored) for key, stored in found if (after is None or key > after) and matches(stored.manifest)]
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if limit and len(chosen) > limit:
            chosen = chosen[:limit]
            token_text = json.dumps([version, *chosen[-1][0]]).encode()
            metadata["continue"] = base64.urlsafe_b64encode(token_text).decode()
        head = json.dumps({"kind": f"{self.kind}List", "apiVersion": "v1", "metadata": metadata})[:-1].encode()
        content = head + b', "items": [' + b",".join(stored.json for _, stored in chosen) + b"]}"
        if self._struck("truncated"):
            content = content[: len(content) // 2]
        self._send(200, content)

    # --- watch -------------------------------------------------------------------------------------------------

    def _watch(self, matches: cluster.Matches) -> None:
        api = self.server
        position = int(self.parameters.get("resourceVersion") or 0)
        ends = time.monotonic() + float(self.parameters.get("timeoutSeconds", "1800"))
        try:
            api.cluster.changes(self.kind, position, matches)
        except GoneError:
            if not api.gone_as_event:
                self._refuse(410, "Expired", "too old resource version")
                return
            self._begin(200, {"Transfer-Encoding": "chunked"})
            self._chunk(_error_line(410, "Expired", "too old resource version"))
            self._chunk(b"")
            return
        self._begin(200, {"Transfer-Encoding": "chunked"})
        for data in self._events(position, ends, matches):
            self._chunk(data)
        self._chunk(b"")

    def _events(self, position: int, ends: float, matches: cluster.Matches) -> Iterator[bytes]:
        """What a watch says, in pieces of whole lines. As a real one, nothing that is not newer than its start."""
        api = self.server
        start, epoch, restored = position, api.cluster.epoch, False
        next_bookmark = time.monotonic() + api.bookmark_seconds
        while not api.stopping:
            now = time.monotonic()
            if now >= ends:
                return
            if fault := api.struck(WATCH, self.kind, "error_event", "line"):
                if fault.name == "line":
                    yield fault.details["content"] + b"\n"
                else:
                    yield _error_line(fault.details["code"], fault.details["reason"], fault.details["message"])
                    return
            if api.struck(WATCH, self.kind, "cut"):
                yield b'{"type":"BOOKMARK","object":{"kind'
                raise _CutError
            if epoch != api.cluster.epoch:  # a backup was restored under an open watch
                restored, epoch, position = True, api.cluster.epoch, api.cluster.version
            try:
                version, events = api.cluster.changes(self.kind, position, matches)
            except GoneError:
                yield _error_line(410, "Expired", "too old resource version")
                return
            if events and (lines := self._lines(events)):
                yield lines
            position = max(position, version)
            bookmark = now >= next_bookmark
            if bookmark:
                next_bookmark = now + api.bookmark_seconds
                if restored or api.cluster.version >= start:
                    yield _bookmark_line(self.kind, position)
            with api.cluster.changed:
                if api.cluster.version <= position and epoch == api.cluster.epoch:
                    api.cluster.changed.wait(max(0.0, min(ends, next_bookmark) - time.monotonic()))

    def _lines(self, events: list[tuple[str, bytes]]) -> bytes:
        lines = [b'{"type":"%s","object":%s}\n' % (kind.encode(), content) for kind, content in events]
        if self.server.struck(WATCH, self.kind, "lost"):
            return b""
        if len(lines) > 1 and self.server.struck(WATCH, self.kind, "reordered"):
            for index in range(0, len(lines) - 1, 2):
                lines[index], lines[index + 1] = lines[index + 1], lines[index]
        if self.server.struck(WATCH, self.kind, "duplicated"):
            lines = [line for line in lines for _ in range(2)]
        return b"".join(lines)

    # --- bytes -------------------------------------------------------------------------------------------------

    def _refuse(self, code: int, reason: str, message: str, retry_after: int | None = None) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self._send(code, json.dumps(status | {"reason": reason, "message": message}).encode(), headers)

    def _begin(self, code: int, headers: dict[str, str]) -> None:
        if self.connection in self.server.lost:
            self._say_nothing()
        received = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(time.monotonic(), self.verb, self.kind, self.parameters, received, code))
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self._begin(code, {"Content-Length": str(len(content))} | (headers or {}))
        self._write(content)

    def _chunk(self, data: bytes) -> None:
        if data or self.verb == LIST:
            self._write(b"%x\r\n%s\r\n" % (len(data), data))
        elif not self.server.stopping:
            self._write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        """Send the body, as faults let us."""
        if self.connection in self.server.lost or self._struck("half_open"):
            self._say_nothing()
        if self.verb == LIST and (fault := self._struck("cut")):
            self.wfile.write(data[: fault.details["after_bytes"] or len(data) // 2])
            raise _CutError
        if fault := self.server.struck(self.verb, self.kind, "slow"):
            pause = 1 / fault.details["bytes_per_second"]
            while data and not fault.ended.wait(pause) and not self.server.stopping:
                self.wfile.write(data[:1])
                data = data[1:]
        self.wfile.write(data)

    def _say_nothing(self) -> NoReturn:
        with self.server.cluster.changed:
            while not self.server.stopping:
                self.server.cluster.changed.wait(0.5)
        raise _CutError

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def faults_of_event(event: Manifest, namespace: str, cluster_namespaces: Collection[str] = ("default",)) -> list[str]:
    """What an API server would find wrong with a new Event of events.k8s.io/v1; the fields at fault.

    `cluster_namespaces` are for Events on objects without a namespace.
    """
    metadata, regarding = event["metadata"], event["regarding"]
    right = {
        "apiVersion": event["apiVersion"] == "events.k8s.io/v1" and event["kind"] == "Event",
        "metadata.name": _DNS_SUBDOMAIN.fullmatch(metadata["name"]) and len(metadata["name"]) <= 253,
        "metadata.namespace": metadata["namespace"] == namespace,
        "involvedObject.namespace": namespace in ([*filter(None, [regarding.get("namespace")])] or cluster_namespaces),
        "eventTime": _MICRO_TIME.fullmatch(event["eventTime"]),
        "note": len(event["note"].encode()) <= 1024,
        "type": event["type"] in ("Normal", "Warning"),
        "reportingController": event["reportingController"],
    } | {field: 0 < len(event[field]) <= 128 for field in ("reportingInstance", "action", "reason")}
    return [field for field, fine in right.items() if not fine]


def _error_line(code: int, reason: str, message: str) -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return _line("ERROR", status | {"reason": reason, "message": message})


def _bookmark_line(kind: str, version: int) -> bytes:
    return _line("BOOKMARK", {"kind": kind, "metadata": {"resourceVersion": str(version), "creationTimestamp": None}})


def _line(kind: str, content: object) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode() + b"\n"


wait_for = faults.wait_for
