"""What our rules would do with a packet of a flow, played without the kernel, in the words of a trace. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from netagent.model import addresses
from netagent.nftables import ruleset, text, walk
from netagent.trace import words
from netagent.trace.flow import Flow

_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the rules. `said` has the chain and the words of each rule that held, with the elements that it
    held by where they do not depend on chance. `endpoints` are those that it can end at, with their probabilities."""

    probability: Fraction
    said: tuple[tuple[str, str, tuple[str, ...]], ...]
    outcome: str
    endpoints: tuple[tuple[str, Fraction], ...] = ()

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{_percent(self.probability)} of new connections:"
        for chain, said, elements in self.said:
            yield f"  {chain}: {said}"
            yield from (f"      by {element}" for element in elements)
        yield f"  => {self.outcome}"
        for endpoint, probability in self.endpoints[:_SHOWN]:
            yield f"     {_percent(probability):>7}  {endpoint}"
        if len(self.endpoints) > _SHOWN:
            yield f"     and {len(self.endpoints) - _SHOWN} more endpoints"

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "probability": float(self.probability),
            "outcome": self.outcome,
            "endpoints": [{"endpoint": endpoint, "probability": float(share)} for endpoint, share in self.endpoints],
            "steps": [
                {"chain": chain, "said": said, "elements": list(elements)} for chain, said, elements in self.said
            ],
        }


def ways(table: ruleset.Table, flow: Flow, host: walk.Host, *, source: bytes, input_interface: str) -> list[Way]:
    """All ways of the first packet of a connection, the most probable first. `input_interface` "" is from this host."""
    packet = walk.Packet(source, flow.destination, flow.protocol, flow.port, input_interface=input_interface)
    grouped: dict[tuple[object, ...], list[walk.Possibility]] = {}
    for possibility in walk.outcomes(table, packet, host):
        outcome = possibility.outcome
        held = tuple((step.chain, step.index) for step in _held(outcome))
        key = (held, outcome.result.fate, outcome.result.masquerade)
        grouped.setdefault(key, []).append(possibility)
    found = [_way(table, possibilities) for possibilities in grouped.values()]
    return sorted(found, key=lambda way: (-way.probability, way.outcome, way.said))


def _held(outcome: walk.Outcome) -> list[walk.Step]:
    """The rules that were carried out to their ends, as the kernel traces them. An empty one is not ours."""
    return [step for step in outcome.steps if step.ended_by is None and step.rule]


def _way(table: ruleset.Table, possibilities: list[walk.Possibility]) -> Way:
    first = possibilities[0].outcome
    alike = [step.probes for step in _held(first)]
    for possibility in possibilities[1:]:
        for index, step in enumerate(_held(possibility.outcome)):
            alike[index] = tuple(probe for probe in alike[index] if probe in step.probes)
    said = tuple(
        (step.chain, words.of_rule(step.rule), tuple(_elements(table, probes)))
        for step, probes in zip(_held(first), alike, strict=True)
    )
    shares: dict[str, Fraction] = {}
    for probability, outcome in possibilities:
        if outcome.result.endpoint is not None:
            endpoint = addresses.format_endpoint(outcome.result.endpoint)
            shares[endpoint] = shares.get(endpoint, Fraction(0)) + probability
    result = first.result
    suffix = ", with this host's address as source" if result.masquerade else ""
    total = sum((possibility.probability for possibility in possibilities), Fraction(0))
    return Way(total, said, f"{result.fate.value}{suffix}", tuple(sorted(shares.items())))


def _elements(table: ruleset.Table, probes: tuple[walk.Probe, ...]) -> Iterator[str]:
    for probe in probes:
        spec = table.sets[probe.set]
        if probe.element is not None:
            yield f"{probe.set} {{ {text.element(spec, table.family, probe.element, probe.value)} }}"


def _percent(share: Fraction) -> str:
    return f"{float(share) * 100:.4g} %"
