"""The ruleset as netlink bytes: pure encoding, no socket.

Attributes are written as the kernel writes them when it lists, so that what we sent and what we read back can be
compared. Elements are the hot path: they are put together from templates made once for each set.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cache
from typing import assert_never

from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink, ruleset, transaction
from netagent.nftables.ruleset import Field

_ATTRIBUTE = struct.Struct("=HH")
# struct nlmsghdr and struct nfgenmsg, in bytes.
_NETLINK_HEADERS = 20
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
# An attribute's length has 16 bits; this leaves room for the message around the elements.
_ELEMENT_BYTES = 60_000

NFPROTO = {addresses.Family.IPV4: c.NFPROTO_IPV4, addresses.Family.IPV6: c.NFPROTO_IPV6}
_HOOKS = {
    ruleset.HookPoint.PREROUTING: c.NF_INET_PRE_ROUTING,
    ruleset.HookPoint.INPUT: c.NF_INET_LOCAL_IN,
    ruleset.HookPoint.FORWARD: c.NF_INET_FORWARD,
    ruleset.HookPoint.OUTPUT: c.NF_INET_LOCAL_OUT,
    ruleset.HookPoint.POSTROUTING: c.NF_INET_POST_ROUTING,
}
HOOK_NAMES = {number: point for point, number in _HOOKS.items()}


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + _PADDING[len(value) & 3]


def number(kind: int, value: int) -> bytes:
    """An attribute that holds a 32-bit number, in network order as nf_tables wants it."""
    return attribute(kind, value.to_bytes(4))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a NUL-terminated string; names of others as `readback` has them."""
    return attribute(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def nest(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind, b"".join(parts))


def messages(operation: transaction.Operation) -> Iterator[bytes]:
    """The messages that carry out one operation of a transaction."""
    family = NFPROTO[operation.family]
    match operation:
        case transaction.AddTable():
            payload = _table_attributes(owned=operation.owned)
            yield netlink.message(c.NFT_MSG_NEWTABLE, family, c.NLM_F_REQUEST | c.NLM_F_CREATE, payload)
        case transaction.DeleteTable():
            yield netlink.message(
                c.NFT_MSG_DELTABLE, family, c.NLM_F_REQUEST, text(c.NFTA_TABLE_NAME, ruleset.TABLE_NAME)
            )
        case transaction.AddSet():
            payload = set_attributes(operation.spec, operation.family)
            yield netlink.message(c.NFT_MSG_NEWSET, family, c.NLM_F_REQUEST | c.NLM_F_CREATE, payload)
        case transaction.DeleteSet():
            payload = text(c.NFTA_SET_TABLE, ruleset.TABLE_NAME) + text(c.NFTA_SET_NAME, operation.name)
            yield netlink.message(c.NFT_MSG_DELSET, family, c.NLM_F_REQUEST, payload)
        case transaction.AddChain():
            payload = _chain_attributes(operation.chain)
            yield netlink.message(c.NFT_MSG_NEWCHAIN, family, c.NLM_F_REQUEST | c.NLM_F_CREATE, payload)
        case transaction.DeleteChain():
            payload = text(c.NFTA_CHAIN_TABLE, ruleset.TABLE_NAME) + text(c.NFTA_CHAIN_NAME, operation.name)
            yield netlink.message(c.NFT_MSG_DELCHAIN, family, c.NLM_F_REQUEST, payload)
        case transaction.FlushChain():
            payload = text(c.NFTA_RULE_TABLE, ruleset.TABLE_NAME) + text(c.NFTA_RULE_CHAIN, operation.name)
            yield netlink.message(c.NFT_MSG_DELRULE, family, c.NLM_F_REQUEST, payload)
        case transaction.AddRules():
            flags = c.NLM_F_REQUEST | c.NLM_F_CREATE | c.NLM_F_APPEND
            for rule in operation.chain.rules:
                payload = (
                    text(c.NFTA_RULE_TABLE, ruleset.TABLE_NAME)
                    + text(c.NFTA_RULE_CHAIN, operation.chain.name)
                    + attribute(c.NFTA_RULE_EXPRESSIONS, expressions(rule, operation.family))
                )
                yield netlink.message(c.NFT_MSG_NEWRULE, family, flags, payload)
        case transaction.AddElements() | transaction.ReplaceElements() | transaction.DeleteElements():
            yield from _element_messages(operation)
        case _:
            assert_never(operation)


def _table_attributes(*, owned: bool) -> bytes:
    # Never owner without persist: the table would go when we do.
    flags = c.NFT_TABLE_F_OWNER | c.NFT_TABLE_F_PERSIST if owned else 0
    return text(c.NFTA_TABLE_NAME, ruleset.TABLE_NAME) + number(c.NFTA_TABLE_FLAGS, flags)


def _chain_attributes(chain: ruleset.Chain) -> bytes:
    payload = text(c.NFTA_CHAIN_TABLE, ruleset.TABLE_NAME) + text(c.NFTA_CHAIN_NAME, chain.name)
    if chain.hook:
        priority = chain.hook.priority & 0xFFFFFFFF
        payload += nest(
            c.NFTA_CHAIN_HOOK,
            number(c.NFTA_HOOK_HOOKNUM, _HOOKS[chain.hook.point]),
            number(c.NFTA_HOOK_PRIORITY, priority),
        )
        payload += number(c.NFTA_CHAIN_POLICY, c.NF_ACCEPT) + text(c.NFTA_CHAIN_TYPE, chain.hook.type.value)
    return payload


# Declarations of sets ------------------------------------------------------------------------------------------


def set_flags(spec: ruleset.SetSpec) -> int:
    """NFTA_SET_FLAGS of a declaration."""
    flags = c.NFT_SET_CONCAT if len(spec.key) > 1 and spec.intervals else 0
    flags |= c.NFT_SET_MAP if spec.data is not None else 0
    flags |= c.NFT_SET_INTERVAL if spec.intervals else 0
    flags |= c.NFT_SET_EVAL | c.NFT_SET_TIMEOUT if spec.dynamic else 0
    return flags


def set_attributes(spec: ruleset.SetSpec, family: addresses.Family) -> bytes:
    """The attributes that declare a set or map."""
    payload = (
        text(c.NFTA_SET_TABLE, ruleset.TABLE_NAME)
        + text(c.NFTA_SET_NAME, spec.name)
        + number(c.NFTA_SET_FLAGS, set_flags(spec))
        + number(c.NFTA_SET_KEY_TYPE, key_type(spec.key, family))
        + number(c.NFTA_SET_KEY_LEN, _declared_key_bytes(spec.key, family))
        + number(c.NFTA_SET_ID, 1)  # has to be there; we refer to sets by name
    )
    if spec.data is not None:
        payload += number(c.NFTA_SET_DATA_TYPE, data_type(spec.data, family))
        payload += number(c.NFTA_SET_DATA_LEN, _declared_data_bytes(spec.data, family))
    description = number(c.NFTA_SET_DESC_SIZE, spec.limit) if spec.limit else b""
    if spec.intervals:
        fields = (
            nest(c.NFTA_LIST_ELEM, number(c.NFTA_SET_FIELD_LEN, _declared_part_bytes(part, family)))
            for part in spec.key
        )
        description += nest(c.NFTA_SET_DESC_CONCAT, *fields)
    if description:
        payload += attribute(c.NFTA_SET_DESC, description)
    userdata = _set_userdata(spec, family)
    if userdata:
        payload += attribute(c.NFTA_SET_USERDATA, userdata)
    if spec.counters:
        payload += nest(c.NFTA_SET_EXPR, text(c.NFTA_EXPR_NAME, "counter"), attribute(c.NFTA_EXPR_DATA, b""))
    return payload


def _part_type(part: ruleset.Part, family: addresses.Family) -> int:
    match part:
        case Field.SOURCE | Field.DESTINATION:
            return c.TYPE_IPADDR if family is addresses.Family.IPV4 else c.TYPE_IP6ADDR
        case Field.PROTOCOL:
            return c.TYPE_INET_PROTOCOL
        case Field.DESTINATION_PORT:
            return c.TYPE_INET_SERVICE
        case Field.PRIORITY | ruleset.Group():
            return c.TYPE_CLASSID
        case ruleset.Slot():
            return c.TYPE_INTEGER
        case _:
            raise ValueError(f"no set has a key with {part}")


def key_type(key: ruleset.Key, family: addresses.Family) -> int:
    """NFTA_SET_KEY_TYPE: nft's number for the types of a key."""
    result = 0
    for part in key:
        result = result << c.TYPE_BITS | _part_type(part, family)
    return result


def data_type(data: ruleset.Data, family: addresses.Family) -> int:
    """NFTA_SET_DATA_TYPE of a map."""
    match data:
        case ruleset.Data.VERDICT:
            return c.NFT_DATA_VERDICT
        case ruleset.Data.ENDPOINT:
            return key_type((Field.DESTINATION, Field.DESTINATION_PORT), family)
        case ruleset.Data.PRIORITY:
            return c.TYPE_CLASSID
        case _:
            assert_never(data)


def _declared_part_bytes(part: ruleset.Part, family: addresses.Family) -> int:
    match part:
        case Field.PROTOCOL:
            return 1
        case Field.DESTINATION_PORT:
            return 2
        case _:
            return ruleset.part_bytes(part, family)


def _declared_key_bytes(key: ruleset.Key, family: addresses.Family) -> int:
    return ruleset.key_bytes(key, family) if len(key) > 1 else _declared_part_bytes(key[0], family)


def _declared_data_bytes(data: ruleset.Data, family: addresses.Family) -> int:
    match data:
        case ruleset.Data.VERDICT:
            return 16  # sizeof(struct nft_verdict), as nft says it
        case ruleset.Data.ENDPOINT:
            return family.address_bytes + 4
        case ruleset.Data.PRIORITY:
            return 4
        case _:
            assert_never(data)


# How nft stores the expressions of "typeof", without which it cannot list a key that holds a plain number.
# enum nftnl_udata_set_types of libnftnl, and enum expr_types of nft.
_UDATA_KEY_BYTEORDER, _UDATA_DATA_BYTEORDER, _UDATA_KEY_TYPEOF, _UDATA_DATA_TYPEOF, _UDATA_DATA_INTERVAL = 0, 1, 3, 4, 6
_UDATA_EXPRESSION, _UDATA_PARAMETERS = 0, 1
_BYTEORDER_NONE, _BYTEORDER_HOST = 0, 1
_EXPR_PAYLOAD, _EXPR_META, _EXPR_CONCAT, _EXPR_NUMGEN = 7, 9, 13, 23
_PROTO_DESC = {addresses.Family.IPV4: 12, addresses.Family.IPV6: 13}
_PROTO_DESC_TH = 11


def _udata(kind: int, value: bytes) -> bytes:
    return bytes((kind, len(value))) + value


def _udata_number(kind: int, value: int) -> bytes:
    return _udata(kind, struct.pack("=I", value))


def _set_userdata(spec: ruleset.SetSpec, family: addresses.Family) -> bytes:
    """What nft has to know to list a set, beyond its types: the order of bytes, and what a plain number is."""
    by_example = any(isinstance(part, ruleset.Slot) for part in spec.key)
    host_key = spec.key == (Field.PRIORITY,)
    host_data = spec.data is ruleset.Data.PRIORITY
    if not by_example and not host_key and not host_data:
        return b""
    result = _udata_number(_UDATA_KEY_BYTEORDER, _BYTEORDER_HOST if host_key else _BYTEORDER_NONE)
    result += _udata_number(_UDATA_DATA_BYTEORDER, _BYTEORDER_HOST if host_data else _BYTEORDER_NONE)
    if not by_example:
        return result
    result += _udata(_UDATA_KEY_TYPEOF, _typeof_parts(spec.key, family))
    if spec.data is ruleset.Data.ENDPOINT:
        result += _udata(_UDATA_DATA_TYPEOF, _typeof_parts((Field.DESTINATION, Field.DESTINATION_PORT), family))
    elif spec.data is ruleset.Data.PRIORITY:
        result += _udata(_UDATA_DATA_TYPEOF, _typeof_part(Field.PRIORITY, family))
    return result + _udata_number(_UDATA_DATA_INTERVAL, 0)


def _typeof_parts(key: ruleset.Key, family: addresses.Family) -> bytes:
    parts = b"".join(_udata(index, _typeof_part(part, family)) for index, part in enumerate(key))
    return _udata_number(_UDATA_EXPRESSION, _EXPR_CONCAT) + _udata(_UDATA_PARAMETERS, parts)


def _typeof_part(part: ruleset.Part, family: addresses.Family) -> bytes:
    parameters: tuple[int, ...]
    match part:
        case Field.SOURCE | Field.DESTINATION:
            v4 = family is addresses.Family.IPV4
            first = 11 if v4 else 8  # index of saddr in nft's table of header fields
            parameters = (_PROTO_DESC[family], first if part is Field.SOURCE else first + 1)
            expression = _EXPR_PAYLOAD
        case Field.DESTINATION_PORT:
            parameters, expression = (_PROTO_DESC_TH, 2), _EXPR_PAYLOAD
        case Field.PROTOCOL:
            parameters, expression = (c.NFT_META_L4PROTO,), _EXPR_META
        case Field.PRIORITY:
            parameters, expression = (c.NFT_META_PRIORITY,), _EXPR_META
        case ruleset.Slot():
            parameters, expression = (c.NFT_NG_RANDOM, part.modulus, part.offset), _EXPR_NUMGEN
        case _:
            raise ValueError(f"no set has a key with {part}")
    nested = b"".join(_udata_number(index, value) for index, value in enumerate(parameters))
    return _udata_number(_UDATA_EXPRESSION, expression) + _udata(_UDATA_PARAMETERS, nested)


# Rules ---------------------------------------------------------------------------------------------------------


def register(slot: int) -> bytes:
    """Number of the 32-bit register `slot` (0..15), spelled as the kernel lists it."""
    return (1 + slot // 4 if slot % 4 == 0 else 8 + slot).to_bytes(4)


def _expression(name: str, *parts: bytes) -> bytes:
    return nest(c.NFTA_LIST_ELEM, text(c.NFTA_EXPR_NAME, name), attribute(c.NFTA_EXPR_DATA, b"".join(parts)))


def expressions(rule: ruleset.Rule, family: addresses.Family) -> bytes:
    """NFTA_RULE_EXPRESSIONS of a rule."""
    return b"".join(_statement(statement, family) for statement in rule)


def _statement(statement: ruleset.Statement, family: addresses.Family) -> bytes:
    match statement:
        case ruleset.InPrefix(field, prefix, negate):
            return _in_prefix(field, prefix, family, negate=negate)
        case ruleset.IsLocal(field, negate):
            return _load(field, 0, family) + _compare(struct.pack("=I", c.RTN_LOCAL), negate)
        case ruleset.InputName(name, prefix, negate):
            wanted = name.encode() if prefix else name.encode().ljust(c.IFNAMSIZ, b"\0")
            return _load(Field.INPUT_NAME, 0, family) + _compare(wanted, negate)
        case ruleset.HasBits(field, bits):
            return _load(field, 0, family) + _bitwise(0, bits, 0) + _compare(bytes(4), negate=True)
        case ruleset.IsProtocol(protocol):
            return _load(Field.PROTOCOL, 0, family) + _compare(bytes((protocol,)), negate=False)
        case ruleset.InSet(key, name):
            return _load_key(key, 0, family) + _lookup(name, None)
        case ruleset.VerdictMap(key, name):
            return _load_key(key, 0, family) + _lookup(name, c.NFT_REG_VERDICT.to_bytes(4))
        case ruleset.Goto(chain):
            return _verdict(c.NFT_GOTO, chain)
        case ruleset.Drop():
            return _verdict(c.NF_DROP)
        case ruleset.SetMark(bits):
            return _set_meta(Field.MARK, family, mask=~bits & 0xFFFFFFFF, xor=bits)
        case ruleset.FlipMark(bits):
            return _set_meta(Field.MARK, family, mask=0xFFFFFFFF, xor=bits)
        case ruleset.OrPriority(bits):
            return _set_meta(Field.PRIORITY, family, mask=~bits & 0xFFFFFFFF, xor=bits)
        case ruleset.SetPriority(value):
            loaded = _load_lookup(value, family) if isinstance(value, ruleset.Lookup) else _load(value, 0, family)
            return loaded + _meta_set(c.NFT_META_PRIORITY)
        case ruleset.ClearPriority():
            return _immediate(bytes(4)) + _meta_set(c.NFT_META_PRIORITY)
        case ruleset.Dnat(endpoint):
            return _load_lookup(endpoint, family) + _dnat(family)
        case ruleset.Masquerade():
            return _expression("masq", number(c.NFTA_MASQ_FLAGS, c.NF_NAT_RANGE_PROTO_RANDOM_FULLY))
        case ruleset.Reject(tcp_reset):
            return _reject(tcp_reset, family)
        case ruleset.Record():
            return _record(statement, family)
        case _:
            assert_never(statement)


_PAYLOAD_OFFSETS = {
    (addresses.Family.IPV4, Field.SOURCE): 12,
    (addresses.Family.IPV4, Field.DESTINATION): 16,
    (addresses.Family.IPV6, Field.SOURCE): 8,
    (addresses.Family.IPV6, Field.DESTINATION): 24,
}
_META_KEYS = {
    Field.PROTOCOL: c.NFT_META_L4PROTO,
    Field.MARK: c.NFT_META_MARK,
    Field.PRIORITY: c.NFT_META_PRIORITY,
    Field.INPUT_NAME: c.NFT_META_IIFNAME,
}
_FIB_FLAGS = {Field.SOURCE_TYPE: c.NFTA_FIB_F_SADDR, Field.DESTINATION_TYPE: c.NFTA_FIB_F_DADDR}
_CT_KEYS = {Field.CT_STATE: c.NFT_CT_STATE, Field.CT_STATUS: c.NFT_CT_STATUS}


def _load(part: ruleset.Part, slot: int, family: addresses.Family) -> bytes:
    target = register(slot)
    match part:
        case Field.SOURCE | Field.DESTINATION:
            return _payload(target, c.NFT_PAYLOAD_NETWORK_HEADER, _PAYLOAD_OFFSETS[family, part], family.address_bytes)
        case Field.DESTINATION_PORT:
            return _payload(target, c.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
        case Field.PROTOCOL | Field.MARK | Field.PRIORITY | Field.INPUT_NAME:
            return _expression("meta", number(c.NFTA_META_KEY, _META_KEYS[part]), attribute(c.NFTA_META_DREG, target))
        case Field.SOURCE_TYPE | Field.DESTINATION_TYPE:
            return _expression(
                "fib",
                attribute(c.NFTA_FIB_DREG, target),
                number(c.NFTA_FIB_RESULT, c.NFT_FIB_RESULT_ADDRTYPE),
                number(c.NFTA_FIB_FLAGS, _FIB_FLAGS[part]),
            )
        case Field.CT_STATE | Field.CT_STATUS:
            return _expression("ct", attribute(c.NFTA_CT_DREG, target), number(c.NFTA_CT_KEY, _CT_KEYS[part]))
        case ruleset.Slot(modulus, offset):
            return _expression(
                "numgen",
                attribute(c.NFTA_NG_DREG, target),
                number(c.NFTA_NG_MODULUS, modulus),
                number(c.NFTA_NG_TYPE, c.NFT_NG_RANDOM),
                number(c.NFTA_NG_OFFSET, offset),
            )
        case ruleset.Group():
            return _load(Field.PRIORITY, slot, family) + _bitwise(slot, ruleset.GROUP_MASK, 0)
        case _:
            assert_never(part)


def _load_key(key: ruleset.Key, slot: int, family: addresses.Family) -> bytes:
    result = b""
    for part in key:
        result += _load(part, slot, family)
        slot += ruleset.part_bytes(part, family) // 4
    return result


def _load_lookup(lookup: ruleset.Lookup, family: addresses.Family) -> bytes:
    return _load_key(lookup.key, 0, family) + _lookup(lookup.map, register(0))


def _payload(target: bytes, base: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload",
        attribute(c.NFTA_PAYLOAD_DREG, target),
        number(c.NFTA_PAYLOAD_BASE, base),
        number(c.NFTA_PAYLOAD_OFFSET, offset),
        number(c.NFTA_PAYLOAD_LEN, length),
    )


def _compare(value: bytes, negate: bool) -> bytes:
    return _expression(
        "cmp",
        attribute(c.NFTA_CMP_SREG, register(0)),
        number(c.NFTA_CMP_OP, c.NFT_CMP_NEQ if negate else c.NFT_CMP_EQ),
        nest(c.NFTA_CMP_DATA, attribute(c.NFTA_DATA_VALUE, value)),
    )


def _in_prefix(field: Field, prefix: addresses.Prefix, family: addresses.Family, *, negate: bool) -> bytes:
    """As nft writes it: of a prefix of whole bytes, these alone are loaded, and nothing is masked."""
    size = len(prefix.address)
    whole, odd = divmod(prefix.length, 8)
    if whole and not odd:
        loaded = _payload(register(0), c.NFT_PAYLOAD_NETWORK_HEADER, _PAYLOAD_OFFSETS[family, field], whole)
        return loaded + _compare(prefix.address[:whole], negate)
    mask = ((1 << size * 8) - (1 << size * 8 - prefix.length)).to_bytes(size)
    return _load(field, 0, family) + _bitwise_bytes(0, mask, bytes(size)) + _compare(prefix.address, negate)


def _bitwise(slot: int, mask: int, xor: int) -> bytes:
    return _bitwise_bytes(slot, struct.pack("=I", mask), struct.pack("=I", xor))


def _bitwise_bytes(slot: int, mask: bytes, xor: bytes) -> bytes:
    return _expression(
        "bitwise",
        attribute(c.NFTA_BITWISE_SREG, register(slot)),
        attribute(c.NFTA_BITWISE_DREG, register(slot)),
        number(c.NFTA_BITWISE_LEN, len(mask)),
        nest(c.NFTA_BITWISE_MASK, attribute(c.NFTA_DATA_VALUE, mask)),
        nest(c.NFTA_BITWISE_XOR, attribute(c.NFTA_DATA_VALUE, xor)),
    )


def _lookup(name: str, target: bytes | None) -> bytes:
    return _expression(
        "lookup",
        text(c.NFTA_LOOKUP_SET, name),
        attribute(c.NFTA_LOOKUP_SREG, register(0)),
        attribute(c.NFTA_LOOKUP_DREG, target) if target is not None else b"",
    )


def _verdict_data(code: int, chain: str) -> bytes:
    parts = number(c.NFTA_VERDICT_CODE, code & 0xFFFFFFFF)
    if chain:
        parts += text(c.NFTA_VERDICT_CHAIN, chain)
    return attribute(c.NFTA_DATA_VERDICT, parts)


def _verdict(code: int, chain: str = "") -> bytes:
    return _expression(
        "immediate",
        number(c.NFTA_IMMEDIATE_DREG, c.NFT_REG_VERDICT),
        attribute(c.NFTA_IMMEDIATE_DATA, _verdict_data(code, chain)),
    )


def _immediate(value: bytes) -> bytes:
    return _expression(
        "immediate",
        attribute(c.NFTA_IMMEDIATE_DREG, register(0)),
        nest(c.NFTA_IMMEDIATE_DATA, attribute(c.NFTA_DATA_VALUE, value)),
    )


def _meta_set(key: int) -> bytes:
    return _expression("meta", number(c.NFTA_META_KEY, key), attribute(c.NFTA_META_SREG, register(0)))


def _set_meta(field: Field, family: addresses.Family, *, mask: int, xor: int) -> bytes:
    return _load(field, 0, family) + _bitwise(0, mask, xor) + _meta_set(_META_KEYS[field])


def _dnat(family: addresses.Family) -> bytes:
    address, port = register(0), register(family.address_bytes // 4)
    return _expression(
        "nat",
        number(c.NFTA_NAT_TYPE, c.NFT_NAT_DNAT),
        number(c.NFTA_NAT_FAMILY, NFPROTO[family]),
        attribute(c.NFTA_NAT_REG_ADDR_MIN, address),
        attribute(c.NFTA_NAT_REG_ADDR_MAX, address),
        attribute(c.NFTA_NAT_REG_PROTO_MIN, port),
        attribute(c.NFTA_NAT_REG_PROTO_MAX, port),
        number(c.NFTA_NAT_FLAGS, c.NF_NAT_RANGE_MAP_IPS | c.NF_NAT_RANGE_PROTO_SPECIFIED),
    )


def _reject(tcp_reset: bool, family: addresses.Family) -> bytes:
    if tcp_reset:
        return _expression("reject", number(c.NFTA_REJECT_TYPE, c.NFT_REJECT_TCP_RST))
    code = c.ICMP_PORT_UNREACH if family is addresses.Family.IPV4 else c.ICMPV6_PORT_UNREACH
    return _expression(
        "reject",
        number(c.NFTA_REJECT_TYPE, c.NFT_REJECT_ICMP_UNREACH),
        attribute(c.NFTA_REJECT_ICMP_CODE, bytes((code,))),
    )


_DYNSET_OPERATIONS = {
    ruleset.DynamicOperation.ADD: c.NFT_DYNSET_OP_ADD,
    ruleset.DynamicOperation.UPDATE: c.NFT_DYNSET_OP_UPDATE,
    ruleset.DynamicOperation.DELETE: c.NFT_DYNSET_OP_DELETE,
}


def _record(record: ruleset.Record, family: addresses.Family) -> bytes:
    # The value goes to the first whole 16-byte register behind the key.
    value_slot = -(-ruleset.key_bytes(record.key, family) // 16) * 4
    return (
        _load_key(record.key, 0, family)
        + _load(record.value, value_slot, family)
        + _expression(
            "dynset",
            attribute(c.NFTA_DYNSET_SREG_KEY, register(0)),
            attribute(c.NFTA_DYNSET_SREG_DATA, register(value_slot)),
            number(c.NFTA_DYNSET_OP, _DYNSET_OPERATIONS[record.operation]),
            text(c.NFTA_DYNSET_SET_NAME, record.map),
            attribute(c.NFTA_DYNSET_TIMEOUT, (record.timeout_seconds * 1000).to_bytes(8)),
        )
    )


# Elements ------------------------------------------------------------------------------------------------------

# enum nftnl_udata_set_elem_types of libnftnl
_UDATA_ELEMENT_COMMENT = 0
# NFTNL_UDATA_COMMENT_MAXLEN of nft, with its NUL
COMMENT_BYTES = 128


def _element_messages(operation: transaction.ElementOperation) -> Iterator[bytes]:
    spec, family = operation.spec, operation.family
    # Both halves of a replacement stand in neighbouring messages of one transaction; pieces keep them close, so that
    # a cut between transactions never falls between them.
    for piece in transaction.chunks(operation, elements_per_message(spec, family)):
        if not isinstance(piece, transaction.AddElements):
            yield from _element_list(spec, family, c.NFT_MSG_DELSETELEM, 0, _bare(spec, family, piece.elements))
        if not isinstance(piece, transaction.DeleteElements):
            full = _full(spec, family, piece.elements)
            yield from _element_list(spec, family, c.NFT_MSG_NEWSETELEM, c.NLM_F_CREATE, full)


def element_query(spec: ruleset.SetSpec, family: addresses.Family, key: bytes) -> bytes:
    """The attributes of a request for one element."""
    (element,) = _bare(spec, family, {key: b""})
    head = text(c.NFTA_SET_ELEM_LIST_TABLE, ruleset.TABLE_NAME) + text(c.NFTA_SET_ELEM_LIST_SET, spec.name)
    return head + attribute(c.NFTA_SET_ELEM_LIST_ELEMENTS, element)


def element_index(message: bytes, offset: int) -> int | None:
    """Which of a message's elements, counted from 0, begins at a place in bytes; None if none does."""
    place = _NETLINK_HEADERS
    for kind, value in netlink.attributes(message[_NETLINK_HEADERS:]):
        if kind == c.NFTA_SET_ELEM_LIST_ELEMENTS:
            place += 4
            for index, (_, element) in enumerate(netlink.attributes(value)):
                if place == offset:
                    return index
                place += 4 + len(element) + (-len(element) & 3)
            return None
        place += 4 + len(value) + (-len(value) & 3)
    return None


def elements_per_message(spec: ruleset.SetSpec, family: addresses.Family) -> int:
    """How many elements of a set fit into one message, whatever they are."""
    largest = 32 + ruleset.key_bytes(spec.key, family) * 2 + 36
    if spec.data is ruleset.Data.VERDICT:
        largest += 128
    if spec.owners:
        largest += COMMENT_BYTES
    return _ELEMENT_BYTES // largest


def _element_list(
    spec: ruleset.SetSpec, family: addresses.Family, kind: int, flags: int, elements: Iterable[bytes]
) -> Iterator[bytes]:
    head = text(c.NFTA_SET_ELEM_LIST_TABLE, ruleset.TABLE_NAME) + text(c.NFTA_SET_ELEM_LIST_SET, spec.name)
    buffer: list[bytes] = []
    size = 0
    for element in elements:
        if size + len(element) > _ELEMENT_BYTES:
            yield _element_message(kind, family, flags, head, buffer)
            buffer, size = [], 0
        buffer.append(element)
        size += len(element)
    if buffer:
        yield _element_message(kind, family, flags, head, buffer)


def _element_message(kind: int, family: addresses.Family, flags: int, head: bytes, elements: list[bytes]) -> bytes:
    payload = head + attribute(c.NFTA_SET_ELEM_LIST_ELEMENTS, b"".join(elements))
    return netlink.message(kind, NFPROTO[family], c.NLM_F_REQUEST | flags, payload)


def key_template(spec: ruleset.SetSpec, family: addresses.Family) -> bytes:
    """What stands before the bytes of a key: its two attribute headers."""
    size = _declared_key_bytes(spec.key, family)
    return _ATTRIBUTE.pack(8 + size, c.NFTA_SET_ELEM_KEY) + _ATTRIBUTE.pack(4 + size, c.NFTA_DATA_VALUE)


def data_template(spec: ruleset.SetSpec, family: addresses.Family) -> bytes:
    """What stands before the bytes of a value that is not a verdict."""
    assert spec.data is not None
    size = _declared_data_bytes(spec.data, family)
    return _ATTRIBUTE.pack(8 + size, c.NFTA_SET_ELEM_DATA) + _ATTRIBUTE.pack(4 + size, c.NFTA_DATA_VALUE)


def _bare(spec: ruleset.SetSpec, family: addresses.Family, elements: ruleset.Elements) -> Iterator[bytes]:
    """Elements by key alone, for deletion; one or a run of them at a time.

    b"" is somebody else's element for all keys that have no other.
    """
    if spec.intervals:
        return (_range(spec, key) if key else _CATCH_ALL for key in elements)
    key_head = key_template(spec, family)
    size = len(key_head) + ruleset.key_bytes(spec.key, family)
    head = _ATTRIBUTE.pack(4 + size, c.NFTA_LIST_ELEM) + key_head
    if b"" in elements:
        return (head + key if key else _CATCH_ALL for key in elements)
    return iter([head + head.join(elements)] if elements else [])


_CATCH_ALL = nest(c.NFTA_LIST_ELEM, number(c.NFTA_SET_ELEM_FLAGS, c.NFT_SET_ELEM_CATCHALL))


def _full(spec: ruleset.SetSpec, family: addresses.Family, elements: ruleset.Elements) -> Iterator[bytes]:
    """Elements with their values; one or a run of them at a time."""
    if spec.data is None:
        return _bare(spec, family, elements)
    key_head = key_template(spec, family)
    size = len(key_head) + ruleset.key_bytes(spec.key, family)
    if spec.data is ruleset.Data.VERDICT:
        return (_with_verdict(key_head + key, value) for key, value in elements.items())
    data_head = data_template(spec, family)
    if spec.owners:
        return (_with_owner(key_head + key + data_head, value) for key, value in elements.items())
    size += len(data_head) + _declared_data_bytes(spec.data, family)
    head = _ATTRIBUTE.pack(4 + size, c.NFTA_LIST_ELEM) + key_head
    # All of one size, so that joining does it: 250,000 endpoints pass here when an agent starts.
    joined = map(data_head.join, elements.items())  # type: ignore[arg-type]
    return iter([head + head.join(joined)] if elements else [])


def _with_verdict(key: bytes, value: ruleset.Value) -> bytes:
    assert isinstance(value, ruleset.VerdictValue)
    body = key + verdict_element_data(value.chain)
    return _ATTRIBUTE.pack(4 + len(body), c.NFTA_LIST_ELEM) + body


def _with_owner(head: bytes, value: ruleset.Value) -> bytes:
    assert isinstance(value, ruleset.Owned)
    comment = value.owner.encode() + b"\0"
    body = head + value.value + attribute(c.NFTA_SET_ELEM_USERDATA, _udata(_UDATA_ELEMENT_COMMENT, comment))
    return _ATTRIBUTE.pack(4 + len(body), c.NFTA_LIST_ELEM) + body


@cache
def verdict_element_data(chain: str) -> bytes:
    """NFTA_SET_ELEM_DATA of an element that goes to a chain, or drops ("")."""
    return attribute(c.NFTA_SET_ELEM_DATA, _verdict_data(c.NFT_GOTO if chain else c.NF_DROP, chain))


def _range(spec: ruleset.SetSpec, key: bytes) -> bytes:
    half = len(key) // 2
    return nest(
        c.NFTA_LIST_ELEM,
        nest(c.NFTA_SET_ELEM_KEY, attribute(c.NFTA_DATA_VALUE, key[:half])),
        nest(c.NFTA_SET_ELEM_KEY_END, attribute(c.NFTA_DATA_VALUE, key[half:])),
    )
