"""A server with a small cluster, and somebody who follows it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from netagent.source.api import recorder, source
from netagent.source.api.reflector import Reflector
from tests import builders, patience
from tests.apiserver import ApiServer, Cluster
from tests.source.api.following import Following


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """An API server with 12 Services (three pages), their slices, this Node and another, a ServiceCIDR."""
    cluster = Cluster(builders.node_manifest(), builders.node_manifest("node-2"), builders.service_cidr_manifest())
    for number in range(12):
        cluster.apply(builders.service_manifest(f"s{number}", cluster_ip=f"10.96.0.{number + 1}"))
        cluster.apply(builders.slice_manifest(f"s{number}", f"10.180.0.{number + 1}"))
    with ApiServer(cluster, bookmark_seconds=0.2) as made:
        yield made


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of a busy machine may be long in ending. That they end is what counts: who waits, waits an hour."""
    monkeypatch.setattr(source, "_STOP_SECONDS", patience.HANGS)
    monkeypatch.setattr(recorder, "_STOP_SECONDS", patience.HANGS)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of silence is enough to give a quiet watch up; all else has as much time as ever."""
    given = Reflector._watch_silence

    def soon(self: Reflector) -> float:
        if self._awaits_deletion:
            return given(self)
        return min(given(self), 0.5 * (0.8 + 0.4 * random.random()))

    monkeypatch.setattr(Reflector, "_watch_silence", soon)


@pytest.fixture
def following(server: ApiServer) -> Iterator[Following]:
    """Somebody who follows the server and is in sync."""
    with Following(server) as made:
        made.until_calm()
        yield made
