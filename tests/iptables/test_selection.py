"""The choice among endpoints: equal probabilities, few rules, few changes. In fractions, as the kernel computes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import log2

import pytest

from netagent.iptables import names, selection
from netagent.iptables.selection import UNITS, Block

COUNTS = [*range(1, 36), 63, 64, 65, 100, 127, 255, 300, 511, 512, 513, 1000, 1023, 1024, 1025, 4999, 5000]


def leaves(count: int) -> Iterator[tuple[int, Fraction, int, int]]:
    """Every endpoint with its probability, the steps until there, and those of them that rounded."""
    chains = selection.chains(count)

    def walk(block: Block, probability: Fraction, met: int, rounded: int) -> Iterator[tuple[int, Fraction, int, int]]:
        left = block.size
        for units, to in chains[block]:
            met += 1
            share = Fraction(1) if units is None else Fraction(units, UNITS)
            rounded += share != Fraction(to.size, left)
            if to.size == 1:
                yield to.offset, probability * share, met, rounded
            else:
                yield from walk(to, probability * share, met, rounded)
            probability *= 1 - share
            left -= to.size
        assert left == 0
        assert probability == 0

    yield from walk(Block(0, count), Fraction(1), 0, 0)


@pytest.mark.parametrize("count", COUNTS)
def test_every_endpoint_has_the_same_probability(count: int) -> None:
    found = list(leaves(count))
    assert sorted(offset for offset, _, _, _ in found) == list(range(count))
    for _, probability, _, rounded in found:
        # A probability is off by half a unit at most, wherever it cannot be exact.
        assert abs(probability - Fraction(1, count)) <= Fraction(rounded, 2 * UNITS)


@pytest.mark.parametrize("count", [1 << power for power in range(13)])
def test_a_power_of_two_is_chosen_from_exactly(count: int) -> None:
    assert {probability for _, probability, _, _ in leaves(count)} == {Fraction(1, count)}


@pytest.mark.parametrize("count", [17, 24, 100, 1000, 5000])
def test_among_many_only_the_choice_of_the_block_rounds(count: int) -> None:
    for block, steps in selection.chains(count).items():
        if block.size < count and block.size & (block.size - 1) == 0:
            left = block.size
            for units, to in steps:
                assert units is None or Fraction(units, UNITS) == Fraction(to.size, left)
                left -= to.size


@pytest.mark.parametrize("count", COUNTS)
def test_no_more_rules_are_met_than_two_and_the_logarithm(count: int) -> None:
    assert max(met for _, _, met, _ in leaves(count)) <= min(2 + log2(count), selection.limit(count))


def test_ten_endpoints_take_twelve_rules() -> None:
    assert sum(map(len, selection.chains(10).values())) == 12


@pytest.mark.parametrize("count", COUNTS)
def test_rules_are_at_most_half_as_many_more_than_endpoints(count: int) -> None:
    assert sum(map(len, selection.chains(count).values())) <= max(count * 1.5, count + 1)


@pytest.mark.parametrize("count", [20, 100, 1000, 5000])
def test_one_endpoint_more_at_the_end_changes_few_chains(count: int) -> None:
    before, after = selection.chains(count), selection.chains(count + 1)
    differing = [block for block in before.keys() | after.keys() if before.get(block) != after.get(block)]
    assert len(differing) <= 8


@pytest.mark.parametrize("count", COUNTS)
def test_iptables_reads_the_units_that_are_meant_and_prints_the_same_text(count: int) -> None:
    for steps in selection.chains(count).values():
        for units, _ in steps:
            if units is not None:
                text = selection.probability(units)
                # libxt_statistic.c: lround(0x80000000 * p), and "%.11f"
                assert round(UNITS * float(text)) == units
                assert len(text) == 13
                assert 0 < units < UNITS


@pytest.mark.parametrize("count", COUNTS)
def test_the_name_of_a_block_is_short_and_tells_the_block(count: int) -> None:
    for block in selection.chains(count):
        suffix = names.block_suffix(*block)
        assert len(suffix) <= 5
        if block.size < count:
            assert names.block_of(suffix) == block
