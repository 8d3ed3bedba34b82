"""The benchmarks: what they calculate, what they feed, and that they run. Nothing here depends on seconds."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
LIBRARY = TOP / "scripts" / "lib"
sys.path.append(str(LIBRARY))

from bench import __main__ as program  # noqa: E402 - scripts/lib is on nobody's path
from bench import cluster, figures, report, seams, state, usual, usual_xtables  # noqa: E402
from bench.sections import change, cold, storm  # noqa: E402

from netagent.model import objects  # noqa: E402
from netagent.source import decode, manifests  # noqa: E402
from netagent.source.api.messages import event_of, page_of  # noqa: E402
from netagent.source.kinds import Kind  # noqa: E402
from tests import kernel  # noqa: E402

SMALL = cluster.Size(7, 3)
# A busy machine may take its time.
SMOKE_SECONDS = 900


# --- statistics -------------------------------------------------------------------------------------------------


def test_a_summary_has_median_quartiles_and_extremes() -> None:
    assert figures.summary([5, 1, 3, 2, 4]) == (5, 3, 2, 4, 1, 5)


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        figures.summary([])


@pytest.mark.parametrize(("percent", "expected"), [(0, 10.0), (50, 20.0), (75, 25.0), (99, 29.8), (100, 30.0)])
def test_a_percentile_lies_between_its_neighbours(percent: float, expected: float) -> None:
    assert figures.percentile([10.0, 20.0, 30.0], percent) == pytest.approx(expected)


def test_ratios_are_taken_round_by_round() -> None:
    assert figures.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (123.4, "123"), (12.34, "12.3"), (0.01234, "0.0123"), (math.inf, "inf")],
)
def test_figures_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert figures.plain(value) == text


def test_a_cell_has_median_and_range_and_a_single_value_has_none() -> None:
    assert figures.spread([0.003, 0.001, 0.002], "ms", factor=1e3) == "2.00 (1.00 .. 3.00) ms"
    assert figures.spread([2.0]) == "2.00"


def test_the_time_of_an_inner_stage_is_not_the_outer_ones() -> None:
    clock = seams.StageClock()
    inner = clock.wrapped("inner", lambda: sum(range(200_000)))
    with clock.stage("outer"):
        inner()
    taken = clock.take()
    assert taken["inner"] > taken["outer"] >= 0
    assert clock.take() == {}


def test_the_lag_of_a_change_ends_with_the_first_sync_that_brought_it_or_a_later_one() -> None:
    due = [(0, 10.0), (1, 11.0), (2, 12.0), (3, 13.0)]
    syncs = [(10.5, 0, 1, 2, 1, 0.0), (10.6, -1, 0, 0, 0, 0.0), (14.0, 2, 2, 4, 1, 0.0)]
    assert storm.lags(due, syncs) == [0.5, 3.0, 2.0, math.inf]


# --- clusters ---------------------------------------------------------------------------------------------------


def test_sizes_are_written_with_a_cross() -> None:
    assert cluster.size("5,000x10") == cluster.Size(5000, 10)
    assert str(cluster.Size(5000, 10)) == "5,000 x 10"


@pytest.mark.parametrize("text", ["", "10", "0x1", "1x0", "axb", "99999999x1"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        cluster.size(text)


def test_the_lists_have_every_service_and_endpoint_once_and_nothing_is_set_aside() -> None:
    found = decoded(cluster.cluster(cluster.Size(600, 3), more=(250,)))
    slices = [item for item in found if isinstance(item, objects.EndpointSlice)]
    endpoints = [endpoint.address for item in slices for endpoint in item.endpoints]
    assert sum(isinstance(item, objects.Service) for item in found) == 601
    assert len(endpoints) == len(set(endpoints)) == 600 * 3 + 250
    assert max(len(item.endpoints) for item in slices) == cluster.SLICE_ENDPOINTS
    assert [item.name for item in found if isinstance(item, objects.Node)] == [cluster.NODE]


def test_the_same_size_gives_the_same_bytes() -> None:
    assert list(cluster.pages(cluster.cluster(SMALL))) == list(cluster.pages(cluster.cluster(SMALL)))


def test_pages_survive_the_way_through_a_file(tmp_path: Path) -> None:
    made = cluster.cluster(SMALL)
    state.write_pages(made, tmp_path / "pages")
    with (tmp_path / "pages").open("rb") as file:
        assert list(state.read_pages(file)) == list(cluster.pages(made))


def test_a_storm_replaces_one_endpoint_a_line_and_tells_its_number() -> None:
    lines = cluster.Storm(cluster.cluster(SMALL))
    addresses: dict[str, set[bytes]] = {}
    for number in range(50):
        item = decode.decode(Kind.ENDPOINT_SLICE, event_of(lines.line(number)).object, [])
        assert isinstance(item, objects.EndpointSlice)
        now = {endpoint.address for endpoint in item.endpoints}
        assert len(now) == SMALL.endpoints
        assert cluster.later_number(max(now)) == number
        assert len(now - addresses.get(item.name, now)) in (0, 1)
        addresses[item.name] = now


def test_the_first_endpoints_have_no_number_of_a_change() -> None:
    (first, *_) = cluster.cluster(SMALL).services[0].endpoints
    assert cluster.later_number(bytes(map(int, first.split(".")))) < 0


def decoded(wanted: cluster.Cluster) -> list[objects.Object]:
    found: list[objects.Object] = []
    for kind, page in cluster.pages(wanted):
        found += [decode.decode(kind, raw, []) for raw in page_of(page, f"{kind}List").items or ()]
    return found


def test_the_clusters_are_manifests_as_well(tmp_path: Path) -> None:
    for number, (_, page) in enumerate(cluster.pages(cluster.cluster(SMALL))):
        (tmp_path / f"{number}.json").write_bytes(page.replace(b"List", b"List", 1))
    reading = manifests.read(tmp_path)
    assert not reading.quarantined
    assert len(reading.objects) == SMALL.services * 2 + 2


def test_the_usual_layout_has_a_chain_for_each_service_and_endpoint() -> None:
    lines = list(usual.script(cluster.cluster(SMALL)))
    assert sum(line.startswith("  chain service-") for line in lines) == SMALL.services + 1  # service-endpoints-check
    assert sum(line.startswith("  chain endpoint-") for line in lines) == SMALL.total
    assert sum(f"numgen random mod {SMALL.endpoints} vmap" in line for line in lines) == SMALL.services


@kernel.isolated
def test_the_usual_layout_is_one_that_nft_takes() -> None:
    kernel.nft("\n".join(usual.script(cluster.cluster(SMALL))))
    assert f"table ip {usual.TABLE}" in kernel.listing(f"ip {usual.TABLE}")


# --- the report -------------------------------------------------------------------------------------------------


def test_a_failed_section_is_told_and_costs_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(plan: object) -> report.Section:
        raise RuntimeError("no such luck")

    def works(plan: object) -> report.Section:
        checks = (report.Check("at most 2", "3", False), report.Check("at most 4", "3", True))
        return report.Section("Good", (report.Table("", ("a", "b"), [("1", "2")]),), {"a": 1}, checks=checks)

    monkeypatch.setattr(program, "SECTIONS", {"bad": ("Bad", fails), "good": ("Good", works)})
    monkeypatch.setattr(program.namespaces, "fresh", lambda: None)
    assert program.main(["-o", str(tmp_path)]) == 1
    page = (tmp_path / "report.md").read_text()
    assert "**Could not be measured:** RuntimeError: no such luck" in page
    assert "| at most 2 | 3 | **not met** |" in page
    assert "| at most 4 | 3 | met |" in page
    assert "| 1 | 2 |" in page
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert sections["good"]["data"] == {"a": 1}
    assert "no such luck" in sections["bad"]["failed"]
    assert program.main(["good", "-o", str(tmp_path)]) == 0


def test_an_unknown_section_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["cold", "warm"])
    assert ended.value.code == 2
    assert "there is no section warm" in capsys.readouterr().err


def test_the_budget_of_a_cold_sync_is_judged_by_the_median() -> None:
    stages = dict.fromkeys(seams.STAGES, 0.0)
    one = {
        "stages": stages | {"encode": 0.2, "send": 1.0, "plan": 0.3},
        "acknowledged": 1.5,
        "processor": 1.5,
        "operations": 1,
        "transactions": 1,
        "sent": {"bytes": 1},
        "collector": {"seconds": 0.0},
    }
    slow = one | {"acknowledged": 9.0}
    checks = {check.budget: check.met for check in cold.section({"30,000 x 2": [one, slow, one]}).checks}
    assert checks["30,000 x 2: commit at most 1.3 times the send call"] is True
    assert checks["30,000 x 2: decoded objects to acknowledged under 1.5 s"] is False
    assert checks["30,000 x 2: Python before it at most 1.5 times the commit"] is True


# --- it runs ----------------------------------------------------------------------------------------------------


def bench(tmp_path: Path, *arguments: str) -> dict[str, object]:
    """Run the benchmarks in a namespace of their own; return the sections of the report."""
    prefix = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    environment = os.environ | {"PYTHONPATH": str(LIBRARY), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-m", "bench", *arguments, "-o", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SMOKE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert all("data" in section for section in sections.values())
    return {name: section["data"] for name, section in sections.items()}


def need(*programs: str) -> None:
    """Skip where there can be no namespace with nftables, or a program is missing."""
    if reason := kernel.missing(user_namespace=os.geteuid() != 0):
        pytest.skip(reason)
    for one in programs:
        if shutil.which(one) is None:
            pytest.skip(f"not installed: {one}")


@pytest.mark.kernel
def test_cold_sync_changes_and_restart_are_measured(tmp_path: Path) -> None:
    need("ip", "unshare")
    found = bench(tmp_path, "cold", "change", "restart", "--sizes", "20x2,30x1", "--rounds", "2", "--changes", "3")
    cold_rounds = found["cold"]["20 x 2"]  # type: ignore[index]
    assert len(cold_rounds) == 2
    assert all(one["operations"] > 20 + 40 and one["sent"]["calls"] >= 1 for one in cold_rounds)
    assert all(set(one["stages"]) == set(seams.STAGES) and one["stages"]["send"] > 0 for one in cold_rounds)
    changes = found["change"]["30 x 1"]  # type: ignore[index]
    assert set(changes) == set(change.CHANGES)
    assert all(one["operations"] > 0 for name in ("endpoint replaced", "Service added") for one in changes[name])
    assert all(one["operations"] == 0 for one in changes["node label changed"])
    restarts = found["restart"]["restarts"]["20 x 2"]  # type: ignore[index]
    assert [one["operations"] for one in restarts] == [0, 0]


@pytest.mark.kernel
@pytest.mark.slow
def test_storm_memory_packets_and_points_of_reference_are_measured(tmp_path: Path) -> None:
    need("ip", "unshare", "cc", "nft")
    found = bench(
        tmp_path,
        *("storm", "memory", "packets", "reference"),
        *("--sizes", "20x2", "--reference-sizes", "20x2", "--rounds", "1"),
        *("--storm-size", "20x2", "--storm-rate", "200", "--storm-seconds", "1"),
        *("--frontends", "10,20", "--usual-frontends", "10", "--flows", "500"),
    )
    phases = {phase["name"]: phase for phase in found["storm"]}  # type: ignore[attr-defined]
    assert math.isfinite(phases["storm"]["lag_percentiles"]["100"])
    assert set(found["memory"]["resident"]) == {"nothing", "20 x 2"}  # type: ignore[index]
    assert set(found["packets"]) >= {"netagent 10", "netagent 20", "usual 10", "conntrack 10"}  # type: ignore[call-overload]
    assert all(found["reference"]["20 x 2"][way] for way in ("netlink", "text", "usual"))  # type: ignore[index]


def test_the_usual_layout_of_xtables_has_32_rules_for_ten_endpoints() -> None:
    wanted = cluster.cluster(cluster.Size(3, 10))
    fewer = cluster.cluster(cluster.Size(2, 10))
    rules = [sum(line.startswith("-A ") for line in usual_xtables.script(one)) for one in (wanted, fewer)]
    assert rules[0] - rules[1] == 32
    change = list(usual_xtables.change(wanted, wanted.services[0]))
    assert sum("-A KUBE-SERVICES" in line for line in change) == 3
    assert sum(line.startswith(":KUBE-SEP-") for line in change) == 10


@pytest.mark.kernel
@pytest.mark.slow
def test_mode_iptables_is_measured_beside_the_usual_layout(tmp_path: Path) -> None:
    need("ip", "unshare", "cc", "iptables-legacy-restore")
    size = "20x3"
    found = bench(tmp_path, "xtables", "--xtables-size", size, "--rounds", "1", "--flows", "200")["xtables"]
    if not found:
        pytest.skip("legacy tables do not work here")
    for layout in ("netagent", "usual"):
        measured = found["20 x 3"][layout]  # type: ignore[index]
        assert len(measured["cold"]) == len(measured["packet"]) == 1
        assert len(measured["change"]) == 5
    assert all(one["operations"] for one in found["20 x 3"]["netagent"]["change"])  # type: ignore[index]
