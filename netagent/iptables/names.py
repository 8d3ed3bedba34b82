"""The names of our chains: the same in every process, at most 28 characters. Pure."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2s

PREFIX = "NETAGENT-"
LENGTH = 28  # XT_EXTENSION_MAXNAMELEN, linux/netfilter/x_tables.h, less the final zero

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUV"


def hash_of(text: str) -> str:
    """13 characters that stand for a text: 52 bits, so that 100,000 texts share one with a probability of 10^-6."""
    return blake2s(text.encode()).hexdigest()[:13].upper()


def tree_chain(tree: str, bits: int, length: int) -> str:
    """The chain of a prefix in the dispatch tree of this name."""
    return f"{PREFIX}TREE-{hash_of(f'{tree}/{bits:x}/{length}')}"


@lru_cache(maxsize=4096)
def block_suffix(offset: int, size: int) -> str:
    """At most 5 characters for a block of endpoints. Sizes are powers of two, or below 16."""
    number = offset << 5 | (size if size < 16 else 11 + size.bit_length())
    digits = ""
    while number:
        digits = _DIGITS[number & 31] + digits
        number >>= 5
    return digits


def block_of(suffix: str) -> tuple[int, int] | None:
    """Offset and size of the block with this suffix; None if we write no such suffix."""
    try:
        number = int(suffix, 32)
    except ValueError:
        return None
    size = number & 31
    return number >> 5, size if size < 16 else 1 << (size - 12)
