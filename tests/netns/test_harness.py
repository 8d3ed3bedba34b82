"""The harness itself: what it sees of packets that nobody, or a few rules written by hand, has touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from . import capability, layout, planes, replay, sctp, verdicts

kernel = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(capability.missing()), reason=capability.missing() or "can make namespaces"),
]

# An address plan of its own: nothing in the harness may depend on one.
NODE = {
    "name": "worker",
    "ips": ["172.20.0.5", "2001:db8:a::5"],
    "podCIDRs": ["100.64.5.0/24", "2001:db8:b:5::/64"],
    "gateway_ips": ["100.64.5.1", "2001:db8:b:5::1"],
    "extra_ips": ["172.21.0.5"],
}
RULES = """
table ip by_hand {
  chain services {
    ip daddr 10.7.0.1 ip saddr != 100.64.0.0/16 meta mark set 0x4000
    ip daddr 10.7.0.1 tcp dport 80 dnat to numgen random mod 2 map { 0 : 100.64.5.7, 1 : 100.64.6.7 } : 8080
    ip daddr 10.7.0.1 meta l4proto { udp, sctp } dnat to 100.64.5.7:8080
    ip daddr 10.7.0.2 meta l4proto tcp reject with tcp reset
    ip daddr 10.7.0.2 reject
    ip daddr 10.7.0.3 drop
  }
  chain prerouting { type nat hook prerouting priority -100; jump services; }
  chain output { type nat hook output priority -100; jump services; }
  chain postrouting { type nat hook postrouting priority 100
    meta mark 0x4000 masquerade
    ct status dnat ip saddr 100.64.5.7 ip daddr 100.64.5.7 masquerade
  }
}
"""
SOURCES = {
    "pod": "100.64.5.9",
    "pod:100.64.5.7": "100.64.5.7",
    "host": "172.20.0.5",
    "outside": "198.18.0.1",
    "node": "172.20.0.6",
    "remote-pod": "100.64.6.9",
}
LOCAL, REMOTE = "100.64.5.7:8080", "100.64.6.7:8080"


class ByHand:
    """Loads RULES once."""

    def __init__(self, site: planes.Site) -> None:
        self._site = site

    def apply(self, step_number: int, objects: list[planes.Manifest], config: dict[str, Any]) -> None:
        if step_number == 1:
            self._site.node.run(["nft", "-f", "-"], stdin=RULES)

    def close(self) -> None:
        pass


def flow(origin: str, proto: str, dst: str, dport: int, result: str, **more: Any) -> dict[str, Any]:
    expect: dict[str, Any] = {"result": result}
    expect.update({key: more.pop(key) for key in ("endpoints", "masquerade") if key in more})
    src = more.pop("src", None) or SOURCES[origin]
    return {"from": origin, "src": src, "proto": proto, "dst": dst, "dport": dport, "expect": expect, **more}


def case_of(*steps: list[dict[str, Any]], **config: Any) -> dict[str, Any]:
    slices = {
        "kind": "EndpointSlice",
        "metadata": {"namespace": "a", "name": "b"},
        "endpoints": [{"addresses": [text.rpartition(":")[0]]} for text in (LOCAL, REMOTE)],
        "ports": [{"name": "", "port": 8080, "protocol": protocol} for protocol in ("TCP", "UDP", "SCTP")],
    }
    applied: list[list[dict[str, Any]]] = [[slices], *([] for _ in steps)]
    return {
        "id": "harness",
        "node": NODE,
        "config": config,
        "steps": [{"apply": objects, "flows": flows} for objects, flows in zip(applied, steps, strict=False)],
    }


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp", "icmp"])
class TestWithoutDataPlane:
    pytestmark = kernel

    @pytest.mark.parametrize("dst", ["172.20.0.5", "172.21.0.5", "100.64.5.1", "10.7.0.1", "100.64.6.7", "198.18.0.9"])
    def test_packets_pass_unchanged_from_everywhere(self, proto: str, dst: str) -> None:
        flows = [flow(origin, proto, dst, 80, "passthrough") for origin in SOURCES]
        assert replay.replay(case_of(flows), planes.Nothing).attempts == len(flows)

    @pytest.mark.parametrize("dst", ["2001:db8:a::5", "2001:db8:b:5::1", "2001:db8:c::1", "2001:db8:b:6::7"])
    def test_ipv6_packets_pass_unchanged(self, proto: str, dst: str) -> None:
        sources = {"pod": "2001:db8:b:5::9", "host": "2001:db8:a::5", "outside": "2001:db8:f::1"}
        flows = [flow(origin, proto, dst, 80, "passthrough", src=src) for origin, src in sources.items()]
        replay.replay(case_of(flows), planes.Nothing)

    def test_a_pod_reaches_itself_through_the_node(self, proto: str) -> None:
        replay.replay(case_of([flow("pod:100.64.5.7", proto, "100.64.5.7", 80, "passthrough")]), planes.Nothing)


class TestRulesByHand:
    pytestmark = kernel

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "pods0"}},
            {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}},
        ],
        ids=["routed", "bridge", "prefix"],
    )
    def test_every_kind_of_client_is_seen_as_it_should_be(self, config: dict[str, Any]) -> None:
        masquerade = {"pod": False, "remote-pod": False, "host": True, "outside": True, "node": True}
        flows = [
            flow(origin, "tcp", "10.7.0.1", 80, "endpoints", endpoints=[LOCAL, REMOTE], masquerade=masq, count=4)
            for origin, masq in masquerade.items()
        ]
        hairpin = {LOCAL: True, REMOTE: False}
        flows += [
            flow("pod:100.64.5.7", proto, "10.7.0.1", 80, "endpoints", endpoints=[LOCAL, REMOTE], masquerade=hairpin)
            for proto in ("tcp", "udp", "sctp")
        ]
        flows.append(
            flow("pod", "tcp", "10.7.0.1", 80, "endpoints", endpoints=[LOCAL, REMOTE], count=40, covers_all=True)
        )
        replay.replay(case_of(flows, **config), ByHand)

    def test_reject_and_drop_are_told_apart_from_everywhere(self) -> None:
        flows = [
            flow(origin, proto, dst, 80, result)
            for origin in SOURCES
            for proto in ("tcp", "udp", "sctp")
            for dst, result in (("10.7.0.2", "reject"), ("10.7.0.3", "drop"))
        ]
        replay.replay(case_of(flows), ByHand)

    def test_held_connections_and_streams_stay_on_their_endpoint(self) -> None:
        both = {"endpoints": [LOCAL, REMOTE]}
        first = [
            flow("pod", "tcp", "10.7.0.1", 80, "endpoints", hold="c", remember="r", **both),
            flow("pod", "udp", "10.7.0.1", 80, "endpoints", stream="s", sport=40123, endpoints=[LOCAL]),
        ]
        second = [
            flow("pod", "tcp", "10.7.0.1", 80, "alive", reuse="c", same_as="r", **both),
            flow("pod", "udp", "10.7.0.1", 80, "endpoints", stream="s", sport=40123, count=3, endpoints=[LOCAL]),
        ]
        second[1]["expect"]["unchanged"] = True
        replay.replay(case_of(first, second), ByHand)

    def test_all_that_is_wrong_is_reported_at_once(self) -> None:
        flows = [
            flow("pod", "tcp", "10.7.0.1", 80, "drop"),
            flow("pod", "tcp", "10.7.0.2", 80, "endpoints", endpoints=[LOCAL]),
            flow("pod", "udp", "10.7.0.1", 80, "endpoints", endpoints=[REMOTE]),
            flow("pod", "udp", "10.7.0.1", 80, "endpoints", endpoints=[LOCAL], masquerade=True),
            flow("outside", "tcp", "10.7.0.1", 80, "endpoints", endpoints=[LOCAL, REMOTE], masquerade=False),
            flow("pod", "tcp", "10.7.0.3", 80, "drop"),
            flow("pod", "tcp", "10.7.0.1", 80, "endpoints", endpoints=[LOCAL, REMOTE], count=40, sticky=True),
        ]
        with pytest.raises(AssertionError) as caught:
            replay.replay(case_of(flows), ByHand)
        text = str(caught.value)
        assert "6 failures" in text
        assert "flow 6" not in text
        assert (
            "step 1 flow 2: pod 100.64.5.9 -> tcp 10.7.0.2:80 expected endpoints ['100.64.5.7:8080'], got refused"
            in text
        )

    def test_an_endpoint_that_gets_nothing_is_told_after_a_larger_sample(self) -> None:
        nowhere = "100.64.6.8:8080"
        listed = [LOCAL, REMOTE, nowhere]
        flows = [flow("pod", "tcp", "10.7.0.1", 80, "endpoints", endpoints=listed, count=20, covers_all=True)]
        with pytest.raises(AssertionError, match=f"{nowhere} got 0 of 40 connections") as caught:
            replay.replay(case_of(flows), ByHand)
        assert "1 failures" in str(caught.value)

    def test_an_answer_that_gets_lost_is_not_taken_for_a_drop(self) -> None:
        class LosesAnswers(ByHand):
            def apply(self, step_number: int, objects: list[planes.Manifest], config: dict[str, Any]) -> None:
                super().apply(step_number, objects, config)
                rule = "{ type filter hook forward priority 0; ct direction reply drop; }\n"
                self._site.node.run(["nft", "-f", "-"], stdin=f"table ip lost {{\nchain forward {rule}}}")

        flows = [flow("pod", proto, "10.7.0.1", 80, "drop") for proto in ("tcp", "udp")]
        with pytest.raises(AssertionError, match="no answer came back") as caught:
            replay.replay(case_of(flows), LosesAnswers)
        assert "tcp 100.64" in str(caught.value)


class TestWithoutKernel:
    def test_sctp_checksum_is_the_castagnoli_crc(self) -> None:
        assert sctp.crc32c(b"123456789") == 0xE3069283

    def test_an_init_chunk_is_read_back_and_a_damaged_one_is_not(self) -> None:
        packet = sctp.make_init(4000, 5000, 77)
        assert sctp.parse_init(packet) == sctp.Init(4000, 5000, 77)
        assert sctp.parse_init(packet[:-1] + b"\xff") is None

    def test_pods_outside_the_pod_ranges_of_the_node_still_live_on_it(self) -> None:
        case = case_of([flow("pod", "tcp", "10.7.0.1", 80, "drop", src="100.99.0.1")])
        laid_out = layout.of_case(case)
        assert laid_out.place_of("100.99.0.1") is layout.Place.PODS
        assert laid_out.place_of("100.99.0.2") is layout.Place.WORLD

    def test_addresses_are_read_leniently(self) -> None:
        assert [layout.canonical(text) for text in ("010.0.00.7", " ::ffff:1.2.3.4", "2001:DB8:0::1")] == [
            "10.0.0.7",
            "1.2.3.4",
            "2001:db8::1",
        ]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"requires": ["moon phase"]}, "requires moon phase"),
            ({"requires": ["slow"]}, "slow: waits for many seconds"),
            ({"modes": ["iptables"]}, "not a case for nftables"),
            ({"steps": [{"metrics": []}]}, "step 1 reads metrics"),
            ({"steps": [{"action": {"type": "api-down"}}]}, "step 1 has the action api-down"),
            ({}, ""),
        ],
    )
    def test_a_case_that_cannot_be_replayed_says_why(self, change: dict[str, Any], reason: str) -> None:
        case = copy.deepcopy(case_of([])) | change
        told = replay.unsupported(case)
        assert told.startswith(reason)
        assert bool(told) == bool(reason)

    def test_a_share_below_the_least_one_is_told(self) -> None:
        expect = {"result": "endpoints", "endpoints": [LOCAL, REMOTE]}
        assert verdicts.uneven({"covers_all": True}, expect, []) == [
            f"{text} got 0 of 0 connections, at least 1 expected" for text in (LOCAL, REMOTE)
        ]
