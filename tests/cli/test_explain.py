"""`netagent explain` as a user runs it: with manifests, from the kernel alone, and where both differ."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from tests import builders, kernel
from tests.cli import in_process
from tests.cli.in_process import netagent
from tests.cli.test_commands import NETAGENT

ON_NODE = ("--node-name", "node-1")
WEB = builders.service_manifest(
    type="NodePort", selector={"app": "web"}, ports=[builders.port_manifest(80, name="http", nodePort=30080)]
)
SLICE = builders.slice_manifest("web", "10.180.0.1", "10.180.0.2", ports=[builders.port_manifest(8080, name="http")])
BROKEN = builders.service_manifest("broken", cluster_ip="10.96.0.300")
LONELY = builders.service_manifest("lonely", cluster_ip="10.96.0.5", selector={"app": "lonley"})
CLUSTER = builders.as_json(
    builders.list_manifest(WEB, SLICE, LONELY, BROKEN, builders.node_manifest(), builders.service_cidr_manifest())
)


def explain(*arguments: str, stdin: bytes = CLUSTER) -> in_process.Done:
    return netagent("explain", *arguments, "-f", "-", *ON_NODE, stdin=stdin)


def test_a_service_is_explained_from_what_kubectl_prints() -> None:
    done = explain("default/web")
    assert done.returncode == 0, done.stderr
    for words in ("10.96.0.1:80/tcp: cluster IP of Service default/web, port http", "192.0.2.1:30080/tcp: node port"):
        assert words in done.stdout
    assert "1 object of the manifests cannot be used" in done.stderr


def test_causes_that_only_manifests_tell_are_named() -> None:
    lonely = explain("lonely")
    assert lonely.returncode == 0
    assert (
        "no endpoints: its selector matches no ready pod (it has no EndpointSlice); the selector is app=lonley"
        in lonely.stdout
    )
    broken = explain("broken")
    assert broken.returncode == 0
    assert "spec.clusterIPs[0]: '10.96.0.300' is not an IP address" in broken.stdout


def test_a_file_with_nothing_but_the_broken_object_is_explained_too(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(BROKEN))
    done = netagent("explain", "broken", "-f", tmp_path, *ON_NODE)
    assert done.returncode == 0, done.stderr
    assert "is set aside" in done.stdout
    assert netagent("explain", "broken", "-f", tmp_path, *ON_NODE, "--strict").returncode == 7


def test_a_service_that_may_be_in_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("kind: Service\nmetadata: {name: web\n")
    (tmp_path / "node.json").write_bytes(builders.as_json(builders.node_manifest()))
    done = netagent("explain", "web", "-f", tmp_path, *ON_NODE)
    assert done.returncode == 1
    assert f"it may be in what could not be read: {tmp_path}/torn.yaml:" in done.stdout


def test_json_and_yaml_tell_the_same_as_data() -> None:
    as_json = json.loads(explain("10.96.0.1:80", "--from", "pod:10.180.0.9", "-o", "json", "--rules").stdout)
    as_yaml = yaml.safe_load(explain("10.96.0.1:80", "--from", "pod:10.180.0.9", "-o", "yaml", "--rules").stdout)
    assert as_json == as_yaml
    (part,) = as_json["parts"]
    (client,) = part["clients"]
    assert client["from"] == ["pod:10.180.0.9"]
    assert [(one["endpoint"], one["probability"]) for one in client["endpoints"]] == [
        ("10.180.0.1:8080", "1/2"),
        ("10.180.0.2:8080", "1/2"),
    ]
    assert any("numgen random mod 2" in line for line in client["rules"])
    assert as_json["causes"] == ["serves"]


def test_exit_codes_tell_unknown_targets_and_nonsense() -> None:
    assert explain("nope").returncode == 1
    assert explain("203.0.113.5:80").returncode == 1
    assert explain("10.96.0.1:99").returncode == 0
    assert explain("10.96.0.1:99999").returncode == 2
    assert explain("web", "--from", "moon").returncode == 2
    missing = netagent("explain", "web", "-f", "/nonexistent", *ON_NODE)
    assert missing.returncode == 3


def test_the_nodes_that_there_are_are_named_if_this_one_is_not_among_them() -> None:
    done = netagent("explain", "web", "-f", "-", "--node-name", "nobody", stdin=CLUSTER)
    assert "there is no Node 'nobody' among the manifests (it has node-1: see --node-name)" in done.stderr


def test_explaining_needs_no_privilege() -> None:
    if os.geteuid() != 0:
        pytest.skip("already without privilege")
    bare = ["unshare", "--net", "setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*bare, *NETAGENT, "explain", "web", "-f", "-", *ON_NODE],
        input=CLUSTER,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"SERVED" in done.stdout
    assert b"not compared with the kernel's rules" in done.stderr


# With a kernel --------------------------------------------------------------------------------------------------------


@kernel.isolated
def test_where_the_kernel_differs_from_the_plan_it_is_said() -> None:
    assert netagent("sync", "-f", "-", *ON_NODE, stdin=CLUSTER).returncode == 0
    same = explain("web")
    assert "The rules that the kernel holds do the same." in same.stdout
    assert "differ" not in same.stdout

    kernel.nft("delete element ip netagent backends { 10.96.0.1 . tcp . 80 . 0:1 }")
    fewer = explain("10.96.0.1:80", "--from", "outside")
    assert fewer.returncode == 0
    assert "! the kernel does not use 10.180.0." in fewer.stdout

    kernel.nft("delete element ip netagent frontends { 10.96.0.1 . tcp . 80 }")
    refused = json.loads(explain("10.96.0.1:80", "--from", "outside", "-o", "json").stdout)
    (client,) = refused["parts"][0]["clients"]
    assert client["kernelDifferences"] == [
        "in the kernel the connection is refused; it should be that it is sent to an endpoint"
    ]
    assert refused["causes"] == ["kernel-differs", "serves"]

    by_rules = explain("10.96.0.1:80", "--from", "outside", "--rules").stdout
    assert "in the kernel, rule by rule:" in by_rules
    assert "frontends: has no 10.96.0.1 . tcp . 80" in by_rules

    kernel.nft("insert rule ip netagent services counter")
    assert "a rule there that netagent did not write (chain services, number 1)" in explain("web").stdout
    kernel.nft("delete table ip netagent")
    assert "the kernel has no rules of netagent for IPv4" in explain("web").stdout


@kernel.isolated
def test_the_kernel_alone_tells_a_story_and_says_that_it_is_alone() -> None:
    nothing = netagent("explain", "web")
    assert nothing.returncode == 10
    assert "there is nothing to look at" in nothing.stderr
    assert netagent("sync", "-f", "-", *ON_NODE, stdin=CLUSTER).returncode == 0
    done = netagent("explain", "default/web:http", "--from", "pod")
    assert done.returncode == 0, done.stderr
    assert "this is what the kernel has" in done.stderr
    assert "10.96.0.1:80/tcp: cluster IP of Service default/web, port http" in done.stdout
    assert "1/2    50 %  10.180.0.1:8080" in done.stdout
    assert "The rules that the kernel holds do the same" not in done.stdout
    undefined = netagent("explain", "10.96.0.1:81", "-o", "json")
    assert json.loads(undefined.stdout)["causes"] == ["port-not-defined"]
    lonely = netagent("explain", "lonely")
    assert "REFUSED" in lonely.stdout
    assert netagent("explain", "nope").returncode == 1
    elsewhere = netagent("explain", "198.51.100.9:30080", "--from", "node").stdout
    assert "30080/tcp is the node port of default/web:http, but" in elsewhere
    assert "the rules let addresses of this node in 192.0.2.1" in elsewhere
    assert "Node object" not in elsewhere  # whose name rules do not tell
    kernel.nft("insert rule ip netagent services ip ttl 5 drop")
    assert "a rule there that netagent did not write" in netagent("explain", "lonely").stdout


@kernel.isolated
def test_a_running_agent_is_asked_also_for_what_it_set_aside() -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "cluster.json").write_bytes(CLUSTER)
        label = {"service.kubernetes.io/service-proxy-name": "cilium"}
        foreign_service = builders.service_manifest("foreign", cluster_ip="10.96.0.9", labels=label)
        others = builders.list_manifest(foreign_service, builders.slice_manifest("foreign", "10.180.0.9"))
        (Path(directory) / "foreign.json").write_bytes(builders.as_json(others))
        agent = subprocess.Popen(
            [*NETAGENT, "-v", "run", "-f", directory, *ON_NODE, "--cluster-cidr", "10.180.0.0/16"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert agent.stderr is not None
            for line in agent.stderr:  # ends with the process, if it never syncs
                if "sync committed" in line:
                    break
            done = netagent("explain", "10.96.0.1:80", "--from", "outside")
            assert done.returncode == 0, done.stderr
            assert "by their addresses, 10.180.0.0/16" in done.stdout  # the agent's own settings
            assert "The rules that the kernel holds do the same." in done.stdout
            broken = netagent("explain", "broken")
            assert broken.returncode == 0, broken.stderr
            assert "spec.clusterIPs[0]" in broken.stdout
            by_address = netagent("explain", "10.96.0.77:80").stdout  # of which nobody can say whose it is
            assert "perhaps the one: Service default/broken: spec.clusterIPs[0]" in by_address
            assert "kubectl -n default get service broken -o yaml" in by_address
            assert "service.kubernetes.io/service-proxy-name is another proxy's" in by_address
            foreign = netagent("explain", "foreign").stdout
            assert "there is an EndpointSlice of that name, but no Service" in foreign
            assert "most likely it has the label service.kubernetes.io/service-proxy-name" in foreign
            changed = netagent("whatif", "--delete", "service/default/web")
            assert changed.returncode == 1, changed.stderr
            assert "- 10.96.0.1:80/tcp" in changed.stdout
        finally:
            agent.terminate()
            agent.communicate(timeout=60)


@kernel.isolated
def test_session_affinity_tells_which_endpoint_a_client_has() -> None:
    sticky = builders.service_manifest("sticky", cluster_ip="10.96.0.6", sessionAffinity="ClientIP")
    slices = builders.slice_manifest("sticky", "10.180.0.1", "10.180.0.2")
    cluster = builders.as_json(builders.list_manifest(sticky, slices, builders.node_manifest()))
    assert netagent("sync", "-f", "-", *ON_NODE, stdin=cluster).returncode == 0
    listed = kernel.listing("ip netagent")
    number = listed.partition("map affinity_endpoints")[2].partition("elements = {")[2].split()[0]
    group = f"{number.partition(':')[0]}:0"
    kernel.nft(f"add element ip netagent affinity {{ {group} . 203.0.113.7 timeout 600s : {number} }}")
    done = explain("10.96.0.6:80", "--from", "outside:203.0.113.7", "-o", "json", stdin=cluster)
    (client,) = json.loads(done.stdout)["parts"][0]["clients"]
    assert len(client["endpoints"]) == 1, done.stdout
    assert any("this client was here before" in note for note in client["notes"])
    other = explain("10.96.0.6:80", "--from", "outside:203.0.113.8", "-o", "json", stdin=cluster)
    assert len(json.loads(other.stdout)["parts"][0]["clients"][0]["endpoints"]) == 2
