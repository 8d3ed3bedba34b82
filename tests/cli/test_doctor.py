"""`netagent doctor` as a user runs it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from netagent.iptables import tools
from tests import builders, kernel, patience
from tests.cli.in_process import netagent
from tests.cli.test_commands import NODE, ON_NODE, SLICE, WEB, Running, _listed


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


@kernel.isolated
def test_an_agent_that_hangs_is_found_and_named_until_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netagent.cli import doctor
    from netagent.doctor.gather import host

    _forward(1)
    (tmp_path / "all.json").write_bytes(_listed(WEB, SLICE, NODE))
    with Running(tmp_path) as running:
        patience.until(lambda: netagent("status").returncode == 0)
        assert netagent("doctor").stdout == "all well\n"
        running.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(doctor, "_SECONDS", 0.2)
        monkeypatch.setattr(host, "ANSWER_SECONDS", 0.2)
        hung = netagent("doctor")
        assert hung.returncode == 1
        assert hung.stdout.startswith("ERROR   agent: the agent is there and does not answer")
        assert f"process {running.process.pid}" in hung.stdout
        running.process.send_signal(signal.SIGCONT)
        monkeypatch.setattr(host, "ANSWER_SECONDS", patience.HANGS)
        assert netagent("doctor").stdout == "all well\n"


@pytest.mark.skipif(not all(map(tools.installed, tools.Variant)), reason="not installed: iptables of both variants")
@kernel.isolated
def test_rules_of_mode_iptables_that_nobody_keeps_are_found_and_judged_as_such(tmp_path: Path) -> None:
    _forward(1)
    for name, manifest in (("web", WEB), ("slice", SLICE), ("node", NODE)):
        (tmp_path / f"{name}.json").write_bytes(builders.as_json(manifest))
    assert netagent("sync", "-f", tmp_path, "--mode", "iptables", *ON_NODE).returncode == 0
    Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")  # as `run` does in this mode
    done = netagent("doctor")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line[0] != " "][:-1] == [
        "WARNING agent: no agent runs: the rules are there and serve, but endpoints that come and go are not followed"
    ]
    assert "chains of netagent" in done.stdout
