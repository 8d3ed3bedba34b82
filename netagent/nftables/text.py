"""The ruleset as text, in nft's language: for people, and for `nft -f`. Sorted: same state, same bytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import assert_never

from netagent import escaping
from netagent.model import addresses
from netagent.nftables import ruleset, transaction
from netagent.nftables.ruleset import Field

_TABLE_FAMILY = {addresses.Family.IPV4: "ip", addresses.Family.IPV6: "ip6"}
_ADDRESS_TYPE = {addresses.Family.IPV4: "ipv4_addr", addresses.Family.IPV6: "ipv6_addr"}
# What nft takes for a name without quotation marks.
_NAME = re.compile(r"[A-Za-z_.][-A-Za-z0-9_./]*")
_BIT_NAMES = {(Field.CT_STATE, 1): "ct state invalid", (Field.CT_STATUS, 0x20): "ct status dnat"}


def script(tables: list[ruleset.Table]) -> Iterator[str]:
    """The lines of an nft script that replaces our tables by these, in one transaction."""
    for table in tables:
        name = table_name(table.family)
        # Declared first so that deleting it is not an error where there is none.
        yield f"table {name}"
        yield f"delete table {name}"
    for table in tables:
        yield ""
        yield from table_lines(table)


def table_name(family: addresses.Family) -> str:
    """`ip netagent` or `ip6 netagent`."""
    return f"{_TABLE_FAMILY[family]} {ruleset.TABLE_NAME}"


def table_lines(table: ruleset.Table) -> Iterator[str]:
    """One table, as a block."""
    family = table.family
    yield f"table {table_name(family)} {{"
    for name, spec in table.sets.items():
        yield f"\t{'set' if spec.data is None else 'map'} {name} {{"
        yield from (f"\t\t{line}" for line in declaration(spec, family))
        elements = table.elements.get(name)
        if elements:
            yield "\t\telements = {"
            last = len(elements) - 1
            for index, key in enumerate(sorted(elements)):
                comma = "" if index == last else ","
                yield f"\t\t\t{element(spec, family, key, elements[key])}{comma}"
            yield "\t\t}"
        yield "\t}"
    # A chain has to stand before those that lead to it.
    for chain in chains_by_reference(table.chains):
        yield f"\tchain {chain.name} {{"
        if chain.hook:
            yield f"\t\t{_hook_text(chain.hook)}"
        for rule in chain.rules:
            yield f"\t\t{rule_text(rule, family)}"
        yield "\t}"
    yield "}"


def _hook_text(hook: ruleset.Hook) -> str:
    return f"type {hook.type} hook {hook.point} priority {hook.priority}; policy accept;"


def chains_by_reference(chains: dict[str, ruleset.Chain]) -> list[ruleset.Chain]:
    """Chains by name, except that those that a chain goes to come before it."""
    ordered: dict[str, ruleset.Chain] = {}

    def visit(chain: ruleset.Chain) -> None:
        if chain.name in ordered:
            return
        for rule in chain.rules:
            for statement in rule:
                if isinstance(statement, ruleset.Goto):
                    visit(chains[statement.chain])
        ordered[chain.name] = chain

    for name in sorted(chains):
        visit(chains[name])
    return list(ordered.values())


def declaration(spec: ruleset.SetSpec, family: addresses.Family) -> Iterator[str]:
    """The inner lines of a set's or map's declaration."""
    # A key that holds a plain number has no type name; it is declared by example.
    by_example = any(isinstance(part, ruleset.Slot) for part in spec.key)
    if by_example:
        key = " . ".join(part_text(part, family) for part in spec.key)
    else:
        key = " . ".join(_type_name(part, family) for part in spec.key)
    line = f"{'typeof' if by_example else 'type'} {key}"
    match spec.data:
        case None:
            pass
        case ruleset.Data.VERDICT:
            line += " : verdict"
        case ruleset.Data.ENDPOINT if by_example:
            line += f" : {part_text(Field.DESTINATION, family)} . th dport"
        case ruleset.Data.ENDPOINT:
            line += f" : {_ADDRESS_TYPE[family]} . inet_service"
        case ruleset.Data.PRIORITY:
            line += " : meta priority" if by_example else " : classid"
        case _:
            assert_never(spec.data)
    yield line
    if spec.limit:
        yield f"size {spec.limit}"
    if spec.dynamic:
        yield "flags dynamic,timeout"
    if spec.intervals:
        yield "flags interval"
    if spec.counters:
        yield "counter"


def _type_name(part: ruleset.Part, family: addresses.Family) -> str:
    match part:
        case Field.SOURCE | Field.DESTINATION:
            return _ADDRESS_TYPE[family]
        case Field.PROTOCOL:
            return "inet_proto"
        case Field.DESTINATION_PORT:
            return "inet_service"
        case Field.PRIORITY | ruleset.Group():
            return "classid"
        case _:
            raise ValueError(f"no set has a key with {part}")


_FIELD_TEXT = {
    Field.PROTOCOL: "meta l4proto",
    Field.DESTINATION_PORT: "th dport",
    Field.MARK: "meta mark",
    Field.PRIORITY: "meta priority",
    Field.INPUT_NAME: "iifname",
    Field.SOURCE_TYPE: "fib saddr type",
    Field.DESTINATION_TYPE: "fib daddr type",
    Field.CT_STATE: "ct state",
    Field.CT_STATUS: "ct status",
}


def part_text(part: ruleset.Part, family: addresses.Family) -> str:
    """An expression as nft spells it."""
    match part:
        case Field.SOURCE:
            return f"{_TABLE_FAMILY[family]} saddr"
        case Field.DESTINATION:
            return f"{_TABLE_FAMILY[family]} daddr"
        case Field():
            return _FIELD_TEXT[part]
        case ruleset.Slot(modulus, offset):
            return f"numgen random mod {modulus}" + (f" offset {offset}" if offset else "")
        case ruleset.Group():
            return f"meta priority & {ruleset.GROUP_MASK:#x}"
        case _:
            assert_never(part)


def rule_text(rule: ruleset.Rule, family: addresses.Family) -> str:
    """A rule as nft spells it."""
    return " ".join(_statement_text(statement, family) for statement in rule)


def _statement_text(statement: ruleset.Statement, family: addresses.Family) -> str:
    match statement:
        case ruleset.InPrefix(field, prefix, negate):
            whole = prefix.length == len(prefix.address) * 8
            network = addresses.format_address(prefix.address) if whole else str(prefix)
            return f"{part_text(field, family)} {'!= ' if negate else ''}{network}"
        case ruleset.IsLocal(field, negate):
            return f"{part_text(field, family)} {'!= ' if negate else ''}local"
        case ruleset.InputName(name, prefix, negate):
            return f"iifname {'!= ' if negate else ''}{_quoted(name + ('*' if prefix else ''))}"
        case ruleset.HasBits(field, bits):
            return _BIT_NAMES.get((field, bits)) or f"{part_text(field, family)} & {bits:#x} != 0"
        case ruleset.IsProtocol(protocol):
            return f"meta l4proto {protocol.name.lower()}"
        case ruleset.InSet(key, name):
            return f"{_key_text(key, family)} @{name}"
        case ruleset.VerdictMap(key, name):
            return f"{_key_text(key, family)} vmap @{name}"
        case ruleset.Goto(chain):
            return f"goto {chain}"
        case ruleset.Drop():
            return "drop"
        case ruleset.SetMark(bits):
            return f"meta mark set meta mark | {bits:#x}"
        case ruleset.FlipMark(bits):
            return f"meta mark set meta mark ^ {bits:#x}"
        case ruleset.SetPriority(value):
            spelled = _lookup_text(value, family) if isinstance(value, ruleset.Lookup) else part_text(value, family)
            return f"meta priority set {spelled}"
        case ruleset.ClearPriority():
            return "meta priority set 0"
        case ruleset.OrPriority(bits):
            return f"meta priority set meta priority | {bits:#x}"
        case ruleset.Dnat(endpoint):
            return f"dnat {_TABLE_FAMILY[family]} to {_lookup_text(endpoint, family)}"
        case ruleset.Masquerade():
            return "masquerade fully-random"
        case ruleset.Reject(tcp_reset=True):
            return "reject with tcp reset"
        case ruleset.Reject():
            return f"reject with {'icmp' if family is addresses.Family.IPV4 else 'icmpv6'} type port-unreachable"
        case ruleset.Record():
            return _record_text(statement, family)
        case _:
            assert_never(statement)


def _key_text(key: ruleset.Key, family: addresses.Family) -> str:
    return " . ".join(part_text(part, family) for part in key)


def _lookup_text(lookup: ruleset.Lookup, family: addresses.Family) -> str:
    return f"{_key_text(lookup.key, family)} map @{lookup.map}"


def _record_text(record: ruleset.Record, family: addresses.Family) -> str:
    timeout = f" timeout {record.timeout_seconds}s" if record.timeout_seconds else ""
    key = _key_text(record.key, family)
    return f"{record.operation.value} @{record.map} {{ {key}{timeout} : {part_text(record.value, family)} }}"


def _quoted(text: str) -> str:
    return '"' + escaping.printable(text).replace('"', "") + '"'


def _name(text: str) -> str:
    """The name of a set or chain. One that others made may be any text: such a one nft refuses, and carries out
    nothing."""
    return text if _NAME.fullmatch(text) else _quoted(text)


# Elements ------------------------------------------------------------------------------------------------------


def element(spec: ruleset.SetSpec, family: addresses.Family, key: bytes, value: ruleset.Value) -> str:
    """One element as nft spells it: `key`, `key : value` or `key comment "owner" : value`."""
    result = key_text(spec, family, key)
    if isinstance(value, ruleset.VerdictValue):
        return f"{result} : {f'goto {_name(value.chain)}' if value.chain else 'drop'}"
    if isinstance(value, ruleset.Owned):
        result += f" comment {_quoted(value.owner)}" if value.owner else ""
        value = value.value
    if spec.data is ruleset.Data.ENDPOINT:
        address, port = value[: family.address_bytes], value[family.address_bytes :]
        return f"{result} : {addresses.format_address(address)} . {int.from_bytes(port[:2])}"
    if spec.data is ruleset.Data.PRIORITY:
        return f"{result} : {_classid(value)}"
    return result


def key_text(spec: ruleset.SetSpec, family: addresses.Family, key: bytes) -> str:
    """The key of an element as nft spells it; "*" is the element for all that have no other."""
    if not key:
        return "*"
    half = len(key) // 2 if spec.intervals else 0
    parts: list[str] = []
    offset = 0
    for part in spec.key:
        size = ruleset.part_bytes(part, family)
        first = key[offset : offset + size]
        text = _value_text(part, first)
        if half:
            last = key[half + offset : half + offset + size]
            if last != first:
                text = _range_text(part, first, last)
        parts.append(text)
        offset += size
    return " . ".join(parts)


_PROTOCOL_TEXT = {protocol.value: protocol.name.lower() for protocol in addresses.Protocol}


def _value_text(part: ruleset.Part, value: bytes) -> str:
    match part:
        case Field.SOURCE | Field.DESTINATION:
            return addresses.format_address(value)
        case Field.PROTOCOL:
            # Any number can be in an element of somebody else's.
            return _PROTOCOL_TEXT.get(value[0]) or str(value[0])
        case Field.DESTINATION_PORT:
            return str(int.from_bytes(value[:2]))
        case Field.PRIORITY | ruleset.Group():
            return _classid(value)
        case ruleset.Slot():
            return str(struct.unpack("=I", value)[0])
        case _:
            raise ValueError(f"no set has a key with {part}")


def _range_text(part: ruleset.Part, first: bytes, last: bytes) -> str:
    low, high = int.from_bytes(first), int.from_bytes(last)
    span = high - low + 1
    if part in (Field.SOURCE, Field.DESTINATION) and span & (span - 1) == 0 and low % span == 0:
        return f"{addresses.format_address(first)}/{len(first) * 8 - span.bit_length() + 1}"
    return f"{_value_text(part, first)}-{_value_text(part, last)}"


def _classid(value: bytes) -> str:
    return "{:x}:{:x}".format(*divmod(struct.unpack("=I", value)[0], 1 << 16))


# Operations ----------------------------------------------------------------------------------------------------


def operation_lines(operation: transaction.Operation) -> Iterator[str]:
    """The lines of one operation, each a command that `nft` would take."""
    name = table_name(operation.family)
    match operation:
        case transaction.AddTable():
            yield f"add table {name}"
        case transaction.DeleteTable():
            yield f"delete table {name}"
        case transaction.AddSet(spec=spec):
            kind = "set" if spec.data is None else "map"
            yield f"add {kind} {name} {spec.name} {{ {'; '.join(declaration(spec, operation.family))}; }}"
        case transaction.DeleteSet():
            yield f"delete set {name} {_name(operation.name)}"
        case transaction.AddChain(chain=chain):
            yield f"add chain {name} {chain.name}" + (f" {{ {_hook_text(chain.hook)} }}" if chain.hook else "")
        case transaction.DeleteChain():
            yield f"delete chain {name} {_name(operation.name)}"
        case transaction.FlushChain():
            yield f"flush chain {name} {_name(operation.name)}"
        case transaction.AddRules(chain=chain):
            for rule in chain.rules:
                yield f"add rule {name} {chain.name} {rule_text(rule, operation.family)}"
        case transaction.AddElements() | transaction.ReplaceElements() | transaction.DeleteElements():
            yield from _element_lines(operation)
        case _:
            assert_never(operation)


def _element_lines(operation: transaction.ElementOperation) -> Iterator[str]:
    spec, family = operation.spec, operation.family
    where = f"{table_name(family)} {spec.name}"
    for key, value in sorted(operation.elements.items()):
        if not isinstance(operation, transaction.AddElements):
            yield f"delete element {where} {{ {key_text(spec, family, key)} }}"
        if not isinstance(operation, transaction.DeleteElements):
            yield f"add element {where} {{ {element(spec, family, key, value)} }}"
