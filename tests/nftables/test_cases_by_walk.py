"""The behaviour cases hold for the rules that we make, by the walker's reading of them. No kernel needed."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import pytest

from tests.cases import loader
from tests.nftables import cases_by_walk

CASES = {path.name: path for path in loader.case_directories()}


@functools.cache
def report_of(path: Path) -> cases_by_walk.Report:
    case = loader.load(path)
    if "nftables" not in case["modes"]:
        return cases_by_walk.Report()
    return cases_by_walk.replay(case, loader.plan()["defaults"])


@pytest.mark.parametrize("path", CASES.values(), ids=CASES.keys())
def test_the_rules_do_what_the_case_says(path: Path) -> None:
    report = report_of(path)
    assert not report.disagreements, "\n".join(report.disagreements)


def test_only_flows_of_connections_that_exist_already_are_left_out() -> None:
    reports = [report_of(path) for path in CASES.values()]
    checked = sum(report.checked for report in reports)
    skipped = sum((report.skipped for report in reports), Counter[str]())
    assert skipped.keys() <= cases_by_walk.REASONS
    assert checked >= 600
    assert skipped.total() <= checked / 20
