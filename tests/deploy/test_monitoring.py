"""deploy/monitoring: alerts and a dashboard that ask for metrics which exist, and a page for each alert."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from netagent import settings
from tests import promql
from tests.agent.test_metrics import documented

TOP = Path(__file__).parents[2]
MONITORING = TOP / "deploy" / "monitoring"
RUNBOOKS = TOP / "docs" / "runbooks"
SEVERITIES = {"critical", "warning"}
# What Prometheus and the node exporter add: labels of each.
OTHERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "up": ("gauge", ()),
    "node_nf_conntrack_entries": ("gauge", ()),
    "node_nf_conntrack_entries_limit": ("gauge", ()),
}
FROM_SCRAPING = {"job", "instance"}
# Units that Grafana has names for, as far as they are used here.
UNITS = {"none", "s", "ops", "reqps", "cps", "bytes", "percentunit", "short"}
# A busy machine may take its time.
SECONDS = 60


def metrics() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of everything that can be asked for. docs/metrics.md is held to what the agent exposes."""
    found: dict[str, tuple[str, set[str]]] = {}
    for name, (kind, labels) in (documented() | OTHERS).items():
        found[name] = (kind, {*labels, *FROM_SCRAPING})
        if kind == "histogram":
            found |= {f"{name}_{part}": ("counter", {*labels, *FROM_SCRAPING}) for part in ("count", "sum")}
            found[f"{name}_bucket"] = ("counter", {*labels, *FROM_SCRAPING, "le"})
    return found


def complaints(expression: str) -> Iterator[str]:
    """What is wrong with an expression."""
    known = metrics()
    parsed = promql.parse(expression)
    if not parsed.selectors:
        yield "it reads nothing"
    for selector in parsed.selectors:
        if selector.metric not in known:
            yield f"there is no metric {selector.metric}"
            continue
        kind, labels = known[selector.metric]
        if set(selector.labels) - labels:
            yield f"{selector.metric} has no label {sorted(set(selector.labels) - labels)}"
        counts = kind == "counter"
        if selector.function in ("rate", "increase") and not counts:
            yield f"{selector.metric} is a {kind}, {selector.function} is for counters"
    groupings = set(parsed.groupings) - set().union(*(known.get(s.metric, ("", set()))[1] for s in parsed.selectors))
    if groupings:
        yield f"nothing has a label {sorted(groupings)}"


# --- alerts -----------------------------------------------------------------------------------------------------


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


ALERTS = pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])


@ALERTS
def test_an_alert_asks_for_metrics_and_labels_that_exist(alert: dict[str, Any]) -> None:
    assert list(complaints(alert["expr"])) == []


@ALERTS
def test_an_alert_says_how_urgent_it_is_and_what_users_notice(alert: dict[str, Any]) -> None:
    assert set(alert) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert re.fullmatch(r"Netagent([A-Z][a-z]+)+", alert["alert"])
    assert re.fullmatch(r"\d+m", alert.get("for", "0m"))
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    for text in alert["annotations"].values():
        assert text == text.strip()
        assert "\n" not in text
    assert alert["annotations"]["summary"].endswith(".")


@ALERTS
def test_a_template_uses_labels_that_the_alert_has(alert: dict[str, Any]) -> None:
    parsed = promql.parse(alert["expr"])
    by = set(parsed.groupings)
    possible = by or set().union(*(metrics()[selector.metric][1] for selector in parsed.selectors))
    for text in alert["annotations"].values():
        assert text.count("{{") == text.count("}}") == len(re.findall(r"\{\{ [^{}]+ \}\}", text))
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= possible


@ALERTS
def test_an_alert_has_a_runbook_that_is_about_it(alert: dict[str, Any]) -> None:
    page = TOP / alert["annotations"]["runbook_url"]
    assert page.parent == RUNBOOKS
    text = page.read_text()
    assert text.startswith(f"# {alert['alert']}\n")
    for heading in ("## What it means", "## What users notice", "## Look first", "## What to do"):
        assert f"\n{heading}\n" in text, heading
    assert f"]({page.name})" in (RUNBOOKS / "README.md").read_text()


def test_no_runbook_is_about_an_alert_that_does_not_exist() -> None:
    pages = {page.name for page in RUNBOOKS.glob("*.md")} - {"README.md"}
    assert pages == {Path(alert["annotations"]["runbook_url"]).name for alert in alerts()}


def test_each_alert_is_tried_on_made_up_series() -> None:
    tried = yaml.safe_load((MONITORING / "alerts-test.yaml").read_text())["tests"]
    assert {case["name"] for case in tried} == {alert["alert"] for alert in alerts()}
    for case in tried:
        outcomes = [bool(asked["exp_samples"]) for asked in case["promql_expr_test"]]
        assert {True, False} == set(outcomes), f"{case['name']} must be seen to come, and not to come"


def promtool(*words: str) -> None:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("not installed: promtool (Debian package prometheus)")
    done = subprocess.run([found, *words], cwd=MONITORING, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_alerts_and_they_come_when_they_should() -> None:
    promtool("check", "rules", "alerts.yaml")
    promtool("test", "rules", "alerts-test.yaml")


def test_the_command_for_the_operator_makes_an_object_with_all_alerts(tmp_path: Path) -> None:
    (command,) = re.findall(r"^(\{ printf .*\}) > prometheus-rule\.yaml$", (MONITORING / "README.md").read_text(), re.M)
    done = subprocess.run(["sh", "-c", command], cwd=MONITORING, capture_output=True, text=True, check=True)
    made = yaml.safe_load(done.stdout)
    assert (made["kind"], made["spec"]["groups"][0]["rules"]) == ("PrometheusRule", alerts())


# --- scraping ---------------------------------------------------------------------------------------------------


def test_both_ways_to_scrape_mean_the_same_port_and_labels() -> None:
    (job,) = yaml.safe_load((MONITORING / "scrape-config.yaml").read_text())["scrape_configs"]
    monitor = yaml.safe_load((MONITORING / "pod-monitor.yaml").read_text())["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    by_file = {
        rule["target_label"]: (rule["source_labels"], rule.get("replacement"))
        for rule in job["relabel_configs"]
        if "target_label" in rule
    }
    by_operator = {
        rule["targetLabel"]: (rule["sourceLabels"], rule.get("replacement")) for rule in endpoint["relabelings"]
    }
    assert by_file == by_operator
    assert by_file["__address__"][1] == f"$1:{settings.METRICS_PORT}"
    assert job["job_name"] == "netagent"
    container = yaml.safe_load((TOP / "deploy/base/daemonset.yaml").read_text())["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert endpoint["port"] in [port["name"] for port in container["ports"]]


# --- dashboard --------------------------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


PANELS = pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"].replace(" ", "-"))


def test_the_dashboard_has_what_grafana_wants_of_one() -> None:
    board = dashboard()
    assert {"uid", "title", "tags", "schemaVersion", "time", "refresh", "templating", "panels"} <= board.keys()
    assert board["schemaVersion"] >= 36
    assert "id" not in board, "a number is given by the Grafana that imports it"
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)


def test_its_sections_are_what_operators_ask_for() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == [
        "Health",
        "Sync",
        "Lag",
        "Drift",
        "Quarantine and conflicts",
        "Connections of Services",
        "Source",
        "The process",
    ]


def test_panels_lie_side_by_side_and_never_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"], panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


@PANELS
def test_a_panel_asks_for_metrics_and_labels_that_exist(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert list(complaints(target["expr"])) == [], target["expr"]


@PANELS
def test_a_panel_has_title_meaning_unit_and_the_chosen_source(panel: dict[str, Any]) -> None:
    assert panel["type"] in {"timeseries", "stat", "table", "heatmap"}
    assert panel["title"]
    assert panel["description"].endswith(".")
    unit = panel["options"]["yAxis"]["unit"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]["unit"]
    assert unit in UNITS
    for asked in (panel, *panel["targets"]):
        assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_variables_exist_and_nothing_else_is_asked_for() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert next(iter(variables)) == "datasource"
    assert variables["datasource"]["type"] == "datasource"
    used = set(re.findall(r"\$\{?(?!__)([a-z_]+)", json.dumps(dashboard())))
    assert used == set(variables)
    for name, variable in variables.items():
        if name != "datasource":
            (metric, label) = re.fullmatch(
                r"label_values\((\w+)(?:\{[^}]*\})?, (\w+)\)", variable["definition"]
            ).groups()  # type: ignore[union-attr]
            assert label in metrics()[metric][1]


def test_the_dashboard_is_laid_out_as_json_dumps_it() -> None:
    text = (MONITORING / "dashboard.json").read_text()
    assert text == json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


# --- the checks check -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "rate(netagent_healthy",
        "sum by instance (netagent_healthy)",
        "rate(netagent_syncs_total)",
        "netagent_syncs_total[5m]",
        "netagent_healthy{instance=good}",
        "netagent_healthy ==",
        "netagent_healthy netagent_ready",
        "increase(netagent_syncs_total[5 minutes])",
        "median(netagent_healthy)",
    ],
)
def test_a_slip_is_found(expression: str) -> None:
    with pytest.raises(promql.PromQLError):
        promql.parse(expression)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("netagent_helthy == 0", "there is no metric netagent_helthy"),
        ('netagent_syncs_total{kind="x"}', "netagent_syncs_total has no label ['kind']"),
        ("rate(netagent_healthy[5m])", "netagent_healthy is a gauge, rate is for counters"),
        ("sum by (pod) (netagent_healthy)", "nothing has a label ['pod']"),
        ("1 > 2", "it reads nothing"),
    ],
)
def test_a_metric_that_does_not_exist_is_found(expression: str, complaint: str) -> None:
    assert list(complaints(expression)) == [complaint]
