"""Events of the kernel become the story of a packet."""

from __future__ import annotations

import struct

import pytest

from netagent.model import addresses
from netagent.model.addresses import Protocol
from netagent.nftables import layout, tables, walk
from netagent.trace import arming, events, rehearsal, rules, story
from netagent.trace.events import Event, Headers, Kind, Verdict
from netagent.trace.flow import Flow
from tests.nftables import strategies

FAMILY = addresses.Family.IPV4
CLIENT = addresses.parse_address("192.0.2.9")
LINKS = {0: "", 1: "lo", 2: "eth0"}


def desired(count: int = 2) -> tuple[tables.Tables, Headers, str]:
    """A table with one cluster IP of `count` endpoints, the headers of a packet to it, and whose it is."""
    made = tables.Tables(affinity_clients=100)
    made.set_rules([strategies.plain_rules(FAMILY)])
    (key,) = state = strategies.state_of(strategies.cluster_ip_frontend(count=count))
    made.update(state, state)
    return made, Headers(CLIENT, key.address, key.protocol, 40000, key.port), str(state[key].owner)


class Kernel:
    """The kernel's part: our table with a handle for each rule, and the events of packets that come by."""

    def __init__(self) -> None:
        made, self.headers, self.owner = desired()
        (self.table,) = made.desired()
        self.handles: dict[tuple[str, int], int] = {}
        known: dict[rules.Place, rules.Known] = {}
        for name in sorted(self.table.chains):
            for index, rule in enumerate(self.table.chains[name].rules):
                handle = self.handles[name, index] = len(known) + 1
                known[rules.Place("ip", "netagent", name, handle)] = rules.Known(rule)
        self.rules = rules.Rules(known, {FAMILY: self.table})

    def rule(
        self,
        chain: str,
        index: int,
        verdict: Verdict,
        *,
        target: str = "",
        headers: Headers | None = None,
        packet: int = 7,
        link: int = 0,
    ) -> Event:
        handle = self.handles[chain, index]
        return Event(packet, "ip", "netagent", chain, Kind.RULE, verdict, handle, target, headers, link)


def armed(chain: str, headers: Headers, *, packet: int = 7, link: int = 0) -> Event:
    return Event(packet, "ip", arming.TABLE, chain, Kind.RULE, Verdict.CONTINUE, 4, "", headers, link)


def told(found: list[Event], known: rules.Rules, *, most: int = 10) -> list[story.Story]:
    packets = story.Packets(most, name_of=LINKS.__getitem__)
    for event in found:
        packets.feed(event)
    return [story.tell(packet, known, name_of=LINKS.__getitem__) for packet in packets.take()]


def translated(kernel: Kernel, endpoint: str) -> Headers:
    address, _, port = endpoint.partition(":")
    packed = addresses.parse_address(address)
    return Headers(CLIENT, packed, kernel.headers.protocol, 40000, int(port))


def test_a_packet_that_is_served_names_service_chain_elements_and_endpoint() -> None:
    kernel = Kernel()
    endpoint = addresses.format_endpoint(strategies.endpoint(FAMILY, 1))
    (found,) = told(
        [
            armed("prerouting", kernel.headers, link=2),
            kernel.rule("prerouting", 0, Verdict.GOTO, target="services", headers=kernel.headers, link=2),
            kernel.rule("services", 0, Verdict.GOTO, target="cluster-ip-random-2"),
            kernel.rule("cluster-ip-random-2", 1, Verdict.GOTO, target="to-endpoint"),
            kernel.rule("to-endpoint", 0, Verdict.ACCEPT),
            kernel.rule("postrouting", 0, Verdict.CONTINUE, headers=translated(kernel, endpoint)),
        ],
        kernel.rules,
    )
    assert (found.number, found.service, found.arrived) == (1, kernel.owner, "in by eth0")
    assert found.outcome == f"sent to {endpoint}"
    assert [step.chain for step in found.steps] == [
        "prerouting",
        "services",
        "cluster-ip-random-2",
        "to-endpoint",
        "postrouting",
    ]
    services, _, translation, _ = found.steps[1:]
    assert f"it is for {kernel.owner}" in services.said
    assert services.elements[0].startswith("frontends { ")
    assert services.elements[1].startswith("shapes { ")
    assert translation.said == f"sends it to {endpoint}"
    assert translation.elements[0].startswith("backends { ")
    assert endpoint.replace(":", " . ") in translation.elements[0]


def test_refusals_and_drops_name_who_did_it() -> None:
    kernel = Kernel()
    begin = armed("output", kernel.headers)
    (refused,) = told([begin, kernel.rule("refuse", 0, Verdict.DROP, headers=kernel.headers)], kernel.rules)
    assert refused.outcome == "refused with a TCP reset"
    foreign = Event(7, "inet", "firewall", "input", Kind.RULE, Verdict.DROP, 12)
    known = rules.Rules({rules.Place("inet", "firewall", "input", 12): rules.Known(None, "no telnet")})
    (dropped,) = told([begin, foreign], known)
    assert dropped.outcome == "dropped by a rule in inet firewall, chain input (handle 12)"
    assert dropped.steps[0].said == "drops it (no telnet)"
    policy = Event(7, "ip", "filter", "FORWARD", Kind.POLICY, Verdict.DROP)
    (by_policy,) = told([begin, policy], known)
    assert by_policy.outcome == "dropped by the policy of ip filter, chain FORWARD"


def test_a_packet_that_comes_by_none_of_our_rules_says_so() -> None:
    kernel = Kernel()
    (found,) = told([armed("prerouting", kernel.headers, link=2)], kernel.rules)
    assert "no rule of ours" in found.outcome
    assert found.steps == ()


def test_a_packet_to_this_host_itself_is_one_packet_also_when_it_comes_in_again() -> None:
    kernel = Kernel()
    again = translated(kernel, "10.9.9.9:8080")
    found = told(
        [
            armed("output", kernel.headers, packet=7),
            kernel.rule("postrouting", 0, Verdict.CONTINUE, headers=again, packet=7),
            Event(8, "ip", "netagent", "input", Kind.POLICY, Verdict.ACCEPT, None, "", again, 1),
        ],
        kernel.rules,
    )
    assert len(found) == 1


def test_the_number_of_a_packet_may_come_again_and_packets_of_others_are_passed_over() -> None:
    kernel = Kernel()
    stranger = Event(99, "ip", "filter", "INPUT", Kind.RULE, Verdict.DROP, 3, "", kernel.headers, 2)
    begin = armed("prerouting", kernel.headers, link=2)
    end_of_chain = Event(7, "ip", arming.TABLE, "prerouting", Kind.RULE, Verdict.CONTINUE)
    found = told([stranger, begin, end_of_chain, begin, end_of_chain], kernel.rules)
    assert [each.number for each in found] == [1, 2]
    assert len(told([begin, end_of_chain] * 5, kernel.rules, most=3)) == 3
    # What a packet beyond the last one meets is none of the last one's, whatever its number.
    (only,) = told([begin, begin, kernel.rule("refuse", 0, Verdict.DROP)], kernel.rules, most=1)
    assert only.steps == ()


def test_a_rule_that_is_gone_by_now_is_told_as_that() -> None:
    kernel = Kernel()
    gone = Event(7, "ip", "netagent", "services", Kind.RULE, Verdict.GOTO, 4711, "refuse")
    (found,) = told([armed("output", kernel.headers), gone], kernel.rules)
    assert found.steps[0].said == "goto refuse (a rule that is gone by now)"


def test_the_document_has_what_the_lines_have() -> None:
    kernel = Kernel()
    (found,) = told(
        [armed("output", kernel.headers), kernel.rule("refuse", 0, Verdict.DROP, headers=kernel.headers)], kernel.rules
    )
    document = found.document()
    assert document["outcome"] in list(found.lines())[-1]
    assert document["steps"][0]["ours"] is True
    assert document["packet"] == str(kernel.headers)


# Messages ------------------------------------------------------------------------------------------------------


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_a_message_of_the_kernel_is_read() -> None:
    network = bytes.fromhex("450000280000000040060000") + CLIENT + addresses.parse_address("10.96.0.10")
    verdict = _attribute(1, struct.pack(">i", -4)) + _attribute(2, b"services\0")
    payload = bytes((2, 0, 0, 0)) + b"".join(
        (
            _attribute(1, b"netagent\0"),
            _attribute(2, b"prerouting\0"),
            _attribute(3, struct.pack(">Q", 50)),
            _attribute(4, struct.pack(">I", 3)),
            _attribute(5, verdict),
            _attribute(6, struct.pack(">I", 0xABCD)),
            _attribute(8, network),
            _attribute(9, struct.pack(">HH", 40000, 80)),
            _attribute(10, struct.pack(">I", 2)),
        )
    )
    event = events.decode(payload)
    assert event is not None
    assert (event.family, event.table, event.chain, event.handle) == ("ip", "netagent", "prerouting", 50)
    assert (event.verdict, event.target, event.packet, event.input_link) == (Verdict.GOTO, "services", 0xABCD, 2)
    assert str(event.headers) == "192.0.2.9:40000 -> 10.96.0.10:80/tcp"
    for cut in range(len(payload)):
        events.decode(payload[:cut])  # whatever comes of it, it is no exception


@pytest.mark.parametrize("network", [b"", b"\x45", bytes(40), b"\x60" + bytes(20), b"\x45" + bytes(18)])
def test_headers_that_are_cut_off_are_none(network: bytes) -> None:
    assert events.headers_of(network, b"\0\1\0\2") is None


# Without the kernel --------------------------------------------------------------------------------------------


def test_the_rehearsal_tells_every_way_with_its_probability() -> None:
    made, headers, owner = desired(count=4)
    (table,) = made.desired()
    asked = Flow(headers.destination, Protocol(headers.protocol), headers.destination_port or 0)
    ways = rehearsal.ways(table, asked, walk.Host(), source=CLIENT, input_interface="eth0")
    assert sum(way.probability for way in ways) == 1
    endpoints = {endpoint: share for way in ways for endpoint, share in way.endpoints}
    assert set(endpoints) == {addresses.format_endpoint(strategies.endpoint(FAMILY, number)) for number in range(1, 5)}
    assert set(map(float, endpoints.values())) == {0.25}
    lines = [line for way in ways for line in way.lines()]
    assert any(f'comment "{owner}"' in line for line in lines)
    assert any("25 %" in line for line in lines)
    other = Flow(headers.destination, Protocol(headers.protocol), 81)
    (refused,) = rehearsal.ways(table, other, walk.Host(), source=CLIENT, input_interface="eth0")
    assert refused.outcome == walk.Fate.RESET.value
    assert any(layout.CLUSTER_IPS in line for line in refused.lines())
