"""The corpus of behaviour cases with real packets: once with one agent that lives through a case, and a part of it
with the command `netagent sync`, which starts afresh at every step."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cases import loader

from . import agent_plane, aside, capability, planes, replay

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(capability.missing()), reason=capability.missing() or "can make namespaces"),
]

CASES = loader.load_all()
SYNC = [
    *(sys.executable, "-m", "netagent", "sync"),
    *("-f", "{manifests}", "--config", "{config}", "--node-name", "{node}"),
]
# What one process remembers and another cannot know.
NEEDS_MEMORY = {"node-changes-node-deleted", "sync-lifecycle-bad-object"}


def _replay(case: dict[str, Any], factory: planes.Factory, *, mode: str = "nftables", variant: str = "") -> None:
    slow = _is_slow(case)
    reason = replay.unsupported(case, packets_only=True, slow=slow, mode=mode)
    if reason:
        pytest.skip(reason)
    if "conntrack injection" in case.get("requires", ()) and capability.conntrack_missing():
        pytest.skip(capability.conntrack_missing())
    if slow and (name := _name(case, mode, variant)) in aside_of:
        kind, text = aside_of.outcome(name)
        if kind == "skipped":
            pytest.skip(text)
        if kind == "failed":
            pytest.fail(text, pytrace=False)
        return
    _replay_here(case, factory, mode=mode, slow=slow)


def _replay_here(case: dict[str, Any], factory: planes.Factory, *, mode: str, slow: bool) -> None:
    try:
        replay.replay(case, factory, defaults=loader.plan()["defaults"], packets_only=True, slow=slow, mode=mode)
    except replay.Unsupported as reason_of_plane:
        pytest.skip(str(reason_of_plane))


# Cases that wait for timeouts, which begin with the first test here and are asked for when it is their turn.
aside_of = aside.Aside()


def _name(case: dict[str, Any], mode: str, variant: str) -> str:
    return f"{case['id']} in mode {mode} {variant}"


@pytest.fixture(scope="module", autouse=True)
def slow_cases(request: pytest.FixtureRequest) -> Iterator[None]:
    """The slow cases that this process may come to, each in a process of its own while the others go on."""
    for item in request.session.items:
        chosen = getattr(item, "callspec", None)
        if item.path != request.path or chosen is None or not _is_slow(chosen.params["case"]):
            continue
        case, variant = chosen.params["case"], chosen.params.get("variant", "")
        mode = "iptables" if variant else "nftables"
        if "test_netagent_sync_alone" in item.name or replay.unsupported(case, packets_only=True, slow=True, mode=mode):
            continue
        if variant and shutil.which("iptables-legacy-restore") is None:
            continue
        plane = functools.partial(agent_plane.InProcess, variant=variant) if variant else agent_plane.InProcess
        aside_of.start(_name(case, mode, variant), functools.partial(_replay_here, case, plane, mode=mode, slow=True))
    yield
    aside_of.close()


def _is_slow(case: dict[str, Any]) -> bool:
    return bool(case.get("requires") == ["slow"])


# Slow ones last: by then they are through.
NFTABLES_CASES = sorted((case for case in CASES if "nftables" in case["modes"]), key=_is_slow)


@pytest.mark.parametrize("case", NFTABLES_CASES, ids=[case["id"] for case in NFTABLES_CASES])
def test_packets_go_where_the_case_says(case: dict[str, Any]) -> None:
    _replay(case, agent_plane.InProcess)


# Mode iptables meets every case in the simulator (tests/iptables); here each variant has a part of them, or all.
_PART = 1 if os.environ.get("NETAGENT_TEST_ALL_CASES") else 4
IPTABLES_CASES = [
    pytest.param(case, variant, id=f"{variant}-{case['id']}")
    for first, variant in enumerate(("legacy", "nft"))
    for case in sorted([case for case in CASES if "iptables" in case["modes"]][first::_PART], key=_is_slow)
]


@pytest.mark.skipif(shutil.which("iptables-legacy-restore") is None, reason="not installed: iptables")
@pytest.mark.parametrize(("case", "variant"), IPTABLES_CASES)
def test_packets_go_where_the_case_says_in_mode_iptables(case: dict[str, Any], variant: str) -> None:
    _replay(case, functools.partial(agent_plane.InProcess, variant=variant), mode="iptables", variant=variant)


# Every third one: enough to meet every area, and a process a step is slow.
COMMAND_CASES = [case for case in NFTABLES_CASES if case["id"] not in NEEDS_MEMORY and len(case["steps"]) > 1][::3]


@pytest.mark.parametrize("case", COMMAND_CASES, ids=[case["id"] for case in COMMAND_CASES])
def test_netagent_sync_alone_does_the_same(case: dict[str, Any]) -> None:
    if "slow" in case.get("requires", ()):
        pytest.skip("waits for seconds; replayed by the agent that lives through it")
    _replay(case, planes.Command.factory(SYNC))
