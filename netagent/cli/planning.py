"""From the manifests of -f to a plan: the first step of every command that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from netagent import errors
from netagent.cli import options

if TYPE_CHECKING:
    from netagent.agent import planner
    from netagent.source import manifests


class Planned(NamedTuple):
    """A planner whose Store has the manifests (it has not planned yet), and the reading that they come from."""

    planner: planner.Planner
    reading: manifests.Reading
    remarks: tuple[str, ...]


def planned(source: options.Source, *, stdin: BinaryIO | None = None) -> Planned:
    """Read the manifests of a source. What is wrong with them is said, and fatal under --strict (QuarantineError);
    SourceError if there is nothing usable. `remarks` are what else its reader should know, a sentence each."""
    from netagent.agent import planner, reporting
    from netagent.source import manifests

    assert source.path is not None
    reading = manifests.read(source.path, stdin=stdin)
    reporting.SourceReporter().report(reading)
    if source.strict and reading.quarantined:
        raise errors.QuarantineError(f"{len(reading.quarantined)} objects had to be set aside; nothing was done")
    if not reading.objects and (reading.quarantined or source.path == manifests.STDIN):
        # An empty answer of a failed kubectl must not be taken for a cluster without Services.
        raise errors.SourceError(f"{source.path}: there is no usable object at all; nothing was done")
    plan = planner.Planner(source.wanted, node_name=source.node_name)
    plan.store.replace(reading.objects)
    remarks: tuple[str, ...] = ()
    if plan.store.node is None:
        remarks = (f"there is no Node {source.node_name!r} among the manifests: what depends on it is unknown",)
    return Planned(plan, reading, remarks)
