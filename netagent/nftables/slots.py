"""Which slot holds which endpoint of a list. Pure."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from itertools import compress, count

_FEW = 8
_SHORT = 64
_packed: dict[int, list[bytes]] = {}


def packed(count: int, offset: int = 0) -> list[bytes]:
    """The numbers offset .. at least offset + count - 1 as nft's registers hold them: 4 bytes, host order."""
    numbers = _packed.setdefault(offset, [])
    if len(numbers) < count:
        numbers += [pack(offset + index) for index in range(len(numbers), count)]
    return numbers


def pack(number: int) -> bytes:
    """A number as nft's registers hold it: 4 bytes, host order."""
    return number.to_bytes(4, sys.byteorder)


def unpack(value: bytes) -> int:
    """The number at the start of a value, as `pack` wrote it."""
    return int.from_bytes(value[:4], sys.byteorder)


def arrange(endpoints: Sequence[bytes], previous: Sequence[bytes]) -> Sequence[bytes]:
    """Return the endpoints in an order that differs from `previous` in as few places as possible.

    Every endpoint that stays keeps its place, unless the list shrinks below it: then the last ones move into the
    places of those that left. Without anything to keep, the order of `endpoints`.
    """
    if not previous:
        return endpoints
    wanted = set(endpoints)
    seen: set[bytes] = set()
    holes: list[int] = []
    for index, endpoint in enumerate(previous):
        # A second slot with the same endpoint is somebody else's work.
        if endpoint in wanted and endpoint not in seen:
            seen.add(endpoint)
        else:
            holes.append(index)
    return _filled(previous, holes, wanted - seen)


def follow(before: Sequence[bytes], after: Sequence[bytes], previous: Sequence[bytes]) -> Sequence[bytes]:
    """What `arrange` returns for `after`, when `previous` is an arrangement of `before`. Both are sorted.

    The interpreter's own loops find the difference: of thousands of endpoints hardly any come and go at once.
    """
    gone, new = _difference(before, after)
    if len(gone) <= _FEW:
        holes = sorted(previous.index(endpoint) for endpoint in gone)
    else:
        holes = [index for index, endpoint in enumerate(previous) if endpoint in gone]
    return _filled(previous, holes, new)


def _filled(previous: Sequence[bytes], holes: list[int], new: set[bytes]) -> Sequence[bytes]:
    """Put new endpoints into the holes, and the last ones into those that are left."""
    if not holes and not new:
        return previous
    missing = sorted(new, reverse=True)
    result = list(previous)
    unfilled = []
    for hole in holes:
        if missing:
            result[hole] = missing.pop()
        else:
            unfilled.append(hole)
    for hole in reversed(unfilled):
        last = result.pop()
        if hole < len(result):
            result[hole] = last
    return result + missing[::-1]


def _difference(before: Sequence[bytes], after: Sequence[bytes]) -> tuple[set[bytes], set[bytes]]:
    """What only the one of two sorted lists has, and what only the other."""
    if len(before) + len(after) <= _SHORT:
        old, new = set(before), set(after)
        return old - new, new - old
    head = _equal(before, after)
    tail = min(_equal(before[::-1], after[::-1]), min(len(before), len(after)) - head)
    old, new = set(before[head : len(before) - tail]), set(after[head : len(after) - tail])
    return old - new, new - old


def _equal(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many elements two lists begin with alike."""
    return next(compress(count(), map(operator.ne, one, other)), min(len(one), len(other)))
