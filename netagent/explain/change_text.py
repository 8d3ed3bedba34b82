"""What a change would do, as lines for people, and as plain data for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from netagent import conntrack
from netagent.explain import change, parts, remedies
from netagent.model import addresses
from netagent.plan import forwarding, frontends

# Of what may be very much, in text; JSON has all of it.
_OPERATION_LINES = 100
_FRONTENDS = 50
_ENDPOINTS = 20


def lines(effect: change.Effect, *, set_aside: Sequence[str], notes: Sequence[str]) -> Iterator[str]:
    """An effect for people."""
    for title, block in (
        ("", _rule_lines(effect)),
        ("What clients would notice:", _client_lines(effect.changes)),
        ("Conflicts that would come:", _conflict_lines(effect.made)),
        ("Conflicts that would be solved:", _conflict_lines(effect.solved)),
        ("Objects that would be set aside (what was there before stays in force):", (f"  {one}" for one in set_aside)),
        ("Established flows that would be dropped, for their next packet to find an endpoint:", _flow_lines(effect)),
        ("To be known:", (f"  {note}" for note in notes)),
    ):
        found = list(block)
        if found:
            if title:
                yield ""
                yield title
            yield from found


def _rule_lines(effect: change.Effect) -> Iterator[str]:
    if not effect.operations:
        yield "no operation in the kernel: the rules would stay as they are"
        return
    yield f"{effect.operations} operations in the kernel"
    yield from (f"  {line}" for line in effect.lines[:_OPERATION_LINES])
    if len(effect.lines) > _OPERATION_LINES:
        yield f"  and {len(effect.lines) - _OPERATION_LINES} lines more: -o json has all"


def _client_lines(changes: Sequence[conntrack.FrontendChange]) -> Iterator[str]:
    for one in changes[:_FRONTENDS]:
        yield f"  {_sign(one)} {one.key}  {_owner(one)}"
        before, after = change.deed_of(one.before), change.deed_of(one.after)
        if before == after:
            yield f"      as before: {after}"
        else:
            yield f"      before: {before}"
            yield f"      after:  {after}"
        for found in change.lists_of(one):
            yield f"      {found.clients}:"
            yield from (f"        {line}" for line in _list_lines(found))
    if len(changes) > _FRONTENDS:
        yield f"  and {len(changes) - _FRONTENDS} frontends more: -o json has all"


def _sign(one: conntrack.FrontendChange) -> str:
    return "+" if one.before is None else "-" if one.after is None else "~"


def _owner(one: conntrack.FrontendChange) -> str:
    before, after = one.before, one.after
    if before and after and before.owner != after.owner:
        return f"{before.owner} -> {after.owner}, {remedies.kind_words(after)}"
    held = after or before
    assert held is not None
    return f"{held.owner}, {remedies.kind_words(held)}"


def _list_lines(found: change.ListChange) -> Iterator[str]:
    keys = sorted(found.endpoints(), key=lambda key: (key in found.before and key in found.after, key))
    shown = keys[:_ENDPOINTS]
    width = max((len(addresses.format_endpoint(key)) for key in shown), default=0)
    for key in shown:
        before, after = found.before.get(key, Fraction(0)), found.after.get(key, Fraction(0))
        sign = "+" if not before else "-" if not after else " "
        yield f"{sign} {addresses.format_endpoint(key).ljust(width)}  {before} -> {after}"
    if len(keys) > _ENDPOINTS:
        yield f"  and {len(keys) - _ENDPOINTS} endpoints more: -o json has all"


def _conflict_lines(conflicts: Sequence[forwarding.Conflict]) -> Iterator[str]:
    for one in conflicts:
        yield f"  {parts.conflict_words(one.winner, one.loser)}"


def _flow_lines(effect: change.Effect) -> Iterator[str]:
    gone = {one.key: one for one in effect.changes}
    for rule in effect.stale:
        yield f"  {rule.key}: {_stale_words(gone.get(rule.key), rule)}"


def _stale_words(one: conntrack.FrontendChange | None, rule: conntrack.StaleFlows) -> str:
    before = set(one.before.serving_endpoints) if one and one.before else set()
    lost = sorted(before - rule.allowed_sources)
    if lost:
        shown = remedies.listed(list(map(addresses.format_endpoint, lost)))
        return f"those whose endpoint is {shown}"
    return "those that were sent on without an endpoint"


# For programs ---------------------------------------------------------------------------------------------------


def document(effect: change.Effect, *, set_aside: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    """An effect as plain data."""
    gone = {one.key: one for one in effect.changes}
    return {
        "changes": bool(effect or set_aside),
        "operations": effect.operations,
        "rules": list(effect.lines),
        "frontends": [_frontend(one) for one in effect.changes],
        "conflictsMade": [_conflict(one) for one in effect.made],
        "conflictsSolved": [_conflict(one) for one in effect.solved],
        "setAside": list(set_aside),
        "flowsDropped": [
            {
                "frontend": str(rule.key),
                "which": _stale_words(gone.get(rule.key), rule),
                "kept": sorted(map(addresses.format_endpoint, rule.allowed_sources)),
            }
            for rule in effect.stale
        ],
        "notes": list(notes),
    }


def _frontend(one: conntrack.FrontendChange) -> dict[str, Any]:
    return {
        "frontend": str(one.key),
        "change": {"+": "added", "-": "removed", "~": "changed"}[_sign(one)],
        "before": _state(one.before),
        "after": _state(one.after),
        "distribution": [
            {
                "clients": found.clients,
                "endpoints": [
                    {
                        "endpoint": addresses.format_endpoint(key),
                        "before": str(found.before.get(key, Fraction(0))),
                        "after": str(found.after.get(key, Fraction(0))),
                    }
                    for key in found.endpoints()
                ],
            }
            for found in change.lists_of(one)
        ],
    }


def _state(frontend: frontends.Frontend | None) -> dict[str, Any] | None:
    if frontend is None:
        return None
    return {
        "service": str(frontend.owner),
        "kind": frontend.kind.value,
        "verdict": frontend.verdict.value,
        "does": change.deed_of(frontend),
    }


def _conflict(conflict: forwarding.Conflict) -> dict[str, str]:
    return {
        "frontend": str(conflict.key),
        "winner": str(conflict.winner.owner),
        "loser": str(conflict.loser.owner),
    }
