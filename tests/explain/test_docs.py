"""docs/explain.md says what the commands print, and knows every cause."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from netagent.explain.story import Cause
from tests import builders
from tests.cli.in_process import netagent

PAGE = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
EXAMPLES = re.findall(r"^```\n\$ netagent (.*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_cause_is_documented_and_no_other() -> None:
    table = PAGE.partition("### Causes")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == sorted(Cause)


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page's examples read, in the current directory."""
    node = builders.node_manifest()
    node["metadata"]["labels"] = {"topology.kubernetes.io/zone": "a"}
    node["spec"] = {"podCIDRs": ["10.180.0.0/24"]}
    dns_port = builders.port_manifest(53, name="dns", protocol="UDP")
    found = builders.list_manifest(
        node,
        builders.service_cidr_manifest(),
        builders.service_manifest(ports=[builders.port_manifest(80, name="http")]),
        builders.slice_manifest(
            "web",
            builders.endpoint_manifest("10.180.0.1", hints={"forZones": [{"name": "a"}]}),
            builders.endpoint_manifest("10.180.0.2", node="node-2", hints={"forZones": [{"name": "b"}]}),
            builders.endpoint_manifest("10.180.0.3", conditions={"ready": False}),
            ports=[builders.port_manifest(8080, name="http")],
        ),
        builders.service_manifest("cart", namespace="shop", cluster_ip="10.96.0.5", selector={"app": "crat"}),
        builders.service_manifest("kube-dns", namespace="kube-system", cluster_ip="10.96.0.10", ports=[dns_port]),
        builders.slice_manifest("kube-dns", "10.180.0.1", "10.180.0.2", namespace="kube-system", ports=[dns_port]),
    )
    change = builders.slice_manifest("kube-dns", "10.180.0.2", namespace="kube-system", ports=[dns_port])
    (tmp_path / "cluster.json").write_bytes(builders.as_json(found))
    (tmp_path / "slice.json").write_bytes(builders.as_json(change))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("clusters")
@pytest.mark.parametrize(("arguments", "printed"), EXAMPLES, ids=[arguments[:30] for arguments, _ in EXAMPLES])
def test_examples_are_what_is_printed(arguments: str, printed: str) -> None:
    done = netagent(*shlex.split(arguments))
    # A kernel with rules of netagent may be at hand where tests run; what it does is not the page's business.
    lines = [line for line in done.stdout.splitlines() if not line.lstrip().startswith("!")]
    told = "\n".join(lines).removesuffix("\n\nThe rules that the kernel holds do the same.")
    assert told == printed.rstrip("\n")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
