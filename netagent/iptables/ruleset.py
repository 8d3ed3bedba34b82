"""The ruleset as data: chains of ours with their rules, and the jumps to them from the built-in chains.

A rule is the text that `iptables-save` prints for it, behind "-A CHAIN ". So desired and actual are compared as text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from netagent.model import addresses


class ChainName(NamedTuple):
    """A chain of ours: the table that it is in ("nat", "filter"), and its name."""

    table: str
    chain: str


Rules = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule of ours in a built-in chain. `first`: it stands before everybody else's rules, else behind them."""

    table: str
    chain: str
    rule: str
    first: bool


@dataclass(slots=True)
class Ruleset:
    """What is ours in one family. Mutable, single-threaded."""

    family: addresses.Family
    chains: dict[ChainName, Rules] = field(default_factory=dict)
    jumps: tuple[Jump, ...] = ()
