"""The object by which a restored backup is found."""

from __future__ import annotations

import msgspec
import pytest

from netagent.source.api.witness import Witness, newest_of
from tests import builders


def raw(name: str, version: str, **labels: str) -> msgspec.Raw:
    made = builders.service_manifest(name, labels=labels)
    return msgspec.Raw(builders.as_json(made | {"metadata": made["metadata"] | {"resourceVersion": version}}))


def test_the_newest_of_several_pages() -> None:
    first = newest_of([raw("a", "9"), raw("b", "100"), raw("c", "20")], None)
    assert first == Witness("default", "b", "100", True)
    assert newest_of([raw("d", "99")], first) is first
    assert newest_of([raw("e", "101")], first) == Witness("default", "e", "101", True)
    assert newest_of([], None) is None


@pytest.mark.parametrize(
    "odd",
    [
        raw("a", "no number"),
        raw("a,b", "7"),
        msgspec.Raw(b'{"resourceVersion":"7"}'),
        msgspec.Raw(b'{"metadata":{"name":"a","resourceVersion":"7"'),
        msgspec.Raw(b"[]"),
    ],
    ids=["version", "name", "elsewhere", "cut", "nothing"],
)
def test_what_is_no_witness(odd: msgspec.Raw) -> None:
    known = Witness("default", "known", "5", True)
    assert newest_of([odd], known) is known
    assert newest_of([odd], None) is None


def test_a_version_in_a_string_is_none() -> None:
    found = newest_of([raw("a", "7", note='{"resourceVersion":"999"}')], None)
    assert found == Witness("default", "a", "7", True)
