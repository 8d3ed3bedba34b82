"""Events (events.k8s.io/v1): what the agent tells people on the objects that it is about. Sent aside, and bounded."""

from __future__ import annotations

import datetime
import enum
import hashlib
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple

import msgspec

from netagent.errors import SourceError
from netagent.escaping import printable
from netagent.source.api import messages
from netagent.source.api.exchange import Request, Transport, TransportError
from netagent.source.api.pacing import RequestLimit, TokenBucket

log = logging.getLogger(__name__)

CONTROLLER: Final = "netagent"

# What the API server accepts (pkg/apis/core/validation/events.go), in bytes.
_NOTE_MOST = 1024
_INSTANCE_MOST = 128
_NAME_MOST = 253
# Where an Event on an object without a namespace goes. Newer API servers take either; that of 1.20 refuses the first
# with 422 and wants the second. People look in the first, where the kubelet's are. Drop the second when 1.20 is gone.
_CLUSTER_NAMESPACE = "default"
_OLD_CLUSTER_NAMESPACE = "kube-system"
_WRONG_NAMESPACE = "involvedObject.namespace"
_ID_DIGITS = 16
# Each step of an exchange; the answer is an Event or a Status, and only the beginning of it is of interest.
_SILENCE_SECONDS = 10.0
_ANSWER_MOST = 64 << 10
# The buckets of so many objects and reasons are remembered, as in client-go.
_BUCKETS_MOST = 4096
_STOP_SECONDS = 0.3


class EventType(enum.StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The object that an Event is on. `namespace` is "" for kinds that have none; `uid` is "" when unknown.

    `kubectl describe` shows only Events with the UID of the object; of a Node also those whose UID is the Node's name.
    """

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    api_version: str = "v1"


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """Something to tell on an object.

    `reason` and `action` are words in CamelCase, `note` is a sentence, cut at 1 kB. `shared`: every node says the
    same, so that one Event for all of them is enough.
    """

    regarding: Subject
    reason: str
    action: str
    note: str
    type: EventType = EventType.WARNING
    shared: bool = False


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is sent, and how hard is tried. The defaults are for thousands of nodes at one API server."""

    # What waits to be sent; beyond that it is dropped.
    queue: int = 200
    # Of one object and reason: so many at once, then one in so many seconds, as in client-go.
    object_burst: int = 25
    object_seconds: float = 300.0
    # Of this node: so many at once, then one in so many seconds. The rest waits.
    node_burst: int = 20
    node_seconds: float = 2.0
    # A shared one waits up to this time, so that not all nodes come at once.
    spread_seconds: float = 3.0
    # An API server that does not take it is tried again so often, with doubling waits. Half of each is random.
    tries: int = 12
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0


class Counts(NamedTuple):
    """What became of announcements: of all that were recorded, but for repetitions of one that waits.

    `sent`: the API server has it now; `known`: it had it already, from another node or from before. `limited`: too
    many of one object and reason; `full`: too many waited; `refused`: the API server does not want it; `failed`: it
    could not be reached in time.
    """

    sent: int = 0
    known: int = 0
    limited: int = 0
    full: int = 0
    refused: int = 0
    failed: int = 0


class EventRecorder:
    """Sends Events to the API server.

    Owns: a bounded queue, the rate limits, and one daemon thread. The transport belongs to somebody else.
    Use: `start`, `record` what is worth telling, `stop`; or use it as a context manager. Who records says each thing
    once; what is said again while it still waits is one Event.
    Goals: `record` costs microseconds, whatever the API server does; an API server that is away or refuses costs one
    request in a while; what is too much is dropped, and counted. A shared announcement has the same name on all nodes,
    and is one Event until the API server forgets it (an hour, usually), even if an agent is started again.
    Threading: any thread.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        node_name: str,
        limits: Limits | None = None,
        request_limit: RequestLimit | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        randomness: Callable[[], float] = random.random,
    ) -> None:
        """`limits` are our own, `request_limit` is the operator's: it counts every try."""
        self._transport = transport
        self._request_limit = request_limit or RequestLimit(-1, 0)
        self._instance = node_name[:_INSTANCE_MOST]
        self._limits = limits or Limits()
        self._clock = clock
        self._wall = wall
        self._randomness = randomness
        self._changed = threading.Condition()
        self._waiting: dict[Announcement, float] = {}  # and when it was recorded (wall)
        self._buckets: OrderedDict[tuple[str, str, str, str], TokenBucket] = OrderedDict()
        self._node_bucket = TokenBucket(self._limits.node_burst, self._limits.node_seconds)
        self._counts = Counts()
        self._busy = False
        self._stopping = False
        # The thread's.
        self._failures = 0
        self._troubled = False
        self._cluster_namespace = _CLUSTER_NAMESPACE
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def __enter__(self) -> EventRecorder:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def counts(self) -> Counts:
        """What became of all so far, for the metrics."""
        return self._counts

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def record(self, announcement: Announcement) -> None:
        """Have it sent soon, or drop and count it. Never blocks, never fails, whatever is in the note."""
        announcement = msgspec.structs.replace(announcement, note=printable(announcement.note))
        with self._changed:
            if self._stopping or announcement in self._waiting:
                return
            if len(self._waiting) >= self._limits.queue:
                self._count("full")
            elif self._bucket(announcement).take(self._clock()):
                self._count("limited")
            else:
                self._waiting[announcement] = self._wall()
                self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until everything is sent, for so long at most; tell whether it is. For an agent that gives up."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def stop(self) -> bool:
        """Forget what waits, and end; a second time is fine.

        False when the thread is still in an exchange: that ends with the transport, or by itself.
        """
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def _bucket(self, announcement: Announcement) -> TokenBucket:
        subject = announcement.regarding
        key = (subject.kind, subject.namespace, subject.name, announcement.reason)
        bucket = self._buckets.pop(key, None) or TokenBucket(self._limits.object_burst, self._limits.object_seconds)
        self._buckets[key] = bucket
        # The longest unused is first; one that is full again is as good as none.
        now = self._clock()
        while len(self._buckets) > 1 and (
            len(self._buckets) > _BUCKETS_MOST or next(iter(self._buckets.values())).is_full(now)
        ):
            self._buckets.popitem(last=False)
        return bucket

    def _count(self, outcome: str) -> None:
        with self._changed:
            self._counts = self._counts._replace(**{outcome: getattr(self._counts, outcome) + 1})

    # --- the thread's ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Send until `stop`. The outermost loop: a bug costs an Event, and is told."""
        while (taken := self._take()) is not None:
            announcement, at = taken
            try:
                self._count(self._outcome(announcement, at))
            except Exception:
                log.exception("bug while sending an Event; it is lost", extra={"reason": announcement.reason})
                self._count("failed")

    def _take(self) -> tuple[Announcement, float] | None:
        """Wait for the next announcement; None when there will be none."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            self._busy = True
            first = next(iter(self._waiting))
            return first, self._waiting.pop(first)

    def _outcome(self, announcement: Announcement, at: float) -> str:
        """Send it as soon as that may be; return what became of it."""
        while wait := self._node_bucket.take(self._clock()):
            if self._pause(wait):
                return "failed"
        if announcement.shared and self._pause(self._limits.spread_seconds * self._randomness()):
            return "failed"
        unauthorized = False
        for _ in range(self._limits.tries):
            if self._pause(self._back_off()) or self._held_up():
                break
            try:
                status, words = self._send(announcement, at, fresh_credentials=unauthorized)
            except SourceError as error:
                self._trouble(str(error))
                continue
            if status < 300 or status == 409:
                self._well()
                return "known" if status == 409 else "sent"
            unauthorized = status == 401
            if not (unauthorized or status == 429 or status >= 500):
                self._failures = 0  # it answers; the next one may be fine
                self._trouble(words, retried=False)
                return "refused"
            self._trouble(words)
        return "failed"

    def _send(self, announcement: Announcement, at: float, *, fresh_credentials: bool) -> tuple[int, str]:
        """Send it to where this API server wants it; return the status and what an error says."""
        subject = announcement.regarding
        while True:
            namespace = subject.namespace or self._cluster_namespace
            event = event_of(announcement, at=at, reporting_instance=self._instance, namespace=namespace)
            status, words = self._post(namespace, msgspec.json.encode(event), fresh_credentials=fresh_credentials)
            if subject.namespace or namespace != _CLUSTER_NAMESPACE or status != 422 or _WRONG_NAMESPACE not in words:
                return status, words
            self._cluster_namespace = _OLD_CLUSTER_NAMESPACE

    def _post(self, namespace: str, body: bytes, *, fresh_credentials: bool) -> tuple[int, str]:
        """Send it; return the status and what an error says."""
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        request = Request(path=path, silence_seconds=_SILENCE_SECONDS, fresh_credentials=fresh_credentials)
        answer = self._transport.post(request, body)
        try:
            content = bytearray()
            while len(content) <= _ANSWER_MOST and (data := answer.read()):
                content += data
        except TransportError:
            if answer.status >= 300:
                raise
        finally:
            answer.close()
        return answer.status, "" if answer.status < 300 else messages.status_of(answer.status, bytes(content)).words

    def _back_off(self) -> float:
        """Seconds until the next try, of this one or another: none while all is well."""
        if not self._failures:
            return 0.0
        grown = self._limits.first_wait_seconds * 2.0 ** min(self._failures - 1, 30)
        return min(grown, self._limits.longest_wait_seconds) * (0.5 + self._randomness() / 2)

    def _held_up(self) -> bool:
        """Wait for the operator's limit; tell whether this is the end."""
        while wait := self._request_limit.take():
            if self._pause(wait):
                return True
        return False

    def _pause(self, seconds: float) -> bool:
        """Wait; tell whether this is the end."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopping, seconds)

    def _trouble(self, reason: str, *, retried: bool = True) -> None:
        """Log the first of a row of failures."""
        self._failures += retried
        if not self._troubled and not self._stopping:
            self._troubled = True
            log.warning("cannot send Events to the API server; not told again until it works: %s", reason)

    def _well(self) -> None:
        self._failures = 0
        if self._troubled:
            self._troubled = False
            log.info("Events are sent again")


def event_of(
    announcement: Announcement, *, at: float, reporting_instance: str, namespace: str | None = None
) -> dict[str, object]:
    """The Event, of events.k8s.io/v1, for what happened at this time (seconds since the epoch).

    `namespace` is where it goes if not to that of its subject.
    A shared announcement always has the same name, any other one that of its time.
    """
    subject = announcement.regarding
    regarding = {
        "apiVersion": subject.api_version,
        "kind": subject.kind,
        "namespace": subject.namespace,
        "name": subject.name,
        "uid": subject.uid,
    }
    number = _digest(announcement) if announcement.shared else f"{int(at * 1e9):0{_ID_DIGITS}x}"
    prefix = subject.name[: _NAME_MOST - 1 - _ID_DIGITS].rstrip("-.")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{prefix}.{number}", "namespace": namespace or subject.namespace or _CLUSTER_NAMESPACE},
        "eventTime": datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": reporting_instance,
        "regarding": {field: value for field, value in regarding.items() if value},
        "reason": announcement.reason,
        "action": announcement.action,
        "note": _cut(announcement.note, _NOTE_MOST),
        "type": announcement.type.value,
    }


def _digest(announcement: Announcement) -> str:
    content = msgspec.json.encode(announcement)
    return hashlib.blake2b(content, digest_size=_ID_DIGITS // 2).hexdigest()


def _cut(text: str, most: int) -> str:
    """Text of so many bytes at most in UTF-8, whole characters."""
    if len(text.encode()) <= most:
        return text
    return text.encode()[: most - 3].decode(errors="ignore") + "..."
