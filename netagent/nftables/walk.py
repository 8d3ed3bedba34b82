"""What a table does with the first packet of a connection, rule by rule: the kernel's part, played without a kernel.

Pure and deterministic. `walk` follows one packet with given random numbers; `outcomes` tells everything that can
happen to it, and how probable each outcome is. The table is the desired one, or one with the kernel's elements.

Played as in Linux: base chains of a hook run in the order of their priorities, but nat chains all at the place of
the kernel's own nat hook; they see a connection until its translation is settled, and a drop in one is final. Where
a packet lacks what a statement reads (the port of an ICMP packet), or a map has no element for it, the rule ends and
the next one goes on; what the rule did so far stays done.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple, assert_never

from netagent import errors
from netagent.model import addresses
from netagent.nftables import ruleset, slots
from netagent.nftables.ruleset import ChainType, DynamicOperation, Field, HookPoint

# Gives the number of a random slot: (modulus, offset) -> offset .. offset + modulus - 1.
Choose = Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection. Addresses are packed, and of the family of the table.

    `destination_port` is None for a protocol without ports. `input_interface` "" is a packet that this host sends.
    `source_port` is for readers: no rule looks at it.
    """

    source: bytes
    destination: bytes
    protocol: int
    destination_port: int | None = None
    source_port: int | None = None
    mark: int = 0
    input_interface: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """What of this host a rule can ask for: its own addresses, packed. Loopback addresses need not be listed."""

    addresses: frozenset[bytes] = frozenset()

    def is_local(self, address: bytes) -> bool:
        """Whether the route to a packed address has the type local."""
        return address in self.addresses or any(address in loopback for loopback in _LOOPBACK)


_LOOPBACK = (addresses.parse_prefix("127.0.0.0/8"), addresses.parse_prefix("::1/128"))


class Fate(enum.StrEnum):
    """What becomes of a connection as far as the table goes."""

    ENDPOINT = "sent to an endpoint"
    RESET = "refused with a TCP reset"
    UNREACHABLE = "refused with ICMP port unreachable"
    DROPPED = "dropped"
    UNTOUCHED = "left to its destination"


class Result(NamedTuple):
    """What can be seen from outside of what happened.

    `endpoint` is an endpoint key, None unless the fate is ENDPOINT. `masquerade`: the packet left with an address of
    this host as source. `mark` is the packet mark in the end.
    """

    fate: Fate
    endpoint: bytes | None = None
    masquerade: bool = False
    mark: int = 0


class Probe(NamedTuple):
    """A look into a set or map. `element` is the key of the element that was found, None if there was none.

    It differs from `key`, that of the packet, where elements are ranges. `value` is b"" in sets.
    """

    set: str
    key: bytes
    element: bytes | None = None
    value: ruleset.Value = b""


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that the packet came by: the first `matched` statements of the rule held and were carried out."""

    point: HookPoint
    chain: str
    index: int
    rule: ruleset.Rule
    matched: int
    probes: tuple[Probe, ...] = ()

    @property
    def ended_by(self) -> ruleset.Statement | None:
        """The statement that did not hold; None if the rule was carried out to its end."""
        return self.rule[self.matched] if self.matched < len(self.rule) else None


class Written(NamedTuple):
    """What a packet did to the table's records. An UPDATE that found a record shows the value that it kept."""

    operation: DynamicOperation
    map: str
    key: bytes
    value: bytes
    timeout_seconds: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to a packet, why (`steps`, in order), and what it left behind (`written`, in order)."""

    result: Result
    steps: tuple[Step, ...]
    written: tuple[Written, ...] = ()


class Possibility(NamedTuple):
    """One of several outcomes."""

    probability: Fraction
    outcome: Outcome


def walk(
    table: ruleset.Table,
    packet: Packet,
    host: Host,
    *,
    choose: Choose,
    records: Mapping[bytes, bytes] | None = None,
) -> Outcome:
    """Return what the table does with a packet; `choose` gives the random numbers, in the order of their use.

    `records` is what the map holds that packets write (session affinity), without what has timed out.
    InvariantError if the table refers to a chain or set that it does not have.
    """
    return _Walk(table, packet, host, choose, records or {}).outcome()


def outcomes(
    table: ruleset.Table, packet: Packet, host: Host, *, records: Mapping[bytes, bytes] | None = None
) -> list[Possibility]:
    """Return everything that can happen to a packet, one possibility for each sequence of random numbers.

    The probabilities add up to 1. Ordered by the random numbers. See `walk` for the rest.
    """
    found: list[Possibility] = []
    script = _Script()
    while True:
        outcome = walk(table, packet, host, choose=script.choose, records=records)
        found.append(Possibility(script.probability, outcome))
        if not script.advance():
            return found


def odds(possibilities: Iterable[Possibility]) -> dict[Result, Fraction]:
    """Return how probable each result is, however it comes about."""
    total: dict[Result, Fraction] = {}
    for probability, outcome in possibilities:
        total[outcome.result] = total.get(outcome.result, Fraction(0)) + probability
    return total


class _Script:
    """Random numbers that go through all sequences, one after the other, like the digits of a counter.

    Which choices there are may depend on those before. Use: hand `choose` to a walk; `advance` to the next sequence
    until it says that there is none.
    """

    def __init__(self) -> None:
        self._moduli: list[int] = []
        self._numbers: list[int] = []
        self._position = 0

    def choose(self, modulus: int, offset: int) -> int:
        if self._position == len(self._numbers):
            self._moduli.append(modulus)
            self._numbers.append(0)
        self._position += 1
        return offset + self._numbers[self._position - 1]

    @property
    def probability(self) -> Fraction:
        """The probability of this sequence."""
        return Fraction(1, math.prod(self._moduli))

    def advance(self) -> bool:
        self._position = 0
        while self._numbers and self._numbers[-1] + 1 == self._moduli[-1]:
            self._numbers.pop()
            self._moduli.pop()
        if not self._numbers:
            return False
        self._numbers[-1] += 1
        return True


# What a statement leads to, beside a Fate (final) and a Goto.
class _Flow(enum.Enum):
    GO_ON = enum.auto()
    END_RULE = enum.auto()
    ACCEPT = enum.auto()


_Verdict = _Flow | Fate | ruleset.Goto

# Nat chains run from the kernel's own hook, whatever their priorities: NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC,
# linux/netfilter_ipv4.h. Their priorities only order them among themselves.
_NAT_PRIORITY = {
    HookPoint.PREROUTING: -100,
    HookPoint.OUTPUT: -100,
    HookPoint.INPUT: 100,
    HookPoint.POSTROUTING: 100,
}
_DESTINATION_POINTS = (HookPoint.PREROUTING, HookPoint.OUTPUT)
_CT_STATE_NEW = 1 << 3  # NF_CT_STATE_BIT(IP_CT_NEW), linux/netfilter/nf_conntrack_common.h
_IPS_DST_NAT = 0x20  # linux/netfilter/nf_conntrack_common.h
_LOOPBACK_INTERFACE = "lo"


class _Walk:
    """One packet on its way.

    Owns: the packet as it is now, its connection's translation, the records as the packet leaves them, the steps
    taken. Use: `outcome`, once. Threading: none.
    """

    def __init__(
        self, table: ruleset.Table, packet: Packet, host: Host, choose: Choose, records: Mapping[bytes, bytes]
    ) -> None:
        for address in (packet.source, packet.destination):
            if len(address) != table.family.address_bytes:
                raise ValueError(f"{addresses.format_address(address)} in a packet for a table of {table.family.value}")
        self._table = table
        self._packet = packet
        self._host = host
        self._choose = choose
        self._records = dict(records)
        self._written: list[Written] = []
        self._steps: list[Step] = []
        self._probes: list[Probe] = []
        self._settled: set[bool] = set()  # True: destination, False: source
        self._endpoint: bytes | None = None
        self._masquerade = False
        self._ct_status = 0

    def outcome(self) -> Outcome:
        fate = self._travel()
        mark = self._packet.mark
        if fate is not None:
            result = Result(fate, mark=mark)
        else:
            fate = Fate.ENDPOINT if self._endpoint is not None else Fate.UNTOUCHED
            result = Result(fate, self._endpoint, self._masquerade, mark)
        return Outcome(result, tuple(self._steps), tuple(self._written))

    # The way through the hooks

    def _travel(self) -> Fate | None:
        """Pass all hooks; a Fate if the packet did not get through."""
        for point in self._way():
            fate = self._pass(point)
            if fate is not None:
                return fate
        return None

    def _way(self) -> Iterator[HookPoint]:
        """The hooks in order. Where a packet goes next depends on its destination by then."""
        if self._packet.input_interface:
            yield HookPoint.PREROUTING
            if self._host.is_local(self._packet.destination):
                yield HookPoint.INPUT
                return
            yield HookPoint.FORWARD
            yield HookPoint.POSTROUTING
            return
        yield HookPoint.OUTPUT
        yield HookPoint.POSTROUTING
        if self._host.is_local(self._packet.destination):
            # It leaves through the loopback device, and comes in again there.
            self._packet = replace(self._packet, input_interface=_LOOPBACK_INTERFACE)
            yield HookPoint.PREROUTING
            yield HookPoint.INPUT

    def _pass(self, point: HookPoint) -> Fate | None:
        of_destination = point in _DESTINATION_POINTS
        for chain, hook in _base_chains(self._table, point):
            if hook.type is ChainType.NAT and of_destination in self._settled:
                continue
            fate = self._base_chain(point, chain)
            if fate is not None:
                return fate
        if point in _NAT_PRIORITY:
            # Without a rule for it, the kernel settles on no translation.
            self._settled.add(of_destination)
        return None

    def _base_chain(self, point: HookPoint, chain: ruleset.Chain) -> Fate | None:
        """Play a base chain and those that it goes to; None is the policy of all of ours, accept."""
        while True:
            verdict: _Verdict = _Flow.GO_ON
            for index, rule in enumerate(chain.rules):
                verdict = self._rule(point, chain.name, index, rule)
                if verdict is not _Flow.GO_ON:
                    break
            if isinstance(verdict, Fate):
                return verdict
            if not isinstance(verdict, ruleset.Goto):
                return None
            # A goto does not come back: the end of that chain is the end of the base chain.
            chain = self._chain(verdict.chain)

    def _chain(self, name: str) -> ruleset.Chain:
        chain = self._table.chains.get(name)
        if chain is None:
            raise errors.InvariantError(f"cannot follow a packet to chain {name!r}: the table has no such chain")
        return chain

    def _rule(self, point: HookPoint, chain: str, index: int, rule: ruleset.Rule) -> _Verdict:
        self._probes = []
        verdict: _Verdict = _Flow.GO_ON
        matched = 0
        for statement in rule:
            verdict = self._statement(statement)
            if verdict is _Flow.END_RULE:
                verdict = _Flow.GO_ON
                break
            matched += 1
            if verdict is not _Flow.GO_ON:
                break
        self._steps.append(Step(point, chain, index, rule, matched, tuple(self._probes)))
        return verdict

    # Statements

    def _statement(self, statement: ruleset.Statement) -> _Verdict:
        match statement:
            case ruleset.InPrefix(field, prefix, negate):
                return _if((self._address(field) in prefix) is not negate)
            case ruleset.IsLocal(field, negate):
                return _if(self._host.is_local(self._address(field)) is not negate)
            case ruleset.InputName(name, prefix, negate):
                actual = self._packet.input_interface
                return _if((actual.startswith(name) if prefix else actual == name) is not negate)
            case ruleset.HasBits(field, bits):
                return _if(bool(self._bits(field) & bits))
            case ruleset.IsProtocol(protocol):
                return _if(self._packet.protocol == protocol)
            case ruleset.InSet(key, name):
                return _if(self._look_up(key, name) is not None)
            case ruleset.VerdictMap(key, name):
                return self._verdict_of(self._look_up(key, name))
            case ruleset.Goto():
                return statement
            case ruleset.Drop():
                return Fate.DROPPED
            case ruleset.SetMark(bits):
                self._packet = replace(self._packet, mark=self._packet.mark | bits)
            case ruleset.FlipMark(bits):
                self._packet = replace(self._packet, mark=self._packet.mark ^ bits)
            case ruleset.SetPriority(value):
                if isinstance(value, ruleset.Lookup):
                    return self._set_priority(self._look_up(value.key, value.map))
                return self._set_priority(self._part(value))
            case ruleset.ClearPriority():
                self._packet = replace(self._packet, priority=0)
            case ruleset.OrPriority(bits):
                self._packet = replace(self._packet, priority=self._packet.priority | bits)
            case ruleset.Dnat(endpoint):
                return self._dnat(self._look_up(endpoint.key, endpoint.map))
            case ruleset.Masquerade():
                self._masquerade = True
                self._settled.add(False)
                return _Flow.ACCEPT
            case ruleset.Reject(tcp_reset):
                return self._reject(tcp_reset=tcp_reset)
            case ruleset.Record():
                return _if(self._record(statement))
            case _:
                assert_never(statement)
        return _Flow.GO_ON

    def _verdict_of(self, value: ruleset.Value | None) -> _Verdict:
        if value is None:
            return _Flow.END_RULE
        assert isinstance(value, ruleset.VerdictValue)
        return ruleset.Goto(value.chain) if value.chain else Fate.DROPPED

    def _set_priority(self, value: ruleset.Value | None) -> _Verdict:
        if value is None:
            return _Flow.END_RULE
        if isinstance(value, ruleset.Owned):
            value = value.value
        assert isinstance(value, bytes)
        self._packet = replace(self._packet, priority=struct.unpack_from("=I", value)[0])
        return _Flow.GO_ON

    def _dnat(self, value: ruleset.Value | None) -> _Verdict:
        if value is None:
            return _Flow.END_RULE
        assert isinstance(value, bytes)
        endpoint = value[: self._table.family.address_bytes + 2]
        address, port = addresses.endpoint_address(endpoint), addresses.endpoint_port(endpoint)
        if (address, port) != (self._packet.destination, self._packet.destination_port):
            # The kernel does not call it a translation when nothing changes.
            self._ct_status |= _IPS_DST_NAT
        self._packet = replace(self._packet, destination=address, destination_port=port)
        self._endpoint = endpoint
        self._settled.add(True)
        return _Flow.ACCEPT

    def _reject(self, *, tcp_reset: bool) -> Fate:
        if not tcp_reset:
            return Fate.UNREACHABLE
        # There is no reset to send for anything but TCP; the packet is gone all the same.
        return Fate.RESET if self._packet.protocol == addresses.Protocol.TCP else Fate.DROPPED

    def _record(self, record: ruleset.Record) -> bool:
        """Write a record; False if the map is full, which ends the rule."""
        key = self._key(record.key)
        value = self._part(record.value)
        if key is None or value is None:
            return False
        had = self._records.get(key)
        timeout = record.timeout_seconds
        match record.operation:
            case DynamicOperation.DELETE:
                if had is not None:
                    del self._records[key]
                    self._written.append(Written(record.operation, record.map, key, had, timeout))
                return True
            case DynamicOperation.ADD if had is not None:
                return True
            case DynamicOperation.UPDATE if had is not None:
                self._written.append(Written(record.operation, record.map, key, had, timeout))
                return True
            case DynamicOperation.ADD | DynamicOperation.UPDATE:
                if len(self._records) >= self._spec(record.map).size:
                    return False
                self._records[key] = value
                self._written.append(Written(record.operation, record.map, key, value, timeout))
                return True
            case _:
                assert_never(record.operation)

    # Values

    def _spec(self, name: str) -> ruleset.SetSpec:
        spec = self._table.sets.get(name)
        if spec is None:
            raise errors.InvariantError(f"cannot look into set {name!r} for a packet: the table has no such set")
        return spec

    def _look_up(self, key: ruleset.Key, name: str) -> ruleset.Value | None:
        """The value for the packet's key, b"" in sets; None without an element, and if the packet has no such key."""
        packed = self._key(key)
        if packed is None:
            return None
        spec = self._spec(name)
        elements: Mapping[bytes, ruleset.Value] = self._records if spec.dynamic else self._table.elements.get(name, {})
        element: bytes | None = packed
        if spec.intervals:
            # Only the last parts of first and last key differ, so bytes compare as the ranges do.
            half = len(packed)
            element = next((found for found in elements if found[:half] <= packed <= found[half:]), None)
        if element is None or element not in elements:
            self._probes.append(Probe(name, packed))
            return None
        self._probes.append(Probe(name, packed, element, elements[element]))
        return elements[element]

    def _key(self, key: ruleset.Key) -> bytes | None:
        """The packet's key as elements have it; None if the packet lacks a part."""
        parts: list[bytes] = []
        for part in key:
            packed = self._part(part)
            if packed is None:
                return None
            parts.append(packed)
        return b"".join(parts)

    def _part(self, part: ruleset.Part) -> bytes | None:
        packet = self._packet
        match part:
            case Field.SOURCE:
                return packet.source
            case Field.DESTINATION:
                return packet.destination
            case Field.PROTOCOL:
                return bytes((packet.protocol, 0, 0, 0))
            case Field.DESTINATION_PORT:
                return None if packet.destination_port is None else packet.destination_port.to_bytes(2) + b"\0\0"
            case Field.PRIORITY:
                return slots.pack(packet.priority)
            case ruleset.Group():
                return slots.pack(packet.priority & ruleset.GROUP_MASK)
            case ruleset.Slot(modulus, offset):
                return slots.pack(self._choose(modulus, offset))
            case _:
                raise errors.InvariantError(f"no key has a part {part}")

    def _address(self, field: Field) -> bytes:
        match field:
            case Field.SOURCE | Field.SOURCE_TYPE:
                return self._packet.source
            case Field.DESTINATION | Field.DESTINATION_TYPE:
                return self._packet.destination
            case _:
                raise errors.InvariantError(f"{field.value} is not an address")

    def _bits(self, field: Field) -> int:
        match field:
            case Field.MARK:
                return self._packet.mark
            case Field.CT_STATE:
                return _CT_STATE_NEW
            case Field.CT_STATUS:
                return self._ct_status
            case _:
                raise errors.InvariantError(f"{field.value} has no bits")


def _if(holds: bool) -> _Flow:
    return _Flow.GO_ON if holds else _Flow.END_RULE


def _base_chains(table: ruleset.Table, point: HookPoint) -> list[tuple[ruleset.Chain, ruleset.Hook]]:
    """The base chains of a hook in the kernel's order."""

    def order(found: tuple[ruleset.Chain, ruleset.Hook]) -> tuple[int, int, str]:
        chain, hook = found
        place = _NAT_PRIORITY[point] if hook.type is ChainType.NAT else hook.priority
        return (place, hook.priority, chain.name)

    hooked = [(chain, chain.hook) for chain in table.chains.values() if chain.hook and chain.hook.point is point]
    return sorted(hooked, key=order)
