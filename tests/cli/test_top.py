"""`netagent top`: real connections, counted by the kernel, followed to their endpoints."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from netagent.agent import arrivals
from netagent.cli import top
from netagent.model import addresses, objects
from netagent.model.addresses import Protocol
from tests import builders, kernel, patience

from .in_process import netagent
from .test_commands import NETAGENT, NODE, ON_NODE, WEB, _listed
from .traffic import Server, become_host, connect

ENDPOINTS = ("10.180.0.1", "10.180.0.2")
SLICE = builders.slice_manifest("web", *ENDPOINTS)
DNS = builders.service_manifest("dns", namespace="kube-system", cluster_ip="10.96.0.10")


def _serve(tmp_path: Path) -> list[Server]:
    """A Service with two endpoints that answer, and one with none, in the kernel; no agent."""
    become_host(*ENDPOINTS)
    (tmp_path / "all.json").write_bytes(_listed(WEB, SLICE, NODE, DNS))
    assert netagent("sync", "-f", tmp_path, *ON_NODE).returncode == 0
    return [Server(address, 8080) for address in ENDPOINTS]


@kernel.isolated
def test_every_connection_is_counted_once_for_its_service_port_and_for_its_endpoint(tmp_path: Path) -> None:
    servers = _serve(tmp_path)
    with top._Gauge() as gauge:
        connect("10.96.0.1", 80, 5)
        gauge.read()  # what came before is nobody's business
        before = [server.accepted for server in servers]
        connect("10.96.0.1", 80, 40)
        gauge.measure(0.1)
        (web,) = gauge.meter.rates()
        assert (web.name, web.total, web.share, web.endpoints) == ("default/web/TCP", 40, 1.0, 2)
        accepted = [server.accepted - had for server, had in zip(servers, before, strict=True)]
        assert {one.endpoint: one.total for one in web.busiest} == {
            f"{address}:8080": count for address, count in zip(ENDPOINTS, accepted, strict=True)
        }
        assert web.imbalance == max(accepted) / 20
        assert not gauge.remarks


@kernel.isolated
def test_once_prints_plain_lines_that_show_the_traffic(tmp_path: Path) -> None:
    _serve(tmp_path)
    stop = threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            connect("10.96.0.1", 80, 1)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        said = netagent("top", "--once", "--interval", "1", "--endpoints")
    finally:
        stop.set()
        thread.join()
    assert said.returncode == 0
    lines = said.stdout.splitlines()
    assert lines[0].split() == ["SERVICE", "PORT", "CONN/S", "SHARE", "TOTAL", "ENDP", "MAX/MEAN"]
    name, per_second, share, total, endpoints, _ = lines[1].split()
    assert (name, share, endpoints) == ("default/web/TCP", "100%", "2")
    assert float(per_second) > 0
    assert int(total) > 0
    assert {line.split()[0] for line in lines[2:]} == {f"{address}:8080" for address in ENDPOINTS}
    assert all(len(line) <= 80 for line in lines)


@kernel.isolated
def test_a_namespace_without_connections_is_an_empty_table(tmp_path: Path) -> None:
    _serve(tmp_path)
    said = netagent("top", "--once", "--interval", "0.1", "-n", "kube-system")
    assert said.returncode == 0
    assert len(said.stdout.splitlines()) == 1
    assert "no new connections to any of 2 Service ports" in said.stderr


@kernel.isolated
def test_a_name_that_no_service_has_is_told_and_exit_code_1(tmp_path: Path) -> None:
    _serve(tmp_path)
    said = netagent("top", "--once", "--interval", "0.1", "nope", "web", "other/web")
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1] == "netagent: no Service nope, other/web has a port here"


@pytest.mark.parametrize(
    ("names", "namespace", "shown"),
    [
        ((), None, {"default/web", "kube-system/dns", "other/web"}),
        ((), "default", {"default/web"}),
        (("web",), None, {"default/web", "other/web"}),
        (("web",), "other", {"other/web"}),
        (("kube-system/dns", "web"), "other", {"kube-system/dns", "other/web"}),
    ],
)
def test_names_and_namespace_choose_services(names: tuple[str, ...], namespace: str | None, shown: set[str]) -> None:
    view = top._View(names, namespace, "name", with_endpoints=False)
    every = [objects.ServiceName(*text.split("/")) for text in ("default/web", "kube-system/dns", "other/web")]
    assert {str(service) for service in every if view.wants(service)} == shown


@kernel.isolated
def test_where_nothing_is_ours_top_ends_with_exit_code_10() -> None:
    said = netagent("top", "--once", "--interval", "0.1")
    assert (said.returncode, said.stdout) == (10, "")


@kernel.isolated
def test_more_connections_than_can_be_followed_are_a_sample_and_cost_no_more(tmp_path: Path) -> None:
    _serve(tmp_path)
    with arrivals.Arrivals(most=5) as following:
        connect("10.96.0.1", 80, 20)
        found = following.take()
        assert 5 <= found.total() <= 20
        assert not following.complete
        assert following.fileno() is None, "the kernel is asked for no more"
        following.resume()
        connect("10.96.0.1", 80, 2)
        found = following.take()
        assert found.total() == 2
        assert following.complete
        (destination,) = {arrival.destination for arrival in found}
        assert addresses.format_endpoint(destination) == "10.96.0.1:80"
        assert {arrival.protocol for arrival in found} == {Protocol.TCP}


@kernel.isolated
def test_a_terminal_of_80_columns_gets_a_live_table(tmp_path: Path) -> None:
    _serve(tmp_path)
    connect("10.96.0.1", 80, 1)
    ours, theirs = os.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    shown = subprocess.Popen(
        [*NETAGENT, "top", "--interval", "0.2"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    text = b""
    try:
        while b"MAX/MEAN" not in text or b"default/web/TCP" not in text:
            connect("10.96.0.1", 80, 1)
            readable, _, _ = select.select([ours], [], [], patience.HANGS)
            assert readable, f"nothing more is shown: {text!r}"
            text += os.read(ours, 65536)
        assert b"new connections/s to 2 Service ports" in text
    finally:
        shown.kill()
        shown.wait()
        os.close(ours)


@pytest.mark.parametrize(
    ("chain", "endpoints"),
    [
        ("cluster-ip-random-3", 3),
        ("nodeport-local-random-7-2", 7),
        ("external-random-2-affinity-600", 2),
        ("refuse", 0),
        ("", 0),
    ],
)
def test_the_name_of_a_chain_tells_how_many_endpoints_serve(chain: str, endpoints: int) -> None:
    assert top._endpoints_of(chain) == endpoints


def test_long_work_shows_itself_on_a_terminal_and_nowhere_else() -> None:
    script = (
        "import threading\n"
        "from netagent.cli import progress\n"
        "with progress.shown('reading manifests', patience_seconds=0.0) as step:\n"
        "    step('planning 44000 Services', done=1, total=4)\n"
        "    input()\n"
        "print('done')\n"
    )
    quiet = subprocess.run(
        [sys.executable, "-c", script], input=b"\n", capture_output=True, timeout=patience.HANGS, check=True
    )
    assert (quiet.stdout, quiet.stderr) == (b"done\n", b"")
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    command = [sys.executable, "-c", script]
    shown = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    text = b""
    try:
        while b"planning 44000 Services" not in text:
            readable, _, _ = select.select([ours], [], [], patience.HANGS)
            assert readable, f"nothing more is shown: {text!r}"
            text += os.read(ours, 65536)
        out, _ = shown.communicate(b"\n", timeout=patience.HANGS)
        assert out == b"done\n"
    finally:
        shown.kill()
        shown.wait()
        os.close(ours)
