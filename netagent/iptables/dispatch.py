"""Trees of chains that find one key among thousands: which of our frontends a packet is for, whether an address is a
cluster IP, whether a source is an endpoint. Pure.

A key is a number whose bits a packet can be tested for from the left: address, then protocol, then port (either part
may be missing). A prefix of it is one rule: "-d 10.96.0.0/13", or "-d 10.96.0.10/32 -p tcp -m tcp --dport 0:32767".

A chain splits its keys at the prefix, nearest to the root, that holds between one third and two thirds of them (there
always is one): they go to a chain of their own, and the chain goes on with the others, until few are left. So every
rule that is met leaves at most two thirds of the keys in question, however they lie: 10,000 keys take 26 rules at most
(log 3/2 of n/8, plus 8), and 18 when they lie evenly. Which prefix it is depends on the keys alone, not on how they
came, and seldom changes when one comes or goes.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from netagent.iptables import names, ruleset
from netagent.model import addresses

# Keys that are tested one by one at the end. Fewer make more chains.
LEAF_KEYS = 8

_PORT_BITS = 16
_PROTOCOL_BITS = 2
# TCP differs from the two others in the first bit, because one rule can ask for a protocol or for any other.
_PROTOCOL_NUMBERS = {addresses.Protocol.TCP: 0b00, addresses.Protocol.UDP: 0b10, addresses.Protocol.SCTP: 0b11}
_PROTOCOL_PREFIXES = {
    (0b0, 1): "-p tcp",
    (0b1, 1): "! -p tcp",
    (0b00, 2): "-p tcp",
    (0b10, 2): "-p udp",
    (0b11, 2): "-p sctp",
}


class Side(enum.StrEnum):
    """The address of a packet that is tested, as iptables spells it."""

    SOURCE = "-s"
    DESTINATION = "-d"


class Space(NamedTuple):
    """What keys are made of: `address_bits` (0: no address), and protocol and port if `ports`."""

    address_bits: int
    ports: bool
    side: Side = Side.DESTINATION

    @property
    def width(self) -> int:
        """Bits of a key."""
        return self.address_bits + (_PROTOCOL_BITS + _PORT_BITS if self.ports else 0)


class Prefix(NamedTuple):
    """The keys that begin with `length` bits of value `bits`."""

    bits: int
    length: int

    def holds(self, other: Prefix) -> bool:
        """Whether all keys of the other prefix begin with this one."""
        return other.length >= self.length and other.bits >> (other.length - self.length) == self.bits


EVERYTHING = Prefix(0, 0)


def address_key(address: bytes) -> int:
    """The key of an address alone."""
    return int.from_bytes(address)


def port_key(address: bytes, protocol: addresses.Protocol, port: int) -> int:
    """The key of an address (b"": of none), a protocol and a port."""
    return (int.from_bytes(address) << 2 | _PROTOCOL_NUMBERS[protocol]) << _PORT_BITS | port


def matches(space: Space, prefix: Prefix) -> str:
    """The matches of a rule for all packets of a prefix, as iptables-save prints them."""
    bits, length = prefix
    words = []
    if space.address_bits:
        size = min(length, space.address_bits)
        address = (bits >> (length - size) << (space.address_bits - size)).to_bytes(space.address_bits // 8)
        words.append(f"{space.side.value} {addresses.format_address(address)}/{size}")
        bits &= (1 << (length - size)) - 1
        length -= size
    if length:
        protocol_bits = min(length, _PROTOCOL_BITS)
        port_bits = length - protocol_bits
        protocol = _PROTOCOL_PREFIXES[bits >> port_bits, protocol_bits]
        words.append(protocol)
        if port_bits:
            first = (bits & ((1 << port_bits) - 1)) << (_PORT_BITS - port_bits)
            last = first | ((1 << (_PORT_BITS - port_bits)) - 1)
            ports = f"{first}:{last}" if last > first else f"{first}"
            words.append(f"-m {protocol[3:]} --dport {ports}")
    return " ".join(words)


class _Node(NamedTuple):
    """A chain: the prefix whose keys it has, but for those of `holes`, which were taken out before."""

    holes: tuple[Prefix, ...]
    children: dict[Prefix, tuple[Prefix, ...]]  # and the holes of each


class Tree:
    """A tree of chains, with a rule at every key.

    Owns: the keys and how they are split. Use: `put` every changed key; then `changes`, which are to be made to the
    chains. Goals: the same keys make the same chains, in every process; a change costs what the chains on the way to
    its key need. Threading: none.
    """

    def __init__(self, space: Space, root: ruleset.ChainName) -> None:
        self.space = space
        self.root = root
        self._rules: dict[int, str] = {}
        self._keys: list[int] = []
        self._dirty: set[int] = set()
        self._nodes: dict[Prefix, _Node] = {}
        self._parents: dict[Prefix, Prefix] = {}
        self._jumps: dict[Prefix, str] = {}  # the rule that leads to a node
        self._fresh = True

    def put(self, key: int, rule: str | None) -> None:
        """The rule at a key; None: no rule, and no key."""
        if rule is None:
            self._rules.pop(key, None)
        elif self._rules.get(key) == rule:
            return
        else:
            self._rules[key] = rule
        self._dirty.add(key)

    def changes(self) -> Mapping[ruleset.ChainName, ruleset.Rules | None]:
        """The chains that differ from those of the last call; None: the chain is gone."""
        if not self._dirty and not self._fresh:
            return {}
        dirty = sorted(self._dirty)
        self._sort_keys(dirty)
        changes: dict[ruleset.ChainName, ruleset.Rules | None] = {}
        orphans: list[tuple[Prefix, Prefix]] = []
        self._build(EVERYTHING, self._keys, (), dirty, changes, orphans)
        while orphans:
            parent, prefix = orphans.pop()
            if self._parents[prefix] == parent:
                orphans += ((prefix, child) for child in self._nodes.pop(prefix).children)
                del self._parents[prefix], self._jumps[prefix]
                changes[self._name(prefix)] = None
        self._dirty.clear()
        self._fresh = False
        return changes

    def _sort_keys(self, dirty: Sequence[int]) -> None:
        keys = self._keys
        if len(dirty) > 16:
            self._keys = sorted(self._rules)
            return
        for key in dirty:
            index = bisect_left(keys, key)
            there = index < len(keys) and keys[index] == key
            if there and key not in self._rules:
                del keys[index]
            elif not there and key in self._rules:
                keys.insert(index, key)

    def _build(
        self,
        prefix: Prefix,
        keys: Sequence[int],
        holes: tuple[Prefix, ...],
        dirty: Sequence[int],
        changes: dict[ruleset.ChainName, ruleset.Rules | None],
        orphans: list[tuple[Prefix, Prefix]],
    ) -> None:
        """Write the chain of a prefix, and the chains below it that change."""
        rules: list[str] = []
        taken = list(holes)
        children: dict[Prefix, tuple[Prefix, ...]] = {}
        while len(keys) > LEAF_KEYS:
            first, last, child = _split(keys, self.space.width)
            inner = keys[first:last]
            keys = keys[:first] + keys[last:]  # type: ignore[operator]
            child_holes = tuple(hole for hole in taken if child.holds(hole))
            children[child] = child_holes
            taken.append(child)
            found = self._nodes.get(child)
            if found is None:
                self._jumps[child] = f"{matches(self.space, child)} -g {self._name(child).chain}"
            rules.append(self._jumps[child])
            self._parents[child] = prefix
            shift = self.space.width - child.length
            low = bisect_left(dirty, child.bits << shift)
            high = bisect_left(dirty, (child.bits + 1) << shift, low)
            if found is None or found.holes != child_holes or low < high:
                self._build(child, inner, child_holes, dirty[low:high], changes, orphans)
        rules += [self._rules[key] for key in keys]
        before = self._nodes.get(prefix)
        if before:
            orphans += ((prefix, child) for child in before.children if child not in children)
        self._nodes[prefix] = _Node(holes, children)
        changes[self._name(prefix)] = tuple(rules)

    def _name(self, prefix: Prefix) -> ruleset.ChainName:
        if prefix == EVERYTHING:
            return self.root
        return ruleset.ChainName(self.root.table, names.tree_chain(self.root.chain, prefix.bits, prefix.length))


def _split(keys: Sequence[int], width: int) -> tuple[int, int, Prefix]:
    """First and last (excluded) of those sorted keys that are to have their own chain, and their prefix."""
    count = len(keys)
    low, high = 0, count
    while True:
        # The prefix that all keys between low and high begin with has two continuations.
        bit = (keys[low] ^ keys[high - 1]).bit_length() - 1
        middle = bisect_left(keys, keys[high - 1] >> bit << bit, low, high)
        for first, last in ((low, middle), (middle, high)):
            if count <= 3 * (last - first) <= 2 * count:
                return first, last, Prefix(keys[first] >> bit, width - bit)
        # Neither: then one of them has more than two thirds of all.
        if middle - low > high - middle:
            high = middle
        else:
            low = middle
