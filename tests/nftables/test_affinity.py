"""The numbers that stand for lists and endpoints in the kernel's records of clients."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.model import addresses
from netagent.nftables import affinity
from netagent.plan import frontends

_ENDPOINTS = [bytes((10, 0, 0, number, 0, 80)) for number in range(8)]
_lists = st.lists(st.frozensets(st.sampled_from(_ENDPOINTS), max_size=6).map(sorted), min_size=1, max_size=12)


def _list(number: int = 6, numbers: dict[bytes, int] | None = None) -> affinity.EndpointList:
    return affinity.EndpointList(number, addresses.Protocol.TCP, numbers=numbers or {}, found=())


def _owner(name: str) -> frontends.ServicePortName:
    return frontends.ServicePortName("default", name, "", addresses.Protocol.TCP)


def _key(number: int) -> frontends.FrontendKey:
    return frontends.FrontendKey(addresses.Family.IPV4, bytes((10, 96, 0, number)), addresses.Protocol.TCP, 80)


def _acquired(groups: affinity.Groups, number: int, *, local: bool = False, user: int = 1) -> affinity.EndpointList:
    endpoint_list = _list(affinity.list_number(number, local=local))
    groups.acquire(endpoint_list, _key(user))
    return endpoint_list


@given(contents=_lists)
def test_an_endpoint_keeps_its_number_as_long_as_it_stays(contents: list[list[bytes]]) -> None:
    endpoint_list = _list()
    before: dict[bytes, int] = {}
    for content in contents:
        endpoint_list.arrange(content)
        numbers = dict(endpoint_list.numbers)
        assert set(numbers) == set(content) == set(endpoint_list.slots)
        assert len(set(numbers.values())) == len(numbers)
        assert all(numbers[endpoint] == before[endpoint] for endpoint in numbers.keys() & before.keys())
        before = numbers


@given(contents=_lists)
def test_a_number_is_not_used_again_so_that_records_of_an_endpoint_that_left_lead_nowhere(
    contents: list[list[bytes]],
) -> None:
    endpoint_list = _list()
    given_out: set[int] = set()
    before: dict[bytes, int] = {}
    for content in contents:
        endpoint_list.arrange(content)
        fresh = {number for endpoint, number in endpoint_list.numbers.items() if endpoint not in before}
        assert not fresh & given_out
        given_out |= fresh
        before = dict(endpoint_list.numbers)


@pytest.mark.parametrize("highest", [1, 65533, 65534, 65535])
def test_numbers_stay_within_their_list_after_a_restart(highest: int) -> None:
    found = _ENDPOINTS[0]
    endpoint_list = _list(6, {found: 6 << 16 | highest})
    endpoint_list.arrange(_ENDPOINTS[:4])
    assert {number >> 16 for number in endpoint_list.numbers.values()} == {6}
    assert 0 not in {number & 0xFFFF for number in endpoint_list.numbers.values()}
    assert endpoint_list.numbers[found] == 6 << 16 | highest


def test_two_service_ports_never_share_a_group() -> None:
    groups = affinity.Groups()
    assert groups.group(_owner("a"), 7) == 7
    assert groups.group(_owner("b"), 7) != 7
    assert groups.group(_owner("a")) == 7


def test_new_groups_have_numbers_above_those_with_records_in_the_kernel() -> None:
    groups = affinity.Groups()
    groups.reserve(iter([3, 9, 4]))
    assert groups.group(_owner("a")) == 10


def test_a_group_ends_with_the_last_user_of_both_its_lists() -> None:
    groups = affinity.Groups()
    number = groups.group(_owner("a"))
    everywhere = _acquired(groups, number)
    groups.acquire(everywhere, _key(2))
    local = _acquired(groups, number, local=True)
    assert not groups.release(everywhere, _key(1))
    assert groups.release(everywhere, _key(2))
    assert groups.group(_owner("a")) == number, "the local list is still in use"
    assert groups.release(local, _key(1))
    assert groups.group(_owner("a")) != number
    assert groups.list_of(everywhere.number) is None


def test_numbers_wrap_around_without_ever_being_zero() -> None:
    groups = affinity.Groups()
    groups.reserve(iter([32766]))
    numbers = []
    for name in "abc":
        numbers.append(groups.group(_owner(name)))
        _acquired(groups, numbers[-1])
    assert numbers == [32767, 1, 2]
