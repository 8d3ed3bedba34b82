"""The way of a packet rule by rule, for people who know netfilter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from netagent.model import addresses
from netagent.nftables import layout, text, walk

_SPECS = layout.sets(affinity_clients=1)


def lines(possibilities: Sequence[walk.Possibility], family: addresses.Family) -> Iterator[str]:
    """Each rule that the packet came by, in order, with the elements that it looked up.

    `+` stands before a rule that was carried out to its end, `-` before one that did not apply. Of several ways the
    first is shown: the others differ in the numbers drawn at random.
    """
    if not possibilities:
        return
    count = len(possibilities)
    chance = possibilities[0].probability
    yield "rule by rule" + (f" (1 of {count} ways, with chance {chance})" if count > 1 else "") + ":"
    place = ""
    for step in possibilities[0].outcome.steps:
        here = f"{step.point.value}, chain {step.chain}"
        if here != place:
            yield f"  {here}"
            place = here
        yield from (f"    {line}" for line in _step_lines(step, family))


def _step_lines(step: walk.Step, family: addresses.Family) -> Iterator[str]:
    if not step.rule:
        yield f"? rule {step.index + 1}: not one of netagent's"
        return
    mark = "+" if step.ended_by is None else "-"
    yield f"{mark} rule {step.index + 1}: {text.rule_text(step.rule, family)}"
    for probe in step.probes:
        yield f"      {_probe_text(probe, family)}"


def _probe_text(probe: walk.Probe, family: addresses.Family) -> str:
    spec = _SPECS.get(probe.set)
    if spec is None:
        return f"{probe.set}: looked up"
    if probe.element is None:
        # Where elements are ranges, text knows keys of two halves alone.
        key = probe.key + probe.key if spec.intervals else probe.key
        return f"{probe.set}: has no {text.key_text(spec, family, key)}"
    return f"{probe.set}: {text.element(spec, family, probe.element, probe.value)}"
