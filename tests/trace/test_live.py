"""The kernel's own word on real packets that cross a host."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from netagent import errors
from netagent.model import addresses
from netagent.nftables import backend
from netagent.trace import live, story
from netagent.trace.flow import Flow
from tests import kernel
from tests.netns import capability, universe
from tests.nftables import strategies

FAMILY = addresses.Family.IPV4
CLIENT = "198.51.100.2"
# Only a test that hangs comes near it.
PATIENCE_SECONDS = 60.0


def _run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True, timeout=60)


def _host_between(client: universe.Namespace, pods: universe.Namespace) -> None:
    """Two links, one to clients and one to pods, and a Service with one endpoint."""
    _run(
        "ip link add clients type veth peer name up0",
        "ip link add pods type veth peer name up1",
        f"ip link set up0 netns {client.path}",
        f"ip link set up1 netns {pods.path}",
        "ip address add 198.51.100.1/24 dev clients",
        "ip link set clients up",
        "ip address add 10.180.0.254/24 dev pods",
        "ip link set pods up",
    )
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for namespace, link, address, gateway in (
        (client, "up0", f"{CLIENT}/24", "198.51.100.1"),
        (pods, "up1", "10.180.0.1/24", "10.180.0.254"),
    ):
        namespace.run(["ip", "address", "add", address, "dev", link])
        namespace.run(["ip", "link", "set", link, "up"])
        namespace.run(["ip", "route", "add", "default", "via", gateway])


def _serve() -> Flow:
    (key,) = state = strategies.state_of(strategies.cluster_ip_frontend(count=1))
    ours = backend.Backend(affinity_clients=100)
    ours.read()
    ours.set_rules([strategies.plain_rules(FAMILY)])
    ours.update(state, state)
    ours.commit()
    ours.close()
    return Flow(key.address, key.protocol, key.port)


def _stories(running: live.Trace, client: universe.Namespace, flow: Flow) -> list[story.Story]:
    """The first story, of a connection that the client begins."""
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as dialled:
        dialled.connect_ex((addresses.format_address(flow.destination), flow.port))
        return list(running.stories(count=1, seconds=PATIENCE_SECONDS))


@kernel.isolated
def test_a_packet_that_crosses_the_host_is_told_from_link_to_link() -> None:
    if reason := capability.missing():
        pytest.skip(reason)
    with universe.Namespace.create("client") as client, universe.Namespace.create("pods") as pods:
        _host_between(client, pods)
        flow = _serve()
        kernel.nft(
            "table ip passing {\n chain crossing {\n type filter hook forward priority 10; "
            'counter comment "seen"\n }\n}'
        )
        with live.Trace([flow]) as running:
            (told,) = _stories(running, client, flow)
    assert told.arrived == "in by clients"
    assert told.packet.startswith(f"{CLIENT}:")
    assert told.service == "default/service-1"
    # Not from a pod of this node, so it leaves with the host's own address.
    assert told.outcome == "sent to 10.180.0.1:8080, with this host's address as source"
    chains = [(step.table, step.chain) for step in told.steps]
    assert ("ip netagent", "services") in chains
    assert chains.index(("ip passing", "crossing")) > chains.index(("ip netagent", "to-endpoint"))
    assert any("(seen)" in step.said for step in told.steps)


@kernel.isolated
def test_a_packet_of_another_sender_is_not_told() -> None:
    if reason := capability.missing():
        pytest.skip(reason)
    with universe.Namespace.create("client") as client, universe.Namespace.create("pods") as pods:
        _host_between(client, pods)
        flow = _serve()
        strange = Flow(flow.destination, flow.protocol, flow.port, addresses.parse_address("198.51.100.77"))
        own = Flow(flow.destination, flow.protocol, flow.port, addresses.parse_address(CLIENT))
        with live.Trace([strange]) as running:
            with client.socket(socket.AF_INET, socket.SOCK_STREAM) as dialled:
                dialled.connect_ex((addresses.format_address(flow.destination), flow.port))
            assert list(running.stories(count=1, seconds=0.1)) == []
        with live.Trace([own]) as running:
            assert len(_stories(running, client, flow)) == 1


@kernel.isolated
def test_what_is_armed_goes_when_the_work_breaks_off() -> None:
    flow = Flow(addresses.parse_address("192.0.2.1"), addresses.Protocol.UDP, 53)

    def break_off() -> None:
        with live.Trace([flow]):
            assert "table ip netagent-trace" in kernel.nft("list tables")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert kernel.ruleset() == {}


@kernel.isolated
def test_a_second_trace_is_refused_and_leaves_the_first_alone() -> None:
    flow = Flow(addresses.parse_address("192.0.2.1"), addresses.Protocol.UDP, 53)
    with live.Trace([flow]):
        with pytest.raises(errors.HeldError), live.Trace([flow]):
            pass
        assert "table ip netagent-trace" in kernel.nft("list tables")
