"""How the agent's sources of objects stand, as documents."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from netagent.agent import api_feed, feed
from netagent.agent.local import documents


def of_manifests(manifests: feed.DirectoryFeed, *, wall: Callable[[], float] = time.time) -> documents.Source:
    """How a file or directory stands."""
    return documents.Source(
        name=manifests.path,
        in_sync=manifests.in_sync and not manifests.trouble,
        age=round(max(0.0, wall() - manifests.read_at), 3),
        error=manifests.trouble or None,
    )


def of_api(following: api_feed.ApiFeed) -> tuple[documents.Source, ...]:
    """How each kind stands that is followed at an API server."""
    found = []
    for kind in sorted(following.source.kinds):
        status = following.source.status(kind)
        age = status.staleness_seconds
        found.append(
            documents.Source(
                name=str(kind),
                in_sync=status.in_sync,
                age=round(age, 3) if math.isfinite(age) else None,
                error=str(status.error) if status.error else None,
            )
        )
    return tuple(found)


def sources_of(source: feed.Feed) -> tuple[documents.Source, ...]:
    """How a feed's sources stand, of whichever kind it is. For any thread."""
    match source:
        case feed.DirectoryFeed():
            return (of_manifests(source),)
        case api_feed.ApiFeed():
            return of_api(source)
        case _:
            return ()


def set_aside_of(source: feed.Feed) -> tuple[documents.SetAside, ...]:
    """What a feed has set aside, by kind and name. For any thread."""
    match source:
        case feed.DirectoryFeed() | api_feed.ApiFeed():
            found = [
                documents.SetAside(
                    kind=str(fault.kind),
                    namespace=fault.namespace,
                    name=fault.name,
                    field=fault.field,
                    reason=fault.reason if fault.kind else str(fault),
                )
                for fault in source.set_aside
            ]
        case _:
            found = []
    return tuple(sorted(found, key=lambda one: (one.kind, one.namespace, one.name, one.field, one.reason)))
