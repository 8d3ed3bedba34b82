"""What a command that looks has before it: manifests, the running agent's objects, or the kernel alone."""

from __future__ import annotations

import contextlib
import gc
import io
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from netagent import errors, settings
from netagent.cli import options, planning
from netagent.model import addresses, objects
from netagent.plan import frontends

if TYPE_CHECKING:
    from netagent.agent import planner
    from netagent.nftables import readback


_AGENTS_SETTINGS = "the running agent's own settings hold here; those that are given count with -f alone"


class Origin(StrEnum):
    """Where a situation comes from."""

    FILES = "files"
    AGENT = "agent"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Situation:
    """What should be, as far as anybody can tell.

    `planner` has planned everything; None if there is the kernel alone. `settings` are those that it plans by (the
    agent's own, if it was asked), `node_name` this node's. `files` are those that Services were read from, `stdin` what
    standard input held. `remarks` are what the reader should know of all this, a
    sentence each.
    """

    origin: Origin
    planner: planner.Planner | None
    settings: settings.Settings
    node_name: str
    remarks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    stdin: bytes = b""


def look(source: options.Source, *, services: Iterable[objects.ServiceName] | None = None) -> Situation:
    """The situation as manifests have it (-f), else as the running agent has it, else None but the kernel.

    `services`: of the agent's objects only these Services, and those that they compete with, are needed; from manifests
    everything is read. SourceError and QuarantineError as the other commands with -f; PrivilegeError if an agent runs
    and does not answer this user.
    """
    if source.path is not None:
        return _of_files(source)
    from netagent.agent.local import client, snapshot

    try:
        answer = client.ask(_target(services))
    except errors.NoAgentError:
        remark = "no agent runs in this network namespace and no -f is given: this is what the kernel has"
        return Situation(Origin.KERNEL, None, source.wanted, source.node_name, (remark,))
    taken = snapshot.read(answer.body)
    with _without_collector():
        plan = snapshot.planner_of(taken)
    remarks = () if source.wanted == settings.Settings() else (_AGENTS_SETTINGS,)
    return Situation(Origin.AGENT, plan, taken.settings, taken.node_name, remarks)


def _target(services: Iterable[objects.ServiceName] | None) -> str:
    from urllib.parse import urlencode

    query = urlencode([("service", str(name)) for name in services or ()])
    return f"/objects?{query}" if query else "/objects"


def _of_files(source: options.Source) -> Situation:
    from netagent.source import manifests
    from netagent.source.kinds import Kind

    with _without_collector():
        stdin = sys.stdin.buffer.read() if source.path == manifests.STDIN else b""
        plan, reading, remarks = planning.planned(source, stdin=io.BytesIO(stdin))
        plan.replan()
    files = {reading.origins[key] for key in reading.origins if key[0] is Kind.SERVICE}
    return Situation(Origin.FILES, plan, source.wanted, source.node_name, remarks, tuple(sorted(files)), stdin)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Many objects are made, and next to nothing is thrown away: collecting would only cost time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def connections(wanted: settings.Settings) -> dict[frontends.FrontendKey, int] | None:
    """New connections that each frontend of the kernel's nftables tables has had; None where they cannot be read."""
    from netagent.nftables import counters, netlink

    if wanted.mode is not settings.Mode.NFTABLES:
        return None
    try:
        with netlink.NftablesSocket() as socket:
            return dict(counters.frontend_counts(socket))
    except (OSError, errors.NetagentError):
        return None


# The kernel ---------------------------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """What the kernel holds of our nftables tables. `tables` is empty where it cannot be read, and `reason` tells why;
    a table that is not there has `exists` False."""

    tables: dict[addresses.Family, readback.ActualTable]
    reason: str = ""

    @property
    def any(self) -> bool:
        """Whether there is a table of ours at all."""
        return any(table.exists for table in self.tables.values())


def kernel(wanted: settings.Settings, *, sets: Collection[str] | None = None) -> Kernel:
    """What the kernel holds, with all elements that packets do not write, or those of `sets` alone."""
    from netagent.nftables import layout, mirror, netlink, readback

    declared = layout.sets(affinity_clients=wanted.affinity_clients)
    specs = {name: spec for name, spec in declared.items() if sets is None or name in sets}
    try:
        with netlink.NftablesSocket() as socket, _without_collector():
            return Kernel({family: readback.read_table(socket, family, specs) for family in addresses.Family})
    except OSError as error:
        return Kernel({}, str(mirror.read_error(error)))
    except errors.NetagentError as error:
        return Kernel({}, str(error))


def actual_tables(wanted: settings.Settings) -> dict[addresses.Family, readback.ActualTable] | None:
    """Our tables as the kernel holds them; None without the right to read them, or if there are none."""
    found = kernel(wanted)
    return found.tables if found.any else None
