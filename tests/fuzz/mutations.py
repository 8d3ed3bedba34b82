"""Inputs made from others: what a fuzzer does that knows nothing of coverage. Pure, given a source of randomness."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 254, 255)


class Material(NamedTuple):
    """What inputs are made of: others, words of the language, and the most bytes that one may have."""

    inputs: Sequence[bytes]
    words: Sequence[bytes]
    most_bytes: int


def mutated(material: Material, chance: random.Random) -> bytes:
    """One of the inputs, changed in one to eight places."""
    data = bytearray(chance.choice(material.inputs) if material.inputs else b"")
    for _ in range(1 << chance.randrange(4)):
        chance.choice(_MUTATIONS)(data, material, chance)
    return bytes(data[: material.most_bytes])


def _at(data: bytearray, chance: random.Random) -> int:
    return chance.randrange(len(data) + 1)


def _range(data: bytearray, chance: random.Random) -> slice:
    start = _at(data, chance)
    return slice(start, start + chance.choice((1, 2, 4, 8, 40, 400)))


def _flip(data: bytearray, material: Material, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _number(data: bytearray, material: Material, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.choice(_NUMBERS)


def _noise(data: bytearray, material: Material, chance: random.Random) -> None:
    at = _at(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 16)))


def _word(data: bytearray, material: Material, chance: random.Random) -> None:
    if material.words:
        where = _range(data, chance) if chance.random() < 0.3 else slice(at := _at(data, chance), at)
        data[where] = chance.choice(material.words)


def _drop(data: bytearray, material: Material, chance: random.Random) -> None:
    del data[_range(data, chance)]


def _repeat(data: bytearray, material: Material, chance: random.Random) -> None:
    where = _range(data, chance)
    piece = bytes(data[where])
    times = chance.choice((1, 1, 1, 2, 5, 50))
    data[where.start : where.start] = (piece * times)[: material.most_bytes]


def _move(data: bytearray, material: Material, chance: random.Random) -> None:
    where = _range(data, chance)
    piece = bytes(data[where])
    del data[where]
    at = _at(data, chance)
    data[at:at] = piece


def _cross(data: bytearray, material: Material, chance: random.Random) -> None:
    """Go on like another input from here."""
    other = chance.choice(material.inputs) if material.inputs else b""
    data[_at(data, chance) :] = other[chance.randrange(len(other) + 1) :]


def _cut(data: bytearray, material: Material, chance: random.Random) -> None:
    del data[_at(data, chance) :]


Mutation = Callable[[bytearray, Material, random.Random], None]
_MUTATIONS: tuple[Mutation, ...] = (
    *(_flip, _flip, _number, _number, _noise, _word, _word, _word),
    *(_drop, _drop, _repeat, _move, _cross, _cut),
)
