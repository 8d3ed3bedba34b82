"""Which slot holds which endpoint."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.nftables import slots

_ENDPOINTS = [bytes((10, 0, 0, number, 0, 80)) for number in range(12)]
_lists = st.lists(st.sampled_from(_ENDPOINTS), unique=True)


def _moves(before: list[bytes], after: list[bytes]) -> int:
    """Slots that hold something else than before."""
    return sum(before[index] != after[index] for index in range(min(len(before), len(after))))


@given(wanted=_lists, previous=_lists)
def test_every_endpoint_has_exactly_one_slot(wanted: list[bytes], previous: list[bytes]) -> None:
    arranged = slots.arrange(sorted(wanted), previous)
    assert sorted(arranged) == sorted(wanted)


@given(wanted=_lists, previous=_lists)
def test_no_arrangement_moves_fewer_endpoints(wanted: list[bytes], previous: list[bytes]) -> None:
    """A slot changes only if its endpoint leaves, or if the list becomes too short for it: never one more."""
    arranged = list(slots.arrange(sorted(wanted), previous))
    shared = min(len(previous), len(wanted))
    assert _moves(previous, arranged) == sum(endpoint not in wanted for endpoint in previous[:shared])


@given(wanted=_lists, previous=st.lists(st.sampled_from(_ENDPOINTS)))
def test_somebody_elses_duplicates_are_set_right(wanted: list[bytes], previous: list[bytes]) -> None:
    assert sorted(slots.arrange(sorted(wanted), previous)) == sorted(wanted)


@given(wanted=_lists, previous=_lists)
def test_arranging_again_changes_nothing(wanted: list[bytes], previous: list[bytes]) -> None:
    once = slots.arrange(sorted(wanted), previous)
    assert slots.arrange(sorted(wanted), once) is once or not once


@pytest.mark.parametrize(("short", "few"), [(0, 8), (64, 8), (0, 1)])
@given(wanted=_lists, before=st.lists(_lists, max_size=4))
def test_following_is_arranging(short: int, few: int, wanted: list[bytes], before: list[list[bytes]]) -> None:
    """Step by step, as lists change, and with many changes at once; by each of the ways that there are."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(slots, "_SHORT", short)
        patched.setattr(slots, "_FEW", few)
        _follow(wanted, before)


def _follow(wanted: list[bytes], before: list[list[bytes]]) -> None:
    held: list[bytes] = []
    arranged: Sequence[bytes] = []
    for step in (*before, wanted):
        expected = slots.arrange(sorted(step), arranged)
        if held:
            assert list(slots.follow(sorted(held), sorted(step), arranged)) == list(expected)
        held, arranged = step, expected


@given(wanted=_lists, previous=_lists)
def test_the_previous_list_stays_as_it_is(wanted: list[bytes], previous: list[bytes]) -> None:
    before = list(previous)
    slots.arrange(sorted(wanted), previous)
    assert previous == before


def test_without_a_previous_list_the_order_is_that_of_the_endpoints() -> None:
    assert slots.arrange(_ENDPOINTS, ()) == _ENDPOINTS


@given(counts=st.lists(st.tuples(st.integers(0, 40), st.sampled_from((0, 65536))), max_size=8))
def test_packed_numbers_are_those_from_the_offset_on(counts: list[tuple[int, int]]) -> None:
    for count, offset in counts:
        found = slots.packed(count, offset)
        assert len(found) >= count
        assert found[:count] == [slots.pack(offset + index) for index in range(count)]
