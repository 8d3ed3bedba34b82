"""From counts that only grow to rates, shares and imbalance."""

from __future__ import annotations

import pytest

from netagent.cli import rates
from netagent.model import addresses
from netagent.model.addresses import Family, Protocol
from netagent.plan.frontends import FrontendKey

TCP = Protocol.TCP


def key(address: str, port: int = 80, protocol: Protocol = TCP) -> FrontendKey:
    return FrontendKey(Family.IPV4, addresses.parse_address(address), protocol, port)


def node_port(port: int) -> FrontendKey:
    return FrontendKey(Family.IPV4, b"", TCP, port)


def at(text: str) -> bytes:
    address, _, port = text.rpartition(":")
    return addresses.endpoint_key(addresses.parse_address(address), int(port))


WEB, DNS = key("10.96.0.1"), key("10.96.0.10", 53)
DIALLED = {
    WEB: rates.Dialled("default/web:http", 2),
    node_port(30080): rates.Dialled("default/web:http", 2),
    DNS: rates.Dialled("kube-system/dns", 1),
}


def measured(before: dict[FrontendKey, int], after: dict[FrontendKey, int], *, seconds: float = 2.0) -> rates.Meter:
    meter = rates.Meter()
    meter.read(DIALLED, before, seconds=0)
    meter.read(DIALLED, after, seconds=seconds)
    return meter


def test_growth_by_seconds_is_the_rate_and_what_was_there_before_does_not_count() -> None:
    meter = measured({WEB: 1000, DNS: 5}, {WEB: 1030, DNS: 15})
    web, dns = meter.rates()
    assert (web.name, web.per_second, web.total, web.share) == ("default/web:http/TCP", 15.0, 30, 0.75)
    assert (dns.name, dns.per_second, dns.total, dns.share) == ("kube-system/dns/TCP", 5.0, 10, 0.25)
    assert meter.per_second == 20.0


def test_all_frontends_of_a_service_port_are_one_row() -> None:
    (web,) = measured({}, {WEB: 4, node_port(30080): 6}).rates()
    assert web.total == 10
    assert web.endpoints == 2


def test_an_element_that_was_replaced_begins_at_zero_and_loses_nothing() -> None:
    meter = measured({WEB: 100}, {WEB: 110})
    meter.read(DIALLED, {WEB: 7}, seconds=1.0)
    (web,) = meter.rates()
    assert (web.per_second, web.total) == (7.0, 17)


def test_a_frontend_that_is_new_counts_from_its_beginning() -> None:
    (web,) = measured({DNS: 1}, {DNS: 1, WEB: 3}).rates()
    assert web.total == 3


def test_connections_go_to_their_service_port_by_address_and_else_by_node_port() -> None:
    meter = rates.Meter()
    meter.read(DIALLED, {}, seconds=0)
    meter.arrived(
        [
            (TCP, at("10.96.0.1:80"), at("10.180.0.1:8080"), 6),
            (TCP, at("192.0.2.1:30080"), at("10.180.0.2:8080"), 2),
            (TCP, at("10.96.0.10:80"), at("10.180.0.9:80"), 50),  # an address of ours, and no port of its
            (Protocol.UDP, at("10.96.0.1:80"), at("10.180.0.1:8080"), 50),
        ]
    )
    meter.read(DIALLED, {WEB: 8}, seconds=2.0)
    (web,) = meter.rates()
    assert [(one.endpoint, one.per_second, one.total, one.share) for one in web.busiest] == [
        ("10.180.0.1:8080", 3.0, 6, 0.75),
        ("10.180.0.2:8080", 1.0, 2, 0.25),
    ]


def test_without_counters_of_elements_the_connections_that_were_followed_count() -> None:
    meter = rates.Meter()
    meter.read(DIALLED, None, seconds=0)
    meter.arrived([(TCP, at("10.96.0.1:80"), at("10.180.0.1:8080"), 6)])
    meter.read(DIALLED, None, seconds=3.0)
    (web,) = meter.rates()
    assert (web.per_second, web.total) == (2.0, 6)


@pytest.mark.parametrize(
    ("counts", "endpoints", "imbalance"),
    [
        ([50, 50], 2, 1.0),
        ([75, 25], 2, 1.5),
        ([100], 2, 2.0),  # the other one gets nothing
        ([9], 2, None),  # chance
        ([500], 1, None),
        ([], 3, None),
        ([30, 30, 30], 2, 1.0),  # one has left meanwhile
    ],
)
def test_imbalance_is_the_busiest_over_the_mean_of_all(
    counts: list[int], endpoints: int, imbalance: float | None
) -> None:
    assert rates.imbalance_of(counts, endpoints) == imbalance


def test_rows_are_sorted_as_asked_and_filtered_by_service() -> None:
    meter = measured({}, {WEB: 4, DNS: 6})
    assert [rate.owner for rate in meter.rates()] == ["kube-system/dns", "default/web:http"]
    assert [rate.owner for rate in meter.rates(sort="name")] == ["default/web:http", "kube-system/dns"]
    assert [rate.owner for rate in meter.rates(wanted=lambda service: service.name == "web")] == ["default/web:http"]


def test_a_service_port_that_has_gone_is_not_shown() -> None:
    meter = measured({}, {WEB: 4, DNS: 6})
    meter.read({DNS: DIALLED[DNS]}, {DNS: 6}, seconds=1.0)
    assert [rate.owner for rate in meter.rates()] == ["kube-system/dns"]
