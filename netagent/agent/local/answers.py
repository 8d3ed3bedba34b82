"""What the agent answers on the paths of its local socket."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import msgspec

import netagent
from netagent.agent import feed, planner
from netagent.agent.health import messages, state
from netagent.agent.local import chronicle, documents, snapshot, sources
from netagent.model import objects
from netagent.plan import forwarding

# Of what may be very much, so many are told one by one.
_MOST: Final = 200
_TRIES: Final = 10

Found = TypeVar("Found")


class Answers:
    """Answers to GET /status, /drift, /quarantine and /objects.

    Owns: nothing; it reads what others own, from the thread of the server. Use: `answer`, as the handler of a server.
    Goals: nobody waits for an answer but who asked: no lock of the loop is taken, and what takes long is done in small
    pieces.
    Threading: one thread at a time, that of the local server.
    """

    def __init__(
        self,
        plan: planner.Planner,
        events: chronicle.Chronicle,
        *,
        node_name: str,
        source: feed.Feed,
        tables: Callable[[], Sequence[documents.TableState]] = tuple,
        refused: Callable[[], Sequence[documents.SetAside]] = tuple,
        drift: Callable[[], Sequence[msgspec.Struct]] = tuple,
        health: Callable[[], state.Report] | None = None,
    ) -> None:
        """`tables` tells whose our tables are, `refused` which Services the kernel refused, `drift` what others did to
        our tables, oldest first. `health` is the report of the health server, None where there is none."""
        self._planner = plan
        self._events = events
        self._node_name = node_name
        self._feed = source
        self._tables = tables
        self._refused = refused
        self._drift = drift
        self._health = health

    def answer(self, request: messages.Request) -> messages.Response:
        """The response to a request."""
        if request.method not in ("GET", "HEAD"):
            allowed = (("Allow", "GET, HEAD"),)
            return messages.Response(405, b"the local socket only tells, it takes no orders\n", headers=allowed)
        match request.path:
            case "/status":
                return _json(msgspec.json.encode(self.status()))
            case "/drift":
                return _json(msgspec.json.encode(list(self._drift())))
            case "/quarantine":
                return _json(msgspec.json.encode(self._set_aside()))
            case "/objects":
                return self._objects(request.query)
            case _:
                return messages.Response(404, b"there are /status, /drift, /quarantine and /objects\n")

    def status(self) -> documents.Status:
        """How the agent is now."""
        events, plan = self._events, self._planner
        set_aside = self._set_aside()
        contests = _repeated(plan.forwarding.conflicts)
        found = documents.Status(
            version=netagent.__version__,
            pid=os.getpid(),
            started=state.rfc3339(events.started),
            mode=plan.settings.mode.value,
            node_name=self._node_name,
            families=plan.settings.families,
            in_sync=events.in_sync,
            since=state.rfc3339(events.since),
            pending=round(events.pending_seconds, 3),
            revision=events.revision,
            tables=tuple(self._tables()),
            sources=sources.sources_of(self._feed),
            syncs=events.syncs,
            drift=events.drift,
            quarantine=set_aside[:_MOST],
            quarantined=len(set_aside),
            conflicts=tuple(map(_contest, contests[:_MOST])),
            conflicting=len(contests),
            unexpected_errors=events.unexpected_errors,
            health=self._health and _health(self._health()),
            counts=self._counts(),
        )
        silent = events.silent_seconds
        patience = 2 * plan.settings.sync_period_seconds
        hung = (f"the agent's loop has not come round for {silent:.0f} s",) if silent > patience else ()
        return msgspec.structs.replace(found, troubles=hung + troubles_of(found))

    def _counts(self) -> documents.Counts:
        store = self._planner.store
        return documents.Counts(
            services=len(store.services),
            frontends=len(self._planner.forwarding.frontends),
            endpoints=sum(len(item.endpoints) for item in store.all_slices()),
        )

    def _set_aside(self) -> tuple[documents.SetAside, ...]:
        return (*self._refused(), *_repeated(lambda: sources.set_aside_of(self._feed)))

    def _objects(self, query: str) -> messages.Response:
        wanted = [name for key, name in urllib.parse.parse_qsl(query) if key == "service"]
        names = [objects.ServiceName(*name.split("/", 1)) for name in wanted if "/" in name]
        if len(names) < len(wanted):
            return messages.Response(400, b"service must be NAMESPACE/NAME\n")
        only = names or None
        taken = _repeated(lambda: snapshot.take(self._planner, node_name=self._node_name, only=only))
        return _json(snapshot.encoded(taken))


def troubles_of(status: documents.Status) -> tuple[str, ...]:
    """What is not well, as far as a status tells; a sentence each."""
    found: list[str] = []
    failure = status.syncs.last_failure
    if failure and failure.in_a_row:
        found.append(f"syncs fail ({failure.in_a_row} in a row): {failure.reason}")
    if not status.in_sync:
        if status.pending > 0:
            found.append(f"the kernel is behind: an update has waited for {status.pending:.1f} s")
        elif not (failure and failure.in_a_row):
            found.append("nothing has been synced yet")
    found += _of_sources(status.sources)
    for table in status.tables:
        if not table.present:
            found.append(f"table {table.family} {table.name} is not in the kernel")
    if status.health:
        if not status.health.healthy:
            found.append("/healthz says that updates are late")
        if not status.health.sound:
            found.append("something breaks again and again: see the log")
    return tuple(found)


def _of_sources(all_sources: Iterable[documents.Source]) -> Iterator[str]:
    """What is wrong with sources; those that have the same trouble are told of together."""
    alike: dict[tuple[bool, str], list[str]] = {}
    for source in all_sources:
        reason = (source.error or "").removeprefix(f"cannot follow {source.name}: ")
        if reason or not source.in_sync:
            alike.setdefault((source.in_sync, reason), []).append(source.name)
    for (in_sync, reason), names in alike.items():
        verb = "cannot be followed" if in_sync else "are not in sync" if names[1:] else "is not in sync"
        yield f"{', '.join(names)} {verb}: {reason or 'the first list is not complete'}"


def _health(report: state.Report) -> documents.Health:
    return documents.Health(
        healthy=report.healthy, ready=report.ready, node_eligible=report.node_eligible, sound=report.sound
    )


def _contest(conflict: forwarding.Conflict) -> documents.Contest:
    return documents.Contest(
        frontend=str(conflict.key), winner=str(conflict.winner.owner), loser=str(conflict.loser.owner)
    )


def _repeated(read: Callable[[], Found]) -> Found:
    """What a function reads of what another thread may be changing: again, if that happens under its hands."""
    for _ in range(_TRIES):
        try:
            return read()
        except (RuntimeError, KeyError):  # a dict changed its size, or lost what was to be looked up
            continue
    return read()


def _json(body: bytes) -> messages.Response:
    return messages.Response(200, body + b"\n", "application/json")
