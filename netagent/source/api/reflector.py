"""List and watch of one kind, without I/O: what came goes in, events and the next request come out.

Why things are as they are (the numbers are issues of kubernetes/kubernetes):

* Lists name no resource version: that is the consistent read, which never goes back in time behind a lagging cache and
  cannot be answered with "too large resource version" (#94315, #107133, #132358).
* A watch that starts at a version in the server's future is silent for ever, bookmarks included: the server sends only
  what is newer than that version. So a restored backup is invisible to whoever just goes on (#107457), and after every
  break a list of one object asks for the current version first. If that has overtaken ours, the object itself tells: it
  is the one that changed last (witness.py).
* Silence is no trouble: a server that has nothing to tell may send no bookmark for many minutes (none within 150 s from
  1.20 and 1.36 without etcd's progress notifications). Nor does it prove anything. So a quiet watch is given up after a
  while, the same list of one object asks on a new connection whether all is well, and a new watch takes over.
* The back-off is forgotten only when a watch proves itself, not when a list succeeds: a server that lists well and
  refuses every watch must not be listed in a loop.
"""

from __future__ import annotations

import enum
import math
import random
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, assert_never

from netagent.errors import SourceError
from netagent.source.api import messages
from netagent.source.api.events import Applied, Deleted, Event, Listed, quarantined
from netagent.source.api.exchange import Request
from netagent.source.api.listing import Listing
from netagent.source.api.messages import BadMessageError, Status
from netagent.source.api.pacing import BackOff, Pacing
from netagent.source.api.resources import Resource
from netagent.source.api.witness import Witness, witness
from netagent.source.decode import decode
from netagent.source.faults import BadObject, Remark, quoted
from netagent.source.kinds import key_for

_MAX_ERROR_BYTES = 64 << 10
# All nodes list anew when the API server has lost its history: not in the same moment.
_SOON_SECONDS = 0.3
_SOON_AGAIN_SECONDS = 60.0
# How soon a watch tells what happened before it began.
_HISTORY_SECONDS = 3.0


class Step(enum.Enum):
    """What the reflector asks next, or has asked."""

    LIST = enum.auto()
    # A list of one object, for the current resource version and its own.
    PROBE = enum.auto()
    WATCH = enum.auto()


class Counts(NamedTuple):
    """What happened since the start."""

    requests: int = 0
    lists: int = 0
    watches: int = 0
    failures: int = 0
    regressions: int = 0


class Reflector:
    """Follows the objects of one kind.

    Owns: how far it is (`step`, `version`), the part of a list that has come, the back-off.
    Use: wait `delay()` seconds, send `request()`, tell the answer with `answered`, then every piece of its body with
    `received` (b"" at the end) while `wants_more`; tell with `failed` if the exchange breaks. Then again.
    Goals: no change is missed and none is told twice for long; whatever the server does, memory and requests stay
    bounded and the objects are right soon after it behaves again.
    Threading: none; reading `error`, `proven_at`, `version` and `counts` from elsewhere is fine.
    """

    def __init__(
        self,
        resource: Resource,
        *,
        pacing: Pacing | None = None,
        clock: Callable[[], float] = time.monotonic,
        randomness: Callable[[], float] = random.random,
    ) -> None:
        self.kind = resource.kind
        self.step = Step.LIST
        # The version up to which everything was told; None when there is no way to go on from one.
        self.version: str | None = None
        # What is wrong now, None when we follow.
        self.error: SourceError | None = None
        # Whether that is in the order of things, and over as soon as there is a list.
        self.routine = False
        # Whether the server has told something since there was an error last.
        self.heard = False
        # When (by the clock) the server last proved that we know all there is; None before the first list.
        self.proven_at: float | None = None
        self.counts = Counts()
        self.wants_more = False

        self._resource = resource
        self._pacing = pacing or Pacing()
        self._clock = clock
        self._random = randomness
        self._back_off = BackOff(self._pacing, randomness)
        self._page_back_off = BackOff(self._pacing, randomness)
        self._due = clock()
        self._page_objects = self._pacing.page_objects
        self._listed = False
        self._fresh_credentials = False
        self._fresh_connection = False
        self._witness: Witness | None = None
        # What a watch told since, and whether that exists.
        self._last_change: tuple[messages.ObjectMetadata, bool] | None = None
        # The witness is gone: the watch must tell of its deletion, and until when.
        self._awaits_deletion = False
        self._awaits_until = math.inf
        # The next probe is on behalf of a watch that had nothing to tell.
        self._was_quiet = False
        # Somebody else has found that the server went back: nothing counts but a list.
        self._doubted = False
        self._next_audit = 0.0
        self._soon_at = -math.inf
        self._list = Listing(self.kind)
        self._begin_exchange()

    # --- asking --------------------------------------------------------------------------------------------

    def delay(self) -> float:
        """Seconds until the next request may be sent."""
        return max(0.0, self._due - self._clock())

    @property
    def begins_list(self) -> bool:
        """Whether the next request begins a list, which is what costs the API server something.

        The limits of client-go leave watches out as well (rest/request.go); a probe belongs to its watch.
        """
        return self.step is Step.LIST and not self._list.token

    def request(self) -> Request:
        """The next request; from now on the answer to it is expected."""
        self._begin_exchange()
        self.wants_more = True
        self._count(requests=1)
        resource = self._resource
        if self.step is Step.PROBE and self._last_change:
            head, exists = self._last_change
            self._witness, self._last_change = witness(head, exists=exists) or self._witness, None
        if self.step is Step.PROBE and self._witness:
            resource = resource.of_one(self._witness.namespace, self._witness.name)
        parameters = resource.selectors
        silence = min(self._pacing.silence_seconds, self._pacing.answer_seconds)
        match self.step:
            case Step.LIST:
                token = self._list.token
                if not token:
                    self._list = Listing(self.kind, began=self._started)
                    self._count(lists=1)
                if self._page_objects:
                    parameters += (("limit", str(self._page_objects)),)
                if token:
                    parameters += (("continue", token),)
            case Step.PROBE:
                parameters += (("limit", "1"),)
            case Step.WATCH:
                self._count(watches=1)
                silence = self._watch_silence()
                parameters += (
                    ("watch", "1"),
                    ("allowWatchBookmarks", "true"),
                    ("resourceVersion", self.version or ""),
                    ("timeoutSeconds", str(round(self._pacing.watch_seconds * (1 + self._random())) or 1)),
                )
            case _:
                assert_never(self.step)
        request = Request(
            path=resource.path,
            parameters=parameters,
            silence_seconds=silence,
            fresh_credentials=self._fresh_credentials,
            fresh_connection=self._fresh_connection,
        )
        self._fresh_credentials = self._fresh_connection = False
        return request

    def _watch_silence(self) -> float:
        """How long a watch may be silent. All nodes hear the same last event: they do not come back all at once."""
        if self._awaits_deletion:
            return min(_HISTORY_SECONDS, self._pacing.silence_seconds)
        return self._pacing.silence_seconds * (0.8 + 0.4 * self._random())

    def _begin_exchange(self) -> None:
        self._started = self._last_line = self._clock()
        # Since when bytes come and no line ends.
        self._dribbles_since: float | None = None
        self._status = 0
        self._retry_after = 0.0
        self._body = bytearray()
        self._lines = messages.Lines(self._pacing.max_line_bytes)
        self._lines_seen = 0

    # --- hearing -------------------------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the answer has come; header names are in lower case."""
        self._status = status
        self._retry_after = messages.retry_after_seconds(headers.get("retry-after", ""))
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            # Not asked for, and what it unpacks to has no bound.
            self._trouble(f"the answer is in {quoted(encoding)}, for which nobody asked")
        elif self._is_watching():
            self.error = None
            self._awaits_until = self._clock() + _HISTORY_SECONDS

    def received(self, data: bytes) -> list[Event]:
        """A piece of the body has come, b"" at its end. Return what it tells."""
        if not self.wants_more:
            return []
        try:
            if self._is_watching():
                return self._watched(data)
            return self._collected(data)
        except BadMessageError as error:
            self._relist(str(error))
            return []

    def failed(self, reason: str) -> None:
        """The exchange could not be made, or broke off."""
        self._trouble(reason)

    def fell_silent(self, reason: str) -> None:
        """Nothing has come for as long as the request allowed."""
        if not self._is_watching() or self._lines.within_line:
            self._trouble(reason)
        elif self._awaits_deletion:
            self._deletion_not_told()
        else:
            self._back_off.reset()
            self._fresh_connection = True
            self._go_on_from_quiet()

    def doubt(self) -> None:
        """The API server went back in time, as the reflector of another kind has found: list anew, soon."""
        self._forget_list()
        self._doubted = True
        due = max(self._due, self._clock() + _SOON_SECONDS * self._random())
        self._go(Step.LIST)
        self._due = due

    def restart(self, reason: str) -> None:
        """Forget how far we are, and list anew after a pause."""
        self._relist(reason)

    def _collected(self, data: bytes) -> list[Event]:
        if self._clock() - self._started > self._pacing.answer_seconds:
            self._trouble(f"the answer was not complete after {self._pacing.answer_seconds:g} s")
            return []
        if self._status != 200:
            self._body += data[: _MAX_ERROR_BYTES - len(self._body)]
            if not data or len(self._body) >= _MAX_ERROR_BYTES:
                return self._refused(messages.status_of(self._status, self._body))
            return []
        if data:
            self._body += data
            if len(self._body) > self._pacing.max_page_bytes:
                self._body = bytearray()
                self._page_objects = max(1, (self._page_objects or self._pacing.page_objects) // 2)
                self._trouble(f"a page of the list is too large; asking for {self._page_objects} objects at a time")
            return []
        self.wants_more = False
        body, self._body = self._body, bytearray()
        page = messages.page_of(body, f"{self.kind}List")
        return self._probed(page) if self.step is Step.PROBE else self._paged(page)

    # --- lists ---------------------------------------------------------------------------------------------

    def _forget_list(self) -> None:
        self._list = Listing(self.kind)
        self._page_back_off.reset()

    def _paged(self, page: messages.Page) -> list[Event]:
        self._list.add(page, max_objects=self._pacing.max_objects)
        if not self._list.token:
            return [self._list_complete()]
        self._page_back_off.reset()
        self._due = self._clock()
        return []

    def _list_complete(self) -> Listed:
        done = self._list
        if messages.is_older(done.version, self.version):
            self._count(regressions=1)
        self.version = done.version
        self.proven_at = done.began
        self.heard = True
        self._witness, self._last_change = done.witness, None
        self._doubted = self._was_quiet = self._awaits_deletion = False
        self._page_objects = self._page_objects or self._pacing.page_objects
        self._listed = True
        self._next_audit = done.began + self._back_off.spread(self._pacing.audit_seconds)
        self._forget_list()
        self._go(Step.WATCH)
        return done.listed()

    def _probed(self, page: messages.Page) -> list[Event]:
        assert page.metadata is not None
        current = page.metadata.resource_version or ""
        known = self._witness
        found = known.looked_up(page.items or ()) if known else None
        if messages.is_older(current, self.version):
            self._went_back(current)
        elif known and found and (contradiction := known.contradiction(found)):
            self._restored(contradiction)
        else:
            # Either it was deleted, which the watch will tell, or it was never made.
            self._awaits_deletion = known is not None and known.exists and found is None
            if current == self.version or (self._was_quiet and not self._awaits_deletion):
                self.proven_at = self._started
            self._was_quiet = False
            self._go(Step.WATCH)
        return []

    # --- watches -------------------------------------------------------------------------------------------

    def _watched(self, data: bytes) -> list[Event]:
        if not data:
            self.wants_more = False
            self._watch_over()
            return []
        events: list[Event] = []
        now = self._clock()
        if self._dribbles_since is None:
            self._dribbles_since = now
        try:
            for line in self._lines.split(data):
                self._last_line = now
                self._dribbles_since = None
                self._lines_seen += 1
                event = self._heard(line)
                if event is not None:
                    events.append(event)
                if not self.wants_more:
                    return events
        except BadMessageError as error:
            self._relist(str(error))
            return events
        if self._awaits_deletion and now > self._awaits_until:
            self._deletion_not_told()
        elif self._dribbles_since is not None and now - self._dribbles_since > self._pacing.silence_seconds:
            self._trouble(f"the watch brought no whole event for {self._pacing.silence_seconds:g} s")
        return events

    def _heard(self, line: bytes) -> Event | None:
        """The event of a line, None if it tells nothing about objects."""
        event = messages.event_of(line)
        if event.type == "ERROR":
            self._refused(messages.status_of(0, event.object))
            return None
        if event.type not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
            raise BadMessageError(f"{quoted(event.type)} is not a type of event")
        head = messages.head_of(event.object)
        version = head.resource_version or ""
        if messages.is_older(version, self.version):
            self._went_back(version)
            return None
        told: Event | None = None
        if event.type == "DELETED":
            if not head.name:
                raise BadMessageError("a deleted object has no name")
            told = Deleted(self.kind, key_for(self.kind, head.namespace or "default", head.name)[1])
        elif event.type != "BOOKMARK":
            remarks: list[Remark] = []
            try:
                told = Applied(self.kind, decode(self.kind, event.object, remarks), tuple(remarks))
            except BadObject as fault:
                told = quarantined(fault)
        if version != self.version:
            self._back_off.reset()
        self.version = version
        self.proven_at = self._last_line
        self.heard = True
        if event.type != "BOOKMARK":
            self._note(head, exists=event.type != "DELETED")
        return told

    def _note(self, head: messages.ObjectMetadata, *, exists: bool) -> None:
        """This object has changed last."""
        if self._awaits_deletion:
            waits_for = self._witness
            if waits_for and (waits_for.namespace, waits_for.name) != (head.namespace or "", head.name):
                return  # that one comes first
            self._awaits_deletion = False
        self._last_change = (head, exists)

    def _is_watching(self) -> bool:
        return self._status == 200 and self.step is Step.WATCH

    def _watch_over(self) -> None:
        """The server ended the watch in good order."""
        now = self._clock()
        lasted = now - self._started
        if not self._lines_seen and lasted < self._pacing.steady_seconds:
            self._trouble("the watch ended at once and told nothing")
            return
        if lasted >= self._pacing.steady_seconds:
            self._back_off.reset()
        if self._lines_seen and not self._audit_is_due() and not self._awaits_deletion:
            self._go(Step.WATCH)
        else:
            self._go_on_from_quiet()
        if lasted < 1.0:
            self._due = now + self._back_off.wait(now)

    def _go_on_from_quiet(self) -> None:
        """The watch is over, and there was no trouble with it: look whether all is well."""
        self._was_quiet = not self._awaits_deletion
        self._go(Step.LIST if self._audit_is_due() else Step.PROBE)

    def _audit_is_due(self) -> bool:
        return bool(self._pacing.audit_seconds) and self._clock() >= self._next_audit

    # --- trouble -------------------------------------------------------------------------------------------

    def _refused(self, status: Status) -> list[Event]:
        """The server said no, by the status of its answer or by an ERROR event."""
        code = status.code or 0
        said = status.words
        at_least = min(max(self._retry_after, status.retry_after_seconds), self._pacing.longest_retry_after_seconds)
        asked_for_one = self.step is Step.PROBE and self._witness is not None
        if asked_for_one and code in (400, 403, 404):
            self._witness = None  # it may be only this object that we may not ask for
        if code == 410 or status.version_too_large:
            if self._list.token:
                self._page_objects = 0  # the snapshot went while we turned the pages: all on one page, then
            reason = f"the API server cannot go on from where we are ({said})"
            # Every server that was started again says so, to whoever had nothing to hear for a while.
            self._relist(reason, at_least=at_least, soon=True, routine=code == 410)
        elif code in (401, 403):
            self._fresh_credentials = True
            verb = "watch" if self.step is Step.WATCH else "list"
            self._trouble(f"the API server does not let us {verb} {self.kind}: {said}; reloading the credentials")
        elif code == 400 and self._resource.drops_field_selector and not asked_for_one:
            self._resource = self._resource.without_field_selector()
            self.version = None
            self._forget_list()
            self._go(Step.LIST)
            self._say(f"the API server does not know our field selector ({said}); going on without", routine=True)
        elif code == 404 and self._resource.optional and not self._listed:
            self._go(Step.LIST)
            self._due = self._clock() + self._back_off.spread(self._pacing.absent_seconds)
            self._back_off.reset()
            self.error = None
            self.proven_at = self._started
            return [Listed(kind=self.kind, absent=True)]
        else:
            if code == 400:
                self._forget_list()
            self._trouble(f"the API server answered {said}", at_least=at_least)
        return []

    def _went_back(self, version: str) -> None:
        self._restored(f"the resource version went back from {self.version} to {quoted(version)}")

    def _deletion_not_told(self) -> None:
        self._restored(f"{self._witness} is gone, and nothing tells that it was deleted")

    def _restored(self, reason: str) -> None:
        self._count(regressions=1)
        self._relist(reason, soon=True)

    def _relist(self, reason: str, *, at_least: float = 0.0, soon: bool = False, routine: bool = False) -> None:
        """What we know may be wrong: all of it anew. Soon, if it is the first time for a while."""
        self.version = None
        self._forget_list()
        self._trouble(reason, at_least=at_least, soon=soon, routine=routine)

    def _trouble(self, reason: str, *, at_least: float = 0.0, soon: bool = False, routine: bool = False) -> None:
        """End the exchange; try again later, from the version or the page that we have. Routine if it is seldom."""
        now = self._clock()
        if self._is_watching() and now - self._started >= self._pacing.steady_seconds:
            self._back_off.reset()
        self._count(failures=1)
        self._was_quiet = self._awaits_deletion = False
        self.wants_more = False
        if self._list.outlasts(now):
            wait = self._page_back_off.wait(now)
        else:
            self._forget_list()
            self.step = Step.LIST if self.version is None or self._doubted else Step.PROBE
            wait = self._back_off.wait(now)
        soon = soon and now - self._soon_at >= _SOON_AGAIN_SECONDS
        if soon:
            self._soon_at = now
            wait = min(wait, _SOON_SECONDS * self._random())
        self._due = now + max(wait, at_least * (1 + self._random() / 4))
        self._say(f"{reason}; what was last known stays", routine=routine and soon)

    def _say(self, reason: str, *, routine: bool) -> None:
        self.routine = routine
        self.heard = False
        verb = "listing anew" if routine else "cannot follow"
        self.error = SourceError(f"{verb} {self.kind}: {reason}")

    def _go(self, step: Step) -> None:
        self.step = step
        self.wants_more = False
        self._due = self._clock()

    def _count(
        self, *, requests: int = 0, lists: int = 0, watches: int = 0, failures: int = 0, regressions: int = 0
    ) -> None:
        more = (requests, lists, watches, failures, regressions)
        self.counts = Counts(*(count + add for count, add in zip(self.counts, more, strict=True)))
