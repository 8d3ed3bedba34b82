"""`netagent get`: what this node does for each Service port, from files, from the agent, and from the kernel alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from netagent import settings
from netagent.agent import planner
from netagent.cli import rows
from netagent.model import objects
from netagent.model.objects import ServiceType, TrafficPolicy
from tests import builders, kernel, patience

from .in_process import netagent
from .test_commands import NETAGENT, NODE, ON_NODE, SLICE, WEB, Running, _listed
from .traffic import Server, become_host, connect

DNS = builders.service_manifest(
    "dns", namespace="kube-system", cluster_ip="10.96.0.10", ports=[builders.port_manifest(53, protocol="UDP")]
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "all.json").write_bytes(_listed(WEB, SLICE, NODE, DNS))
    return tmp_path


# Rows of a plan -------------------------------------------------------------------------------------------------


def plan_of(*items: objects.Object, zone: str = "") -> planner.Planner:
    plan = planner.Planner(settings.Settings(), node_name="node-1")
    plan.store.replace((*items, builders.node(zone=zone)))
    plan.replan()
    return plan


def rows_of(*items: objects.Object, zone: str = "", **facts: Any) -> rows.PlanRows:
    return rows.PlanRows(plan_of(*items, zone=zone), **facts)


def endpoints_of(*endpoints: objects.Endpoint, service: objects.Service | None = None, zone: str = "") -> Iterable[Any]:
    made = service or builders.service()
    found = rows_of(made, builders.endpoint_slice("web", *endpoints), zone=zone).endpoint_rows([made.key])
    return [(row.endpoint, row.state, row.used_by, row.unused) for row in found]


def test_every_endpoint_has_its_state_and_whether_it_is_used_or_why_not() -> None:
    assert endpoints_of(
        builders.endpoint("10.180.0.1"),
        builders.endpoint("10.180.0.2", ready=False),
        builders.draining_endpoint("10.180.0.3"),
        builders.endpoint("10.180.0.4", ready=False, terminating=True),
    ) == [
        ("10.180.0.1:8080", "ready", ("cluster-ip",), ""),
        ("10.180.0.2:8080", "unready", (), "unready"),
        ("10.180.0.3:8080", "draining", (), "others are ready"),
        ("10.180.0.4:8080", "terminating", (), "terminating"),
    ]


def test_a_draining_endpoint_is_used_when_none_is_ready() -> None:
    assert endpoints_of(builders.draining_endpoint()) == [("10.180.0.1:8080", "draining", ("cluster-ip",), "")]


def test_an_endpoint_that_hints_reserve_for_another_zone_says_so() -> None:
    assert endpoints_of(
        builders.endpoint("10.180.0.1", zones=["a"]), builders.endpoint("10.180.0.2", zones=["b"]), zone="a"
    ) == [
        ("10.180.0.1:8080", "ready", ("cluster-ip",), ""),
        ("10.180.0.2:8080", "ready", (), "hints reserve it for zone b"),
    ]


def test_under_policy_local_an_endpoint_elsewhere_says_so() -> None:
    service = builders.service(internal_policy=TrafficPolicy.LOCAL)
    assert endpoints_of(
        builders.endpoint("10.180.0.1"), builders.endpoint("10.180.0.2", node="node-2"), service=service
    ) == [
        ("10.180.0.1:8080", "ready", ("cluster-ip",), ""),
        ("10.180.0.2:8080", "ready", (), "traffic policy Local: not on this node"),
    ]


def test_zone_and_node_of_an_endpoint_are_shown() -> None:
    service = builders.service()
    slices = builders.endpoint_slice("web", builders.endpoint(zone="zone-a"))
    (row,) = rows_of(service, slices).endpoint_rows([service.key])
    assert (row.node, row.zone, row.local) == ("node-1", "zone-a", True)


def test_a_frontend_that_another_service_has_yields_to_it() -> None:
    old = builders.service("old", external_ips=["192.0.2.9"], created="2020-01-01T00:00:00Z")
    young = builders.service("young", cluster_ips=["10.96.0.2"], external_ips=["192.0.2.9"])
    found = rows_of(old, young).frontend_rows([young.key])
    assert [(row.kind, row.does, row.to) for row in found] == [
        ("cluster-ip", "reject", None),
        ("external-ip", "yield", "default/old"),
    ]


def test_a_local_policy_has_two_lists_and_no_local_endpoint_is_an_empty_one() -> None:
    service = builders.service(
        type=ServiceType.NODE_PORT, external_policy=TrafficPolicy.LOCAL, ports=[builders.port(node_port=30080)]
    )
    slices = builders.endpoint_slice("web", builders.endpoint(node="node-2"))
    inside, outside = rows_of(service, slices).frontend_rows([service.key])
    assert (inside.policy, len(inside.endpoints), inside.local_endpoints) == ("Cluster", 1, None)
    assert (outside.policy, len(outside.endpoints), outside.local_endpoints) == ("Local", 1, ())


def test_connections_of_all_frontends_of_a_service_are_added_up() -> None:
    service = builders.service(type=ServiceType.NODE_PORT, ports=[builders.port(node_port=30080)])
    counts = dict.fromkeys(plan_of(service).forwarding.frontends, 21)
    assert len(counts) == 2, "a cluster IP and a node port"
    counted = rows_of(service, counts=counts)
    (row,) = counted.service_rows([service.key])
    assert row.connections == 42


# The command ----------------------------------------------------------------------------------------------------


@kernel.isolated
def test_files_show_the_same_in_every_form(directory: Path) -> None:
    where = ("-f", directory, *ON_NODE)
    table = netagent("get", "frontends", *where)
    assert (table.returncode, table.stderr) == (0, "")
    assert [line.split() for line in table.stdout.splitlines()] == [
        ["NAME", "PORT", "KIND", "FRONTEND", "POLICY", "DOES", "ENDPOINTS", "CONNECTIONS"],
        ["web", "-", "cluster-ip", "10.96.0.1:80/TCP", "Cluster", "serve", "2/2", "-"],
    ]
    (bare,) = netagent("get", "fe", *where, "--no-headers").stdout.splitlines()
    assert bare.split() == table.stdout.splitlines()[1].split()
    assert netagent("get", "frontends", *where, "-A", "-o", "name").stdout.split() == [
        "10.96.0.1:80/TCP",
        "10.96.0.10:53/UDP",
    ]
    document = json.loads(netagent("get", "frontend", *where, "-o", "json").stdout)
    assert (document["node"], document["origin"]) == ("node-1", "files")
    (item,) = document["items"]
    assert [one["endpoint"] for one in item["endpoints"]] == ["10.180.0.1:8080", "10.180.0.2:8080"]
    services = netagent("get", "svc", *where, "-A").stdout.splitlines()
    assert [line.split()[:2] for line in services] == [
        ["NAMESPACE", "NAME"],
        ["default", "web"],
        ["kube-system", "dns"],
    ]


@kernel.isolated
def test_names_namespaces_and_selectors_choose(directory: Path) -> None:
    where = ("-f", directory, *ON_NODE, "-o", "name")
    assert netagent("get", "svc", *where).stdout.split() == ["default/web"]
    assert netagent("get", "svc", *where, "-n", "kube-system").stdout.split() == ["kube-system/dns"]
    assert netagent("get", "svc", "kube-system/dns", "web", *where).stdout.split() == ["default/web", "kube-system/dns"]
    assert netagent("get", "svc", "dns", *where, "-A").stdout.split() == ["kube-system/dns"]
    assert netagent("get", "fe", *where, "-A", "-l", "protocol=UDP").stdout.split() == ["10.96.0.10:53/UDP"]
    missing = netagent("get", "svc", "dns", *where)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no Service dns in namespace default" in missing.stderr
    empty = netagent("get", "svc", *where, "-n", "nowhere")
    assert (empty.returncode, empty.stdout) == (0, "")
    assert "2 Services in other namespaces" in empty.stderr


@kernel.isolated
def test_labels_of_services_select_with_files_and_standard_input_and_are_unknown_otherwise(directory: Path) -> None:
    labelled = {**WEB, "metadata": {**WEB["metadata"], "labels": {"app": "shop", "tier": "front"}}}
    (directory / "all.json").write_bytes(_listed(labelled, SLICE, NODE))
    (directory / "dns.yaml").write_text(
        yaml.safe_dump({**DNS, "metadata": {**DNS["metadata"], "labels": {"app": "dns"}}})
    )
    where = ("-f", directory, *ON_NODE, "-A", "-o", "name")
    assert netagent("get", "svc", *where, "-l", "app=shop,tier in (front,back)").stdout.split() == ["default/web"]
    assert netagent("get", "svc", *where, "-l", "app!=shop").stdout.split() == ["kube-system/dns"]
    assert netagent("get", "ep", *where, "-l", "tier,local=yes").stdout.split() == [
        "10.180.0.1:8080",
        "10.180.0.2:8080",
    ]
    read = netagent("get", "svc", "-f", "-", *ON_NODE, "-o", "name", "-l", "app=shop", stdin=_listed(labelled, NODE))
    assert read.stdout.split() == ["default/web"]
    assert netagent("sync", "-f", directory, *ON_NODE).returncode == 0
    unknown = netagent("get", "svc", "-l", "app=shop")
    assert unknown.returncode == 2
    assert "labels are known with -f alone" in unknown.stderr


@kernel.isolated
def test_nothing_at_all_to_look_at_is_exit_code_10() -> None:
    said = netagent("get", "frontends")
    assert (said.returncode, said.stdout) == (10, "")
    assert "no agent runs" in said.stderr


@kernel.isolated
def test_the_agent_tells_what_the_files_say_and_the_kernel_what_it_counted(directory: Path) -> None:
    become_host("10.180.0.1", "10.180.0.2")
    servers = [Server(address, 8080) for address in ("10.180.0.1", "10.180.0.2")]
    offline = json.loads(netagent("get", "frontends", "-A", "-f", directory, *ON_NODE, "-o", "json").stdout)
    with Running(directory):
        patience.until(lambda: netagent("status").returncode == 0)
        connect("10.96.0.1", 80, 7)
        live = json.loads(netagent("get", "frontends", "-A", "-o", "json").stdout)
        assert live["origin"] == "agent"
        assert [(item["frontend"], item["connections"], item["kernel"]) for item in live["items"]] == [
            ("10.96.0.1:80/TCP", 7, "same"),
            ("10.96.0.10:53/UDP", 0, "same"),
        ]
        for item in (*live["items"], *offline["items"]):
            item["connections"] = item["kernel"] = None
        assert live["items"] == offline["items"]
        assert sum(server.accepted for server in servers) == 7
    # The agent is dead now, and the rules are there.
    alone = netagent("get", "frontends", "-A", "-o", "json")
    assert alone.returncode == 0
    assert "no agent runs" in alone.stderr
    document = json.loads(alone.stdout)
    assert document["origin"] == "kernel"
    web, dns = document["items"]
    assert (web["service"], web["kind"], web["does"], web["connections"]) == ("web", "cluster-ip", "serve", 7)
    assert [one["endpoint"] for one in web["endpoints"]] == ["10.180.0.1:8080", "10.180.0.2:8080"]
    assert (dns["namespace"], dns["does"], dns["endpoints"]) == ("kube-system", "reject", [])
    assert netagent("get", "endpoints", "-o", "name").stdout.split() == ["10.180.0.1:8080", "10.180.0.2:8080"]
    (service,) = json.loads(netagent("get", "services", "web", "-o", "json").stdout)["items"]
    assert (service["clusterIps"], service["used"], service["connections"]) == (["10.96.0.1"], 2, 7)


@kernel.isolated
def test_what_the_kernel_lacks_or_has_otherwise_is_marked(directory: Path) -> None:
    where = ("-f", directory, *ON_NODE, "-A", "-o", "json")
    assert netagent("sync", "-f", directory, *ON_NODE).returncode == 0
    (directory / "all.json").write_bytes(
        _listed(
            WEB,
            builders.slice_manifest("web", "10.180.0.1"),
            NODE,
            DNS,
            builders.service_manifest("new", cluster_ip="10.96.0.3"),
        )
    )
    found = {
        item["service"]: item["kernel"] for item in json.loads(netagent("get", "frontends", *where).stdout)["items"]
    }
    assert found == {"web": "differs", "dns": "same", "new": "missing"}
    assert (
        json.loads(netagent("get", "frontends", *where, "-l", "kernel=missing").stdout)["items"][0]["service"] == "new"
    )


@kernel.isolated
def test_watch_prints_what_changes_and_nothing_else(directory: Path) -> None:
    with Running(directory):
        patience.until(lambda: netagent("status").returncode == 0)
        following = subprocess.Popen(
            [*NETAGENT, "get", "endpoints", "-w"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert following.stdout is not None
            lines = [following.stdout.readline() for _ in range(3)]
            assert [line.split()[:3] for line in lines] == [
                ["NAME", "PORT", "ENDPOINT"],
                ["web", "-", "10.180.0.1:8080/TCP"],
                ["web", "-", "10.180.0.2:8080/TCP"],
            ]
            more = builders.slice_manifest("web", "10.180.0.1", "10.180.0.2", "10.180.0.3")
            (directory / "all.json").write_bytes(_listed(WEB, more, NODE, DNS))
            changed = following.stdout.readline()
            assert changed.split()[:3] == ["web", "-", "10.180.0.3:8080/TCP"]
            assert [changed.index(word) for word in ("10.180", "ready", "yes")] == [
                lines[0].index(word) for word in ("ENDPOINT", "STATE", "USED")
            ]
            following.send_signal(signal.SIGINT)
            assert following.wait(patience.HANGS) == 0
        finally:
            following.kill()
            following.wait()


def test_the_table_of_a_pipe_has_no_colours_and_no_borders(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "netagent", "get", "svc", "-A", "-f", str(directory), *ON_NODE],
        capture_output=True,
        timeout=patience.HANGS,
        check=True,
        env={"FORCE_COLOR": "1", "COLUMNS": "20", "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 3
