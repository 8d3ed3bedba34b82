"""A part of a story: one frontend, its clients, and every endpoint that it could have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from netagent import settings
from netagent.explain import comparison, node_ports, remedies, telling
from netagent.explain.candidates import Candidates, Subject, candidates_of, judged
from netagent.explain.story import (
    Candidate,
    Cause,
    Client,
    Dialled,
    Missing,
    Part,
    Reason,
    Source,
    SourceKind,
    Tale,
)
from netagent.explain.world import World, counts_as_pod, default_source
from netagent.model import addresses, objects
from netagent.plan import frontends
from netagent.plan import node as nodes


def sources_of(
    world: World, family: addresses.Family, client: Client | None, frontend: frontends.Frontend | None = None
) -> tuple[Source, ...]:
    """The clients to tell of: the one that is asked for, else one of each kind; two from outside where source ranges
    let in some."""
    if client and client.address is not None:
        return (Source(client.kind, client.address),)
    kinds = (client.kind,) if client else tuple(SourceKind)
    ranges = (frontend.source_ranges if frontend else None) or ()
    found = [default_source(world, kind, family, avoiding=ranges) for kind in kinds]
    allowed = _allowed(frontend)
    if allowed and any(source.kind is SourceKind.OUTSIDE for source in found):
        found.insert(-1, Source(SourceKind.OUTSIDE, allowed))
    return tuple(found)


def _allowed(frontend: frontends.Frontend | None) -> bytes | None:
    """An address that the source ranges let in; None if there are none, or nobody gets in."""
    if frontend is None or not frontend.source_ranges:
        return None
    prefix = frontend.source_ranges[0]
    first = int.from_bytes(prefix.address) + (1 if prefix.length < len(prefix.address) * 8 else 0)
    return first.to_bytes(len(prefix.address))


def part_of(
    world: World,
    dialled: Dialled,
    frontend: frontends.Frontend,
    *,
    client: Client | None,
    stand_in: bytes | None = None,
) -> Part:
    """The part of a frontend that is in force. `stand_in` is an address that fares like the one that is dialled, where
    rules for nftables do not show what those of another mode do."""
    subject = subject_of(world, dialled if stand_in is None else dialled._replace(address=stand_in), frontend)
    sources = sources_of(world, dialled.family, client, frontend)
    if stand_in is not None:
        sources = tuple(source for source in sources if source.kind is SourceKind.NODE)
    records = telling.records_of(world, frontend)
    tales = [_compared(world, telling.tale_of(world, source, subject), subject.dialled, records) for source in sources]
    return Part(
        dialled=dialled,
        title=f"{remedies.kind_words(frontend)} of Service {_owner_words(frontend.owner)}",
        frontend=frontend,
        setting=telling.settings_words(world, subject.service, frontend) if subject.service else (),
        tales=together(tales),
        candidates=_candidates(world, subject, tales),
        notes=(*_part_notes(world, frontend, subject.found), *_source_remarks(world, sources)),
    )


def absent_part(world: World, missing: Missing, reason: Reason, *, client: Client | None) -> Part:
    """The part of an address and port that is nobody's."""
    assert missing.port is not None
    dialled = Dialled(missing.address, missing.protocol, missing.port)
    tales = []
    for source in sources_of(world, missing.family, client):
        possibilities = telling.walked(world, source, dialled)
        tale = Tale(sources=(source,), fate=telling.fate_of(possibilities), reason=reason, possibilities=possibilities)
        tales.append(_compared(world, tale, dialled))
    return Part(dialled=dialled, title="", tales=together(tales))


def subject_of(world: World, dialled: Dialled, frontend: frontends.Frontend) -> Subject:
    """A frontend with the objects that it comes from, as far as they are known."""
    owner = frontend.owner
    service = world.services.get(owner.owner)
    port = next(
        (
            one
            for one in (service.ports if service else ())
            if one.name == owner.port and one.protocol is owner.protocol
        ),
        None,
    )
    found = candidates_for(world, owner.owner, port, frontend.key.family) if port else None
    return Subject(dialled, frontend, service, port, found)


def candidates_for(
    world: World, name: objects.ServiceName, port: objects.ServicePort, family: addresses.Family
) -> Candidates:
    """What the slices of a Service have for one of its ports."""
    context = world.context
    return candidates_of(port, world.slices_of(name), family=family, node=context.name, zone=context.zone)


def together(tales: Iterable[Tale]) -> tuple[Tale, ...]:
    """One tale for all who fare alike, in the order of the first of each."""
    found: list[Tale] = []
    for tale in tales:
        for index, other in enumerate(found):
            if _story_of(other) == _story_of(tale):
                found[index] = replace(other, sources=(*other.sources, *tale.sources))
                break
        else:
            found.append(tale)
    return tuple(found)


def _story_of(tale: Tale) -> object:
    return (tale.fate, tale.reason, tale.shares, tale.notes, tale.kernel)


def _compared(world: World, tale: Tale, dialled: Dialled, records: Mapping[bytes, bytes] | None = None) -> Tale:
    if world.settings.mode is not settings.Mode.NFTABLES:
        return tale
    found = comparison.compared(world, tale.sources[0], dialled, tale.possibilities, records)
    if found is None or (world.kernel_only and not found.differences):
        return tale  # there is nothing to compare the kernel's rules with but themselves
    return replace(tale, kernel=found.differences, actual=found.possibilities)


def _candidates(world: World, subject: Subject, tales: Iterable[Tale]) -> tuple[Candidate, ...]:
    """Every endpoint of the Service port, as it is to these clients."""
    if subject.found is None or subject.port is None:
        return ()
    told = list(tales)
    used = frozenset(share.endpoint for tale in told for share in tale.shares)
    sources = [source for tale in told for source in tale.sources]
    return judged(
        subject.found,
        subject.port,
        used,
        local_only=telling.local_only(world, subject, sources),
        let_in=any(tale.reason.cause is not Cause.SOURCE_RANGES for tale in told),
        node=world.context.name,
        zone=world.context.zone,
    )


def _owner_words(owner: frontends.ServicePortName) -> str:
    return f"{owner.owner}, port {owner.port}" if owner.port else str(owner.owner)


def _part_notes(world: World, frontend: frontends.Frontend, found: Candidates | None) -> tuple[str, ...]:
    notes = [
        f"{conflict.loser.owner.owner} claims it too and goes without: {conflict.winner.owner.owner} is "
        f"{_seniority_words(conflict.winner, conflict.loser)}"
        for conflict in world.conflicts
        if conflict.key == frontend.key
    ]
    if frontend.kind is frontends.FrontendKind.NODE_PORT:
        family = frontend.key.family
        notes.append(f"node ports answer on these addresses of this node: {node_ports.accepting_words(world, family)}")
    if found and found.foreign and found.merged:
        notes.append(f"{found.foreign} endpoints of the other IP family are not listed")
    return tuple(notes)


def _seniority_words(winner: frontends.Frontend, loser: frontends.Frontend) -> str:
    if winner.created == loser.created:
        return "as old, and comes first by name"
    return f"older ({remedies.age_words(winner.created)}; the other one {remedies.age_words(loser.created)})"


def conflict_words(winner: frontends.Frontend, loser: frontends.Frontend) -> str:
    """Why a Service does without a frontend that it claims."""
    return (
        f"{loser.key} is served for {winner.owner} instead: two Services claim it, and {winner.owner.owner} is "
        f"{_seniority_words(winner, loser)}"
    )


def _source_remarks(world: World, sources: Iterable[Source]) -> tuple[str, ...]:
    """A pod that this node does not take for one."""
    found: list[str] = []
    for source in sources:
        rules = world.rules[addresses.family_of(source.address)]
        told_by_address = isinstance(rules.local_pods, nodes.SourcePrefix)
        if source.kind is SourceKind.POD and told_by_address and not counts_as_pod(source, rules):
            assert isinstance(rules.local_pods, nodes.SourcePrefix)
            found.append(
                f"{addresses.format_address(source.address)} is not in {rules.local_pods.prefix}, by which this node "
                "tells pods from others: it is treated like a client from outside"
            )
        if source.kind is SourceKind.OUTSIDE and counts_as_pod(source, rules):
            found.append(f"{addresses.format_address(source.address)} is taken for a pod by its address")
    return tuple(found)
