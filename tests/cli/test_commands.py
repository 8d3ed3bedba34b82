"""The commands as a user runs them: output, exit codes, and what is said on standard error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests import builders, kernel, patience

WEB = builders.service_manifest(created="2024-01-01T00:00:00Z")
SLICE = builders.slice_manifest("web", "10.180.0.1", "10.180.0.2")
NODE = builders.node_manifest()
NETAGENT = [sys.executable, "-m", "netagent"]


def netagent(
    *arguments: str | Path, stdin: bytes = b"", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*NETAGENT, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    for name, manifest in (("web", WEB), ("slice", SLICE), ("node", NODE)):
        (tmp_path / f"{name}.json").write_bytes(builders.as_json(manifest))
    return tmp_path


ON_NODE = ("--node-name", "node-1")


# dump ----------------------------------------------------------------------------------------------------------


def test_dump_prints_the_same_bytes_for_the_same_input_in_any_order(manifests: Path) -> None:
    first = netagent("dump", "-f", manifests, *ON_NODE)
    backwards = builders.as_json(builders.list_manifest(NODE, SLICE, WEB))
    second = netagent("dump", "-f", "-", *ON_NODE, stdin=backwards)
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout != ""
    assert first.stderr == ""


def test_dump_takes_what_kubectl_prints_as_yaml() -> None:
    text = yaml.safe_dump(builders.list_manifest(WEB, SLICE, NODE)).encode()
    plan = json.loads(netagent("dump", "-f", "-", *ON_NODE, "-o", "json", stdin=text).stdout)
    (frontend,) = plan["frontends"]
    assert frontend["endpoints"] == ["10.180.0.1:8080", "10.180.0.2:8080"]
    assert (frontend["address"], frontend["port"], frontend["protocol"]) == ("10.96.0.1", 80, "TCP")


def test_dump_speaks_json_yaml_and_table_of_the_same_plan(manifests: Path) -> None:
    as_json = json.loads(netagent("dump", "-f", manifests, *ON_NODE, "-o", "json").stdout)
    as_yaml = yaml.safe_load(netagent("dump", "-f", manifests, *ON_NODE, "-o", "yaml").stdout)
    table = netagent("dump", "-f", manifests, *ON_NODE, "-o", "table").stdout.splitlines()
    assert as_json == as_yaml
    assert table[0].split()[:2] == ["SERVICE", "PORT"]
    assert table[1].split() == [
        "default/web",
        "cluster-ip",
        "10.96.0.1:80/tcp",
        "serve",
        "10.180.0.1:8080,10.180.0.2:8080",
    ]


@kernel.isolated
def test_what_dump_prints_loads_with_nft_twice_over() -> None:
    script = netagent(
        "dump", "-f", "-", *ON_NODE, stdin=builders.as_json(builders.list_manifest(WEB, SLICE, NODE))
    ).stdout
    kernel.nft(script)
    first = kernel.ruleset()
    kernel.nft(script)
    assert kernel.ruleset() == first


def test_dump_needs_no_privilege_and_no_network(manifests: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("already without privilege")
    done = subprocess.run(
        ["unshare", "--net", "setpriv", "--bounding-set=-all", "--inh-caps=-all", *NETAGENT, "dump", "-f", manifests],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"table ip netagent" in done.stdout


# Bad input -----------------------------------------------------------------------------------------------------


def test_a_bad_object_is_named_with_file_object_and_field_and_the_rest_goes_on(manifests: Path) -> None:
    bad = builders.service_manifest("broken", cluster_ip="10.96.0.300")
    (manifests / "broken.json").write_bytes(builders.as_json(bad))
    done = netagent("dump", "-f", manifests, *ON_NODE, "-o", "table")
    assert done.returncode == 0
    assert "default/web" in done.stdout
    for word in ("broken.json", "default/broken", "clusterIP"):
        assert word in done.stderr
    strict = netagent("dump", "-f", manifests, *ON_NODE, "--strict")
    assert strict.returncode == 7
    assert strict.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("dump",), 2, "--filename"),
        (("dump", "-f", "/nowhere/at/all"), 3, "No such file"),
        (("dump", "-f", "-", "--config", "/nowhere"), 2, "/nowhere"),
        (("dump", "-f", "-", "--nodeport-addresses", "10.0.0.0/33"), 2, "10.0.0.0/33"),
        (("dump", "-f", "-", "--detect-local-mode", "BridgeInterface"), 2, "bridgeInterface"),
        (("diff", "-f", "-", "--mode", "iptables", "-o", "nft"), 2, "iptables"),
        (("dump", "-f", "-"), 3, "no usable object"),
        (("run", "-f", "-"), 2, "standard input"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_wrong_use_ends_with_its_exit_code_and_a_sentence(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = netagent(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDRs: 10.180.0.0/16\n"
    )
    done = netagent("dump", "-f", "-", "--config", config)
    assert done.returncode == 2
    assert "clusterCIDRs" in done.stderr
    assert "clusterCIDR?" in done.stderr


def test_flags_win_over_the_file(tmp_path: Path, manifests: Path) -> None:
    config = tmp_path / "config.yml.conf"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        "mode: nftables\nclusterCIDR: 10.180.0.0/16\nnftables: {masqueradeBit: 20}\n"
    )
    by_file = netagent("dump", "-f", manifests, *ON_NODE, "--config", config).stdout
    by_flag = netagent("dump", "-f", manifests, *ON_NODE, "--config", config, "--masquerade-bit", "21").stdout
    assert f"{1 << 20:#x}" in by_file
    assert f"{1 << 21:#x}" in by_flag
    assert f"{1 << 20:#x}" not in by_flag
    assert "ip saddr != 10.180.0.0/16" in by_flag


def test_names_with_escape_sequences_never_reach_the_terminal(manifests: Path) -> None:
    hostile = builders.service_manifest("\x1b[31mred\x1b[0m\n; delete table ip netagent")
    (manifests / "hostile.json").write_bytes(builders.as_json(hostile))
    done = netagent("dump", "-f", manifests, *ON_NODE)
    assert "\x1b" not in done.stdout + done.stderr
    assert "delete table ip netagent" not in done.stdout.replace("\ndelete table ip netagent\n", "\n")
    assert done.returncode == 0


# The kernel ----------------------------------------------------------------------------------------------------


def _listed(*objects: builders.Manifest) -> bytes:
    return builders.as_json(builders.list_manifest(*objects))


@kernel.isolated
def test_sync_then_diff_then_sync_again_does_nothing() -> None:
    state = _listed(WEB, SLICE, NODE)
    assert netagent("diff", "-f", "-", *ON_NODE, stdin=state).returncode == 1
    synced = netagent("sync", "-f", "-", *ON_NODE, stdin=state)
    assert synced.returncode == 0
    assert synced.stdout == ""
    again = netagent("diff", "-f", "-", *ON_NODE, stdin=state)
    assert (again.returncode, again.stdout) == (0, "")
    assert netagent("sync", "-f", "-", *ON_NODE, stdin=state).stderr.startswith("netagent: 0 operations")


@kernel.isolated
def test_diff_says_which_service_and_which_endpoint() -> None:
    netagent("sync", "-f", "-", *ON_NODE, stdin=_listed(WEB, SLICE, NODE))
    changed = builders.slice_manifest("web", "10.180.0.1", "10.180.0.7")
    done = netagent("diff", "-f", "-", *ON_NODE, stdin=_listed(WEB, changed, NODE))
    assert done.returncode == 1
    assert "~ 10.96.0.1:80/tcp  default/web" in done.stdout
    assert "- endpoint 10.180.0.2:8080" in done.stdout
    assert "+ endpoint 10.180.0.7:8080" in done.stdout
    assert "10.180.0.1:8080" not in done.stdout


@kernel.isolated
def test_diff_names_what_somebody_else_did_to_our_table_and_sync_repairs_it() -> None:
    state = _listed(WEB, SLICE, NODE)
    netagent("sync", "-f", "-", *ON_NODE, stdin=state)
    kernel.nft("add table ip theirs; add chain ip theirs keep; add rule ip theirs keep counter")
    theirs = kernel.listing("ip theirs")
    kernel.nft(
        "delete element ip netagent cluster_ips { 10.96.0.1 }; add rule ip netagent services accept;"
        "add chain ip netagent strange"
    )
    done = netagent("diff", "-f", "-", *ON_NODE, stdin=state)
    assert done.returncode == 1
    for line in ("+ cluster_ips 10.96.0.1", "~ chain services: its rules are not ours", "- chain strange: not ours"):
        assert line in done.stdout
    assert netagent("sync", "-f", "-", *ON_NODE, stdin=state).returncode == 0
    assert netagent("diff", "-f", "-", *ON_NODE, stdin=state).returncode == 0
    assert kernel.listing("ip theirs") == theirs


@kernel.isolated
def test_cleanup_removes_ours_and_only_ours_and_may_be_repeated() -> None:
    netagent("sync", "-f", "-", *ON_NODE, stdin=_listed(WEB, SLICE, NODE))
    kernel.nft("add table ip theirs")
    assert netagent("cleanup").returncode == 0
    assert set(kernel.ruleset()) == {"table ip  theirs"}
    assert netagent("cleanup").returncode == 0


@kernel.isolated
def test_without_privilege_there_is_one_clear_line_and_exit_code_4() -> None:
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *NETAGENT, "sync", "-f", "-"],
        input=_listed(WEB, SLICE, NODE),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert b"CAP_NET_ADMIN" in done.stderr
    assert b"Traceback" not in done.stderr


# run -----------------------------------------------------------------------------------------------------------


class Running:
    """`netagent run` on a directory, until the end of the test."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*NETAGENT, "-v", "run", "-f", str(directory), *ON_NODE, *arguments], stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def _eventually(condition: Callable[[], bool], seconds: float = patience.HANGS) -> float:
    """Wait for a condition; the seconds that it took."""
    return patience.until(condition, seconds=seconds, pause=0.01)


def _holds(endpoint: str) -> bool:
    try:
        return endpoint in kernel.nft("list map ip netagent backends")
    except RuntimeError:
        return False


@kernel.isolated
def test_run_follows_files_that_come_change_and_go(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("followed")
    (directory / "state.json").write_bytes(_listed(WEB, NODE))
    with Running(directory) as running:
        _eventually(lambda: "netagent" in kernel.nft("list tables"))
        (directory / "slice.json").write_bytes(builders.as_json(SLICE))
        _eventually(lambda: _holds("10.180.0.2"))
        replacement = directory / ".new"
        replacement.write_bytes(builders.as_json(builders.slice_manifest("web", "10.180.0.9")))
        replacement.rename(directory / "slice.json")
        _eventually(lambda: _holds("10.180.0.9") and not _holds("10.180.0.2"))
        (directory / "slice.json").write_text("{ this is no JSON")
        time.sleep(0.3)
        assert _holds("10.180.0.9"), "a file that became unreadable costs nothing"
        (directory / "slice.json").unlink()
        _eventually(lambda: not _holds("10.180.0.9"))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(patience.HANGS) == 0
        assert "netagent" in kernel.nft("list tables"), "the rules stay"


@kernel.isolated
def test_run_follows_the_swapped_symlink_of_a_config_map(tmp_path_factory: pytest.TempPathFactory) -> None:
    volume = tmp_path_factory.mktemp("volume")
    for version, endpoint in (("..v1", "10.180.0.1"), ("..v2", "10.180.0.5")):
        (volume / version).mkdir()
        slice_of_version = builders.slice_manifest("web", endpoint)
        (volume / version / "all.json").write_bytes(_listed(WEB, NODE, slice_of_version))
    (volume / "..data").symlink_to("..v1")
    (volume / "all.json").symlink_to("..data/all.json")
    with Running(volume):
        _eventually(lambda: _holds("10.180.0.1"))
        (volume / "..data_tmp").symlink_to("..v2")
        (volume / "..data_tmp").rename(volume / "..data")
        _eventually(lambda: _holds("10.180.0.5") and not _holds("10.180.0.1"))


@kernel.isolated
def test_run_repairs_and_names_what_others_do_to_the_table(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("followed")
    (directory / "state.json").write_bytes(_listed(WEB, SLICE, NODE))
    config = tmp_path_factory.mktemp("configured") / "config.yaml"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
        "netagent: {tableOwnership: false}\n"
    )
    with Running(directory, "--config", str(config)) as running:
        _eventually(lambda: _holds("10.180.0.2"))
        kernel.nft("flush ruleset")
        _eventually(lambda: _holds("10.180.0.2"))
        kernel.nft("delete element ip netagent cluster_ips { 10.96.0.1 }")
        _eventually(lambda: "10.96.0.1" in kernel.nft("list set ip netagent cluster_ips"))
        running.process.terminate()
        _, said = running.process.communicate(timeout=patience.HANGS)
    assert "drift: table ip netagent: 1 operations" in said
    assert "+ cluster_ips 10.96.0.1" in said


@kernel.isolated
def test_sighup_reads_the_configuration_again_and_a_bad_one_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("followed")
    (directory / "state.json").write_bytes(_listed(WEB, SLICE, NODE))
    config = tmp_path_factory.mktemp("configured") / "config.yaml"
    head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
    config.write_text(head)
    with Running(directory, "--config", str(config)) as running:
        _eventually(lambda: _holds("10.180.0.2"))
        config.write_text(head + "nftables: {masqueradeBit: 20}\n")
        running.process.send_signal(signal.SIGHUP)
        _eventually(lambda: "0x00100000" in kernel.nft("list chain ip netagent postrouting"))
        config.write_text(head + "nftables: {masqueradeBits: 21}\n")
        running.process.send_signal(signal.SIGHUP)
        assert running.process.stderr
        refused = next(line for line in running.process.stderr if "configuration refused, keeping the old one" in line)
        time.sleep(0.2)
        assert "0x00100000" in kernel.nft("list chain ip netagent postrouting")
        running.process.terminate()
        said = refused + running.process.stderr.read()
    assert "masqueradeBit?" in said


def test_with_a_proxy_name_only_the_services_labelled_so_are_ours(tmp_path: Path) -> None:
    config = tmp_path / "config.conf"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
        "netagent: {serviceProxyName: netagent}\n"
    )
    label = {"service.kubernetes.io/service-proxy-name": "netagent"}
    ours = builders.service_manifest("ours", cluster_ip="10.96.0.7", labels=label)
    state = _listed(WEB, ours, NODE, builders.service_cidr_manifest())
    done = netagent("dump", "-f", "-", *ON_NODE, "--config", config, stdin=state)
    assert "default/ours" in done.stdout
    assert "default/web" not in done.stdout
    assert "10.96.0.0/12" not in done.stdout, "other cluster IPs are another proxy's, not nobody's"
    assert "default/ours" not in netagent("dump", "-f", "-", *ON_NODE, stdin=state).stdout
