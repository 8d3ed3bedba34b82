"""Sets are made for what they hold: with room, never too small, and not made anew without need."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family
from netagent.nftables import backend, capacity, layout
from tests import kernel

from . import strategies
from .test_backend_kernel import lines, opened, read_anew, want

SPECS = layout.sets(affinity_clients=1024)


@given(count=st.integers(0, 1_000_000))
def test_there_is_room_for_as_many_again_and_not_much_more(count: int) -> None:
    assert 2 * count <= capacity.suitable(count) <= 2 * count + 4096


@given(count=st.integers(0, 10_000), held=st.none() | st.integers(0, 20_000))
def test_what_the_kernel_has_is_kept_while_it_is_enough(count: int, held: int | None) -> None:
    fitted = capacity.fitted(SPECS[layout.BACKENDS], count, held)
    if held is not None and (held == 0 or held >= count):
        assert fitted.capacity == held
    else:
        assert fitted.capacity == capacity.suitable(count)
    assert capacity.fitted(fitted, count, held) is fitted


@pytest.mark.parametrize("name", [layout.AFFINITY, layout.SOURCE_RANGES])
def test_sets_of_another_kind_have_no_capacity(name: str) -> None:
    assert capacity.fitted(SPECS[name], 1_000_000, None) is SPECS[name]


def _state(count: int, *, first: int = 1, services: int = 1) -> strategies.State:
    return strategies.state_of(
        *(
            strategies.cluster_ip_frontend(number=number, count=count, first=first + 100 * number)
            for number in range(1, services + 1)
        )
    )


def _size(ours: backend.Backend, name: str) -> int:
    return ours.actual(Family.IPV4).sets[name].size


@kernel.isolated
def test_a_set_that_is_outgrown_is_made_anew_with_its_table_in_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_LEAST", 4)
    with opened() as ours:
        want(ours, _state(2))
        ours.commit()
        assert _size(ours, layout.BACKENDS) == 4
        ours.update(_state(4), _state(4))
        ours.commit()
        assert _size(ours, layout.BACKENDS) == 4, "they fit just so"
        ours.update(_state(9), _state(9))
        assert lines(ours.pending())[0] == "delete table ip netagent"
        assert ours.commit().transactions == 1
        assert _size(ours, layout.BACKENDS) == 20
        assert not ours.moved()
        ours.update(_state(1), _state(1))
        ours.commit()
        assert _size(ours, layout.BACKENDS) == 20, "nobody gains by a smaller one"
    assert read_anew(_state(1)) == []


@kernel.isolated
def test_everything_in_a_full_set_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_LEAST", 4)
    with opened() as ours:
        want(ours, _state(2))
        ours.commit()
        ours.update(_state(4), _state(4))
        ours.commit()
        other = _state(4, first=50)
        ours.update(other, other)
        assert ours.commit().operations == 8
        assert _size(ours, layout.BACKENDS) == 4
    assert read_anew(other) == []


@kernel.isolated
def test_what_comes_before_others_leave_needs_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Service goes and another one comes: their elements are in one map for a moment."""
    monkeypatch.setattr(capacity, "_LEAST", 4)
    state = _state(2, services=2)
    with opened() as ours:
        want(ours, {})
        for present in state:
            only = {present: state[present]}
            ours.update(state, only)
            ours.commit()
        assert _size(ours, layout.BACKENDS) == 4
        bigger = _state(3, services=2)
        for present in bigger:
            only = {present: bigger[present]}
            ours.update(bigger, only)
            ours.commit()
        assert read_anew(only) == []


@kernel.isolated
def test_a_table_without_sizes_is_left_as_it_is() -> None:
    """One that netagent wrote before it knew of sizes, or that somebody loaded by hand."""
    state = _state(3)
    with opened() as ours:
        want(ours, state)
        ours.commit()
        script = "\n".join(
            line
            for line in kernel.nft("list table ip netagent").splitlines()
            if not line.strip().startswith("size 4096")
        )
    kernel.fresh()
    kernel.nft(script)
    assert not any("table" in line.split()[1] for line in read_anew(state))
    with opened() as ours:
        want(ours, state)
        ours.commit()
        ours.update(_state(5000), _state(5000))
        ours.commit()
        assert _size(ours, layout.BACKENDS) == 0
    assert read_anew(_state(5000)) == []


@kernel.isolated
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_the_sizes_the_kernel_gets_what_it_has_to_hold(data: st.DataObject) -> None:
    kernel.fresh()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(capacity, "_LEAST", data.draw(st.integers(1, 6)))
        history = data.draw(strategies.histories(Family.IPV4))
        known: strategies.State = {}
        with opened() as ours:
            want(ours, {})
            for state in history:
                ours.update(known.keys() | state.keys(), state)
                ours.commit()
                known = state
                assert read_anew(state) == []
                for name, elements in ours.actual(Family.IPV4).elements.items():
                    size = _size(ours, name)
                    assert size == 0 or len(elements) <= size
