"""Equal sets of addresses have one form."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.model import addresses
from netagent.model.addresses import Family
from netagent.plan import prefixes
from tests import builders


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ((), ()),
        (("10.0.0.0/8", "10.0.0.0/8"), ("10.0.0.0/8",)),
        (("10.1.2.0/24", "10.0.0.0/8"), ("10.0.0.0/8",)),
        (("10.0.1.0/24", "10.0.0.0/24"), ("10.0.0.0/23",)),
        (("10.0.1.0/24", "10.0.2.0/24"), ("10.0.1.0/24", "10.0.2.0/24")),
        (("0.0.0.0/1", "128.0.0.0/1"), ("0.0.0.0/0",)),
        (("192.0.2.7/24",), ("192.0.2.0/24",)),
        (("fd00::/64", "10.0.0.0/8"), ("10.0.0.0/8",)),
    ],
)
def test_a_list_of_networks_is_written_in_its_shortest_form(given_: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert prefixes.collapsed(builders.prefixes(*given_), Family.IPV4) == builders.prefixes(*expected)


small_networks = st.builds(
    addresses.network,
    st.integers(0, 255).map(lambda last: bytes([10, 0, 0, last])),
    st.integers(22, 32),
)


@given(st.lists(small_networks, max_size=12))
def test_the_form_is_that_of_the_standard_library(networks: list[addresses.Prefix]) -> None:
    expected = ipaddress.collapse_addresses(ipaddress.IPv4Network(str(prefix)) for prefix in networks)
    assert [str(prefix) for prefix in prefixes.collapsed(networks, Family.IPV4)] == [str(one) for one in expected]
