"""Sets of networks in their one normal form."""

from __future__ import annotations

from collections.abc import Iterable

from netagent.model import addresses


def collapsed(prefixes: Iterable[addresses.Prefix], family: addresses.Family) -> tuple[addresses.Prefix, ...]:
    """Return the fewest networks that cover the same addresses of a family: disjoint and sorted.

    Equal sets of addresses give equal results, however they were written down.
    """
    size = family.address_bytes
    result: list[addresses.Prefix] = []
    # In this order a network comes after those that contain it and next to its other half.
    for prefix in sorted({prefix for prefix in prefixes if len(prefix.address) == size}):
        if result and prefix.address in result[-1]:
            continue
        result.append(prefix)
        while len(result) > 1 and (parent := _union(result[-2], result[-1])):
            result[-2:] = [parent]
    return tuple(result)


def host_prefix(address: bytes) -> addresses.Prefix:
    """The network that holds one packed address only."""
    return addresses.Prefix(address, len(address) * 8)


def _union(lower: addresses.Prefix, upper: addresses.Prefix) -> addresses.Prefix | None:
    """The network that two disjoint ones fill exactly, or None."""
    if lower.length != upper.length:
        return None
    parent = addresses.network(lower.address, lower.length - 1)
    return parent if upper.address in parent else None
