"""Rules and elements of ours in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, assert_never

from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import layout, ruleset, slots, text
from netagent.nftables.ruleset import Field
from netagent.trace.events import Headers

_SETS: Final = {
    layout.CLUSTER_IPS: "to the address of a Service, at a port that it does not have",
    layout.HAIRPIN: "from an endpoint to itself",
    layout.SOURCE_RANGES: "from an allowed source range",
}
_MAPS: Final = {
    layout.FRONTENDS: "finds the Service port of the address",
    layout.NODEPORTS: "finds the Service port of the node port",
    layout.AFFINITY_PORTS: "session affinity: finds the Service port's list of endpoints",
    layout.AFFINITY_NODEPORTS: "session affinity: finds the Service port's list of endpoints",
    layout.AFFINITY: "session affinity: the client has been here before, back to its endpoint",
    layout.AFFINITY_SLOTS: "session affinity: chooses an endpoint at random",
}


def of_rule(rule: ruleset.Rule) -> str:
    """What a rule does with a packet that it holds for: "if ...: ..." ."""
    tests = [said for statement in rule if (said := _test(statement))]
    deeds = [said for statement in rule if (said := _deed(statement))]
    return ", ".join(tests) + (": " if tests and deeds else "") + ", ".join(deeds)


def _test(statement: ruleset.Statement) -> str:
    match statement:
        case ruleset.InPrefix(field, prefix, negate):
            side = "from" if field is Field.SOURCE else "to"
            return f"{side} {'outside of ' if negate else ''}{prefix}"
        case ruleset.IsLocal(field, negate):
            if field is Field.SOURCE_TYPE:
                return "from elsewhere" if negate else "from this host itself"
            return "to none of this host's addresses" if negate else "to an address of this host"
        case ruleset.InputName(name, prefix, negate):
            return f"{'not ' if negate else ''}in by {name}{'*' if prefix else ''}"
        case ruleset.HasBits(field, bits):
            if field is Field.CT_STATE and bits == c.CT_STATE_INVALID:
                return "that connection tracking cannot place"
            return "translated" if field is Field.CT_STATUS else "marked to be masqueraded"
        case ruleset.IsProtocol(protocol):
            return protocol.name
        case ruleset.InSet(_, name):
            return _SETS.get(name, f"in {name}")
        case _:
            return ""


def _deed(statement: ruleset.Statement) -> str:
    match statement:
        case ruleset.VerdictMap():
            return "goes to the chain of its shape"
        case ruleset.Goto(chain):
            return "refuses it" if chain == layout.REFUSE else f"goes to chain {chain}"
        case ruleset.Drop():
            return "drops it"
        case ruleset.SetMark():
            return "marks it to be masqueraded"
        case ruleset.FlipMark():
            return "takes the mark off"
        case ruleset.SetPriority(value):
            return _chosen(value)
        case ruleset.OrPriority():
            return "session affinity: among the local endpoints"
        case ruleset.ClearPriority():
            return "clears the packet priority"
        case ruleset.Dnat(ruleset.Lookup(_, name)):
            return (
                "sends it to the client's endpoint" if name == layout.AFFINITY_ENDPOINTS else "sends it to an endpoint"
            )
        case ruleset.Masquerade():
            return "gives it this host's address as source"
        case ruleset.Reject(tcp_reset):
            return "refuses it with a TCP reset" if tcp_reset else "refuses it with ICMP port unreachable"
        case ruleset.Record(operation):
            return {
                ruleset.DynamicOperation.ADD: "remembers the client's endpoint",
                ruleset.DynamicOperation.UPDATE: "remembers it for as long again",
                ruleset.DynamicOperation.DELETE: "forgets the client's last endpoint",
            }[operation]
        case (
            ruleset.InPrefix()
            | ruleset.IsLocal()
            | ruleset.InputName()
            | ruleset.HasBits()
            | ruleset.IsProtocol()
            | ruleset.InSet()
        ):
            return ""
        case _:
            assert_never(statement)


def _chosen(value: ruleset.Lookup | ruleset.Slot | ruleset.Group) -> str:
    match value:
        case ruleset.Lookup(_, name):
            return _MAPS.get(name, f"looks into {name}")
        case ruleset.Slot(modulus, offset):
            local = " local" if offset else ""
            return f"takes the only{local} endpoint" if modulus == 1 else f"chooses one of {modulus}{local} endpoints"
        case ruleset.Group():
            return "its slot has just gone, takes the first one"
        case _:
            assert_never(value)


def elements_of(rule: ruleset.Rule, table: ruleset.Table, headers: Headers, endpoint: bytes | None) -> Iterator[str]:
    """The elements by which a rule held for a packet, as nft spells them, as far as its headers tell.

    `endpoint` is the endpoint key that the packet was sent to, None if it was not. Which slot was chosen the kernel
    does not tell; of several with this endpoint the first one is named.
    """
    shape: bytes | None = None
    for statement in rule:
        match statement:
            case ruleset.SetPriority(ruleset.Lookup(key, name)) if name in (layout.FRONTENDS, layout.NODEPORTS):
                found = packed(key, headers)
                value = table.elements.get(name, {}).get(found) if found is not None else None
                if found is not None and isinstance(value, ruleset.Owned):
                    shape = value.value
                    yield element(table, name, found)
            case ruleset.VerdictMap(_, name) if shape is not None and shape in table.elements.get(name, {}):
                yield element(table, name, shape)
            case ruleset.InSet(key, name):
                found = packed(key, headers)
                if found is not None:
                    yield from _in_set(table, name, found)
            case ruleset.Dnat(ruleset.Lookup(key, name)) if endpoint is not None:
                prefix = packed(key[:-1], headers) if name != layout.AFFINITY_ENDPOINTS else b""
                if prefix is not None:
                    yield from _of_endpoint(table, name, prefix, endpoint)
            case _:
                pass


def element(table: ruleset.Table, name: str, key: bytes) -> str:
    """An element with the set or map that it is in."""
    spec = table.sets[name]
    return f"{name} {{ {text.element(spec, table.family, key, table.elements[name][key])} }}"


def owner_of(rule: ruleset.Rule, table: ruleset.Table, headers: Headers) -> str:
    """The Service port that a rule found for a packet; "" if it found none."""
    for statement in rule:
        match statement:
            case ruleset.SetPriority(ruleset.Lookup(key, name)) if name in (layout.FRONTENDS, layout.NODEPORTS):
                found = packed(key, headers)
                value = table.elements.get(name, {}).get(found) if found is not None else None
                if isinstance(value, ruleset.Owned):
                    return value.owner
            case _:
                pass
    return ""


def packed(key: ruleset.Key, headers: Headers) -> bytes | None:
    """A packet's key as elements have it; None if its headers do not tell."""
    parts: list[bytes] = []
    for part in key:
        match part:
            case Field.SOURCE:
                parts.append(headers.source)
            case Field.DESTINATION:
                parts.append(headers.destination)
            case Field.PROTOCOL:
                parts.append(bytes((headers.protocol, 0, 0, 0)))
            case Field.DESTINATION_PORT if headers.destination_port is not None:
                parts.append(headers.destination_port.to_bytes(2) + b"\0\0")
            case _:
                return None
    return b"".join(parts)


def _in_set(table: ruleset.Table, name: str, key: bytes) -> Iterator[str]:
    elements = table.elements.get(name, {})
    if table.sets[name].intervals:
        half = len(key)
        yield from (element(table, name, found) for found in sorted(elements) if found[:half] <= key <= found[half:])
    elif key in elements:
        yield element(table, name, key)


def _of_endpoint(table: ruleset.Table, name: str, prefix: bytes, endpoint: bytes) -> Iterator[str]:
    elements = table.elements.get(name, {})
    size = table.family.address_bytes + 2
    if prefix:
        for base in (0, 1 << 16):  # the two lists of a frontend, `netagent.nftables.shapes`
            slot = base
            while (value := elements.get(prefix + slots.pack(slot))) is not None:
                if isinstance(value, bytes) and value[:size] == endpoint:
                    yield element(table, name, prefix + slots.pack(slot))
                    return
                slot += 1
        return
    for key in sorted(elements):
        value = elements[key]
        if isinstance(value, bytes) and value[:size] == endpoint:
            yield element(table, name, key)
            return


def endpoint_of(headers: Headers) -> bytes | None:
    """The endpoint key of a packet's destination; None without a port."""
    if headers.destination_port is None:
        return None
    return addresses.endpoint_key(headers.destination, headers.destination_port)
