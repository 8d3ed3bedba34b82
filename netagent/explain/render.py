"""A story as lines for people, and as plain data for programs. Sorted: the same story gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from netagent.explain import remedies, steps, stories
from netagent.explain.story import Candidate, Fate, Part, Reason, Share, Source, SourceKind, Story, Tale
from netagent.model import addresses

# A Service may have thousands of endpoints; whoever wants all of them takes JSON.
_LINES = 50

_FATE_WORDS = {
    Fate.REFUSED: 'REFUSED: the client is told at once ("connection refused")',
    Fate.DROPPED: "DROPPED in silence: the client waits until it gives up",
    Fate.UNHANDLED: "NOT HANDLED: netagent leaves the connection alone, it goes where the host's routes lead",
}


def lines(story: Story, *, with_rules: bool = False) -> Iterator[str]:
    """A story for people. `with_rules` adds each rule that the packet meets, for those who know netfilter."""
    blocks = [_head_lines(story)]
    told: set[Reason] = set()
    for index, part in enumerate(story.parts):
        following = story.parts[index + 1].candidates if index + 1 < len(story.parts) else ()
        blocks.append(_part_lines(part, told, with_rules=with_rules, candidates=part.candidates != following))
    if story.notes:
        blocks.append(iter(("Beside:", *(f"  - {note}" for note in story.notes))))
    compared = [tale.kernel for part in story.parts for tale in part.tales]
    if compared and all(differences == () for differences in compared):
        blocks.append(iter(("The rules that the kernel holds do the same.",)))
    first = True
    for block in blocks:
        for number, line in enumerate(block):
            if number == 0 and not first:
                yield ""
            first = False
            yield line


def _head_lines(story: Story) -> Iterator[str]:
    if story.headline:
        yield story.headline + (f"  [{story.reason.cause}]" if story.reason else "")
    if story.reason:
        yield from _reason_lines(story.reason, "  ")
    if len(story.parts) > 1:
        yield from (f"  {line}" for line in _in_short(story.parts))


def _in_short(parts: Sequence[Part]) -> Iterator[str]:
    """A line for each way in which clients fare, with the addresses that are dialled."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for words in _fates_of(part):
            found.setdefault(words, []).append(dialled_words(part))
    for words, dialled in found.items():
        yield f"{words}: {remedies.listed(dialled)}"


def _fates_of(part: Part) -> list[str]:
    if part.reason:
        return [f"not here ({part.reason.cause.value})"]
    refusals = [tale for tale in part.tales if tale.fate is not Fate.SERVED]
    if not refusals:
        return [Fate.SERVED.value]
    whom = "for all clients" if len(refusals) == len(part.tales) else "for some clients"
    return list(dict.fromkeys(f"{tale.fate.value} {whom} ({tale.reason.cause.value})" for tale in refusals))


def dialled_words(part: Part) -> str:
    """What is dialled; of a node port without an address to dial, the port alone."""
    return str(part.dialled) if any(part.dialled.address) else f"port {part.dialled.port}"


def _part_lines(part: Part, told: set[Reason], *, with_rules: bool, candidates: bool) -> Iterator[str]:
    """`told` are reasons of which it was said before what to change; it grows."""
    shown = dialled_words(part)
    yield (f"{shown}: {part.title}" if part.title else shown) + (f"  [{part.reason.cause}]" if part.reason else "")
    if part.setting:
        yield f"  {'; '.join(part.setting)}"
    if part.reason:
        yield from _reason_lines(part.reason, "  ")
    for tale in part.tales:
        yield from _tale_lines(part, tale, told, with_rules=with_rules)
    if part.candidates and candidates:
        yield from _candidate_lines(part.candidates)
    yield from (f"  - {note}" for note in part.notes)


def _tale_lines(part: Part, tale: Tale, told: set[Reason], *, with_rules: bool) -> Iterator[str]:
    yield f"  from {sources_words(tale.sources)}:"
    if tale.fate is Fate.SERVED:
        yield from _served_lines(part, tale)
    else:
        yield f"    {_FATE_WORDS[tale.fate]}  [{tale.reason.cause}]"
    yield from _reason_lines(tale.reason, "    ", with_change=tale.reason not in told)
    told.add(tale.reason)
    yield from (f"    - {note}" for note in tale.notes)
    for difference in tale.kernel or ():
        yield f"    ! {difference}"
    if tale.kernel:
        yield "    ! `netagent diff` tells all that differs; `netagent sync`, or a running agent, puts it right"
    if with_rules:
        yield from (f"    {line}" for line in _steps(tale, part.dialled.family))


def _steps(tale: Tale, family: addresses.Family) -> Iterator[str]:
    """Rule by rule; the kernel's own rules only where they do otherwise."""
    yield from steps.lines(tale.possibilities, family)
    if tale.kernel:
        yield from (
            f"in the kernel, {line}" if not line.startswith(" ") else line for line in steps.lines(tale.actual, family)
        )


def _served_lines(part: Part, tale: Tale) -> Iterator[str]:
    count = len(tale.shares)
    equal = len({share.probability for share in tale.shares}) == 1
    if count == 1:
        yield "    SERVED by one endpoint:"
    elif equal:
        yield f"    SERVED by one of {count} endpoints, each with the same chance:"
    else:
        yield f"    SERVED by one of {count} endpoints:"
    nodes = {one.key: one.endpoint.node for one in part.candidates if one.used}
    width = max(len(addresses.format_endpoint(share.endpoint)) for share in tale.shares)
    for share in tale.shares[:_LINES]:
        node = nodes.get(share.endpoint)
        where = f"  on {node}" if node else ""
        chance = f"{share.probability!s:>5}  {percent(share.probability):>6}"
        yield f"      {chance}  {addresses.format_endpoint(share.endpoint).ljust(width if where else 0)}{where}"
    yield from _more(count)


def _reason_lines(reason: Reason, indent: str, *, with_change: bool = True) -> Iterator[str]:
    yield from (f"{indent}- {sentence}" for sentence in reason.why)
    if reason.change and with_change:
        yield f"{indent}what to change:"
        for sentence in reason.change:
            yield f"{indent}  {'$' if sentence.startswith(('kubectl ', 'netagent ')) else '-'} {sentence}"


def _candidate_lines(candidates: tuple[Candidate, ...]) -> Iterator[str]:
    used = sum(1 for one in candidates if one.used)
    yield f"  endpoints of the Service port, {used} of {len(candidates)} used:"
    rows = [
        ("used" if one.used else "not used", candidate_address(one), one.endpoint.node or "-", one.reason)
        for one in candidates[:_LINES]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield f"    {'  '.join([*cells, row[3]])}"
    yield from _more(len(candidates))


def _more(count: int) -> Iterator[str]:
    if count > _LINES:
        yield f"    and {count - _LINES} more: -o json has all"


def candidate_address(candidate: Candidate) -> str:
    """The endpoint, without a port if its slice has none for the Service port."""
    if candidate.key is not None:
        return addresses.format_endpoint(candidate.key)
    return addresses.format_address(candidate.endpoint.address)


def sources_words(sources: Iterable[Source]) -> str:
    """Clients for a sentence."""
    return ", ".join(map(_source_words, sources))


def _source_words(source: Source) -> str:
    shown = addresses.format_address(source.address)
    match source.kind:
        case SourceKind.POD:
            return f"a pod ({shown})"
        case SourceKind.NODE:
            return f"this node itself ({shown})"
        case SourceKind.OUTSIDE:
            return f"outside ({shown})"


def percent(probability: Fraction) -> str:
    """A probability in percent."""
    return f"{float(probability * 100):.4g} %"


# For programs ---------------------------------------------------------------------------------------------------


def document(story: Story, *, with_rules: bool = False) -> dict[str, Any]:
    """A story as plain data."""
    return {
        "target": story.target,
        "headline": story.headline,
        "known": story.known,
        "causes": [cause.value for cause in stories.causes(story)],
        "reason": _reason(story.reason) if story.reason else None,
        "parts": [_part(part, with_rules=with_rules) for part in story.parts],
        "notes": list(story.notes),
    }


def _part(part: Part, *, with_rules: bool) -> dict[str, Any]:
    frontend = part.frontend
    owner = frontend.owner if frontend else None
    return {
        "address": addresses.format_address(part.dialled.address) if any(part.dialled.address) else None,
        "port": part.dialled.port,
        "protocol": part.dialled.protocol.name,
        "family": part.dialled.family.value,
        "title": part.title,
        "kind": frontend.kind.value if frontend else None,
        "service": {"namespace": owner.namespace, "name": owner.service, "port": owner.port} if owner else None,
        "setting": list(part.setting),
        "reason": _reason(part.reason) if part.reason else None,
        "clients": [_tale(tale, part.dialled.family, with_rules=with_rules) for tale in part.tales],
        "endpoints": [_candidate(one) for one in part.candidates],
        "notes": list(part.notes),
    }


def _tale(tale: Tale, family: addresses.Family, *, with_rules: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "from": [str(source) for source in tale.sources],
        "fate": tale.fate.value,
        **_reason(tale.reason),
        "notes": list(tale.notes),
        "endpoints": [_share(share) for share in tale.shares],
        "kernelDiffers": None if tale.kernel is None else bool(tale.kernel),
        "kernelDifferences": list(tale.kernel or ()),
    }
    if with_rules:
        result["rules"] = list(_steps(tale, family))
    return result


def _share(share: Share) -> dict[str, Any]:
    return {
        "endpoint": addresses.format_endpoint(share.endpoint),
        "probability": str(share.probability),
        "share": float(share.probability),
        "sourceSeen": "node" if share.masquerade else "client",
    }


def _reason(reason: Reason) -> dict[str, Any]:
    return {"cause": reason.cause.value, "why": list(reason.why), "change": list(reason.change)}


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "endpoint": candidate_address(candidate),
        "node": candidate.endpoint.node,
        "slice": candidate.slice,
        "condition": candidate.condition.value,
        "used": candidate.used,
        "reason": candidate.reason,
    }
