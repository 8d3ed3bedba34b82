"""The corpus of behaviour cases is well-formed and covers what it should. No kernel, no agent: under a second."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import loader

CASES = {path.name: path for path in loader.case_directories()}


def flows(cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (flow for case in cases for step in case["steps"] for flow in step["flows"])


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, Any]]:
    return loader.load_all()


@pytest.mark.parametrize("path", CASES.values(), ids=CASES.keys())
def test_case_is_well_formed(path: Path) -> None:
    assert loader.load(path)["id"] == path.name


def test_the_corpus_is_large_enough_to_mean_something(corpus: list[dict[str, Any]]) -> None:
    assert len(corpus) >= 150
    assert sum(1 for _ in flows(corpus)) >= 700


def test_every_area_is_covered(corpus: list[dict[str, Any]]) -> None:
    beyond_traffic = {"agent-health", "metrics-events"}  # have tests of their own, next to their code
    assert {case["area"] for case in corpus} == set(loader.AREAS) - beyond_traffic


def test_every_protocol_family_source_and_verdict_is_covered(corpus: list[dict[str, Any]]) -> None:
    assert {flow["proto"] for flow in flows(corpus)} == set(loader.PROTOCOLS)
    assert {":" in flow["dst"] for flow in flows(corpus)} == {False, True}
    assert {flow["from"].split(":")[0] for flow in flows(corpus)} == set(loader.SOURCES)
    assert {flow["expect"]["result"] for flow in flows(corpus)} == {
        *("endpoints", "reject", "drop", "passthrough", "alive")
    }


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("verdict", ["endpoints", "reject", "drop"])
def test_each_family_meets_each_verdict_over_tcp(corpus: list[dict[str, Any]], family: int, verdict: str) -> None:
    assert any(
        flow["proto"] == "tcp" and flow["expect"]["result"] == verdict and (":" in flow["dst"]) == (family == 6)
        for flow in flows(corpus)
    )


def test_titles_tell_the_cases_apart(corpus: list[dict[str, Any]]) -> None:
    titles = [case["title"] for case in corpus]
    assert len(set(titles)) == len(titles)


def test_deliberate_differences_from_kube_proxy_give_their_reason(corpus: list[dict[str, Any]]) -> None:
    divergences = [case["upstream_divergence"] for case in corpus if "upstream_divergence" in case]
    assert sum(divergence["stance"] == "states-desired" for divergence in divergences) >= 10
    assert all(divergence["why"].endswith(".") for divergence in divergences)


def test_manifests_are_inlined_with_a_uid(corpus: list[dict[str, Any]]) -> None:
    for case in corpus:
        for step in case["steps"]:
            assert all(manifest["metadata"]["uid"] for manifest in step["apply"])


def test_few_cases_are_slow(corpus: list[dict[str, Any]]) -> None:
    slow = [case["id"] for case in corpus if "slow" in case.get("requires", ())]
    assert len(slow) <= 5, slow


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda case: case.update(flavour="sweet"), "unknown flavour"),
        (lambda case: case.update(area="affinity"), "begin with the area"),
        (lambda case: case.update(requires=["slow"]), "requires must be"),
        (lambda case: case["node"].update(zone="west-1"), "zone of the Node differs"),
        (lambda case: case["steps"][0].update(aply="step-1"), "unknown aply"),
        (lambda case: case["steps"][0].update(delete=[{"kind": "Service", "name": "x"}]), "does not exist"),
        (lambda case: case["steps"][0]["flows"][0].update(dst="8.8.8.8"), "dst 8.8.8.8 is not in plan"),
        (lambda case: case["steps"][0]["flows"][0].update(src="10.60.2.1"), "no address of a client of kind pod"),
        (lambda case: case["steps"][0]["flows"][0].update(same_as="nobody"), "before anything was remembered"),
        (lambda case: case["steps"][0]["flows"][0]["expect"].update(result="maybe"), "unknown result"),
        (
            lambda case: case["steps"][0]["flows"][0]["expect"].update(endpoints=["10.60.1.77:8080"]),
            "no slice lists tcp 10.60.1.77:8080",
        ),
        (
            lambda case: case["steps"][0]["flows"][4]["expect"].pop("reply_bypasses_node"),
            r"reply_bypasses_node must be \['10.60.2.7:8080'\]",
        ),
    ],
)
def test_a_mistake_is_refused_by_name(tmp_path: Path, change: Change, complaint: str) -> None:
    directory = tmp_path / "clusterip-serves-every-source"
    shutil.copytree(CASES[directory.name], directory)
    case = copy.deepcopy(yaml.safe_load((directory / "case.yaml").read_text()))
    change(case)
    (directory / "case.yaml").write_text(yaml.safe_dump(case))
    with pytest.raises(loader.CaseError, match=complaint):
        loader.load(directory)


def test_manifests_that_no_step_applies_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "clusterip-serves-every-source"
    shutil.copytree(CASES[directory.name], directory)
    (directory / "step-2").mkdir()
    with pytest.raises(loader.CaseError, match="no step applies step-2"):
        loader.load(directory)
