"""What the agent announces as Events, on the objects where a user would look: Services and this Node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, assert_never

import netagent
from netagent import errors
from netagent.agent import loop, planner, reconciler
from netagent.agent.health import checks, servers
from netagent.model import objects
from netagent.source import faults
from netagent.source.api import events, recorder
from netagent.source.kinds import Key, Kind, ObjectKey, object_key

# A commit that is refused once is mostly a race with somebody else's.
_FAILURES_IN_A_ROW: Final = 3
_SOURCE_RANGES: Final = "spec.loadBalancerSourceRanges"
# Of a list in a note; the rest is counted.
_MENTIONED_MOST: Final = 5


class _Topic(NamedTuple):
    """What an Event is about. `shared`: every node that sees it says the same."""

    reason: str
    action: str
    shared: bool = False
    type: recorder.EventType = recorder.EventType.WARNING


_QUARANTINED: Final = _Topic("Quarantined", "Read", shared=True)
_REFUSED: Final = _Topic("KernelRefused", "Program")
_SOURCE_RANGE: Final = _Topic("SourceRangeIgnored", "Read", shared=True)
_CLAIMED: Final = _Topic("FrontendClaimed", "Program", shared=True)
# Reasons of kube-proxy, so that what watches for them goes on doing so.
_LISTEN: Final = _Topic("FailedToStartServiceHealthcheck", "Listen")
_STARTING: Final = _Topic("Starting", "StartNetagent", type=recorder.EventType.NORMAL)
_SERVERS: Final[Mapping[str, _Topic]] = {
    "health": _Topic("FailedToStartProxierHealthcheck", "StartNetagent"),
    "metrics": _Topic("FailedToStartMetricServer", "StartNetagent"),
}
_SYNC: Final = _Topic("SyncFailed", "Sync")


class Announcing(loop.Observer):
    """Announces what is wrong with objects and with this node, each thing when it begins and when it changes.

    Owns: what is wrong at present, by topic and object. Use: as an observer of the loop, after whoever opens the
    health check node ports; `heard` is told the events of the API server, `servers_failed` which servers of the
    agent do not listen.
    Goals: what stays as it is is announced once, however often it is seen; what went and comes again is announced
    again; the loop waits for nothing.
    Threading: the loop's.
    """

    def __init__(
        self,
        plan: planner.Planner,
        *,
        node_name: str,
        record: Callable[[recorder.Announcement], None],
        listen_failures: Callable[[], Sequence[checks.ListenFailure]] = tuple,
    ) -> None:
        """`record` takes what is to be sent, and never blocks; `listen_failures` gives those of health check ports."""
        self._planner = plan
        self._node_key: ObjectKey = (Kind.NODE, node_name)
        self._record = record
        self._listen_failures = listen_failures
        self._seen_listen_failures: Sequence[checks.ListenFailure] = ()
        self._facts: dict[_Topic, dict[ObjectKey, str]] = {}
        # Of the versions that are set aside: the Store may have none of the object, or another one of this name.
        self._uids: dict[ObjectKey, str] = {}
        self._untold: dict[tuple[_Topic, ObjectKey], None] = {}
        # Of slices whose name does not tell the Service.
        self._owners: dict[Key, objects.ServiceName | None] = {}
        self._started = False
        self._in_sync = False
        self._failed_in_a_row = 0

    def heard(self, drained: Iterable[events.Event]) -> None:
        """Note what the API server told. It is announced in the next turn, when the Store has it."""
        for event in drained:
            match event:
                case events.Applied():
                    key = object_key(event.object)
                    self._clear(_QUARANTINED, key)
                    self._note_source_ranges(key, event.remarks)
                    self._note_owner(event.object)
                case events.Deleted():
                    key = (event.kind, event.key)
                    for topic in (_QUARANTINED, _SOURCE_RANGE):
                        self._clear(topic, key)
                    if event.kind is Kind.ENDPOINT_SLICE:
                        self._owners.pop(event.key, None)
                case events.Quarantined():
                    if event.key is not None:
                        self._note_uid(event.key, event.uid)
                        self._set(_QUARANTINED, event.key, _quarantine_note(event))
                case events.Listed():
                    self._note_list(event)
                case _:
                    assert_never(event)

    def servers_failed(self, failures: Iterable[servers.ServerFailure]) -> None:
        """Servers of the agent cannot listen. The same failure is announced once."""
        for failure in failures:
            self._set(_SERVERS[failure.server], self._node_key, str(failure))

    # What the loop tells

    def turned(self) -> None:
        failures = self._listen_failures()
        if failures != self._seen_listen_failures:
            self._seen_listen_failures = failures
            self._replace(_LISTEN, _listen_notes(failures, self._node_key))
        if self._untold and self._in_sync:
            self._tell()

    def synced(self, report: reconciler.SyncReport) -> None:
        self._in_sync = True
        self._failed_in_a_row = 0
        if not self._started:
            self._started = True
            note = f"netagent {netagent.__version__} programs Services on this node"
            self._record(self._announcement(_STARTING, self._node_key, note))
        if report.planned is None or report.planned:
            self._replace(_CLAIMED, self._claim_notes())
        because = "set aside, the others go on; what this node had of it stays: "
        self._replace(_REFUSED, {(Kind.SERVICE, owner): because + why for owner, why in report.refused.items()})

    def failed(self, error: errors.NetagentError) -> None:
        self._in_sync = True  # the loop syncs only then
        self._failed_in_a_row += 1
        if self._failed_in_a_row == _FAILURES_IN_A_ROW:
            note = f"{_FAILURES_IN_A_ROW} syncs in a row failed, the last good rules stay: {error}"
            self._record(self._announcement(_SYNC, self._node_key, note))

    # What is wrong

    def _note_list(self, event: events.Listed) -> None:
        bad = {one.key: _quarantine_note(one) for one in event.quarantined if one.key is not None}
        for one in event.quarantined:
            if one.key is not None:
                self._note_uid(one.key, one.uid)
        self._replace(_QUARANTINED, bad, kind=event.kind)
        if event.kind is Kind.SERVICE:
            remarks: dict[ObjectKey, list[faults.Remark]] = {}
            for remark in event.remarks:
                remarks.setdefault((event.kind, (remark.namespace, remark.name)), []).append(remark)
            notes = {key: _source_range_note(about) for key, about in remarks.items()}
            kept = {key: note for key, note in self._facts.get(_SOURCE_RANGE, {}).items() if key in bad}
            self._replace(_SOURCE_RANGE, kept | {key: note for key, note in notes.items() if note})
        elif event.kind is Kind.ENDPOINT_SLICE:
            self._owners = {key: self._owners[key] for _, key in bad if key in self._owners}
            for item in event.objects:
                self._note_owner(item)

    def _note_uid(self, key: ObjectKey, uid: str) -> None:
        """A version of this UID is about to be set aside; another one than before is another object, to be told of."""
        if self._uids.get(key, uid) != uid:
            self._clear(_QUARANTINED, key)
        self._uids[key] = uid

    def _note_source_ranges(self, key: ObjectKey, remarks: Iterable[faults.Remark]) -> None:
        if note := _source_range_note(remarks):
            self._set(_SOURCE_RANGE, key, note)
        else:
            self._clear(_SOURCE_RANGE, key)

    def _note_owner(self, item: objects.Object) -> None:
        if isinstance(item, objects.EndpointSlice):
            if item.service == _service_by_name_of(item.key):
                self._owners.pop(item.key, None)
            else:
                self._owners[item.key] = item.service

    def _claim_notes(self) -> dict[ObjectKey, str]:
        """What each Service does not get, and who has it."""
        lost: dict[ObjectKey, list[str]] = {}
        for conflict in self._planner.forwarding.conflicts():
            loser = conflict.loser.owner.owner
            text = f"{conflict.key} belongs to Service {conflict.winner.owner.owner}"
            lost.setdefault((Kind.SERVICE, loser), []).append(text)
        because = "; the older Service keeps what two claim, and of the same age the first by name"
        return {key: _listed(texts) + because for key, texts in lost.items()}

    def _set(self, topic: _Topic, key: ObjectKey, note: str) -> None:
        facts = self._facts.setdefault(topic, {})
        if facts.get(key) != note:
            facts[key] = note
            self._untold[topic, key] = None

    def _clear(self, topic: _Topic, key: ObjectKey) -> None:
        facts = self._facts.get(topic)
        if facts and facts.pop(key, None) is not None:
            self._untold.pop((topic, key), None)
            if topic is _QUARANTINED:
                self._uids.pop(key, None)

    def _replace(self, topic: _Topic, desired: Mapping[ObjectKey, str], *, kind: Kind | None = None) -> None:
        """Make these all that is wrong under a topic, of one kind or of all."""
        for key in [key for key in self._facts.get(topic, ()) if kind in (None, key[0]) and key not in desired]:
            self._clear(topic, key)
        for key, note in desired.items():
            self._set(topic, key, note)

    # Telling it

    def _tell(self) -> None:
        untold, self._untold = self._untold, {}
        for topic, key in untold:
            self._record(self._announcement(topic, key, self._facts[topic][key]))

    def _announcement(self, topic: _Topic, key: ObjectKey, note: str) -> recorder.Announcement:
        return recorder.Announcement(
            regarding=self._subject_of(key),
            reason=topic.reason,
            action=topic.action,
            note=note,
            type=topic.type,
            shared=topic.shared,
        )

    def _subject_of(self, about: ObjectKey) -> recorder.Subject:
        """Where a user would look for what is wrong with an object; for a slice that is its Service, if it is known."""
        match about:
            case (Kind.NODE, str(name)):
                # Events on a Node have its name as UID, as those of the kubelet: `kubectl describe node` finds them.
                return recorder.Subject(kind=Kind.NODE, name=name, uid=name)
            case (Kind.SERVICE, (namespace, name)):
                service = self._planner.store.services.get(objects.ServiceName(namespace, name))
                uid = self._uids.get(about) or (service.uid if service else "")
                return recorder.Subject(kind=Kind.SERVICE, namespace=namespace, name=name, uid=uid)
            case (Kind.ENDPOINT_SLICE, (namespace, name)):
                owner = self._owners.get((namespace, name), _service_by_name_of((namespace, name)))
                if owner and owner in self._planner.store.services:
                    return self._subject_of((Kind.SERVICE, owner))
        kind, key = about
        namespace, name = ("", key) if isinstance(key, str) else key
        version = f"{kind.api_group}/v1" if kind.api_group else "v1"
        uid = self._uids.get(about, "")
        return recorder.Subject(kind=kind, namespace=namespace, name=name, uid=uid, api_version=version)


def _service_by_name_of(slice_key: tuple[str, str]) -> objects.ServiceName:
    """The Service for which the controller would have made a slice of this name: web for web-x7d2k."""
    namespace, name = slice_key
    return objects.ServiceName(namespace, name.rpartition("-")[0])


def _quarantine_note(fault: events.Quarantined) -> str:
    return f"set aside, the last good version stays in force if there was one: {fault}"


def _source_range_note(remarks: Iterable[faults.Remark]) -> str:
    """What was wrong with the source ranges of one Service; "" when nothing was."""
    return _listed(f"{one.field}: {one.reason}" for one in remarks if one.field.startswith(_SOURCE_RANGES))


def _listen_notes(failures: Iterable[checks.ListenFailure], node_key: ObjectKey) -> dict[ObjectKey, str]:
    by_service: dict[ObjectKey, list[str]] = {}
    for failure in failures:
        by_service.setdefault((Kind.SERVICE, failure.service), []).append(str(failure))
    return {key: f"node {node_key[1]}: {_listed(sorted(texts))}" for key, texts in by_service.items()}


def _listed(texts: Iterable[str]) -> str:
    """The first of these in one sentence, and how many more there are."""
    every = list(texts)
    more = f"; and {len(every) - _MENTIONED_MOST} more" if len(every) > _MENTIONED_MOST else ""
    return "; ".join(every[:_MENTIONED_MOST]) + more
