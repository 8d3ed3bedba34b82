"""The choice of one of n endpoints by `statistic` rules, each with the same probability. Pure.

A chain is a list of steps. A step is taken with some probability, and leads to an endpoint or to a chain with a block
of endpoints; the last step of a chain is always taken. A packet meets at most 2 + log2(n) steps.

The kernel holds probabilities in units of 2^-31, so a half is exact and a third is not.

* A power of two is halved at every step: exactly equal.
* Other numbers from 16 on: blocks of powers of two in the order of their size, as in the binary number. Inside the
  blocks all is exact, and those that stay have the same chains when endpoints come and go at the end.
* Below 16, the fewest rules: an endpoint takes one, a block one more, so the fewest blocks that 2 + log2(n) allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

UNITS = 1 << 31  # linux/netfilter/xt_statistic.h: 31 bits of a random number are compared
# From so many endpoints on, blocks lie as in the binary number.
MANY = 16


class Block(NamedTuple):
    """Endpoints `offset` to `offset + size - 1` of a list."""

    offset: int
    size: int


class Step(NamedTuple):
    """Where to, and with which probability in UNITS (None: always). An endpoint is a block of size 1."""

    units: int | None
    to: Block


Chains = dict[Block, tuple[Step, ...]]


@lru_cache(maxsize=1024)
def chains(count: int) -> Chains:
    """The chains that choose one of `count` endpoints; the first one, of all endpoints, is where to start."""
    result: Chains = {}
    whole = Block(0, count)
    exact = count >= MANY or _is_power(count)
    waiting = [(whole, limit(count))]
    while waiting:
        block, budget = waiting.pop()
        steps = list(_steps(block, budget, exact=exact))
        result[block] = tuple(step for step, _ in steps)
        waiting += ((step.to, left) for step, left in reversed(steps) if step.to.size > 1)
    return result


def limit(count: int) -> int:
    """How many steps the choice of one of `count` endpoints may take."""
    return count.bit_length() + 1


def probability(units: int) -> str:
    """A probability as iptables-save prints it. iptables reads the same units out of it."""
    return f"{units / UNITS:.11f}"


def _steps(block: Block, budget: int, *, exact: bool) -> Iterator[tuple[Step, int]]:
    """The steps of a block's chain, each with the number of steps that may follow it."""
    offset, left = block
    while left > 1:
        if exact and _is_power(left):
            size = left // 2
        elif left >= MANY:
            size = 1 << (left - 1).bit_length() - 1
        else:
            size = _cheapest(left, budget)[2]
        budget -= 1
        yield Step(round(UNITS * size / left), Block(offset, size)), budget
        offset += size
        left -= size
    yield Step(None, Block(offset, 1)), 0


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0


@lru_cache(maxsize=256)
def _cheapest(count: int, budget: int) -> tuple[int, int, int]:
    """Fewest blocks for the choice of one of a few within a budget of steps, the steps to all endpoints added up, and
    the size of what the first step leads to."""
    if count == 1:
        return 0, 1, 1
    best: tuple[int, int, int] | None = None
    for size in range(1, count):
        if count - size > 1 << budget - 2 or size > 1 << budget - 2:
            continue
        if size == 1:
            inner_blocks, inner_steps = -1, 0
        else:
            inner_blocks, inner_steps, _ = _cheapest(size, budget - 1)
        rest_blocks, rest_steps, _ = _cheapest(count - size, budget - 1)
        cost = (1 + inner_blocks + rest_blocks, count + inner_steps + rest_steps, size)
        best = min(best, cost) if best else cost
    assert best, f"{count} endpoints in {budget} steps"
    return best
