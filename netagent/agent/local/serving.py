"""The local socket of a running agent, with all that it tells."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netagent.agent import feed, reconciler
from netagent.agent.health import state
from netagent.agent.local import answers, chronicle, documents, server, tables
from netagent.model import addresses
from netagent.source.kinds import Kind


@contextmanager
def serving(
    listening: socket.socket | None,
    reconcile: reconciler.Reconciler,
    *,
    node_name: str,
    source: feed.Feed,
    health: Callable[[], state.Report] | None = None,
) -> Iterator[chronicle.Chronicle]:
    """Answer on a socket while this lasts (None: not at all). Yields what the loop has to tell its work to."""
    events = chronicle.Chronicle()
    if listening is None:
        yield events
        return
    plan = reconcile.planner

    def table_states() -> tuple[documents.TableState, ...]:
        own_port = reconcile.backend.owner_port
        if own_port is None:
            return ()
        return tables.table_states(map(addresses.Family, plan.settings.families), own_port=own_port)

    def refused() -> list[documents.SetAside]:
        return [
            documents.SetAside(kind=str(Kind.SERVICE), namespace=owner.namespace, name=owner.name, reason=reason)
            for owner, reason in sorted(reconcile.refusals.reasons.items())
        ]

    answering = answers.Answers(
        plan,
        events,
        node_name=node_name,
        source=source,
        tables=table_states,
        refused=refused,
        drift=lambda: list(reversed(reconcile.drift.records())),
        health=health,
    )
    with server.LocalServer(listening, answering=answering, group=plan.settings.socket_group):
        yield events
