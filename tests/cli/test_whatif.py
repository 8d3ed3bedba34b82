"""`netagent whatif` as a user runs it: exit codes as `kubectl diff` has them, and nothing is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import builders, kernel
from tests.cli.in_process import netagent

ON_NODE = ("--node-name", "node-1")
WEB = builders.service_manifest(type="NodePort", ports=[builders.port_manifest(80, nodePort=30080)])
SLICE = builders.slice_manifest("web", "10.180.0.1", "10.180.0.2")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    found = builders.list_manifest(WEB, SLICE, builders.node_manifest(), builders.service_cidr_manifest())
    (tmp_path / "base.json").write_bytes(builders.as_json(found))
    return tmp_path / "base.json"


def change(directory: Path, *manifests: builders.Manifest) -> Path:
    path = directory / "change.json"
    path.write_bytes(builders.as_json(builders.list_manifest(*manifests)))
    return path


def test_no_change_is_exit_code_0_and_a_change_is_1(base: Path, tmp_path: Path) -> None:
    same = netagent("whatif", "-f", base, "--base", base, *ON_NODE)
    assert (same.returncode, same.stderr) == (0, "")
    assert "the rules would stay as they are" in same.stdout
    scaled = change(tmp_path, builders.slice_manifest("web", "10.180.0.1"))
    done = netagent("whatif", "-f", scaled, "--base", base, *ON_NODE)
    assert done.returncode == 1, done.stderr
    assert "- 10.180.0.2:8080  1/2 -> 0" in done.stdout


def test_a_manifest_as_people_write_it_keeps_what_the_api_server_gave(base: Path, tmp_path: Path) -> None:
    plain = builders.service_manifest(cluster_ip="", type="NodePort", externalTrafficPolicy="Local")
    done = netagent("whatif", "-f", change(tmp_path, plain), "--base", base, *ON_NODE, "-o", "json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert [one["frontend"] for one in document["frontends"]] == ["node-port 30080/tcp (IPv4)"]
    assert any("cluster IP 10.96.0.1, node port 30080 of port 80" in note for note in document["notes"])


def test_a_new_service_without_a_cluster_ip_is_told_of_with_one_that_is_free(base: Path, tmp_path: Path) -> None:
    new = builders.service_manifest("new", cluster_ip="", type="NodePort", selector={"app": "new"})
    slices = builders.slice_manifest("new", "10.180.0.7")
    for manifests, does in (((new,), "refused, as no endpoint can be used"), ((new, slices), "served by 1 endpoint")):
        done = netagent("whatif", "-f", change(tmp_path, *manifests), "--base", base, *ON_NODE, "-o", "json")
        assert done.returncode == 1, done.stdout
        document = json.loads(done.stdout)
        assert [one["frontend"] for one in document["frontends"]] == ["10.111.255.254:80/tcp"]
        assert document["frontends"][0]["after"]["does"] == does
        assert any("10.111.255.254 stands for it here" in note for note in document["notes"])
        assert any("gets node ports when it is applied" in note for note in document["notes"])


def test_a_new_headless_service_is_nothing_on_a_node(base: Path, tmp_path: Path) -> None:
    done = netagent(
        "whatif", "-f", change(tmp_path, builders.service_manifest("new", cluster_ip="None")), "--base", base, *ON_NODE
    )
    assert done.returncode == 0, done.stdout
    assert "has no cluster IP" in done.stdout


def test_a_deleted_service_takes_its_frontends_along(base: Path) -> None:
    done = netagent("whatif", "--delete", "svc/default/web", "--base", base, *ON_NODE, "-o", "yaml")
    assert done.returncode == 1
    assert "change: removed" in done.stdout


def test_what_would_be_set_aside_is_told_and_strict_refuses_it(base: Path, tmp_path: Path) -> None:
    bad = change(tmp_path, builders.service_manifest(cluster_ip="10.96.0.300"))
    done = netagent("whatif", "-f", bad, "--base", base, *ON_NODE)
    assert done.returncode == 1
    assert "Service default/web: spec.clusterIP" in done.stdout
    assert netagent("whatif", "-f", bad, "--base", base, *ON_NODE, "--strict").returncode == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a change"),
        (("--delete", "pod/default/web"), "give KIND/NAMESPACE/NAME"),
        (("--delete", "service/web"), "give KIND/NAMESPACE/NAME"),
        (("--delete", "service/default/nope"), "there is no such object"),
    ],
)
def test_a_change_that_makes_no_sense_is_exit_code_2(base: Path, arguments: tuple[str, ...], words: str) -> None:
    done = netagent("whatif", *arguments, "--base", base, *ON_NODE)
    assert done.returncode == 2
    assert words in done.stderr


@kernel.isolated
def test_without_an_agent_there_is_nothing_to_start_from() -> None:
    done = netagent("whatif", "--delete", "svc/default/web")
    assert done.returncode == 10
    assert "--base" in done.stderr
