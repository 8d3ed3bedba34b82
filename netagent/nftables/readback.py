"""What the kernel holds of our tables, read back into the same nouns that we plan with.

Rules are compared as the kernel lists them, so they stay bytes here (`ActualChain.rules`), in a canonical form.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink, ruleset, wire

# How often a set is listed at most, with growing pauses (seconds), until all of it has been seen.
_LISTINGS = 8
_REHASH_SECONDS = 0.02
# A set with fewer elements is through with its rehashing before anybody can ask.
_NEVER_REHASHED = 1000

CanonicalRule = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ActualChain:
    """A chain as the kernel has it. `hook` is None for one that is not a base chain, or whose hook we never use."""

    name: str
    rules: tuple[CanonicalRule, ...]
    hook: ruleset.Hook | None = None
    is_base: bool = False


class ActualSet(NamedTuple):
    """What of a declaration can be told from outside: flags, types and sizes of key and value, counters."""

    name: str
    flags: int
    key_type: int
    data_type: int
    counters: bool
    size: int = 0


@dataclass(slots=True)
class ActualTable:
    """A table of ours as the kernel has it. `exists` False: there is none. `dormant`: somebody switched it off.

    `persistent`: it can be owned, and outlives its owner. `owner`: the netlink port of the socket that alone may change
    it, 0 for none.
    """

    family: addresses.Family
    exists: bool = False
    dormant: bool = False
    sets: dict[str, ActualSet] = field(default_factory=dict)
    chains: dict[str, ActualChain] = field(default_factory=dict)
    elements: dict[str, ruleset.Elements] = field(default_factory=dict)
    persistent: bool = False
    owner: int = 0

    @property
    def structure(self) -> tuple[object, ...]:
        """All but the elements, and who owns it: equal for tables that were made alike."""
        return (self.exists, self.dormant, self.persistent, self.sets, self.chains)


def read_table(
    socket: netlink.NftablesSocket, family: addresses.Family, specs: dict[str, ruleset.SetSpec]
) -> ActualTable:
    """Read our table of one family. Elements are read for the sets in `specs` that packets do not write.

    A set that is not declared as in `specs` counts as having no elements: it has to be made anew anyway. OSError with
    the kernel's code if it refuses, and EBADMSG if its answer makes no sense.
    """
    with _well_formed():
        return _read_table(socket, family, specs)


@contextlib.contextmanager
def _well_formed() -> Iterator[None]:
    try:
        yield
    except (KeyError, struct.error) as error:
        raise netlink.malformed(f"an object lacks an attribute ({error})") from error


def read_flags(socket: netlink.NftablesSocket, family: addresses.Family) -> ActualTable:
    """Whether our table is there, and what is special about it; nothing that is in it. OSError as `read_table`."""
    with _well_formed():
        return _read_flags(socket, family)


def _read_flags(socket: netlink.NftablesSocket, family: addresses.Family) -> ActualTable:
    table = ActualTable(family)
    for body in socket.dump_all(c.NFT_MSG_GETTABLE, wire.NFPROTO[family]):
        attributes = dict(netlink.attributes(body))
        if _text(attributes[c.NFTA_TABLE_NAME]) == ruleset.TABLE_NAME:
            flags = int.from_bytes(attributes[c.NFTA_TABLE_FLAGS])
            table.exists = True
            table.dormant = bool(flags & c.NFT_TABLE_F_DORMANT)
            table.persistent = bool(flags & c.NFT_TABLE_F_PERSIST)
            table.owner = int.from_bytes(attributes.get(c.NFTA_TABLE_OWNER, b""))
    return table


def _read_table(
    socket: netlink.NftablesSocket, family: addresses.Family, specs: dict[str, ruleset.SetSpec]
) -> ActualTable:
    table = _read_flags(socket, family)
    proto = wire.NFPROTO[family]
    if not table.exists:
        return table
    ours_alone = table.owner == socket.port
    generation = socket.generation()
    in_table = wire.text(c.NFTA_SET_TABLE, ruleset.TABLE_NAME)
    counts: dict[str, int] = {}
    for body in socket.dump_all(c.NFT_MSG_GETSET, proto, in_table, ours_alone=ours_alone):
        attributes = dict(netlink.attributes(body))
        actual = _set(attributes)
        if c.NFTA_SET_COUNT in attributes:
            counts[actual.name] = _number(attributes, c.NFTA_SET_COUNT)
        # A nameless set belongs to a rule, and goes with it.
        if not actual.flags & c.NFT_SET_ANONYMOUS:
            table.sets[actual.name] = actual
    table.chains = read_chains(socket, family, ours_alone=ours_alone)
    for name, spec in specs.items():
        if name in table.sets and declared_as(table.sets[name], spec, family) and not spec.dynamic:
            elements = functools.partial(read_elements, socket, spec, family, ours_alone=ours_alone)
            table.elements[name] = _all_elements(
                elements, counts.get(name), unchanged=lambda: ours_alone or socket.generation() == generation
            )
    return table


def _all_elements(
    read: Callable[[], ruleset.Elements], count: int | None, *, unchanged: Callable[[], bool]
) -> ruleset.Elements:
    """All elements of a set, however the kernel is moving them about.

    A hash table that has just grown is rehashed in the background, and a listing meanwhile may pass elements over
    (measured: some 20 of 60,000, right after they were added). It never invents any, so several are put together until
    the set's own count is reached, or, on kernels that do not tell it, until one more brings nothing new. The count
    holds as long as the table is `unchanged`; once somebody has committed, all of this has to be read again anyway.
    """
    elements = read()
    for attempt in range(_LISTINGS):
        if len(elements) == count or (count is None and len(elements) < _NEVER_REHASHED):
            break
        if not unchanged():
            break
        time.sleep(_REHASH_SECONDS * attempt)
        known = len(elements)
        elements.update(read())
        if count is None and len(elements) == known:
            break
    return elements


def declared_as(actual: ActualSet, spec: ruleset.SetSpec, family: addresses.Family) -> bool:
    """Whether a set of the kernel is what we would declare. Where we name no size, any will do."""
    return actual._replace(size=spec.limit and actual.size) == as_declared(spec, family)


def as_declared(spec: ruleset.SetSpec, family: addresses.Family) -> ActualSet:
    """What the kernel shows of a set that is declared so."""
    return ActualSet(
        spec.name,
        wire.set_flags(spec),
        wire.key_type(spec.key, family),
        wire.data_type(spec.data, family) if spec.data is not None else 0,
        spec.counters,
        spec.limit,
    )


def _set(attributes: dict[int, bytes]) -> ActualSet:
    description = dict(netlink.attributes(attributes.get(c.NFTA_SET_DESC, b"")))
    return ActualSet(
        name=_text(attributes[c.NFTA_SET_NAME]),
        flags=_number(attributes, c.NFTA_SET_FLAGS),
        key_type=_number(attributes, c.NFTA_SET_KEY_TYPE),
        data_type=_number(attributes, c.NFTA_SET_DATA_TYPE),
        counters=c.NFTA_SET_EXPR in attributes,
        size=_number(description, c.NFTA_SET_DESC_SIZE),
    )


def read_chains(
    socket: netlink.NftablesSocket, family: addresses.Family, *, ours_alone: bool = False
) -> dict[str, ActualChain]:
    """The chains of our table, with their rules, by name. `ours_alone`: nobody else can change the table."""
    proto = wire.NFPROTO[family]
    hooks: dict[str, tuple[bool, ruleset.Hook | None]] = {}
    rules: dict[str, list[CanonicalRule]] = {}
    with _well_formed():
        for body in socket.dump_all(c.NFT_MSG_GETCHAIN, proto):
            attributes = dict(netlink.attributes(body))
            if _text(attributes[c.NFTA_CHAIN_TABLE]) == ruleset.TABLE_NAME:
                name = _text(attributes[c.NFTA_CHAIN_NAME])
                hooks[name] = (c.NFTA_CHAIN_HOOK in attributes, _hook(attributes))
                rules[name] = []
        in_table = wire.text(c.NFTA_RULE_TABLE, ruleset.TABLE_NAME)
        for body in socket.dump_all(c.NFT_MSG_GETRULE, proto, in_table, ours_alone=ours_alone):
            attributes = dict(netlink.attributes(body))
            if _text(attributes[c.NFTA_RULE_TABLE]) == ruleset.TABLE_NAME:
                chain = _text(attributes[c.NFTA_RULE_CHAIN])
                rules.setdefault(chain, []).append(canonical(attributes.get(c.NFTA_RULE_EXPRESSIONS, b"")))
    return {name: ActualChain(name, tuple(rules[name]), hook, is_base) for name, (is_base, hook) in hooks.items()}


def _hook(attributes: dict[int, bytes]) -> ruleset.Hook | None:
    """The hook of a base chain; None if we would never make one like it (type, policy, place)."""
    raw = attributes.get(c.NFTA_CHAIN_HOOK)
    if raw is None or _number(attributes, c.NFTA_CHAIN_POLICY) != c.NF_ACCEPT:
        return None
    parts = dict(netlink.attributes(raw))
    point = wire.HOOK_NAMES.get(_number(parts, c.NFTA_HOOK_HOOKNUM))
    kind = _text(attributes.get(c.NFTA_CHAIN_TYPE, b""))
    if point is None or kind not in tuple(ruleset.ChainType):
        return None
    return ruleset.Hook(ruleset.ChainType(kind), point, struct.unpack(">i", parts[c.NFTA_HOOK_PRIORITY])[0])


def canonical(expressions: bytes) -> CanonicalRule:
    """A rule's expressions as names and non-zero attributes.

    Kernels differ in which attributes with the value zero they list, and in how they order them. nft turns the bytes of
    single-byte parts of a key around, of which nothing comes.
    """
    result: list[object] = []
    for _, expression in netlink.attributes(expressions):
        parts = dict(netlink.attributes(expression))
        values = netlink.attributes(parts.get(c.NFTA_EXPR_DATA, b""))
        kept = tuple(sorted((kind, value) for kind, value in values if any(value)))
        name = _text(parts[c.NFTA_EXPR_NAME])
        if name != "byteorder" or dict(kept).get(c.NFTA_BYTEORDER_LEN) != _ONE:
            result.append((name, kept))
    return tuple(result)


_ONE = (1).to_bytes(4)


def read_elements(
    socket: netlink.NftablesSocket, spec: ruleset.SetSpec, family: addresses.Family, *, ours_alone: bool = False
) -> ruleset.Elements:
    """All elements of one of our sets; {} if it does not exist. `ours_alone`: nobody else can change the table."""
    try:
        listing = _listing_of(spec)
        bodies = socket.dump_all(c.NFT_MSG_GETSETELEM, wire.NFPROTO[family], listing, ours_alone=ours_alone)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return {}
        raise
    return decode_elements(bodies, spec, family)


def element_messages(
    socket: netlink.NftablesSocket, spec: ruleset.SetSpec, family: addresses.Family
) -> Iterator[bytes]:
    """The messages of one listing of a set, as they come; InterruptedError at the end if it may not be complete."""
    return (body for _, body in socket.dump(c.NFT_MSG_GETSETELEM, wire.NFPROTO[family], _listing_of(spec)))


def _listing_of(spec: ruleset.SetSpec) -> bytes:
    payload = wire.text(c.NFTA_SET_ELEM_LIST_TABLE, ruleset.TABLE_NAME)
    return payload + wire.text(c.NFTA_SET_ELEM_LIST_SET, spec.name)


def set_of(body: bytes) -> str:
    """Name of the set that a message of elements is about; "" if it does not say."""
    return _text(dict(netlink.attributes(body)).get(c.NFTA_SET_ELEM_LIST_SET, b""))


def decode_elements(bodies: Iterable[bytes], spec: ruleset.SetSpec, family: addresses.Family) -> ruleset.Elements:
    """Elements from the messages of a dump."""
    elements: ruleset.Elements = {}
    fast = _uniform(spec, family)
    sizes = _sizes(spec, family)
    for body in bodies:
        for kind, listing in netlink.attributes(body):
            if kind != c.NFTA_SET_ELEM_LIST_ELEMENTS:
                continue
            if fast and fast.decode(listing, elements):
                continue
            with _well_formed():
                for _, element in netlink.attributes(listing):
                    _decode_element(element, spec, sizes, elements)
    return elements


def _sizes(spec: ruleset.SetSpec, family: addresses.Family) -> tuple[int, int]:
    """Bytes of a key (of one end of it, in a set of intervals), and of a value that is not a verdict."""
    key = struct.unpack_from("=H", wire.key_template(spec, family), 4)[0] - 4
    if spec.data is None:
        return key, 0
    return key, struct.unpack_from("=H", wire.data_template(spec, family), 4)[0] - 4


def _decode_element(element: bytes, spec: ruleset.SetSpec, sizes: tuple[int, int], elements: ruleset.Elements) -> None:
    key = value = b""
    verdict = owner = ""
    for kind, raw in netlink.attributes(element):
        if kind == c.NFTA_SET_ELEM_KEY:
            key = raw[4:] + key
        elif kind == c.NFTA_SET_ELEM_KEY_END:
            key += raw[4:]
        elif kind == c.NFTA_SET_ELEM_DATA:
            if spec.data is ruleset.Data.VERDICT:
                verdict = _verdict(raw)
            else:
                value = raw[4:]
        elif kind == c.NFTA_SET_ELEM_USERDATA:
            # One entry of libnftnl's userdata: type, length, text with NUL.
            owner = raw[2:].rstrip(b"\0").decode("utf-8", "replace")
    key_size, value_size = sizes
    if spec.intervals and len(key) == key_size:
        key += key  # older kernels take one without an end: it is where it begins
    # Whoever looks into keys and values relies on their sizes. No key at all is the element for all others.
    if len(key) not in (0, key_size << spec.intervals):
        raise netlink.malformed(f"a key of {len(key)} bytes in {spec.name}")
    if spec.data is ruleset.Data.VERDICT:
        elements[key] = ruleset.VerdictValue(verdict)
    elif len(value) != value_size:
        raise netlink.malformed(f"a value of {len(value)} bytes in {spec.name}")
    else:
        elements[key] = ruleset.Owned(value, owner) if spec.owners else value


def _verdict(raw: bytes) -> str:
    """Chain that a verdict goes to, "" for drop; any other verdict as a text that no chain can be named."""
    parts = dict(netlink.attributes(raw[4:]))
    code = struct.unpack(">i", parts[c.NFTA_VERDICT_CODE])[0]
    if code == c.NF_DROP:
        return ""
    chain = _text(parts.get(c.NFTA_VERDICT_CHAIN, b""))
    return chain if code == c.NFT_GOTO else f"verdict {code} {chain}"


class _Uniform:
    """Decoder of a set whose elements are all of one size: key and value, and nothing else. The hot path."""

    def __init__(self, spec: ruleset.SetSpec, family: addresses.Family) -> None:
        self._key_head = wire.key_template(spec, family)
        self._data_head = wire.data_template(spec, family)
        key_size = struct.unpack_from("=H", self._key_head, 4)[0] - 4
        data_size = struct.unpack_from("=H", self._data_head, 4)[0] - 4
        self._struct = struct.Struct(f"=4s8s{key_size}s8s{data_size}s")
        self._head = struct.pack("=HH", self._struct.size, c.NFTA_LIST_ELEM)

    def decode(self, listing: bytes, elements: ruleset.Elements) -> bool:
        """Add the elements of a listing; False, and nothing added, if one has another form."""
        if len(listing) % self._struct.size:
            return False
        found = {}
        # The kernel may flag attributes as nested; what a key begins with tells, and all elements begin alike.
        for head, key_head, key, data_head, value in self._struct.iter_unpack(listing):
            if head != self._head or key_head != self._key_head or data_head != self._data_head:
                return False
            found[key] = value
        elements.update(found)
        return True


def _uniform(spec: ruleset.SetSpec, family: addresses.Family) -> _Uniform | None:
    fixed = spec.data in (ruleset.Data.ENDPOINT, ruleset.Data.PRIORITY)
    return _Uniform(spec, family) if fixed and not spec.intervals and not spec.owners else None


def _text(raw: bytes) -> str:
    """A name. Others may give theirs any bytes; `wire.text` makes the same of it again."""
    return raw.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _number(attributes: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, b""))
