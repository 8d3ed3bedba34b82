"""A server with a small cluster, and somebody who follows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import builders
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


@pytest.fixture
def following(server: ApiServer) -> Iterator[Following]:
    """Somebody who follows the server and is in sync."""
    with Following(server) as made:
        made.until_calm()
        yield made
