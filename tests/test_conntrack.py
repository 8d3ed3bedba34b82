"""Which conntrack entries are stale, and how the cleaner behaves with kernels that are not like ours."""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Sequence

import pytest

from netagent import conntrack, errors
from netagent.model.addresses import Family, Protocol, endpoint_key, parse_address
from netagent.plan.frontends import Frontend, FrontendKey, FrontendKind, Masquerade, ServicePortName, Verdict

UDP = (Protocol.UDP,)
POD_1, POD_2, POD_3 = "10.180.0.1:5353", "10.180.0.2:5353", "10.180.0.3:5353"
VIP = "10.96.0.10:53"


def endpoint(text: str) -> bytes:
    address, _, port = text.rpartition(":")
    return endpoint_key(parse_address(address.strip("[]")), int(port))


def key_of(text: str = VIP, *, protocol: Protocol = Protocol.UDP, family: Family = Family.IPV4) -> FrontendKey:
    """Frontend key of "address:port"; ":port" is a node port."""
    address, _, port = text.rpartition(":")
    packed = parse_address(address.strip("[]")) if address else b""
    return FrontendKey(Family.IPV6 if len(packed) == 16 else family, packed, protocol, int(port))


def frontend(
    *serving: str,
    key: FrontendKey | None = None,
    service: str = "dns",
    verdict: Verdict | None = None,
    endpoints: Sequence[str] | None = None,
) -> Frontend:
    """A frontend whose serving endpoints are given; it serves if there are any."""
    key = key_of() if key is None else key
    return Frontend(
        key=key,
        kind=FrontendKind.CLUSTER_IP if key.address else FrontendKind.NODE_PORT,
        owner=ServicePortName("kube-system", service, "dns", key.protocol),
        verdict=verdict or (Verdict.SERVE if serving else Verdict.REJECT),
        masquerade=Masquerade.CLUSTER_IP,
        endpoints=tuple(sorted(map(endpoint, serving if endpoints is None else endpoints))),
        serving_endpoints=tuple(sorted(map(endpoint, serving))),
    )


def change(before: Frontend | None, after: Frontend | None) -> conntrack.FrontendChange:
    subject = before or after
    assert subject is not None
    return conntrack.FrontendChange(subject.key, before, after)


def rules_of(*changes: conntrack.FrontendChange) -> dict[str, set[bytes]]:
    return {str(r.key): set(r.allowed_sources) for r in conntrack.stale_flow_rules(changes, UDP)}


def rule(key: FrontendKey, *allowed: str) -> conntrack.StaleFlows:
    return conntrack.StaleFlows(key, frozenset(map(endpoint, allowed)))


def flow(destination: str, reply_source: str, *, protocol: Protocol = Protocol.UDP) -> conntrack.Flow:
    return conntrack.Flow(protocol, endpoint(destination), endpoint(reply_source))


class TestWhichFrontendsNeedAPass:
    def test_a_frontend_that_lost_an_endpoint_keeps_the_flows_of_the_others(self) -> None:
        lost = change(frontend(POD_1, POD_2), frontend(POD_2, POD_3))
        assert rules_of(lost) == {f"{VIP}/udp": {endpoint(POD_2), endpoint(POD_3)}}

    def test_an_endpoint_that_changed_its_port_number_is_another_endpoint(self) -> None:
        moved = change(frontend(POD_1), frontend("10.180.0.1:5354"))
        assert rules_of(moved) == {f"{VIP}/udp": {endpoint("10.180.0.1:5354")}}

    def test_the_last_endpoint_gone_leaves_no_flow(self) -> None:
        assert rules_of(change(frontend(POD_1), frontend())) == {f"{VIP}/udp": set()}

    def test_a_deleted_service_leaves_no_flow(self) -> None:
        assert rules_of(change(frontend(POD_1), None)) == {f"{VIP}/udp": set()}

    @pytest.mark.parametrize("before", [None, frontend(), frontend(verdict=Verdict.DROP)])
    def test_the_first_endpoint_ends_the_flows_that_were_made_without_nat(self, before: Frontend | None) -> None:
        assert rules_of(change(before, frontend(POD_1))) == {f"{VIP}/udp": {endpoint(POD_1)}}

    def test_one_more_endpoint_ends_no_flow(self) -> None:
        assert rules_of(change(frontend(POD_1), frontend(POD_1, POD_2))) == {}

    def test_policy_and_topology_end_no_flow(self) -> None:
        nearer = frontend(POD_1, POD_2, endpoints=[POD_1])
        assert rules_of(change(frontend(POD_1, POD_2), nearer)) == {}
        no_local_endpoint = frontend(POD_1, POD_2, verdict=Verdict.DROP, endpoints=[])
        assert rules_of(change(frontend(POD_1, POD_2), no_local_endpoint)) == {}

    @pytest.mark.parametrize("after", [None, frontend(), frontend(verdict=Verdict.DROP)])
    def test_a_frontend_that_never_had_an_endpoint_needs_nothing(self, after: Frontend | None) -> None:
        assert rules_of(change(frontend(), after)) == {}

    def test_tcp_flows_are_never_touched_and_sctp_only_on_request(self) -> None:
        removed = [
            change(frontend(POD_1, key=key_of(protocol=protocol)), None)
            for protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
        ]
        assert [r.key.protocol for r in conntrack.stale_flow_rules(removed, UDP)] == [Protocol.UDP]
        assert [r.key.protocol for r in conntrack.stale_flow_rules(removed, tuple(Protocol))] == [
            Protocol.UDP,
            Protocol.SCTP,
        ]

    def test_when_another_service_takes_the_address_its_endpoints_decide(self) -> None:
        given_up = change(frontend(POD_1, service="old"), None)
        taken = change(None, frontend(POD_2, service="new"))
        replaced = change(frontend(POD_1, service="old"), frontend(POD_2, service="new"))
        for order in ([given_up, taken], [taken, given_up], [replaced]):
            assert rules_of(*order) == {f"{VIP}/udp": {endpoint(POD_2)}}

    def test_an_endpoint_that_left_and_came_back_keeps_its_flows(self) -> None:
        left = change(frontend(POD_1, POD_2), frontend(POD_2))
        came_back = change(frontend(POD_2), frontend(POD_1, POD_2))
        assert rules_of(left, came_back) == {}

    def test_the_order_of_unrelated_changes_does_not_matter(self) -> None:
        changes = [change(frontend(POD_1, key=key_of(text)), None) for text in (VIP, "[fd00::1]:53", ":30053")]
        results = {conntrack.stale_flow_rules(order, UDP) for order in itertools.permutations(changes)}
        assert len(results) == 1


class TestWhichFlowsAreStale:
    def test_a_flow_to_a_living_endpoint_stays_and_one_to_a_dead_endpoint_goes(self) -> None:
        alive = rule(key_of(), POD_2)
        assert not conntrack.is_stale(flow(VIP, POD_2), alive)
        assert conntrack.is_stale(flow(VIP, POD_1), alive)

    def test_a_flow_made_without_nat_is_stale(self) -> None:
        assert conntrack.is_stale(flow(VIP, VIP), rule(key_of(), POD_1))

    @pytest.mark.parametrize("destination", ["10.96.0.11:53", "10.96.0.10:54"])
    def test_flows_to_other_frontends_stay(self, destination: str) -> None:
        assert not conntrack.is_stale(flow(destination, POD_1), rule(key_of()))

    def test_flows_of_another_protocol_stay(self) -> None:
        assert not conntrack.is_stale(flow(VIP, POD_1, protocol=Protocol.SCTP), rule(key_of()))

    def test_a_node_port_rule_speaks_of_this_nodes_addresses_only(self) -> None:
        local = {parse_address("192.0.2.1"), parse_address("2001:db8::1")}
        gone = rule(key_of(":30053"))
        assert conntrack.is_stale(flow("192.0.2.1:30053", POD_1), gone, local_addresses=local)
        foreign_host, cluster_ip, other_family = (
            "198.51.100.7:30053",
            "10.96.0.10:30053",
            "[2001:db8::1]:30053",
        )
        for destination in (foreign_host, cluster_ip, other_family):
            assert not conntrack.is_stale(flow(destination, destination), gone, local_addresses=local)

    def test_flows_without_nat_in_a_foreign_zone_stay(self) -> None:
        zone = struct.pack("=HH", 6, 18) + b"\x00\x07\x00\x00"
        gone = rule(key_of())
        assert not conntrack.is_stale(flow(VIP, VIP)._replace(attributes=zone), gone)
        assert conntrack.is_stale(flow(VIP, POD_1)._replace(attributes=zone), gone)


# --- kernels that are not like ours: what they answer is queued before they are asked ---

ENTRY, ERROR, DONE = 0x100, 2, 3
MULTI, INTERRUPTED, FILTERED = 0x2, 0x10, 0x20


def message(kind: int, payload: bytes, *, flags: int = MULTI, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def entry(destination: str, reply_source: str, *, flags: int = MULTI | FILTERED, protocol: int = 17) -> bytes:
    """An IPv4 entry as a dump brings it."""

    def side(kind: int, source: bytes, target: bytes) -> bytes:
        ip = attribute(1, source[:4]) + attribute(2, target[:4])
        ports = attribute(1, bytes([protocol])) + attribute(2, source[4:]) + attribute(3, target[4:])
        return attribute(0x8000 | kind, attribute(0x8001, ip) + attribute(0x8002, ports))

    client = endpoint("10.180.9.9:40000")
    original = side(1, client, endpoint(destination))
    reply = side(2, endpoint(reply_source), client)
    identity = attribute(12, b"\x01\x02\x03\x04")
    return message(ENTRY, struct.pack("=BBH", 2, 0, 0) + original + reply + identity, flags=flags)


def done(*, flags: int = MULTI) -> bytes:
    return message(DONE, struct.pack("=i", 0), flags=flags)


def refusal(code: int, *, sequence: int = 1) -> bytes:
    return message(ERROR, struct.pack("=i", -code) + bytes(16), flags=0, sequence=sequence)


def acknowledgement(sequence: int) -> bytes:
    return refusal(0, sequence=sequence)


class ScriptedKernel:
    """Answers the n-th connection with the n-th list of datagrams. The first one is for deletions."""

    def __init__(self, *script: Sequence[bytes]) -> None:
        self.script = list(script)
        self.peers: list[socket.socket] = []

    def connect(self) -> socket.socket:
        ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.settimeout(60)
        for datagram in self.script[len(self.peers)]:
            peer.send(datagram)
        self.peers.append(peer)
        return ours

    def requests(self, connection: int) -> list[bytes]:
        peer = self.peers[connection]
        peer.settimeout(0)
        received: list[bytes] = []
        while True:
            try:
                datagram = peer.recv(65536)
            except (BlockingIOError, ConnectionResetError):
                return received
            if not datagram:
                return received
            received.append(datagram)

    def clean(self, *rules: conntrack.StaleFlows) -> conntrack.CleanReport:
        cleaner = conntrack.FlowCleaner(local_addresses=lambda: {parse_address("192.0.2.1")}, connect=self.connect)
        return cleaner.clean(rules)


class TestOtherKernels:
    def test_without_rules_the_kernel_is_not_asked(self) -> None:
        assert ScriptedKernel().clean()[:3] == (0, 0, ())

    def test_a_kernel_that_ignores_the_filter_is_asked_once_and_filtered_here(self) -> None:
        unfiltered = [entry(VIP, POD_1, flags=MULTI) + entry("10.96.9.9:53", POD_1, flags=MULTI), done()]
        kernel = ScriptedKernel([acknowledgement(1)], unfiltered)
        report = kernel.clean(rule(key_of()), rule(key_of("10.96.0.11:53")))
        assert report[:3] == (1, 2, ())

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
    def test_a_kernel_that_refuses_the_filter_is_asked_without(self, code: int) -> None:
        kernel = ScriptedKernel([acknowledgement(1)], [refusal(code)], [entry(VIP, POD_1, flags=MULTI) + done()])
        assert kernel.clean(rule(key_of()), rule(key_of("10.96.0.11:53"))).deleted == 1

    def test_a_kernel_without_conntrack_netlink_is_named(self) -> None:
        kernel = ScriptedKernel([], [refusal(errno.EINVAL)], [refusal(errno.EINVAL)])
        with pytest.raises(errors.UnsupportedError, match="CONFIG_NF_CT_NETLINK"):
            kernel.clean(rule(key_of()))

    def test_running_out_of_sockets_is_reported(self) -> None:
        def no_socket() -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        report = conntrack.FlowCleaner(connect=no_socket).clean([rule(key_of())])
        assert report.deleted == 0
        assert "Too many open files" in report.errors[0]

    def test_without_privilege_the_capability_is_named(self) -> None:
        with pytest.raises(errors.PrivilegeError, match="CAP_NET_ADMIN"):
            ScriptedKernel([], [refusal(errno.EPERM)]).clean(rule(key_of()))

    def test_an_interrupted_listing_is_repeated(self) -> None:
        interrupted = [entry(VIP, POD_1), done(flags=MULTI | INTERRUPTED)]
        kernel = ScriptedKernel([acknowledgement(1), acknowledgement(2)], interrupted, [entry(VIP, POD_2), done()])
        assert kernel.clean(rule(key_of()))[:3] == (2, 2, ())

    def test_a_listing_that_is_interrupted_for_ever_is_given_up_and_said(self) -> None:
        interrupted = [entry(VIP, POD_1), refusal(errno.EINTR)]
        answers = [acknowledgement(1), refusal(errno.ENOENT, sequence=2), refusal(errno.ENOENT, sequence=3)]
        report = ScriptedKernel(answers, interrupted, interrupted, interrupted).clean(rule(key_of()))
        assert (report.deleted, len(report.errors)) == (1, 1)
        assert "changed 3 times" in report.errors[0]

    def test_an_entry_that_is_gone_already_is_no_error(self) -> None:
        kernel = ScriptedKernel([refusal(errno.ENOENT)], [entry(VIP, POD_1), done()])
        assert kernel.clean(rule(key_of()))[:3] == (0, 1, ())

    def test_an_entry_that_the_kernel_keeps_is_reported_and_the_others_go(self) -> None:
        kernel = ScriptedKernel(
            [refusal(errno.EBUSY, sequence=1), acknowledgement(2)],
            [entry(VIP, POD_1) + entry(VIP, POD_2) + done()],
        )
        report = kernel.clean(rule(key_of()))
        assert report.deleted == 1
        assert "EBUSY" in report.errors[0]

    def test_the_very_entry_that_was_judged_is_named_in_the_deletion(self) -> None:
        kernel = ScriptedKernel([acknowledgement(1)], [entry(VIP, POD_1), done()])
        kernel.clean(rule(key_of()))
        (deletion,) = kernel.requests(0)
        assert deletion.endswith(attribute(12, b"\x01\x02\x03\x04"))
        assert endpoint("10.180.9.9:40000")[:4] in deletion

    def test_a_lost_listing_does_not_stop_the_next_one(self) -> None:
        kernel = ScriptedKernel([acknowledgement(1)], [refusal(errno.ENOBUFS)], [entry("10.96.0.11:53", POD_1), done()])
        report = kernel.clean(rule(key_of()), rule(key_of("10.96.0.11:53")))
        assert report.deleted == 1
        assert VIP in report.errors[0]

    def test_many_rules_cost_one_listing(self) -> None:
        rules = [rule(key_of(f"10.96.1.{n}:53")) for n in range(100)]
        kernel = ScriptedKernel([acknowledgement(1)], [entry("10.96.1.7:53", POD_1), done()])
        assert kernel.clean(*rules).deleted == 1

    def test_node_ports_are_left_alone_when_the_nodes_addresses_are_unknown(self) -> None:
        def unknown() -> frozenset[bytes]:
            raise OSError(errno.ENOBUFS, "no buffer space")

        kernel = ScriptedKernel([], [entry("192.0.2.1:30053", POD_1), done()])
        cleaner = conntrack.FlowCleaner(local_addresses=unknown, connect=kernel.connect)
        report = cleaner.clean([rule(key_of(":30053"))])
        assert report.deleted == 0
        assert "node ports stay" in report.errors[0]

    def test_a_pass_that_is_cancelled_ends_after_the_datagram_that_it_is_at(self) -> None:
        def cancelling() -> frozenset[bytes]:
            cleaner.cancel()
            return frozenset()

        kernel = ScriptedKernel([], [entry("192.0.2.1:30053", POD_1), done()])
        cleaner = conntrack.FlowCleaner(local_addresses=cancelling, connect=kernel.connect)
        assert cleaner.clean([rule(key_of(":30053")), rule(key_of())])[:3] == (0, 0, ())
        assert kernel.requests(0) == [], "nothing is deleted"

    def test_entries_of_an_unknown_form_are_left_alone(self) -> None:
        assert conntrack.flow_of(b"", Family.IPV4) is None
        whole = entry(VIP, POD_1)[20:]
        assert conntrack.flow_of(whole, Family.IPV4) is not None
        assert conntrack.flow_of(whole, Family.IPV6) is None
        for length in range(102):  # two tuples of 52 bytes, the last two of which are padding
            assert conntrack.flow_of(whole[:length], Family.IPV4) is None
