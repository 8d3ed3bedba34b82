"""The journal of what others did to our rules: who, what, when, and a storm is not a flood."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator

import pytest

from netagent import processes
from netagent.agent import drift

NFT, TOOL = processes.Process(100, "nft"), processes.Process(200, "tool", "tool.service")


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(clock: Clock) -> drift.Journal:
    return drift.Journal(clock=clock)


def test_a_change_is_recorded_with_who_what_and_when_it_was_repaired(journal: drift.Journal, clock: Clock) -> None:
    journal.found([TOOL], 2, ["- cluster_ips 10.96.0.1", "+ frontends 10.96.0.9"])
    (record,) = journal.records()
    assert (record.at, record.by, record.operations, record.repaired_at) == (clock.now, (TOOL,), 2, None)
    assert record.lines == ("- cluster_ips 10.96.0.1", "+ frontends 10.96.0.9")
    clock.now += 0.5
    journal.repaired()
    assert journal.records()[0].repaired_at == clock.now


def test_changes_of_other_objects_are_told_apart_though_as_many_operations_repair_them(journal: drift.Journal) -> None:
    journal.found([NFT], 1, ["+ cluster_ips 10.96.0.1"])
    journal.found([NFT], 1, ["+ cluster_ips 10.96.0.2"])
    assert [record.lines for record in journal.records()] == [
        ("+ cluster_ips 10.96.0.1",),
        ("+ cluster_ips 10.96.0.2",),
    ]


def test_a_storm_that_takes_away_much_is_described_once(journal: drift.Journal) -> None:
    journal.found([NFT], 5000, ["+ the whole table"])
    journal.found([NFT], 5000, (pytest.fail("described again") for _ in range(1)))
    assert [record.times for record in journal.records()] == [2]


def test_the_same_again_is_counted_and_anything_else_is_a_record_of_its_own(
    journal: drift.Journal, clock: Clock
) -> None:
    for pid in range(5):
        journal.found([processes.Process(pid, "nft")], 7, ["all gone"])
        journal.repaired()
        clock.now += 1
    journal.found([NFT], 1, ["one gone"])
    journal.found([TOOL], 1, ["one gone"])
    assert [(record.times, record.operations, record.by[0].name) for record in journal.records()] == [
        (5, 7, "nft"),
        (1, 1, "nft"),
        (1, 1, "tool"),
    ]
    assert journal.records()[0].by == (processes.Process(4, "nft"),), "the last one of them"
    assert journal.total == 7


def test_what_is_remembered_is_bounded(journal: drift.Journal, clock: Clock) -> None:
    def endless() -> Iterator[str]:
        for number in range(10_000):
            yield f"line {number}"

    for number in range(1000):
        journal.found([NFT], number, endless() if number == 999 else [])
    assert len(journal.records()) == 100
    assert len(journal.records()[-1].lines) == 21
    assert journal.records()[-1].lines[-1] == "and 9980 lines more"


def test_a_storm_is_told_a_few_times_and_then_counted(
    journal: drift.Journal, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(200):
            journal.found([NFT], number % 3, ["x"])
            clock.now += 0.01
        told = len(caplog.records)
        assert told <= 80
        clock.now += 60
        journal.found([NFT], 5, ["y"])
    assert "160 times more" in caplog.text
    assert "drift: y" in caplog.text


def test_the_same_again_and_again_is_told_three_times_more_and_then_counted(
    journal: drift.Journal, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            journal.found([NFT], 7, ["x"])
            clock.now += 0.01
    assert len(caplog.records) == 5
    assert [record.times for record in journal.records()] == [200]


def test_hostile_names_are_shown_and_not_obeyed(journal: drift.Journal, caplog: pytest.LogCaptureFixture) -> None:
    evil = processes.Process(6, "\x1b[2J\nroot", "\u202egpj.service")
    with caplog.at_level(logging.WARNING):
        journal.found([evil], 1, ["+ frontends \x1b]0;owned\x07"])
    (record,) = journal.records()
    said = caplog.records[0].__dict__["by"] + "".join(record.lines) + caplog.text
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "\n" not in caplog.records[0].__dict__["by"]


def test_a_process_that_lives_is_seen_with_its_cgroup_and_one_that_has_gone_without() -> None:
    with open("/proc/self/comm") as file:
        name = file.read().rstrip("\n")
    seen = processes.seen(os.getpid(), name)
    assert (seen.pid, seen.name) == (os.getpid(), name)
    assert processes.seen(os.getpid(), "another").unit == "", "the id is somebody else's by now"
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert processes.seen(gone.pid, "true") == processes.Process(gone.pid, "true")


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/docker.service\n", "docker.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        ("0::/\n", ""),
        ("", ""),
        ("12:pids:/x\n0::/kubepods/besteffort/pod7/abc\n", "kubepods/besteffort/pod7/abc"),
    ],
)
def test_the_unit_is_read_from_the_unified_hierarchy(cgroups: str, unit: str) -> None:
    assert processes._unit_of(cgroups) == unit
