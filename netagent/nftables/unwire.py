"""The kernel's rules as the nouns that we plan with: the reverse of what `wire` makes of a rule. Pure.

Only what we would write can be read. A rule of anybody else's is no rule of ours, and None here: whoever follows
packets through the kernel's table has to stop there and say so.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple, cast

from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink, readback, ruleset, wire
from netagent.nftables.ruleset import Field


class Readable(NamedTuple):
    """A kernel's table as one of ours, and the rules of it that nobody of us wrote: chain, and index in the chain."""

    table: ruleset.Table
    strange: tuple[tuple[str, int], ...]


def table_of(actual: readback.ActualTable, specs: Mapping[str, ruleset.SetSpec]) -> Readable:
    """Read a kernel's table. `specs` are our sets by name; a strange rule stands as one that does nothing."""
    chains: dict[str, ruleset.Chain] = {}
    strange: list[tuple[str, int]] = []
    for name, chain in sorted(actual.chains.items()):
        rules: list[ruleset.Rule] = []
        for index, canonical in enumerate(chain.rules):
            rule = rule_of(canonical, actual.family, specs)
            if rule is None:
                strange.append((name, index))
            rules.append(rule or ())
        chains[name] = ruleset.Chain(name, tuple(rules), chain.hook)
    present = {name: spec for name, spec in specs.items() if name in actual.sets}
    elements = {name: dict(actual.elements.get(name, {})) for name in present}
    return Readable(ruleset.Table(actual.family, present, chains, elements), tuple(strange))


def rule_of(
    canonical: readback.CanonicalRule, family: addresses.Family, specs: Mapping[str, ruleset.SetSpec]
) -> ruleset.Rule | None:
    """The rule that a canonical form is of; None if we would never write it."""
    reading = _Reading(family, specs)
    try:
        for name, attributes in cast("tuple[tuple[str, tuple[tuple[int, bytes], ...]], ...]", canonical):
            reading.take(name, dict(attributes))
        rule = tuple(reading.statements)
        # What was read must say all that stands there: a rule that differs in anything is somebody else's.
        return rule if readback.canonical(wire.expressions(rule, family)) == canonical else None
    except (_StrangeError, LookupError, ValueError, OverflowError, struct.error):  # no numbers or sizes of ours
        return None


_REGISTERS_BYTES = 64  # all of them together, struct nft_regs


class _StrangeError(Exception):
    """An expression that none of our statements has."""


class _Loaded(NamedTuple):
    """What a register holds: a part of a packet, perhaps with bits cut out or set."""

    part: ruleset.Part
    mask: bytes = b""
    xor: bytes = b""


_FIELDS_BY_META = {
    c.NFT_META_L4PROTO: Field.PROTOCOL,
    c.NFT_META_MARK: Field.MARK,
    c.NFT_META_PRIORITY: Field.PRIORITY,
    c.NFT_META_IIFNAME: Field.INPUT_NAME,
}
_FIELDS_BY_FIB = {c.NFTA_FIB_F_SADDR: Field.SOURCE_TYPE, c.NFTA_FIB_F_DADDR: Field.DESTINATION_TYPE}
_FIELDS_BY_CT = {c.NFT_CT_STATE: Field.CT_STATE, c.NFT_CT_STATUS: Field.CT_STATUS}
_OPERATIONS = {
    c.NFT_DYNSET_OP_ADD: ruleset.DynamicOperation.ADD,
    c.NFT_DYNSET_OP_UPDATE: ruleset.DynamicOperation.UPDATE,
    c.NFT_DYNSET_OP_DELETE: ruleset.DynamicOperation.DELETE,
}
_GROUP = struct.pack("=I", ruleset.GROUP_MASK)

Attributes = dict[int, bytes]


class _Reading:
    """One rule being read: what the registers hold, and the statements so far."""

    def __init__(self, family: addresses.Family, specs: Mapping[str, ruleset.SetSpec]) -> None:
        self._family = family
        self._specs = specs
        self._registers: dict[int, _Loaded | ruleset.Lookup | None] = {}
        self.statements: list[ruleset.Statement] = []

    def take(self, name: str, found: Attributes) -> None:
        """Read one expression."""
        match name:
            case "payload":
                self._load(found[c.NFTA_PAYLOAD_DREG], self._payload(found))
            case "meta" if c.NFTA_META_DREG in found:
                self._load(found[c.NFTA_META_DREG], _FIELDS_BY_META[_number(found, c.NFTA_META_KEY)])
            case "meta":
                self._set_meta(_number(found, c.NFTA_META_KEY))
            case "fib":
                self._load(found[c.NFTA_FIB_DREG], _FIELDS_BY_FIB[_number(found, c.NFTA_FIB_FLAGS)])
            case "ct":
                self._load(found[c.NFTA_CT_DREG], _FIELDS_BY_CT[_number(found, c.NFTA_CT_KEY)])
            case "numgen":
                slot = ruleset.Slot(_number(found, c.NFTA_NG_MODULUS), _number(found, c.NFTA_NG_OFFSET))
                self._load(found[c.NFTA_NG_DREG], slot)
            case "bitwise":
                self._bitwise(found)
            case "cmp":
                self.statements.append(self._compared(found))
            case "lookup":
                self._look_up(found)
            case "immediate":
                self._immediate(found)
            case "nat":
                self.statements.append(ruleset.Dnat(self._looked_up()))
            case "masq":
                self.statements.append(ruleset.Masquerade())
            case "reject":
                reset = _number(found, c.NFTA_REJECT_TYPE) == c.NFT_REJECT_TCP_RST
                self.statements.append(ruleset.Reject(tcp_reset=reset))
            case "dynset":
                self.statements.append(self._record(found))
            case _:
                raise _StrangeError(name)

    # Registers

    def _load(self, register: bytes, part: ruleset.Part) -> None:
        self._registers[_slot(register)] = _Loaded(part)

    def _at(self, slot: int) -> _Loaded:
        held = self._registers.get(slot)
        if not isinstance(held, _Loaded):
            raise _StrangeError(f"register {slot}")
        return held

    def _looked_up(self) -> ruleset.Lookup:
        held = self._registers.get(0)
        if not isinstance(held, ruleset.Lookup):
            raise _StrangeError("nothing was looked up")
        return held

    def _payload(self, found: Attributes) -> Field:
        base = _number(found, c.NFTA_PAYLOAD_BASE)
        offset = _number(found, c.NFTA_PAYLOAD_OFFSET)
        if base == c.NFT_PAYLOAD_TRANSPORT_HEADER:
            return Field.DESTINATION_PORT
        offsets = {addresses.Family.IPV4: (12, 16), addresses.Family.IPV6: (8, 24)}[self._family]
        return (Field.SOURCE, Field.DESTINATION)[offsets.index(offset)]

    def _bitwise(self, found: Attributes) -> None:
        slot = _slot(found[c.NFTA_BITWISE_SREG])
        size = _number(found, c.NFTA_BITWISE_LEN)
        if size > _REGISTERS_BYTES:
            raise _StrangeError(f"bitwise of {size} bytes")
        mask = _data(found, c.NFTA_BITWISE_MASK) or bytes(size)
        xor = _data(found, c.NFTA_BITWISE_XOR) or bytes(size)
        held = self._at(slot)
        if held.part is Field.PRIORITY and (mask, xor) == (_GROUP, bytes(4)):
            self._registers[slot] = _Loaded(ruleset.Group())
        else:
            self._registers[slot] = held._replace(mask=mask, xor=xor)

    def _key(self, name: str) -> ruleset.Key:
        """The parts that the registers hold for the key of a set."""
        size = ruleset.key_bytes(self._specs[name].key, self._family)
        return self._parts(size)

    def _parts(self, size: int) -> ruleset.Key:
        parts: list[ruleset.Part] = []
        slot = 0
        while slot * 4 < size:
            held = self._at(slot)
            parts.append(held.part)
            slot += ruleset.part_bytes(held.part, self._family) // 4
        return tuple(parts)

    # Statements

    def _set_meta(self, key: int) -> None:
        field = _FIELDS_BY_META[key]
        held = self._registers.get(0)
        if held is None and field is Field.PRIORITY and 0 in self._registers:
            self.statements.append(ruleset.ClearPriority())
        elif isinstance(held, ruleset.Lookup):
            self.statements.append(ruleset.SetPriority(held))
        elif isinstance(held, _Loaded) and held.mask:
            self.statements.append(_with_bits(field, held))
        elif isinstance(held, _Loaded) and isinstance(held.part, ruleset.Slot | ruleset.Group):
            self.statements.append(ruleset.SetPriority(held.part))
        else:
            raise _StrangeError("meta")

    def _compared(self, found: Attributes) -> ruleset.Statement:
        held = self._at(0)
        negate = _number(found, c.NFTA_CMP_OP) == c.NFT_CMP_NEQ
        value = _data(found, c.NFTA_CMP_DATA)
        match held.part:
            case Field.SOURCE | Field.DESTINATION:
                size = self._family.address_bytes
                length = int.from_bytes(held.mask).bit_count() if held.mask else len(value) * 8
                prefix = addresses.Prefix(value.ljust(size, b"\0"), length)
                return ruleset.InPrefix(held.part, prefix, negate)
            case Field.SOURCE_TYPE | Field.DESTINATION_TYPE:
                return ruleset.IsLocal(held.part, negate)
            case Field.INPUT_NAME:
                name = value.rstrip(b"\0").decode()
                return ruleset.InputName(name, prefix=not value.endswith(b"\0"), negate=negate)
            case Field.PROTOCOL:
                return ruleset.IsProtocol(addresses.Protocol(value[0]))
            case Field.MARK | Field.CT_STATE | Field.CT_STATUS if held.mask:
                return ruleset.HasBits(held.part, struct.unpack("=I", held.mask)[0])
            case _:
                raise _StrangeError("cmp")

    def _look_up(self, found: Attributes) -> None:
        name = _text(found[c.NFTA_LOOKUP_SET])
        key = self._key(name)
        if c.NFTA_LOOKUP_DREG in found:
            self._registers[0] = ruleset.Lookup(key, name)
        elif self._specs[name].data is None:
            self.statements.append(ruleset.InSet(key, name))
        else:  # the register of verdicts is number 0, which the canonical form leaves out
            self.statements.append(ruleset.VerdictMap(key, name))

    def _immediate(self, found: Attributes) -> None:
        data = dict(netlink.attributes(found.get(c.NFTA_IMMEDIATE_DATA, b"")))
        if c.NFTA_DATA_VERDICT not in data:
            self._registers[0] = None  # zero
            return
        verdict = dict(netlink.attributes(data[c.NFTA_DATA_VERDICT]))
        code = struct.unpack(">i", verdict[c.NFTA_VERDICT_CODE])[0]
        if code == c.NFT_GOTO:
            self.statements.append(ruleset.Goto(_text(verdict[c.NFTA_VERDICT_CHAIN])))
        elif code == c.NF_DROP:
            self.statements.append(ruleset.Drop())
        else:
            raise _StrangeError(f"verdict {code}")

    def _record(self, found: Attributes) -> ruleset.Record:
        name = _text(found[c.NFTA_DYNSET_SET_NAME])
        value = self._at(_slot(found[c.NFTA_DYNSET_SREG_DATA])).part
        if not isinstance(value, Field):
            raise _StrangeError("dynset")
        operation = _OPERATIONS[_number(found, c.NFTA_DYNSET_OP)]
        seconds = _number(found, c.NFTA_DYNSET_TIMEOUT) // 1000
        return ruleset.Record(operation, name, self._key(name), value, seconds)


def _with_bits(field: Field, held: _Loaded) -> ruleset.Statement:
    mask, xor = struct.unpack("=I", held.mask)[0], struct.unpack("=I", held.xor)[0]
    if held.part is Field.MARK and field is Field.MARK:
        return ruleset.FlipMark(xor) if mask == 0xFFFFFFFF else ruleset.SetMark(xor)
    if held.part is Field.PRIORITY and field is Field.PRIORITY:
        return ruleset.OrPriority(xor)
    raise _StrangeError("bitwise")


def _number(attributes: Attributes, kind: int) -> int:
    """A number in network order; 0 for one that the canonical form leaves out."""
    return int.from_bytes(attributes.get(kind, b""))


def _data(attributes: Attributes, kind: int) -> bytes:
    return dict(netlink.attributes(attributes.get(kind, b""))).get(c.NFTA_DATA_VALUE, b"")


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode()


def _slot(register: bytes) -> int:
    """The 32-bit register of a register's number: the four of 16 bytes are 1 to 4, the small ones from 8 on."""
    number = int.from_bytes(register)
    if 1 <= number <= 4:
        return (number - 1) * 4
    if number >= 8:
        return number - 8
    raise _StrangeError(f"register {number}")
