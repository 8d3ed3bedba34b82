"""What is gathered of a real host: problems planted in a network namespace are found, by the whole examination."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from netagent import settings
from netagent.agent import presence
from netagent.doctor import evidence, examination
from netagent.doctor.gather import host, nft, processes, rtnetlink, sockets, sysctls
from netagent.model import addresses
from netagent.nftables import backend
from tests import kernel
from tests.nftables import strategies

IPV4 = addresses.Family.IPV4
WANTED = settings.Settings()


def run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True, timeout=60)


def write(path: str, value: object) -> None:
    (sysctls.DIRECTORY / path).write_text(str(value))


def forwarding() -> None:
    """What a clean node has: it forwards, and nothing of its own first namespace counts here."""
    write("net/ipv4/ip_forward", 1)
    write("net/ipv4/conf/all/rp_filter", 0)
    write("net/ipv4/conf/all/route_localnet", 0)


def grave() -> set[str]:
    """The checks that want somebody to act, but for what belongs to the machine that the test runs on."""
    machine = {"conntrack-size", "conntrack-buckets", "bridge-nf-call", "clock"}
    found = examination.judge(examination.gather(WANTED))
    return {each.check for each in found if each.severity.needs_action} - machine


@kernel.isolated
def test_a_clean_namespace_that_forwards_is_well() -> None:
    forwarding()
    assert grave() == set()


@kernel.isolated
def test_planted_problems_are_found_each_by_its_check() -> None:
    write("net/ipv4/ip_forward", 0)
    write("net/ipv4/conf/all/rp_filter", 1)
    write("net/ipv4/conf/all/route_localnet", 1)
    write("net/ipv4/ip_local_port_range", "20000 60999")
    kernel.nft("add table ip kube-proxy; add table inet firewalld; add table ip6 netagent { flags dormant; }")
    kernel.nft(
        "table ip theirs { chain pre { type nat hook prerouting priority -100; tcp dport 1 redirect; "
        "meta mark set meta mark or 0x4000; }; chain passing { type filter hook forward priority 0; policy drop; }\n}"
    )
    run(
        "ip link add pair0 type veth peer name pair1",
        "ip link set pair0 up mtu 1400",
        "ip link set pair1 up",
        "ip address add 198.51.100.1/24 dev pair0",
        "ip address add 203.0.113.1/24 dev pair1",
    )
    # Before Linux 6.9 nobody can tell whether an agent made the table, and its absence is told, too.
    assert grave() - {"agent"} == {
        "ip-forward",
        "rp-filter",
        "route-localnet",
        "port-range",
        "kube-proxy-leftovers",
        "firewalld",
        "tables",
        "other-nat",
        "mark-bit",
        "forward-policy",
        "mtu",
    }


@kernel.isolated
def test_rules_in_both_variants_of_iptables_and_chains_of_kube_proxy_are_found() -> None:
    programs = ("iptables-legacy", "iptables-nft", "iptables-legacy-save", "iptables-nft-save")
    absent = [name for name in programs if shutil.which(name) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    if os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[:2] != ["0", "0"]:
        pytest.skip("legacy tables need the first user namespace's root here")
    forwarding()
    run("iptables-legacy -A INPUT -j ACCEPT", "iptables-nft -t nat -N KUBE-SERVICES", "iptables-nft -A INPUT -j ACCEPT")
    assert grave() == {"iptables-mixture", "kube-proxy-leftovers"}


@kernel.isolated
def test_what_our_own_tables_serve_is_seen_and_a_listener_on_a_node_port_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forwarding()
    frontend = strategies.cluster_ip_frontend(count=1)
    state = strategies.state_of(frontend)
    ours = backend.Backend(affinity_clients=100)
    ours.read()
    ours.set_rules([strategies.plain_rules(IPV4)])
    ours.update(state, state)
    ours.commit()
    ours.close()
    assert nft.read(mark=1 << 14).frontends == {IPV4: 1, addresses.Family.IPV6: 0}
    # The element of a node port, as the backend would write it.
    kernel.nft("add element ip netagent nodeports { tcp . 30080 : 0001:0002 }")
    assert nft.read(mark=1 << 14).node_ports == {evidence.NodePort(addresses.Protocol.TCP, 30080)}
    with socket.create_server(("0.0.0.0", 30080)), presence.claimed() as claimed:
        assert claimed is not None
        monkeypatch.setattr(host, "ANSWER_SECONDS", 0.1)
        assert grave() == {"node-port-listener", "agent"}  # who has the socket, and says nothing


@kernel.isolated
def test_programs_of_this_namespace_are_known_by_name_and_those_of_others_left_alone(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["kube-proxy", "-c", "import sys; print(1, flush=True); sys.stdin.read()"],
                                executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    elsewhere = start()
    assert elsewhere.stdout is not None
    assert elsewhere.stdout.readline() == b"1\n"
    kernel.fresh()
    here = start()
    assert here.stdout is not None
    assert here.stdout.readline() == b"1\n"
    try:
        found = {process.pid: process.program for process in processes.running()}
        assert found.get(here.pid) == "kube-proxy"
        assert elsewhere.pid not in found
    finally:
        for child in (here, elsewhere):
            child.communicate()


@kernel.isolated
def test_interfaces_addresses_routes_and_mark_rules_are_those_of_the_namespace() -> None:
    run(
        "ip link add pair0 type veth peer name pair1",
        "ip link set pair0 up mtu 1400",
        "ip link set pair1 up",
        "ip address add 198.51.100.1/24 dev pair0",
        "ip route add default via 198.51.100.2",
        "ip rule add fwmark 0x4000/0x4000 lookup 100",
    )
    links = {link.name: link for link in rtnetlink.links()}
    assert set(links) == {"lo", "pair0", "pair1"}
    pair = links["pair0"]
    assert (pair.kind, pair.mtu, pair.up, pair.lower) == ("veth", 1400, True, links["pair1"].number)
    assert pair.addresses == (addresses.parse_address("198.51.100.1"),)
    assert rtnetlink.routes()[0] == rtnetlink.Route(IPV4, "default", "198.51.100.2", pair.number, 0)
    (rule,) = rtnetlink.mark_routes()
    assert (rule.family, rule.mark, rule.mask) == (IPV4, 0x4000, 0x4000)


@kernel.isolated
def test_looking_changes_nothing_in_the_kernel() -> None:
    forwarding()
    before = kernel.ruleset()
    examination.gather(WANTED)
    assert kernel.ruleset() == before == {}


# Texts of the kernel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command", "program"),
    [
        ("kube-proxy", ["/usr/local/bin/kube-proxy", "--v=2"], "kube-proxy"),
        ("firewalld", ["/usr/bin/python3", "-s", "/usr/sbin/firewalld", "--nofork"], "firewalld"),
        (
            "netagent",
            ["/opt/netagent/bin/python3", "/opt/netagent/bin/netagent", "-v", "run", "--config", "x"],
            "netagent run",
        ),
        ("python3", ["python3", "-m", "netagent", "run"], "netagent run"),
        ("python3", ["python3", "-m", "netagent", "dump", "-f", "run"], ""),
        ("vim", ["vim", "kube-proxy.yaml"], ""),
        ("grep", ["grep", "kube-proxy"], ""),
        ("kube-proxy", [""], ""),  # a zombie
    ],
)
def test_a_process_is_known_by_its_program_and_not_by_its_arguments(
    name: str, command: list[str], program: str
) -> None:
    assert processes.program_of(name, command) == program


def test_listening_sockets_are_read_in_both_families(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:7580 00000000:0000 0A 0\n"
        "   1: 0100007F:7581 0100007F:1234 01 0\n"
    )
    (tmp_path / "tcp6").write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 00000000000000000000000000000000:7582 00000000000000000000000000000000:0000 0A 0\n"
        "   1: 0000000000000000FFFF0000070200C0:7583 00000000000000000000000000000000:0000 0A 0\n"
    )
    if sys.byteorder != "little":
        pytest.skip("the lines above are those of a little-endian machine")
    assert list(map(str, sockets.listening(tmp_path))) == [
        "tcp [::]:30082",
        "tcp 127.0.0.1:30080",
        "tcp 192.0.2.7:30083",
    ]
