"""`netagent drift`: who changed our rules, what that was, and when it was put right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netagent import processes
from netagent.agent import drift as journal
from netagent.cli import drift
from tests import kernel, patience

from .in_process import netagent
from .test_commands import NODE, SLICE, WEB, Running, _listed


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "followed").mkdir()
    (tmp_path / "followed" / "all.json").write_bytes(_listed(WEB, SLICE, NODE))
    # With an owner nobody else can change anything, where the kernel has that.
    (tmp_path / "config.yaml").write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
        "netagent: {tableOwnership: false}\n"
    )
    return tmp_path / "followed"


@kernel.isolated
def test_a_foreign_change_is_told_with_who_it_was_and_what(directory: Path) -> None:
    with Running(directory, "--config", str(directory.with_name("config.yaml"))):
        patience.until(lambda: netagent("status").returncode == 0)
        quiet = netagent("drift")
        assert (quiet.returncode, quiet.stdout) == (0, "")
        assert "nobody has changed our rules" in quiet.stderr
        kernel.nft("add element ip netagent cluster_ips { 10.96.77.7 }")
        patience.until(lambda: "puts it right, done" in netagent("drift").stdout)
        said = netagent("drift").stdout
        assert "by nft[" in said
        assert "10.96.77.7" in said
        (item,) = json.loads(netagent("drift", "-o", "json").stdout)["items"]
        assert item["operations"] == 1
        assert item["by"][0]["name"] == "nft"
        assert item["repairedAt"] >= item["at"]


@kernel.isolated
def test_without_an_agent_nobody_has_a_journal() -> None:
    said = netagent("drift")
    assert (said.returncode, said.stdout) == (10, "")


def test_hostile_names_and_long_lists_are_fit_for_a_terminal() -> None:
    record = journal.Drift(
        at=0.0,
        by=(processes.Process(7, "ev\x1b[31mil\n", "a\u202eb.service"),),
        operations=9,
        lines=tuple(f"+ line {number}\x07" for number in range(9)),
        repaired_at=0.25,
        times=3,
    )
    lines = list(drift._lines([record], now=60.0, most=5))
    assert all(line.isprintable() for line in lines)
    assert "60s ago" in lines[0]
    assert "3 times" in lines[0]
    assert lines[1] == "  9 operations put it right, done 250 ms after it was noticed"
    assert lines[-1] == "    and 4 lines more (--all-lines)"


def test_a_change_that_is_not_repaired_says_so() -> None:
    record = journal.Drift(at=0.0, by=(), operations=1, lines=())
    assert list(drift._lines([record], now=1.0, most=None))[1] == "  1 operation puts it right, NOT YET DONE"
