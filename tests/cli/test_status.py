"""`netagent status`: how the agent is, on one screen, and in its exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from netagent import errors
from netagent.agent.local import answers, client, documents
from tests import builders, kernel, patience
from tests.agent import live_agent
from tests.apiserver import ApiServer

from .in_process import netagent
from .test_commands import NODE, ON_NODE, SLICE, WEB, Running, _listed

NOBODY = 65534
GROUP = 54321


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "followed").mkdir()
    (tmp_path / "followed" / "all.json").write_bytes(_listed(WEB, SLICE, NODE))
    return tmp_path / "followed"


def _healthy() -> bool:
    return netagent("status").returncode == 0


def _screen(text: str) -> dict[str, list[str]]:
    """What stands under each heading of the screen."""
    lines = text.splitlines()
    width = len(lines[0]) - len(lines[0].removeprefix("Agent").lstrip())
    found: dict[str, list[str]] = {}
    heading = ""
    for line in lines:
        heading = line[:width].strip() or heading
        found.setdefault(heading, []).append(line[width:])
    return found


@kernel.isolated
def test_a_healthy_agent_shows_all_of_itself_on_one_screen(directory: Path) -> None:
    with Running(directory) as running:
        patience.until(_healthy)
        said = netagent("status")
        assert (said.returncode, said.stderr) == (0, "")
        screen = _screen(said.stdout)
        assert screen["Agent"][0] == "healthy"
        assert f"process {running.process.pid}" in screen["Agent"][1]
        assert screen["Node"] == ["node-1, mode nftables, IPv4 and IPv6"]
        assert screen["Serves"] == ["1 Service, 1 frontend, 2 endpoints known"]
        assert screen["Kernel"][0].startswith("in sync for ")
        assert screen["Sources"][0].startswith(f"{directory}: in sync, ")
        assert [line.split(":")[0] for line in screen["Tables"]] == ["ip netagent", "ip6 netagent"]
        assert screen["Drift"] == screen["Quarantine"] == screen["Conflicts"] == screen["Trouble"] == ["none"]
        assert len(said.stdout.splitlines()) <= 24


@kernel.isolated
def test_programs_get_all_of_it_as_json_or_yaml(directory: Path) -> None:
    with Running(directory) as running:
        patience.until(_healthy)
        document = json.loads(netagent("status", "-o", "json").stdout)
        assert document["healthy"] is True
        agent = document["agent"]
        assert (agent["pid"], agent["nodeName"], agent["inSync"]) == (running.process.pid, "node-1", True)
        assert agent["syncs"]["lastChange"]["operations"] > 0
        assert agent["counts"] == {"services": 1, "frontends": 1, "endpoints": 2}
        assert yaml.safe_load(netagent("status", "-o", "yaml").stdout)["agent"]["started"] == agent["started"]


@kernel.isolated
def test_bad_objects_are_named_and_a_source_that_has_gone_is_exit_code_1(directory: Path) -> None:
    bad = builders.service_manifest("bad")
    bad["spec"]["ports"][0]["port"] = 70000
    (directory / "bad.json").write_bytes(builders.as_json(bad))
    with Running(directory):
        patience.until(_healthy)
        (line,) = _screen(netagent("status").stdout)["Quarantine"]
        assert line.startswith("Service default/bad: spec.ports[0].port: 70000")
        directory.rename(directory.with_name("elsewhere"))
        patience.until(lambda: not _healthy())
        said = netagent("status")
        assert said.returncode == 1
        (trouble,) = _screen(said.stdout)["Trouble"]
        assert trouble.startswith(f"{directory} is not in sync: cannot read manifests")
        directory.with_name("elsewhere").rename(directory)
        patience.until(_healthy)


@kernel.isolated
def test_without_an_agent_the_kernel_alone_tells_and_the_exit_code_is_10(directory: Path) -> None:
    nothing = netagent("status")
    assert nothing.returncode == 10
    assert "NONE: no agent runs" in nothing.stdout
    assert "no Service is served here" in nothing.stdout
    assert netagent("sync", "-f", directory, *ON_NODE).returncode == 0
    left = netagent("status")
    assert left.returncode == 10
    screen = _screen(left.stdout)
    assert screen["Serves"] == ["1 frontend with 2 places for endpoints"]
    assert screen["Mode iptables"] == ["no rules of ours"]
    assert screen["Trouble"] == ["these rules serve, and follow no change until an agent runs"]
    document = json.loads(netagent("status", "-o", "json").stdout)
    assert (document["healthy"], document["agent"]) == (False, None)
    assert [(table["family"], table["present"], table["frontends"]) for table in document["tables"]] == [
        ("ip", True, 1),
        ("ip6", True, 0),
    ]


@kernel.isolated
def test_an_agent_that_hangs_does_not_answer_and_the_kernel_is_shown(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netagent.cli import status

    with Running(directory) as running:
        patience.until(_healthy)
        running.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(status, "_SECONDS", 0.2)
        said = netagent("status")
        assert said.returncode == 1
        assert said.stdout.splitlines()[0].split()[:3] == ["Agent", "NO", "ANSWER:"]
        assert f"the agent (process {running.process.pid}) does not answer" in said.stdout
        assert "restart it (systemctl restart netagent)" in said.stdout
        assert "1 frontend" in said.stdout


@kernel.isolated
def test_on_a_cluster_every_kind_is_a_source_with_its_age_and_health_is_what_healthz_says() -> None:
    live_agent.begin()
    bad = builders.service_manifest("bad", cluster_ip="10.96.5.5")
    bad["spec"]["ports"][0]["port"] = 70000
    with ApiServer(live_agent.small_cluster(bad, services=3)) as server, live_agent.Agent(server.url):
        patience.until(_healthy)
        told = json.loads(netagent("status", "-o", "json").stdout)["agent"]
        assert [source["name"] for source in told["sources"]] == ["EndpointSlice", "Node", "Service", "ServiceCIDR"]
        assert all(source["inSync"] and source["age"] is not None for source in told["sources"])
        assert told["health"] == {"healthy": True, "ready": True, "nodeEligible": True, "sound": True}
        assert told["counts"] == {"services": 3, "frontends": 3, "endpoints": 3}
        assert [(one["kind"], one["name"], one["field"]) for one in told["quarantine"]] == [
            ("Service", "bad", "spec.ports[0].port")
        ]
        live = json.loads(netagent("get", "services", "s0", "-o", "json").stdout)
        assert (live["origin"], live["items"][0]["used"]) == ("agent", 1)
        server.refuse()
        patience.until(lambda: not _healthy())
        troubles = json.loads(netagent("status", "-o", "json").stdout)["agent"]["troubles"]
        assert all("cannot be followed" in trouble for trouble in troubles)


def test_kinds_that_have_the_same_trouble_are_told_of_together() -> None:
    refused = "no answer from https://192.0.2.1: refused; what was last known stays"
    found = (
        documents.Source(name="Node", in_sync=True, age=9, error=f"cannot follow Node: {refused}"),
        documents.Source(name="Service", in_sync=True, age=9, error=f"cannot follow Service: {refused}"),
        documents.Source(name="EndpointSlice", in_sync=False, error="cannot follow EndpointSlice: 403"),
        documents.Source(name="ServiceCIDR", in_sync=False),
        documents.Source(name="healthy", in_sync=True, age=1),
    )
    status = documents.Status(
        version="", pid=1, started="", mode="", node_name="", families=(), in_sync=True, since="", sources=found
    )
    assert answers.troubles_of(status) == (
        f"Node, Service cannot be followed: {refused}",
        "EndpointSlice is not in sync: 403",
        "ServiceCIDR is not in sync: the first list is not complete",
    )


# Other users ----------------------------------------------------------------------------------------------------


def _as_nobody(act: Callable[[], str], *groups: int) -> str:
    """What a function says in a process of a user without any right."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing was said"
        try:
            os.setgroups(groups)
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            said = act()
        except BaseException as error:  # noqa: BLE001 - the parent asserts on it
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def _needs_other_users() -> None:
    if (
        len(Path("/proc/self/uid_map").read_text().split()) != 3
        or "4294967295" not in Path("/proc/self/uid_map").read_text()
    ):
        pytest.skip("this user namespace has one user: run the tests as root")


@kernel.isolated
def test_another_user_is_refused_and_a_member_of_the_group_is_answered(directory: Path) -> None:
    _needs_other_users()
    config = directory.with_name("config.yaml")
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
        f'netagent: {{socketGroup: "{GROUP}"}}\n'
    )
    with Running(directory, "--config", str(config)):
        patience.until(_healthy)
        refused = _as_nobody(lambda: str(client.ask("/status")))
        assert refused.startswith("PrivilegeError: ")
        assert "netagent.socketGroup" in refused
        assert "inSync" in _as_nobody(client.ask("/status").body.decode, GROUP)
        assert "PrivilegeError" in _as_nobody(lambda: str(client.ask("/objects")), GROUP + 1)


@kernel.isolated
def test_nobody_without_rights_can_pose_as_the_agent() -> None:
    _needs_other_users()
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with socket.socket(socket.AF_UNIX) as squatting:
            squatting.bind(client.ADDRESS)
            squatting.listen()
            os.write(told, b"x")
            signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        with pytest.raises(errors.PrivilegeError, match=f"process {child} of user {NOBODY} .* is not believed"):
            client.ask("/status")
        assert netagent("status").returncode == 4
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
