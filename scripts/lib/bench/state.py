"""An agent without its loop, on the network namespace that we are in: from bytes of the API to the kernel, by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from netagent import settings
from netagent.agent import collector, planner, reconciler
from netagent.model import addresses
from netagent.nftables import backend, probe
from netagent.source.api import events
from netagent.source.api.reflector import Reflector
from netagent.source.api.resources import resource_of
from netagent.source.kinds import Kind

from . import cluster, seams

_READ_BYTES = 256 << 10  # as source/api/connection.py reads


def wanted_settings() -> settings.Settings:
    """The settings of a node of the cluster: the defaults, but for the CIDR of the pods."""
    document = f'{{"apiVersion":"{settings.API_VERSION}","kind":"{settings.KIND}","clusterCIDR":"{cluster.POD_CIDR}"}}'
    return settings.parse(document, origin="bench").settings


def new_reconciler() -> tuple[reconciler.Reconciler, backend.Backend]:
    """A reconciler as `netagent run` makes it, and its backend."""
    wanted = wanted_settings()
    tables = backend.Backend(affinity_clients=wanted.affinity_clients)
    families = probe.usable(tables.socket, map(addresses.Family, wanted.families))
    wanted = msgspec.structs.replace(wanted, families=tuple(family.value for family in families))
    plan = planner.Planner(wanted, node_name=cluster.NODE)
    tables.watch()  # as the loop does
    protocols = reconciler.stale_flow_protocols(wanted)
    return reconciler.Reconciler(plan, tables, stale_flow_protocols=protocols), tables


def write_pages(wanted: cluster.Cluster, path: Path) -> int:
    """Write the pages of all lists to a file, one a line, behind their kinds. Returns the bytes of the pages."""
    total = 0
    with path.open("wb") as file:
        for kind, page in cluster.pages(wanted):
            file.write(f"{kind} ".encode() + page + b"\n")
            total += len(page)
    return total


def read_pages(file: IO[bytes]) -> Iterable[tuple[Kind, bytes]]:
    """The pages of such a file."""
    for line in file:
        kind, _, page = line.rstrip(b"\n").partition(b" ")
        yield Kind(kind.decode()), page


class State:
    """A Store, a plan and the kernel's tables.

    Owns: a reflector for each kind, and a reconciler. Use: `list_all` once, `sync`; then `hear` lines of watches and
    `sync` again. Measures with `probe` and `collector`.
    """

    def __init__(self) -> None:
        self._pace = collector.CollectorPace()  # as `netagent run` has it
        self.reconciler, self.backend = new_reconciler()
        self.probe = seams.Probe(self.reconciler, self.backend)
        self.collector = seams.CollectorClock()
        self.version = cluster.FIRST_VERSION
        self._reflectors = {kind: Reflector(resource_of(kind, node_name=cluster.NODE)) for kind in Kind}

    def list_all(self, path: Path) -> None:
        """Take the lists of a file of pages, as if the API server had sent them. Stages: decode, store."""
        clock = self.probe.clock
        store = self.reconciler.planner.store
        with path.open("rb") as file:
            for kind, page in read_pages(file):
                pieces = [page[start : start + _READ_BYTES] for start in range(0, len(page), _READ_BYTES)]
                reflector = self._reflectors[kind]
                found: list[events.Event] = []
                with clock.stage("decode"):
                    reflector.request()
                    reflector.answered(200, {})
                    for piece in (*pieces, b""):
                        found += reflector.received(piece)
                if reflector.error is not None:
                    raise RuntimeError(f"the list of {kind} was refused: {reflector.error}")
                with clock.stage("store"):
                    events.feed(store, found)
                del found
        for reflector in self._reflectors.values():
            reflector.request()
            reflector.answered(200, {})

    def next_version(self) -> int:
        """The resource version of the next change."""
        self.version += 1
        return self.version

    def hear(self, kind: Kind, line: bytes) -> bool:
        """Take a line of a watch. True when it may influence forwarding. Stages: decode, store."""
        with self.probe.clock.stage("decode"):
            found = self._reflectors[kind].received(line)
        if not found:
            raise RuntimeError(f"a line of the watch of {kind} told nothing: {self._reflectors[kind].error}")
        with self.probe.clock.stage("store"):
            return events.feed(self.reconciler.planner.store, found)

    def sync(self) -> reconciler.SyncReport:
        """Bring the kernel in line."""
        done = self.reconciler.sync()
        self._pace.synced(done)
        return done
