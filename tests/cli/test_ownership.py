"""The agent owns its tables: nobody else changes them while it runs, they outlive it, and the next one adopts them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests import kernel

from .test_commands import NODE, ON_NODE, SLICE, WEB, Running, _eventually, _holds, _listed, netagent

_FOREIGN_EDITS = (
    "delete table ip netagent",
    "flush table ip netagent",
    "flush set ip netagent cluster_ips",
    "add rule ip netagent services drop",
    "add element ip netagent cluster_ips { 10.96.0.9 }",
)


@pytest.fixture
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("followed")
    (directory / "state.json").write_bytes(_listed(WEB, SLICE, NODE))
    return directory


def _needs_owners() -> None:
    """Skip where the kernel has none (before Linux 6.9)."""
    from netagent.model.addresses import Family
    from netagent.nftables import netlink, probe

    with netlink.NftablesSocket() as socket:
        if not probe.can_own(socket, Family.IPV4):
            pytest.skip("this kernel has no owners of tables (Linux 6.9)")


def _operations(said: str) -> list[int]:
    return [int(count) for count in re.findall(r"sync committed operations=(\d+)", said)]


@kernel.isolated
def test_nobody_else_changes_the_tables_while_the_agent_runs(followed: Path) -> None:
    _needs_owners()
    with Running(followed):
        _eventually(lambda: _holds("10.180.0.2"))
        before = kernel.ruleset()
        for edit in _FOREIGN_EDITS:
            with pytest.raises(RuntimeError, match="Operation not permitted"):
                kernel.nft(edit)
        kernel.nft("flush ruleset")
        assert kernel.ruleset() == before, "`nft flush ruleset` passes them by"


@kernel.isolated
def test_the_tables_outlive_a_killed_agent_and_the_next_one_adopts_them_with_zero_operations(followed: Path) -> None:
    _needs_owners()
    with Running(followed) as first:
        _eventually(lambda: _holds("10.180.0.2"))
        first.process.kill()
        first.process.wait()
    assert _holds("10.180.0.2")
    with Running(followed) as second:
        _eventually(lambda: "owned by this agent" in netagent("status", "-o", "json").stdout)
        (followed / "slice.json").write_bytes(_listed(_slice_with_one_more()))
        _eventually(lambda: _holds("10.180.0.3"))
        second.process.send_signal(signal.SIGTERM)
        _, said = second.process.communicate(timeout=60)
    changes = _operations(said)
    assert len(changes) == 1, f"the start changed nothing, the new endpoint something: {said}"
    assert changes[0] < 20


def _slice_with_one_more() -> dict[str, object]:
    from tests import builders

    return builders.slice_manifest("web", "10.180.0.3", name="web-2")


@kernel.isolated
def test_an_orphan_that_was_edited_is_put_right_by_who_adopts_it(followed: Path) -> None:
    _needs_owners()
    with Running(followed) as first:
        _eventually(lambda: _holds("10.180.0.2"))
        first.process.kill()
        first.process.wait()
    kernel.nft("flush map ip netagent backends")
    kernel.nft("add rule ip netagent services counter")
    with Running(followed) as second:
        _eventually(lambda: _holds("10.180.0.2"))
        _eventually(lambda: "counter packets" not in kernel.nft("list chain ip netagent services"))
        second.process.terminate()
        second.process.communicate(timeout=60)


@kernel.isolated
def test_tables_that_a_command_made_are_replaced_by_ones_that_can_be_owned(followed: Path) -> None:
    _needs_owners()
    assert netagent("sync", "-f", followed, *ON_NODE).returncode == 0
    kernel.nft("add rule ip netagent services counter")  # anybody may
    with Running(followed):
        _eventually(lambda: "owned by this agent" in netagent("status", "-o", "json").stdout)
        with pytest.raises(RuntimeError, match="Operation not permitted"):
            kernel.nft("delete table ip netagent")
    assert netagent("diff", "-f", followed, *ON_NODE).returncode == 0


@kernel.isolated
def test_looking_is_allowed_while_an_agent_runs_and_changing_is_not(followed: Path) -> None:
    with Running(followed) as running:
        _eventually(lambda: _holds("10.180.0.2"))
        assert netagent("diff", "-f", followed, *ON_NODE).returncode == 0
        for command in (("sync", "-f", followed, *ON_NODE), ("cleanup",), ("run", "-f", followed, *ON_NODE)):
            done = netagent(*command)
            assert done.returncode == 9, done.stderr
            assert f"process {running.process.pid} " in done.stderr
            assert "stop it first" in done.stderr
        assert _holds("10.180.0.2")
        running.process.terminate()
        running.process.wait(60)
    assert netagent("cleanup").returncode == 0
    assert not _holds("10.180.0.2")


@kernel.isolated
def test_an_agent_whose_tables_somebody_else_owns_says_who_that_is_and_takes_over_when_he_goes(followed: Path) -> None:
    _needs_owners()
    from netagent.nftables import backend

    thief = backend.Backend(affinity_clients=1024, owns=True)
    try:
        from tests.nftables import strategies
        from tests.nftables.test_backend_kernel import want

        thief.read()
        want(thief, strategies.state_of(strategies.cluster_ip_frontend(count=2)))
        thief.commit()
        with Running(followed) as running:
            assert running.process.stderr
            told = next(line for line in running.process.stderr if "owned by" in line)
            assert f"owned by process {os.getpid()} " in told
            thief.close()
            _eventually(lambda: _holds("10.180.0.2"), 60)
    finally:
        thief.close()


@kernel.isolated
def test_without_ownership_by_setting_everybody_may_and_the_agent_repairs(
    followed: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = tmp_path_factory.mktemp("configured") / "config.yaml"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
        "netagent: {tableOwnership: false}\n"
    )
    with Running(followed, "--config", str(config)):
        _eventually(lambda: _holds("10.180.0.2"))
        assert "not owned" in netagent("status", "-o", "json").stdout
        kernel.nft("delete table ip netagent")
        _eventually(lambda: _holds("10.180.0.2"))
