"""From Frontends to elements: what one frontend has to have in the maps of a table.

Every function and method here is about one frontend at a time, and costs what that frontend has.
"""

from __future__ import annotations

import itertools
import operator
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from netagent.model import addresses
from netagent.nftables import affinity, capacity, layout, ruleset, shapes, slots, wire
from netagent.plan import frontends, node

_PADDING = b"\0\0"


class _List(msgspec.Struct, gc=False):
    """A frontend's list of endpoints: slots from `offset` on, under `prefix`, in a map."""

    map: str
    prefix: bytes
    offset: int
    slots: Sequence[bytes]  # the endpoint in each
    endpoints: Sequence[bytes]  # the same, sorted


class _ShapeUse(msgspec.Struct):
    """A shape that is in use: the number of its entry as an element has it, and how many frontends have the shape."""

    shape: shapes.Shape
    number: bytes
    users: int


class _Placed(msgspec.Struct):
    """What we made of a frontend."""

    frontend: frontends.Frontend
    use: _ShapeUse
    lists: tuple[_List, ...]
    affinity_lists: tuple[affinity.EndpointList, ...]


class Lowering:
    """The desired table of one family, kept up to date frontend by frontend.

    Owns: `table`, and what each frontend has in it. Use: `update` with every changed frontend; compare the table
    with what the kernel holds, at the keys in `touched` (None: everywhere), and chains if it is `reshaped`;
    `settled` when the kernel has it all,
    `unsettled` when nobody knows what it has.
    Goals: an update costs what the frontend has; endpoints keep their slots and affinity numbers as far as possible,
    also across a restart, thanks to `found`, the elements that the kernel held at first.
    Threading: none.
    """

    def __init__(
        self, rules: node.NodeRules, *, affinity_clients: int, found: Mapping[str, ruleset.Elements] | None = None
    ) -> None:
        self.rules = rules
        self.touched: dict[str, set[bytes]] | None = None
        self.reshaped = True
        sets = layout.sets(affinity_clients=affinity_clients)
        self.table = ruleset.Table(rules.family, sets, layout.chains(rules), {name: {} for name in sets})
        self._placed: dict[frontends.FrontendKey, _Placed] = {}
        self._shared: dict[str, Counter[bytes]] = {layout.CLUSTER_IPS: Counter(), layout.HAIRPIN: Counter()}
        self._shapes: dict[shapes.Shape, _ShapeUse] = {}
        self._chain_shapes: Counter[str] = Counter()
        self._entry_shapes: Counter[str] = Counter()
        self._numbers: dict[str, bytes] = {}  # of each entry in use
        self._found = found or {}
        self._groups = affinity.Groups()
        self._found_numbers: dict[int, dict[bytes, int]] = {}
        self._look_at_found_affinity()

    def set_rules(self, rules: node.NodeRules) -> None:
        """Follow the node's rules: chains change, elements do not."""
        self.rules = rules
        self.reshaped = True
        self.table.chains = layout.chains(rules)
        for shape in self._shapes:
            self.table.chains.update({chain.name: chain for chain in shapes.chains_of(shape, rules)})

    def settled(self) -> None:
        """The kernel holds the desired table: from now on, note what is touched."""
        self.touched = {name: set() for name in self.table.sets}
        self.reshaped = False
        self._found = {}

    def touch(self, name: str, key: bytes) -> None:
        """Compare an element at the next occasion."""
        if self.touched is not None:
            self.touched[name].add(key)

    def unsettled(self) -> None:
        """Nobody knows what the kernel holds: compare everything."""
        self.touched = None
        self.reshaped = True

    def fit(self, sizes: Mapping[str, int]) -> None:
        """Declare the sets for what they hold; `sizes` are those of the kernel's, which are kept if they are enough."""
        for name, spec in self.table.sets.items():
            fitted = capacity.fitted(spec, len(self.table.elements[name]), sizes.get(name))
            if fitted is not spec:
                self.table.sets[name] = fitted
                self.unsettled()

    def update(self, key: frontends.FrontendKey, frontend: frontends.Frontend | None) -> None:
        """Make the table what it has to be with this frontend (None: with nothing at this key)."""
        previous = self._placed.pop(key, None)
        placed = self._place(frontend, previous) if frontend else None
        if placed:
            self._placed[key] = placed
        self._move_shared(previous.frontend if previous else None, frontend)
        self._move_lists(previous.lists if previous else (), placed.lists if placed else ())
        if previous:
            self._release(previous, placed)

    def _place(self, frontend: frontends.Frontend, previous: _Placed | None) -> _Placed:
        """Add what a frontend needs, but for its lists of endpoints in the maps of backends."""
        use = self._acquire_shape(shapes.shape_of(frontend))
        if frontend.source_ranges:
            for ranges_key in _ranges(frontend):
                self._set(layout.SOURCE_RANGES, ranges_key, b"")
        comment = str(frontend.owner)[: wire.COMMENT_BYTES - 1]
        name, packed = _frontend_at(frontend.key)
        self._set(name, packed, ruleset.Owned(use.number, comment))
        if use.shape.affinity_seconds is not None:
            return _Placed(frontend, use, (), self._affinity_lists(frontend))
        return _Placed(frontend, use, self._lists(frontend, packed, previous), ())

    def _release(self, previous: _Placed, placed: _Placed | None) -> None:
        """Remove what a frontend had and does not need any more (`placed`: what it has now)."""
        frontend = previous.frontend
        kept_ranges = set(_ranges(placed.frontend)) if placed else set()
        for ranges_key in _ranges(frontend):
            if ranges_key not in kept_ranges:
                self._set(layout.SOURCE_RANGES, ranges_key, None)
        if not placed:
            self._set(*_frontend_at(frontend.key), None)
        kept_lists = {found.number for found in placed.affinity_lists} if placed else set()
        for endpoint_list in previous.affinity_lists:
            if endpoint_list.number not in kept_lists and self._groups.release(endpoint_list, frontend.key):
                self._write_affinity_list(endpoint_list, endpoint_list.slots, endpoint_list.numbers, ())
                endpoint_list.arrange(())
        if previous.affinity_lists and not kept_lists:
            self._set(*_affinity_at(frontend.key), None)
        self._release_shape(previous.use)

    def _set(self, name: str, key: bytes, value: ruleset.Value | None) -> None:
        """Write one element (None: take it away), and note it."""
        elements = self.table.elements[name]
        if value is None:
            del elements[key]
        elif elements.get(key) == value:
            return
        else:
            elements[key] = value
        if self.touched is not None:
            self.touched[name].add(key)

    def _move_shared(self, previous: frontends.Frontend | None, current: frontends.Frontend | None) -> None:
        """Count a frontend as user of other elements than before; those without a user go."""
        gained, lost = _shared(current) if current else (), _shared(previous) if previous else ()
        if gained and lost:
            has, had = set(gained), set(lost)
            gained, lost = list(has - had), list(had - has)
        for name, key in gained:
            users = self._shared[name]
            users[key] = count = users.get(key, 0) + 1
            if count == 1:
                self._set(name, key, b"")
        for name, key in lost:
            users = self._shared[name]
            users[key] -= 1
            if not users[key]:
                del users[key]
                self._set(name, key, None)

    # Whose it is

    def users_of(self, name: str, key: bytes) -> frozenset[frontends.FrontendKey]:
        """The frontends that want an element of a set; none if it is nobody's. Costs a look at all of them."""
        family = self.rules.family
        match name:
            case layout.FRONTENDS | layout.NODEPORTS | layout.AFFINITY_PORTS | layout.AFFINITY_NODEPORTS:
                at = layout.NODEPORTS if name in (layout.NODEPORTS, layout.AFFINITY_NODEPORTS) else layout.FRONTENDS
                found = frontend_key(family, at, key)
            case layout.BACKENDS | layout.NODEPORT_BACKENDS:
                at = layout.FRONTENDS if name == layout.BACKENDS else layout.NODEPORTS
                found = frontend_key(family, at, key[:-4])
            case layout.SOURCE_RANGES:
                found = frontend_key(family, layout.FRONTENDS, key[: len(key) // 2 - family.address_bytes])
            case _:
                return frozenset(one for one, placed in self._placed.items() if _wants(placed, name, key))
        return frozenset({found} & self._placed.keys()) if found else frozenset()

    def users_of_chain(self, name: str) -> frozenset[frontends.FrontendKey]:
        """The frontends whose shape has a chain of this name."""
        guilty = {
            shape for shape in self._shapes if any(chain.name == name for chain in shapes.chains_of(shape, self.rules))
        }
        return frozenset(key for key, placed in self._placed.items() if placed.use.shape in guilty)

    # Chains

    def _acquire_shape(self, shape: shapes.Shape) -> _ShapeUse:
        use = self._shapes.get(shape)
        if use:
            use.users += 1
            return use
        self.reshaped = True
        for chain in shapes.chains_of(shape, self.rules):
            self.table.chains[chain.name] = chain
            self._chain_shapes[chain.name] += 1
        entry = shapes.entry(shape)
        self._entry_shapes[entry] += 1
        if entry not in self._numbers:
            self._numbers[entry] = self._unused_number(entry)
            self._set(layout.SHAPES, self._numbers[entry], ruleset.VerdictValue(entry))
        use = self._shapes[shape] = _ShapeUse(shape, self._numbers[entry], 1)
        return use

    def _release_shape(self, use: _ShapeUse) -> None:
        use.users -= 1
        if use.users:
            return
        self.reshaped = True
        shape = use.shape
        del self._shapes[shape]
        for chain in shapes.chains_of(shape, self.rules):
            self._chain_shapes[chain.name] -= 1
            if not self._chain_shapes[chain.name]:
                del self.table.chains[chain.name], self._chain_shapes[chain.name]
        entry = shapes.entry(shape)
        self._entry_shapes[entry] -= 1
        if not self._entry_shapes[entry]:
            del self._entry_shapes[entry]
            self._set(layout.SHAPES, self._numbers.pop(entry), None)

    def _unused_number(self, entry: str) -> bytes:
        number = shapes.number_of(entry)
        while (packed := slots.pack(number)) in self.table.elements[layout.SHAPES]:
            number = number % 0xFFFFFFFE + 1
        return packed

    # Lists of endpoints, one for each frontend

    def _lists(self, frontend: frontends.Frontend, prefix: bytes, previous: _Placed | None) -> tuple[_List, ...]:
        if frontend.verdict is not frontends.Verdict.SERVE:
            return ()
        everywhere = self._list(frontend, prefix, 0, frontend.endpoints, previous)
        if not frontend.local_endpoints:
            return (everywhere,)
        return (everywhere, self._list(frontend, prefix, shapes.LOCAL_OFFSET, frontend.local_endpoints, previous))

    def _list(
        self,
        frontend: frontends.Frontend,
        prefix: bytes,
        offset: int,
        endpoints: Sequence[bytes],
        previous: _Placed | None,
    ) -> _List:
        name = layout.BACKENDS if frontend.key.address else layout.NODEPORT_BACKENDS
        for held in previous.lists if previous else ():
            if held.offset == offset:
                return _List(name, prefix, offset, slots.follow(held.endpoints, endpoints, held.slots), endpoints)
        found = self._found_slots(name, prefix, offset) if self._found else ()
        return _List(name, prefix, offset, slots.arrange(endpoints, found), endpoints)

    def _found_slots(self, name: str, prefix: bytes, offset: int) -> Sequence[bytes]:
        """What the kernel held in the slots of a list when we started."""
        elements = self._found.get(name)
        if not elements:
            return ()
        result: list[bytes] = []
        while value := elements.get(prefix + slots.pack(offset + len(result))):
            assert isinstance(value, bytes)
            result.append(value[:-2])
        return result

    def _move_lists(self, previous: tuple[_List, ...], current: tuple[_List, ...]) -> None:
        """Turn the elements of a frontend's lists into those of its new ones."""
        if not previous:
            for wanted in current:
                self._write_slots(wanted, (), wanted.slots)
            return
        had = {found.offset: found for found in previous}
        for wanted in current:
            found = had.pop(wanted.offset, None)
            self._write_slots(wanted, found.slots if found else (), wanted.slots)
        for left in had.values():
            self._write_slots(left, left.slots, ())

    def _write_slots(self, where: _List, before: Sequence[bytes], after: Sequence[bytes]) -> None:
        if before is after:
            return
        elements = self.table.elements[where.map]
        prefix = where.prefix
        if not before and self.touched is None:
            # At most 250,000 endpoints pass here when an agent starts.
            for number, endpoint in zip(slots.packed(len(after), where.offset), after, strict=False):
                elements[prefix + number] = endpoint + _PADDING
            return
        numbers = slots.packed(max(len(before), len(after)), where.offset)
        for index in itertools.compress(itertools.count(), map(operator.ne, before, after)):
            self._set(where.map, prefix + numbers[index], after[index] + _PADDING)
        for index in range(len(before), len(after)):
            self._set(where.map, prefix + numbers[index], after[index] + _PADDING)
        for index in range(len(after), len(before)):
            self._set(where.map, prefix + numbers[index], None)

    # Lists of endpoints with affinity, one for all frontends of a Service port

    def _look_at_found_affinity(self) -> None:
        for name in (layout.AFFINITY_PORTS, layout.AFFINITY_NODEPORTS):
            self._groups.reserve(_number(value) >> 17 for value in self._found.get(name, {}).values())
        for key, value in self._found.get(layout.AFFINITY_ENDPOINTS, {}).items():
            number = _number(key)
            assert isinstance(value, bytes)
            self._found_numbers.setdefault(number >> 16, {})[value[:-2]] = number

    def _affinity_lists(self, frontend: frontends.Frontend) -> tuple[affinity.EndpointList, ...]:
        """The lists of a frontend with affinity, brought up to date and written."""
        name, key = _affinity_at(frontend.key)
        found = self._found.get(name, {}).get(key)
        group = self._groups.group(frontend.owner, _number(found) >> 17 if found else None)
        self._set(name, key, slots.pack(affinity.list_number(group, local=False) << 16))
        wanted = [(frontend.endpoints_are_local, frontend.endpoints)]
        if frontend.local_endpoints:
            wanted.append((True, frontend.local_endpoints))
        return tuple(self._affinity_list(frontend, group, endpoints, local=local) for local, endpoints in wanted)

    def _affinity_list(
        self, frontend: frontends.Frontend, group: int, endpoints: Sequence[bytes], *, local: bool
    ) -> affinity.EndpointList:
        number = affinity.list_number(group, local=local)
        endpoint_list = self._groups.list_of(number)
        if endpoint_list is None:
            endpoint_list = affinity.EndpointList(
                number,
                frontend.key.protocol,
                numbers=self._found_numbers.get(number, {}),
                found=self._found_affinity_slots(number),
            )
            before: Sequence[bytes] = ()
            numbers_before: Mapping[bytes, int] = {}
        else:
            before, numbers_before = endpoint_list.slots, endpoint_list.numbers
        self._groups.acquire(endpoint_list, frontend.key)
        endpoint_list.arrange(endpoints)
        self._write_affinity_list(endpoint_list, before, numbers_before, endpoint_list.slots)
        return endpoint_list

    def _found_affinity_slots(self, number: int) -> list[bytes]:
        elements = self._found.get(layout.AFFINITY_SLOTS, {})
        by_number = {index: endpoint for endpoint, index in self._found_numbers.get(number, {}).items()}
        result: list[bytes] = []
        while value := elements.get(slots.pack(number << 16) + slots.pack(len(result))):
            endpoint = by_number.get(_number(value))
            if endpoint is None:
                break
            result.append(endpoint)
        return result

    def _write_affinity_list(
        self,
        endpoint_list: affinity.EndpointList,
        before: Sequence[bytes],
        numbers_before: Mapping[bytes, int],
        after: Sequence[bytes],
    ) -> None:
        prefix = slots.pack(endpoint_list.number << 16)
        numbers = endpoint_list.numbers if after else {}
        protocol = bytes((endpoint_list.protocol, 0, 0, 0))
        for index, endpoint in enumerate(after):
            self._set(layout.AFFINITY_SLOTS, prefix + slots.pack(index), slots.pack(numbers[endpoint]))
        for index in range(len(after), len(before)):
            self._set(layout.AFFINITY_SLOTS, prefix + slots.pack(index), None)
        for endpoint, number in numbers.items():
            if numbers_before.get(endpoint) != number:
                self._set(layout.AFFINITY_ENDPOINTS, slots.pack(number) + protocol, endpoint + _PADDING)
        for endpoint, number in numbers_before.items():
            if endpoint not in numbers:
                self._set(layout.AFFINITY_ENDPOINTS, slots.pack(number) + protocol, None)


_PROTOCOL_AND_PORT = struct.Struct(">B3xH2x")


def _wants(placed: _Placed, name: str, key: bytes) -> bool:
    """Whether a frontend needs an element of a set that is not its own alone."""
    match name:
        case layout.SHAPES:
            return placed.use.number == key
        case layout.AFFINITY_SLOTS | layout.AFFINITY_ENDPOINTS:
            return any(found.number == _number(key[:4]) >> 16 for found in placed.affinity_lists)
        case _:
            return (name, key) in _shared(placed.frontend)


def _packed_key(key: frontends.FrontendKey) -> bytes:
    """A frontend as the key of FRONTENDS or NODEPORTS: (address,) protocol, port."""
    return key.address + _PROTOCOL_AND_PORT.pack(key.protocol, key.port)


def frontend_key(family: addresses.Family, name: str, key: bytes) -> frontends.FrontendKey | None:
    """The frontend of an element of FRONTENDS or NODEPORTS; None if no frontend of ours can have that key."""
    size = family.address_bytes if name == layout.FRONTENDS else 0
    try:
        protocol = addresses.Protocol(key[size])
    except (IndexError, ValueError):
        return None
    return frontends.FrontendKey(family, key[:size], protocol, int.from_bytes(key[size + 4 : size + 6]))


def _frontend_at(key: frontends.FrontendKey) -> tuple[str, bytes]:
    return layout.FRONTENDS if key.address else layout.NODEPORTS, _packed_key(key)


def _affinity_at(key: frontends.FrontendKey) -> tuple[str, bytes]:
    return layout.AFFINITY_PORTS if key.address else layout.AFFINITY_NODEPORTS, _packed_key(key)


def _shared(frontend: frontends.Frontend) -> Sequence[tuple[str, bytes]]:
    """Elements that other frontends may need as well."""
    shared = [(layout.HAIRPIN, address + address) for address in frontend.hairpin_addresses]
    if frontend.kind is frontends.FrontendKind.CLUSTER_IP:
        shared.append((layout.CLUSTER_IPS, frontend.key.address))
    return shared


def _ranges(frontend: frontends.Frontend) -> Iterator[bytes]:
    """The elements of SOURCE_RANGES, each from first to last source."""
    if frontend.source_ranges:
        prefix = _packed_key(frontend.key)
        for network in frontend.source_ranges:
            yield prefix + network.address + prefix + network.last


def _number(value: ruleset.Value) -> int:
    """The number in front of a key or value."""
    assert isinstance(value, bytes)
    return slots.unpack(value)
