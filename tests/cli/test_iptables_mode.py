"""Mode iptables as a user runs it, on both variants of the tools; and the way from one mode to the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from netagent import errors
from netagent.iptables import tools
from tests import builders, kernel, patience

from .test_commands import ON_NODE, netagent

WEB = builders.service_manifest(created="2024-01-01T00:00:00Z")
SLICE = builders.slice_manifest("web", "10.180.0.1", "10.180.0.2")
NODE = builders.node_manifest()
VARIANTS = [variant.value for variant in tools.Variant]

pytestmark = pytest.mark.skipif(
    not all(map(tools.installed, tools.Variant)),
    reason="not installed: the two variants of iptables (package iptables)",
)


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    directory = tmp_path / "manifests"
    directory.mkdir()
    for name, manifest in (("web", WEB), ("slice", SLICE), ("node", NODE)):
        (directory / f"{name}.json").write_bytes(builders.as_json(manifest))
    return directory


def config(tmp_path: Path, variant: str) -> Path:
    path = tmp_path / f"{variant}.yaml"
    path.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: iptables\n"
        f"netagent: {{iptablesVariant: {variant}}}\n"
    )
    return path


def saved(variant: str) -> str:
    """All rules of a variant, IPv4."""
    return subprocess.run([f"iptables-{variant}-save"], capture_output=True, text=True, check=True, timeout=60).stdout


def ours(variant: str) -> list[str]:
    return [line for line in saved(variant).splitlines() if "NETAGENT" in line]


@pytest.mark.parametrize("family", [(), ("--family", "IPv4"), ("--family", "IPv6")])
@pytest.mark.parametrize("variant", VARIANTS)
@kernel.isolated
def test_a_dump_is_a_script_that_the_tools_accept(tmp_path: Path, variant: str, family: tuple[str, ...]) -> None:
    (tmp_path / "all.json").write_bytes(
        builders.as_json(
            builders.list_manifest(
                WEB,
                SLICE,
                NODE,
                builders.service_manifest("six", cluster_ip="fd00:96::1"),
                builders.slice_manifest("six", "fd00:180::1", family="IPv6"),
            )
        )
    )
    done = netagent("dump", "-f", tmp_path, *ON_NODE, "-o", "iptables", *family)
    assert done.returncode == 0, done.stderr
    assert "10.96.0.1" in done.stdout or family == ("--family", "IPv6")
    programs = {"IPv4": ["iptables"], "IPv6": ["ip6tables"]}[family[1]] if family else ["iptables", "ip6tables"]
    for program in programs:
        for noflush in ([], ["--noflush"]):
            tested = subprocess.run(
                [f"{program}-{variant}-restore", "--test", *noflush],
                input=done.stdout,
                text=True,
                capture_output=True,
                timeout=120,
                check=False,
            )
            assert tested.returncode == 0, tested.stderr


@pytest.mark.parametrize("variant", VARIANTS)
@kernel.isolated
def test_sync_diff_and_cleanup(tmp_path: Path, manifests: Path, variant: str) -> None:
    arguments = ("-f", manifests, *ON_NODE, "--config", config(tmp_path, variant))
    subprocess.run([f"iptables-{variant}", "-A", "OUTPUT", "-d", "192.0.2.77", "-j", "DROP"], check=True, timeout=60)
    before = netagent("diff", *arguments)
    assert before.returncode == 1
    assert "default/web" in before.stdout
    done = netagent("sync", *arguments)
    assert done.returncode == 0, done.stderr
    assert any("10.96.0.1" in line for line in ours(variant))
    assert not ours(tools.Variant(variant).other.value)
    again = netagent("sync", *arguments)
    assert "0 operations in 0 transactions" in again.stderr
    after = netagent("diff", *arguments)
    assert (after.returncode, after.stdout) == (0, "")
    commands = netagent("diff", *arguments, "-o", "nft")
    assert commands.returncode == 2
    gone = netagent("cleanup")
    assert gone.returncode == 0
    assert "removed" in gone.stderr
    assert not ours(variant)
    assert "192.0.2.77" in saved(variant), "others' rules stay"
    assert "nothing to remove" in netagent("cleanup").stderr


@kernel.isolated
def test_a_change_of_mode_leaves_nothing_of_the_other(tmp_path: Path, manifests: Path) -> None:
    by_nftables = ("sync", "-f", manifests, *ON_NODE)

    def by_iptables(variant: str) -> tuple[str | Path, ...]:
        return (*by_nftables, "--config", config(tmp_path, variant))

    def in_nftables() -> bool:
        return "table ip netagent" in kernel.nft("list tables")

    held: dict[str, Callable[[], bool]] = {
        "nftables": in_nftables,
        "legacy": lambda: bool(ours("legacy")),
        "nft": lambda: bool(ours("nft")),
    }
    for mode in ("nftables", "legacy", "nft", "nftables", "nft", "legacy", "nftables"):
        done = netagent(*(by_nftables if mode == "nftables" else by_iptables(mode)))
        assert done.returncode == 0, done.stderr
        assert [name for name, has in held.items() if has()] == [mode]


@kernel.isolated
def test_cleanup_also_removes_what_kube_proxy_left_and_says_what() -> None:
    for variant in VARIANTS:
        subprocess.run(
            [f"iptables-{variant}-restore"],
            input="*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-ABC - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:OTHERS - [0:0]\n"
            "-A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -j KUBE-SVC-ABC\n-A PREROUTING -j OTHERS\nCOMMIT\n",
            text=True,
            check=True,
            timeout=120,
        )
    kernel.nft("add table ip kube-proxy\nadd chain ip kube-proxy services\nadd table ip others")
    plain = netagent("cleanup")
    assert "nothing to remove" in plain.stderr
    assert "KUBE-SERVICES" in saved("legacy")
    done = netagent("cleanup", "--kube-proxy")
    assert done.returncode == 0, done.stderr
    assert "kube-proxy" in done.stderr
    for variant in VARIANTS:
        left = saved(variant)
        assert "KUBE-SERVICES" not in left
        assert "KUBE-SVC-ABC" not in left
        assert "KUBE-KUBELET-CANARY" in left, "kubelet's own"
        assert "-A PREROUTING -j OTHERS" in left
    tables = kernel.nft("list tables")
    assert "table ip kube-proxy" not in tables
    assert "table ip others" in tables
    assert "nothing to remove" in netagent("cleanup", "--kube-proxy").stderr


@kernel.isolated
def test_beside_an_agent_cleanup_removes_what_kube_proxy_left_and_nothing_of_the_agents(manifests: Path) -> None:
    kernel.nft("add table ip kube-proxy\nadd chain ip kube-proxy services")
    agent = subprocess.Popen([sys.executable, "-m", "netagent", "run", "-f", manifests, *ON_NODE])
    try:
        patience.until(lambda: "10.96.0.1 . tcp . 80" in kernel.nft("list ruleset"), "the agent's rules")
        refused = netagent("cleanup")
        assert refused.returncode == errors.HeldError.exit_code, refused.stderr
        done = netagent("cleanup", "--kube-proxy")
        assert done.returncode == 0, done.stderr
        assert "its rules stay" in done.stderr
        assert "table ip kube-proxy" not in kernel.nft("list tables")
        assert "10.96.0.1 . tcp . 80" in kernel.nft("list map ip netagent frontends")
    finally:
        agent.terminate()
        agent.wait(patience.HANGS)
