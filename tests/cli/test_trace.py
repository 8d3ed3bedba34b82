"""`netagent trace` as a user runs it, with real packets in a namespace of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import builders, kernel
from tests.cli.in_process import netagent
from tests.cli.test_commands import NETAGENT

POD = "10.180.0.1"
SERVICE = "10.96.0.1"
OBJECTS = builders.list_manifest(
    builders.service_manifest(created="2024-01-01T00:00:00Z"),
    builders.slice_manifest("web", POD),
    builders.service_manifest("empty", cluster_ip="10.96.0.2"),
    builders.node_manifest(),
)
ON_NODE = ("--node-name", "node-1")
# Nothing here takes so long; it only ends a test that hangs.
PATIENCE_SECONDS = 60.0


def _wired() -> None:
    """A host with one pod, which is the host itself, and rules for a Service in front of it."""
    for command in (
        "ip link set lo up",
        f"ip address add {POD}/32 dev lo",
        "ip route add 10.96.0.0/16 dev lo",
    ):
        subprocess.run(command.split(), check=True, timeout=60)
    done = netagent("sync", "-f", "-", *ON_NODE, stdin=builders.as_json(OBJECTS))
    assert done.returncode == 0, done.stderr


def _dial(address: str, port: int = 80) -> None:
    """Begin a connection. What becomes of it does not matter here."""
    with socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        client.connect_ex((address, port))


@contextmanager
def _tracing(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A live trace that is armed by now."""
    command = [*NETAGENT, "trace", *arguments, "--live", "--seconds", str(PATIENCE_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        try:
            said = [running.stderr.readline()]
            while said[-1] and not said[-1].startswith(b"netagent: tracing "):
                said.append(running.stderr.readline())
            assert said[-1], b"".join(said)
            yield running
        finally:
            running.kill()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


def _tables() -> str:
    return kernel.nft("list tables")


@kernel.isolated
def test_a_live_trace_tells_rules_elements_and_endpoint_of_a_real_packet_and_leaves_nothing() -> None:
    _wired()
    with _tracing(f"{SERVICE}:80", "--count", "1", "-o", "json") as running:
        assert "table ip netagent-trace" in _tables()
        _dial(POD, 80)  # another flow, which is not told
        _dial(SERVICE)
        output, _ = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 0
    (line,) = output.splitlines()
    told = json.loads(line)
    assert told["service"].startswith("default/web")
    assert told["arrived"] == "from this host"
    assert told["outcome"].startswith(f"sent to {POD}:8080")
    elements = [element for step in told["steps"] for element in step["elements"]]
    assert any(element.startswith("frontends { 10.96.0.1 . tcp . 80") for element in elements)
    assert any(element.startswith("backends { 10.96.0.1 . tcp . 80") and POD in element for element in elements)
    assert all(step["ours"] and step["handle"] for step in told["steps"])
    assert "netagent-trace" not in _tables()


@kernel.isolated
def test_a_live_trace_tells_who_else_drops_a_packet_and_that_we_refuse_one() -> None:
    _wired()
    with _tracing("default/empty", "--count", "1") as running:
        _dial("10.96.0.2")
        output, _ = running.communicate(timeout=PATIENCE_SECONDS)
    assert output.decode().splitlines()[-1] == "  => refused with a TCP reset"
    kernel.nft(
        "table inet wall {\n chain out {\n type filter hook output priority 300; "
        'ip daddr 10.180.0.1 tcp dport 8080 drop comment "closed on sundays"\n }\n}'
    )
    with _tracing("default/web", "--count", "1") as running:
        _dial(SERVICE)
        output, _ = running.communicate(timeout=PATIENCE_SECONDS)
    text = output.decode()
    assert "drops it (closed on sundays)" in text
    assert "=> dropped by a rule in inet wall, chain out" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@kernel.isolated
def test_a_trace_that_is_ended_from_outside_leaves_no_table(number: signal.Signals) -> None:
    with _tracing("192.0.2.1:80") as running:
        assert "table ip netagent-trace" in _tables()
        os.kill(running.pid, number)
        running.communicate(timeout=PATIENCE_SECONDS)
    _until(lambda: "netagent-trace" not in _tables())


@kernel.isolated
def test_a_trace_that_sees_nothing_says_so_with_exit_code_1() -> None:
    done = netagent("trace", "192.0.2.1:80", "--live", "--seconds", "0.1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no such packet came by" in done.stderr


@kernel.isolated
def test_without_live_nothing_is_armed_and_the_way_is_played(tmp_path: Path) -> None:
    manifests = tmp_path / "all.json"
    manifests.write_bytes(builders.as_json(OBJECTS))
    done = netagent("trace", "default/web", "-f", manifests, *ON_NODE)
    assert done.returncode == 0, done.stderr
    assert "ip daddr 10.96.0.1 tcp dport 80" in done.stdout
    assert f"100 %  {POD}:8080" in done.stdout
    assert _tables() == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("10.96.0.10",), 2, "port"),
        (("10.96.0.1:80", "--live", "-f", "-"), 2, "--live"),
        (("10.96.0.1:80", "--from", "nobody"), 2, "--from"),
        (("10.96.0.1:80", "--mode", "iptables"), 5, "mode nftables"),
    ],
)
def test_wrong_use_ends_with_a_sentence(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = netagent("trace", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stdout == ""
