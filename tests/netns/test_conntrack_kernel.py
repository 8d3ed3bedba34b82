"""The flow cleaner against a real conntrack table, each test in a network namespace of its own.

A test is decorated with `in_namespace`: under pytest it runs this module as a program inside `unshare`, and
that runs the body. The namespace ends with that process.
"""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from netagent import conntrack, errors
from netagent.model.addresses import Family, Protocol, endpoint_key, format_address, parse_address
from netagent.plan.frontends import FrontendKey

REPOSITORY = pathlib.Path(__file__).parents[2]
BODIES: dict[str, Callable[[], None]] = {}

CLIENT, CLIENT_6 = "10.180.9.9", "fd00:180::9:9"
ALIVE, DEAD = "10.180.0.1:5353", "10.180.0.2:5353"
ALIVE_6, DEAD_6 = "[fd00:180::1]:5353", "[fd00:180::2]:5353"


@functools.cache
def namespace_command() -> tuple[list[str], str]:
    """The command prefix that makes a network namespace, or why there is none."""
    if shutil.which("unshare") is None:
        return [], "not installed: unshare (util-linux)"
    said = ""
    for options in (["-n"], ["-rn"]):
        command = ["unshare", *options]
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return command, ""
        said = tried.stderr.strip()
    return [], f"cannot make a network namespace: {said}"


def in_namespace(body: Callable[[], None]) -> Callable[[], None]:
    """Run the body of a test in a network namespace of its own."""
    name = body.__name__
    BODIES[name] = body

    @pytest.mark.kernel
    @functools.wraps(body)
    def test() -> None:
        command, problem = namespace_command()
        if problem:
            pytest.skip(problem)
        ended = subprocess.run(
            [*command, sys.executable, "-m", __name__, name],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        if ended.returncode == errors.UnsupportedError.exit_code:
            pytest.skip(ended.stderr.strip().splitlines()[-1])
        assert ended.returncode == 0, ended.stdout + ended.stderr

    return test


def endpoint(text: str) -> bytes:
    address, _, port = text.rpartition(":")
    return endpoint_key(parse_address(address.strip("[]")), int(port))


def rule(
    text: str, *allowed: str, protocol: Protocol = Protocol.UDP, family: Family = Family.IPV4
) -> conntrack.StaleFlows:
    """A rule for "address:port", or ":port" for a node port."""
    address, _, port = text.rpartition(":")
    packed = parse_address(address.strip("[]")) if address else b""
    family = Family.IPV6 if len(packed) == 16 else family
    key = FrontendKey(family, packed, protocol, int(port))
    return conntrack.StaleFlows(key, frozenset(map(endpoint, allowed)))


def plant(
    destination: str,
    answered_by: str | None = None,
    *,
    client_port: int = 40000,
    protocol: Protocol = Protocol.UDP,
    zone: int | None = None,
) -> None:
    """Make a conntrack entry: a client dialled `destination`; without `answered_by` there is no NAT."""
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

    dialled, answering = endpoint(destination), endpoint(answered_by or destination)
    family = 2 if len(dialled) == 6 else 10
    client = CLIENT if family == 2 else CLIENT_6

    def side(source: tuple[str, int], target: tuple[str, int]) -> NFCTAttrTuple:
        return NFCTAttrTuple(
            family=family,
            proto=int(protocol),
            saddr=source[0],
            sport=source[1],
            daddr=target[0],
            dport=target[1],
        )

    def host(key: bytes) -> tuple[str, int]:
        return format_address(key[:-2]), int.from_bytes(key[-2:])

    with NFCTSocket(family) as table:
        table.entry(
            "add",
            timeout=600,
            tuple_orig=side((client, client_port), host(dialled)),
            tuple_reply=side(host(answering), (client, client_port)),
            zone=zone,
        )


def remaining() -> set[tuple[str, str]]:
    """(dialled, answered by) of all entries, both families, read with pyroute2 and not with our reader."""
    return set(_listed(2)) | set(_listed(10))


def _listed(family: int) -> Iterator[tuple[str, str]]:
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    version = "V4" if family == 2 else "V6"
    with NFCTSocket(family) as table:
        for entry in table.dump():
            sides = []
            for kind, side in (("ORIG", "DST"), ("REPLY", "SRC")):
                parts = entry.get_attr(f"CTA_TUPLE_{kind}")
                address = parts.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_{version}_{side}")
                port = parts.get_attr("CTA_TUPLE_PROTO").get_attr(f"CTA_PROTO_{side}_PORT")
                sides.append(f"[{address}]:{port}" if family == 10 else f"{address}:{port}")
            yield sides[0], sides[1]


def give_node_address(text: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        (loopback,) = route.link_lookup(ifname="lo")
        route.link("set", index=loopback, state="up")
        route.addr("add", index=loopback, address=text, prefixlen=32 if "." in text else 128)


@in_namespace
def test_flows_to_a_dead_endpoint_go_and_flows_to_a_living_one_stay() -> None:
    plant("10.96.0.10:53", ALIVE, client_port=1)
    plant("10.96.0.10:53", DEAD, client_port=2)
    plant("10.96.0.11:53", DEAD, client_port=3)
    plant("10.96.0.10:54", DEAD, client_port=4)
    report = conntrack.FlowCleaner().clean([rule("10.96.0.10:53", ALIVE)])
    assert report[:3] == (1, 2, ()), report
    assert remaining() == {("10.96.0.10:53", ALIVE), ("10.96.0.11:53", DEAD), ("10.96.0.10:54", DEAD)}


@in_namespace
def test_the_same_holds_for_ipv6() -> None:
    plant("[fd00:96::10]:53", ALIVE_6, client_port=1)
    plant("[fd00:96::10]:53", DEAD_6, client_port=2)
    plant("[fd00:96::11]:53", DEAD_6, client_port=3)
    report = conntrack.FlowCleaner().clean([rule("[fd00:96::10]:53", ALIVE_6)])
    assert (report.deleted, report.errors) == (1, ()), report
    assert remaining() == {("[fd00:96::10]:53", ALIVE_6), ("[fd00:96::11]:53", DEAD_6)}


@in_namespace
def test_entries_made_before_the_first_endpoint_go() -> None:
    plant("10.96.0.10:53", client_port=1)
    plant("10.96.0.10:53", ALIVE, client_port=2)
    assert conntrack.FlowCleaner().clean([rule("10.96.0.10:53", ALIVE)]).deleted == 1
    assert remaining() == {("10.96.0.10:53", ALIVE)}


@in_namespace
def test_a_deleted_service_leaves_no_flow_in_either_family() -> None:
    plant("10.96.0.10:53", ALIVE)
    plant("[fd00:96::10]:53", ALIVE_6)
    report = conntrack.FlowCleaner().clean([rule("10.96.0.10:53"), rule("[fd00:96::10]:53")])
    assert (report.deleted, report.errors) == (2, ()), report
    assert remaining() == set()


@in_namespace
def test_a_node_port_does_not_end_flows_to_foreign_hosts_with_the_same_port() -> None:
    give_node_address("192.0.2.1")
    give_node_address("2001:db8::1")
    plant("192.0.2.1:30053", DEAD, client_port=1)
    plant("[2001:db8::1]:30053", DEAD_6, client_port=1)
    kept = ["198.51.100.7:30053", "10.96.0.10:30053", "[2001:db8::7]:30053"]
    for destination in kept:
        plant(destination, client_port=2)
    report = conntrack.FlowCleaner().clean([rule(":30053"), rule(":30053", family=Family.IPV6)])
    assert (report.deleted, report.errors) == (2, ()), report
    assert remaining() == {(destination, destination) for destination in kept}


@in_namespace
def test_many_rules_and_many_flows_come_to_the_same_result() -> None:
    vips = [f"10.96.0.{n}:53" for n in range(conntrack.FILTERED_DUMPS + 4)]
    for n, vip in enumerate(vips):
        for client in range(30):
            plant(vip, ALIVE if client % 3 else DEAD, client_port=1000 + 30 * n + client)
    plant("10.97.0.1:53", DEAD)
    report = conntrack.FlowCleaner().clean([rule(vip, ALIVE) for vip in vips])
    assert report[:3] == (10 * len(vips), 30 * len(vips) + 1, ()), report
    assert remaining() == {(vip, ALIVE) for vip in vips} | {("10.97.0.1:53", DEAD)}


@in_namespace
def test_sctp_flows_can_be_cleaned_too() -> None:
    plant("10.96.0.10:53", DEAD, protocol=Protocol.SCTP, client_port=1)
    plant("10.96.0.10:54", DEAD, protocol=Protocol.SCTP, client_port=2)
    plant("10.96.0.10:53", DEAD, protocol=Protocol.TCP, client_port=3)
    plant("10.96.0.10:53", ALIVE, protocol=Protocol.UDP, client_port=4)
    assert conntrack.FlowCleaner().clean([rule("10.96.0.10:53", protocol=Protocol.SCTP)]).deleted == 1
    assert remaining() == {("10.96.0.10:54", DEAD), ("10.96.0.10:53", DEAD), ("10.96.0.10:53", ALIVE)}


@in_namespace
def test_flows_without_nat_in_a_foreign_zone_stay() -> None:
    plant("10.96.0.10:53", client_port=1, zone=7)
    plant("10.96.0.10:53", DEAD, client_port=2, zone=7)
    assert conntrack.FlowCleaner().clean([rule("10.96.0.10:53", ALIVE)]).deleted == 1
    assert remaining() == {("10.96.0.10:53", "10.96.0.10:53")}


@in_namespace
def test_an_empty_table_and_a_second_pass_are_fine() -> None:
    cleaner = conntrack.FlowCleaner()
    assert cleaner.clean([rule("10.96.0.10:53")])[:3] == (0, 0, ())
    plant("10.96.0.10:53", DEAD)
    assert cleaner.clean([rule("10.96.0.10:53")]).deleted == 1
    assert cleaner.clean([rule("10.96.0.10:53")])[:3] == (0, 0, ())


@in_namespace
def test_without_net_admin_the_error_says_so() -> None:
    program = (
        "from netagent import conntrack, errors\n"
        "from tests.netns.test_conntrack_kernel import rule\n"
        "try:\n"
        "    conntrack.FlowCleaner().clean([rule('10.96.0.10:53')])\n"
        "except errors.PrivilegeError as error:\n"
        "    print(error)\n"
    )
    # A new user namespace has no say over a network namespace that was there before it.
    ended = subprocess.run(
        ["unshare", "-U", sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if "unshare failed" in ended.stderr:
        raise errors.UnsupportedError(f"no user namespaces here: {ended.stderr.strip()}")
    assert "CAP_NET_ADMIN" in ended.stdout, ended.stdout + ended.stderr


if __name__ == "__main__":
    try:
        BODIES[sys.argv[1]]()
    except errors.UnsupportedError as unsupported:
        print(unsupported, file=sys.stderr)  # noqa: T201 - read by in_namespace
        sys.exit(unsupported.exit_code)
