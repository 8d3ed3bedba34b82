"""What is traced, from the words of the command line; and the rules that it becomes."""

from __future__ import annotations

import pytest

from netagent import errors
from netagent.model import addresses
from netagent.model.addresses import Family, Protocol
from netagent.plan.frontends import FrontendKey
from netagent.trace import arming, flow
from netagent.trace.flow import Flow
from tests import kernel

TEN = addresses.parse_address("10.96.0.10")
WEB = FrontendKey(Family.IPV4, TEN, Protocol.TCP, 80)
NODE_PORT = FrontendKey(Family.IPV4, b"", Protocol.TCP, 30080)
DNS = FrontendKey(Family.IPV6, addresses.parse_address("fd00::53"), Protocol.UDP, 53)
SERVED = [("default/web:http", WEB), ("default/web:http", NODE_PORT), ("kube-system/dns:dns", DNS)]
OWN = frozenset(map(addresses.parse_address, ("127.0.0.1", "192.0.2.1", "::1", "fd00::1")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.96.0.10:53/udp", Flow(TEN, Protocol.UDP, 53)),
        ("10.96.0.10:80", Flow(TEN, Protocol.TCP, 80)),
        ("[fd00::1]:80/SCTP", Flow(addresses.parse_address("fd00::1"), Protocol.SCTP, 80)),
        ("default/web", None),
        ("default/web:http", None),
    ],
)
def test_a_target_is_an_address_with_port_and_protocol_or_else_a_service(text: str, expected: Flow | None) -> None:
    assert flow.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["10.96.0.10", "10.96.0.300:80", "10.96.0.10:0", "10.96.0.10:80/icmp", "10.96.0.10:99999"]
)
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(errors.ConfigError):
        flow.parse(text)


def test_sender_and_target_are_of_one_family() -> None:
    with pytest.raises(errors.ConfigError, match="families"):
        flow.parse("10.96.0.10:80", source=addresses.parse_address("fd00::1"))


def test_a_service_is_all_its_addresses_with_node_ports_at_those_of_the_node() -> None:
    flows = flow.of_service("default/web", SERVED, node_addresses=OWN)
    assert list(map(str, flows)) == ["10.96.0.10:80/tcp", "192.0.2.1:30080/tcp"]
    assert flow.of_service("web", SERVED, node_addresses=OWN) == flows  # as the other commands take it
    assert flow.of_service("default/web:30080", SERVED, node_addresses=OWN) == flows[1:]
    assert list(map(str, flow.of_service("kube-system/dns:dns", SERVED, node_addresses=OWN))) == ["[fd00::53]:53/udp"]


@pytest.mark.parametrize("text", ["default/other", "default/web:https", "other"])
def test_a_service_or_port_that_is_not_served_is_refused(text: str) -> None:
    with pytest.raises(errors.ConfigError):
        flow.of_service(text, SERVED, node_addresses=OWN)


@kernel.isolated
def test_what_is_shown_is_what_is_armed() -> None:
    """The text loads with nft, and nft lists the same as for the messages."""
    from netagent.nftables import netlink

    flows = [
        Flow(TEN, Protocol.TCP, 80, addresses.parse_address("192.0.2.9")),
        Flow(TEN, Protocol.UDP, 53),
        Flow(addresses.parse_address("fd00::53"), Protocol.SCTP, 99),
    ]
    kernel.nft("\n".join(line for line in arming.text(flows, every_packet=False) if "flags owner" not in line))
    expected = kernel.ruleset()
    kernel.fresh()
    with netlink.NftablesSocket() as door:
        assert door.commit(arming.messages(flows, every_packet=False)) == []
        armed = kernel.ruleset()
    # Only the table itself differs: this one belongs to a socket.
    assert {name: found for name, found in armed.items() if not name.startswith("table")} == {
        name: found for name, found in expected.items() if not name.startswith("table")
    }
    assert kernel.ruleset() == {}  # the socket is closed
