"""What a case expects against what happened, as sentences. No I/O."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from . import layout as layouts
from .clients import Fate, Outcome


def describe(flow: layouts.Flow) -> str:
    """A flow in a few words."""
    source = f"{flow['from'].partition(':')[0]} {flow['src']}"
    address = layouts.canonical(flow["dst"])
    target = address if flow["proto"] == "icmp" else layouts.join_socket(address, layouts.port_of(flow))
    return f"{source} -> {flow['proto']} {target}"


def expectation(flow: layouts.Flow, mode: str) -> dict[str, Any]:
    """What a flow expects of a backend."""
    by_mode: dict[str, Any] = flow.get("expect_by_mode") or {}
    chosen: dict[str, Any] = by_mode.get(mode) or flow["expect"]
    return chosen


def describe_expectation(expect: dict[str, Any]) -> str:
    """An expectation in a few words."""
    if expect["result"] not in ("endpoints", "alive"):
        return str(expect["result"])
    words = f"{expect['result']} {expect.get('endpoints')}"
    return f"{words} masquerade {expect['masquerade']}" if "masquerade" in expect else words


def wrong(flow: layouts.Flow, expect: dict[str, Any], outcome: Outcome, layout: layouts.Layout, *, source: str) -> str:
    """Return what is wrong with one attempt from `source`; "" when it is as expected."""
    from_host = layouts.client_place(flow) is layouts.Place.NODE
    match expect["result"]:
        case "endpoints":
            return _wrong_delivery(expect, outcome, layout, source)
        case "alive":
            return _wrong_delivery({"endpoints": expect.get("endpoints")}, outcome, layout, source)
        case "reject":
            allowed = {Fate.REFUSED, Fate.DENIED} if from_host and flow["proto"] != "tcp" else {Fate.REFUSED}
            return "" if outcome.fate in allowed else str(outcome)
        case "drop":
            allowed = {Fate.SILENT, Fate.DENIED} if from_host and flow["proto"] != "tcp" else {Fate.SILENT}
            return "" if outcome.fate in allowed else str(outcome)
        case "passthrough":
            return _wrong_passage(flow, outcome, source)
        case other:
            return f"the case expects {other!r}, which this runner does not know"


def _wrong_delivery(expect: dict[str, Any], outcome: Outcome, layout: layouts.Layout, source: str) -> str:
    if outcome.arrival is None:
        return str(outcome)
    listed = expect.get("endpoints")
    masquerade = expect.get("masquerade")
    reached = outcome.arrival.local
    if listed is not None and reached not in {layouts.split_socket(text) for text in listed}:
        return str(outcome)
    if isinstance(masquerade, dict):
        by_endpoint = {layouts.split_socket(text): wanted for text, wanted in masquerade.items()}
        masquerade = by_endpoint.get(reached)
    own = layout.masquerade_address(reached[0])
    if masquerade is None or own is None or own == source:
        return ""
    wanted = own if masquerade else source
    if outcome.arrival.peer[0] != wanted:
        return f"{outcome} instead of {wanted} (masquerade {masquerade})"
    return ""


def _wrong_passage(flow: layouts.Flow, outcome: Outcome, source: str) -> str:
    if outcome.arrival is None:
        return str(outcome)
    expected = layouts.canonical(flow["dst"]), layouts.port_of(flow) if flow["proto"] != "icmp" else 0
    if outcome.arrival.local != expected:
        return f"{outcome}: the destination was rewritten"
    if outcome.arrival.peer != (source, outcome.source[1]):
        return f"{outcome}: the source was rewritten"
    return ""


def uneven(flow: layouts.Flow, expect: dict[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    """Return which endpoints had less than their share of all attempts of a flow (covers_all, min_share)."""
    seen = collections.Counter(outcome.arrival.local for outcome in outcomes if outcome.arrival)
    problems = []
    if flow.get("covers_all") or "min_share" in flow:
        least = float(flow.get("min_share") or 0) * len(outcomes)
        for text in expect.get("endpoints") or ():
            count = seen[layouts.split_socket(text)]
            if count == 0 or count < least:
                problems.append(
                    f"{text} got {count} of {len(outcomes)} connections, at least {max(1, least):g} expected"
                )
    return problems


def wrong_together(flow: layouts.Flow, outcomes: Sequence[Outcome], sources: Sequence[str]) -> list[str]:
    """Return what is wrong with all attempts of a flow taken together (sticky ...).

    `sources` are the clients' addresses, one for each outcome.
    """
    reached = [outcome.arrival.local if outcome.arrival else None for outcome in outcomes]
    seen = collections.Counter(endpoint for endpoint in reached if endpoint is not None)
    problems = []
    if flow.get("sticky") and len(seen) > 1:
        problems.append(f"not sticky: {_shares(seen)}")
    if flow.get("sticky_per_source"):
        for source in dict.fromkeys(sources):
            own = collections.Counter(
                endpoint for endpoint, client in zip(reached, sources, strict=True) if client == source and endpoint
            )
            if len(own) > 1:
                problems.append(f"not sticky for {source}: {_shares(own)}")
    if flow.get("expect_source_preserved"):
        for outcome, source in zip(outcomes, sources, strict=True):
            if outcome.arrival and outcome.arrival.peer[0] != source:
                problems.append(f"source {source} not preserved: {outcome}")
    return problems


def _shares(seen: collections.Counter[tuple[str, int]]) -> str:
    return ", ".join(f"{layouts.join_socket(*endpoint)} {count} times" for endpoint, count in sorted(seen.items()))


def patience(expect: dict[str, Any], *, silence: float, answer: float) -> float:
    """Seconds to wait for an answer: short where silence is expected, long where an answer is."""
    return silence if expect["result"] == "drop" else answer
