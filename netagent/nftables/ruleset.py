"""The ruleset as data: what a table of ours is made of. The one description that text, wire and walk read.

An expression yields a value of a packet; a statement tests it or does something to it; a rule is a tuple of
statements that ends at the first test that fails. The unions `Part` and `Statement` are closed: whoever reads
them matches every member.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from netagent.model import addresses


class Field(enum.Enum):
    """A value that every packet carries. The value is the name that we use in messages."""

    SOURCE = "source address"
    DESTINATION = "destination address"
    PROTOCOL = "transport protocol"
    DESTINATION_PORT = "destination port"
    MARK = "packet mark"
    PRIORITY = "packet priority"
    INPUT_NAME = "input interface"
    SOURCE_TYPE = "route type of the source"
    DESTINATION_TYPE = "route type of the destination"
    CT_STATE = "connection state"
    CT_STATUS = "connection status"


@dataclass(frozen=True, slots=True)
class Slot:
    """A random number, uniform over `offset` .. `offset + modulus - 1` (nft: numgen random)."""

    modulus: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """The upper half of the packet priority: the list that a slot or an endpoint number belongs to."""


Part = Field | Slot | Group
Key = tuple[Part, ...]

GROUP_MASK = 0xFFFF0000


@dataclass(frozen=True, slots=True)
class Lookup:
    """The value that a map holds for a key. A miss ends the rule."""

    key: Key
    map: str


@dataclass(frozen=True, slots=True)
class InPrefix:
    """The address lies in the network (or, negated, does not)."""

    field: Field
    prefix: addresses.Prefix
    negate: bool = False


@dataclass(frozen=True, slots=True)
class IsLocal:
    """The address (SOURCE_TYPE or DESTINATION_TYPE) is, or is not, one of this host's own."""

    field: Field
    negate: bool = False


@dataclass(frozen=True, slots=True)
class InputName:
    """The packet came in through this interface; with `prefix`, through one whose name starts so."""

    name: str
    prefix: bool = False
    negate: bool = False


@dataclass(frozen=True, slots=True)
class HasBits:
    """At least one of the bits is set in MARK, CT_STATE or CT_STATUS."""

    field: Field
    bits: int


@dataclass(frozen=True, slots=True)
class IsProtocol:
    """The transport protocol is this one."""

    protocol: addresses.Protocol


@dataclass(frozen=True, slots=True)
class InSet:
    """The key is an element of the set."""

    key: Key
    set: str


@dataclass(frozen=True, slots=True)
class VerdictMap:
    """Do what the map says for the key; go on with the next rule on a miss."""

    key: Key
    map: str


@dataclass(frozen=True, slots=True)
class Goto:
    """Continue in another chain and do not come back."""

    chain: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Discard the packet in silence."""


@dataclass(frozen=True, slots=True)
class SetMark:
    """Set bits of the packet mark, leaving the others."""

    bits: int


@dataclass(frozen=True, slots=True)
class FlipMark:
    """Invert bits of the packet mark, leaving the others."""

    bits: int


@dataclass(frozen=True, slots=True)
class SetPriority:
    """Write a value into the packet priority, which serves as scratch memory between two rules."""

    value: Lookup | Slot | Group


@dataclass(frozen=True, slots=True)
class OrPriority:
    """Set bits of the packet priority."""

    bits: int


@dataclass(frozen=True, slots=True)
class ClearPriority:
    """Make the packet priority zero, as it is for nearly every packet that nobody has touched."""


@dataclass(frozen=True, slots=True)
class Dnat:
    """Send the connection to the endpoint that a map says."""

    endpoint: Lookup


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Give the connection the address of the outgoing interface, and a port chosen fully at random."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the packet: with a TCP reset, or with ICMP (ICMPv6) port unreachable."""

    tcp_reset: bool


class DynamicOperation(enum.Enum):
    ADD = "add"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Record:
    """Write an element from the packet path. UPDATE restarts the timeout of one that is there, and keeps its value."""

    operation: DynamicOperation
    map: str
    key: Key
    value: Field
    timeout_seconds: int = 0


Statement = (
    InPrefix
    | IsLocal
    | InputName
    | HasBits
    | IsProtocol
    | InSet
    | VerdictMap
    | Goto
    | Drop
    | SetMark
    | FlipMark
    | SetPriority
    | OrPriority
    | ClearPriority
    | Dnat
    | Masquerade
    | Reject
    | Record
)
Rule = tuple[Statement, ...]


class ChainType(enum.StrEnum):
    NAT = "nat"
    FILTER = "filter"


class HookPoint(enum.StrEnum):
    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"


@dataclass(frozen=True, slots=True)
class Hook:
    """Where the kernel calls a base chain."""

    type: ChainType
    point: HookPoint
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


class Data(enum.Enum):
    """What a map's elements hold."""

    VERDICT = "verdict"
    ENDPOINT = "endpoint"  # address, port
    PRIORITY = "priority"


@dataclass(frozen=True, slots=True)
class SetSpec:
    """Declaration of a set (`data` None) or map.

    `intervals`: the last part of a key is a range, and an element's key is first key + last key. `counters`: each
    element counts packets. `owners`: each element says whose it is (its values are Owned). `size`: most elements that
    packets may add; 0 for one that only we write. `capacity`: most elements that we may write; 0 for any number.
    """

    name: str
    key: Key
    data: Data | None = None
    intervals: bool = False
    counters: bool = False
    owners: bool = False
    size: int = 0
    capacity: int = 0

    @property
    def limit(self) -> int:
        """The size that the kernel is told; 0 for none."""
        return self.size or self.capacity

    @property
    def dynamic(self) -> bool:
        """Packets write it, and its elements time out: its content is the kernel's, not ours."""
        return self.size > 0


class VerdictValue(NamedTuple):
    """Value of an element of a verdict map: the chain that it goes to ("" drops)."""

    chain: str


class Owned(NamedTuple):
    """Value of an element that says whose it is, in its comment."""

    value: bytes
    owner: str


Value = bytes | VerdictValue | Owned
Elements = dict[bytes, Value]  # a set's elements have the value b""


@dataclass(slots=True)
class Table:
    """A table of ours for one family: declarations, chains, elements of each set. Mutable, single-threaded."""

    family: addresses.Family
    sets: dict[str, SetSpec]
    chains: dict[str, Chain]
    elements: dict[str, Elements]


TABLE_NAME = "netagent"


def part_bytes(part: Part, family: addresses.Family) -> int:
    """Room that a part of a key takes, in bytes; always a multiple of 4, as in the kernel's registers."""
    if part in (Field.SOURCE, Field.DESTINATION):
        return family.address_bytes
    return 4


def key_bytes(key: Key, family: addresses.Family) -> int:
    """Room that a key takes, in bytes."""
    return sum(part_bytes(part, family) for part in key)
