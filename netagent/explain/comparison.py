"""The same packet in the rules that should be and in those that the kernel holds: what differs for its client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from netagent import errors
from netagent.explain.story import Dialled, Source
from netagent.explain.world import World, packet_of
from netagent.model import addresses
from netagent.nftables import layout, ruleset, walk

_DEEDS = {
    walk.Fate.ENDPOINT: "is sent to an endpoint",
    walk.Fate.RESET: "is refused",
    walk.Fate.UNREACHABLE: "is refused",
    walk.Fate.DROPPED: "is dropped",
    walk.Fate.UNTOUCHED: "is left alone",
}
# Of one difference; a Service may have thousands of endpoints.
_MOST = 8

_Results = dict[tuple[walk.Fate, bytes | None, bool], Fraction]


class Comparison(NamedTuple):
    """What the kernel's rules do otherwise, in words (empty: nothing), and their walk as far as it can be followed."""

    differences: tuple[str, ...]
    possibilities: tuple[walk.Possibility, ...] = ()


def compared(
    world: World,
    source: Source,
    dialled: Dialled,
    desired: Sequence[walk.Possibility],
    records: Mapping[bytes, bytes] | None = None,
) -> Comparison | None:
    """What the kernel's rules do with the same new connection; None if that is unknown."""
    if world.actual is None:
        return None
    family = dialled.family
    actual = world.actual.get(family)
    if actual is None:
        return Comparison((f"the kernel has no rules of netagent for {family.value}: nothing of this is in force",))
    packet = packet_of(source, dialled, world.rules[family])
    try:
        found = walk.outcomes(actual.table, packet, world.host, records=records)
    except errors.InvariantError as error:
        return Comparison((f"the kernel's rules cannot be followed: {error}",))
    said = [*_strange(found, frozenset(actual.strange)), *_results(_odds(desired), _odds(found))]
    wanted, has = owner_of(desired), owner_of(found)
    if wanted != has and has and wanted:
        said.append(f"in the kernel it belongs to {has}, not to {wanted}")
    return Comparison(tuple(said), tuple(found))


def owner_of(possibilities: Sequence[walk.Possibility]) -> str:
    """The Service port whose element the packet met, by the comment of the element; "" if it met none."""
    probe = frontend_probe(possibilities)
    return probe.value.owner if probe and isinstance(probe.value, ruleset.Owned) else ""


def frontend_probe(possibilities: Sequence[walk.Possibility]) -> walk.Probe | None:
    """The look-up that found the frontend that was dialled; None if there was none."""
    for step in possibilities[0].outcome.steps:
        for probe in step.probes:
            if probe.set in (layout.FRONTENDS, layout.NODEPORTS) and probe.element is not None:
                return probe
    return None


def _strange(found: Iterable[walk.Possibility], strange: frozenset[tuple[str, int]]) -> list[str]:
    met = {(step.chain, step.index) for _, outcome in found for step in outcome.steps} & strange
    return [
        f"the kernel has a rule there that netagent did not write (chain {chain}, number {index + 1}): what it does is "
        "not known here"
        for chain, index in sorted(met)
    ]


def _odds(possibilities: Iterable[walk.Possibility]) -> _Results:
    total: _Results = {}
    for result, probability in walk.odds(possibilities).items():
        key = (result.fate, result.endpoint, result.masquerade)
        total[key] = total.get(key, Fraction(0)) + probability
    return total


def _results(wanted: _Results, found: _Results) -> list[str]:
    if wanted == found:
        return []
    fates_wanted, fates_found = {key[0] for key in wanted}, {key[0] for key in found}
    if fates_wanted != fates_found:
        should = " or ".join(sorted({_DEEDS[fate] for fate in fates_wanted}))
        does = " or ".join(sorted({_DEEDS[fate] for fate in fates_found}))
        return [f"in the kernel the connection {does}; it should be that it {should}"]
    endpoints_wanted = {key[1] for key in wanted if key[1]}
    endpoints_found = {key[1] for key in found if key[1]}
    said = []
    if missing := endpoints_wanted - endpoints_found:
        said.append(f"the kernel does not use {_endpoints(missing)}")
    if surplus := endpoints_found - endpoints_wanted:
        said.append(f"the kernel also uses {_endpoints(surplus)}")
    if not said and {key[1:] for key in wanted} != {key[1:] for key in found}:
        said.append("in the kernel, the endpoints see another source address than they should")
    return said or ["in the kernel, the chances of the endpoints differ"]


def _endpoints(keys: set[bytes]) -> str:
    shown = list(map(addresses.format_endpoint, sorted(keys)))
    more = f" and {len(shown) - _MOST} more" if len(shown) > _MOST else ""
    return ", ".join(shown[:_MOST]) + more
