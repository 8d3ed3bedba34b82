"""`netagent doctor` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests import kernel
from tests.cli.in_process import netagent


def _forward(value: int) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text(str(value))
    Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("0")
    Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("0")


@kernel.isolated
def test_a_clean_host_is_told_in_two_words_with_exit_code_0() -> None:
    _forward(1)
    done = netagent("doctor")
    assert (done.returncode, done.stdout, done.stderr) == (0, "all well\n", "")


@kernel.isolated
def test_a_finding_has_severity_evidence_and_remedy_in_every_form_and_exit_code_1() -> None:
    _forward(0)
    kernel.nft("add table ip kube-proxy")
    done = netagent("doctor")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ERROR   ip-forward: ")
    assert "        found: net.ipv4.ip_forward = 0" in lines
    assert any(line.startswith("        do:    Now: sysctl -w net.ipv4.ip_forward=1") for line in lines)
    assert "        found: nftables table ip kube-proxy" in lines
    assert lines[-1] == "2 errors"
    assert "\x1b" not in done.stdout  # nobody's terminal
    as_json = netagent("doctor", "-o", "json")
    document = json.loads(as_json.stdout)
    assert as_json.returncode == 1
    assert document["verdict"] == "error"
    errors = [each for each in document["findings"] if each["severity"] == "error"]
    assert [each["check"] for each in errors] == ["ip-forward", "kube-proxy-leftovers"]
    assert all(each["evidence"] and each["remedy"] for each in errors)
    assert any(each["severity"] == "ok" for each in document["findings"])


@kernel.isolated
def test_the_configuration_decides_what_is_looked_for(tmp_path: Path) -> None:
    _forward(1)
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
        "conntrack: {tcpBeLiberal: true}\n"
    )
    done = netagent("doctor", "--config", config)
    assert done.returncode == 1
    assert "tcp-be-liberal" in done.stdout
