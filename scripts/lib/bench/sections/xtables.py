"""Mode iptables on legacy tables, and the usual layout of such tables beside it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import cluster, figures, report, usual_xtables
from bench.plan import Plan
from bench.workers import Worker, WorkerError
from netagent import settings
from netagent.agent import backends, dataplanes, planner, reconciler
from netagent.source import decode, manifests
from netagent.source.kinds import Kind

from . import packets

_RESTORE = "iptables-legacy-restore"
_ROUNDS_MOST = 5
_CHANGES = 5  # of a round
_LAYOUTS = {"netagent": "netagent", "usual": "a chain for each Service and endpoint, one list"}
# The budgets of issue 5: of the usual layout's first packet, and of its time for a change.
_PACKET_SHARE, _CHANGE_SHARE = 0.25, 0.25
_BUDGET_SIZE = cluster.Size(5000, 10)


class _Node(packets.Node):
    """In a worker: a node whose rules are in legacy tables. `load`, then `change`; packets as in `packets`."""

    def __init__(self, directory: str) -> None:
        # Namespaces share the file that xtables programs lock.
        os.environ["XTABLES_LOCKFILE"] = f"{directory}/xtables-{os.getpid()}.lock"
        os.environ["STATE_DIRECTORY"] = directory


class Ours(_Node):
    """netagent's rules."""

    def program(self, file: str) -> dict[str, Any]:
        """Program the cluster of a manifest file. `seconds` and `processor` are those of the sync, tools included."""
        wanted = settings.override(
            settings.Settings(), mode="iptables", iptables_variant="legacy", cluster_cidrs=cluster.POD_CIDR
        )
        opened = dataplanes.opened(wanted)
        plan = planner.Planner(opened.settings, node_name=cluster.NODE)
        plan.store.replace(manifests.read(file).objects)
        self._backend: backends.Backend = opened.backend
        self._backend.watch()
        self._reconciler = reconciler.Reconciler(plan, self._backend, stale_flow_protocols=frozenset())
        return self._timed()

    def change(self, line: str) -> dict[str, Any]:
        """Take a changed EndpointSlice, and sync."""
        self._reconciler.planner.store.apply(decode.decode(Kind.ENDPOINT_SLICE, line.encode(), []))
        return self._timed()

    def _timed(self) -> dict[str, Any]:
        began = _Stopwatch()
        done = self._reconciler.sync()
        return {**began.read(), "operations": done.operations}


class Usual(_Node):
    """The usual layout."""

    def program(self, file: str) -> dict[str, Any]:
        """Run a script."""
        began = _Stopwatch()
        done = subprocess.run(
            [_RESTORE, "--noflush", file], capture_output=True, text=True, check=False, env=dict(os.environ)
        )
        if done.returncode:
            raise RuntimeError(f"{_RESTORE} failed: {done.stderr.strip()[:500]}")
        return began.read()

    change = program


class _Stopwatch:
    """Seconds, and processor time of this process and its children, since it was made."""

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), _processor_seconds()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._began, "processor": _processor_seconds() - self._used}


def _processor_seconds() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def run(plan: Plan) -> report.Section:
    """Both layouts at the same time, in a namespace each; every round changes both, and sends through both."""
    size = plan.xtables_size
    if shutil.which(_RESTORE) is None:
        return _unmeasured(f"{_RESTORE} is not installed")
    wanted = cluster.cluster(size, protocol="UDP")
    files = {layout: plan.scratch / f"xtables-{layout}" for layout in _LAYOUTS}
    items = ",".join(page for _, page in _items(wanted))
    files["netagent"].write_text(f'{{"kind":"List","apiVersion":"v1","items":[{items}]}}')
    files["usual"].write_text("".join(f"{line}\n" for line in usual_xtables.script(wanted)))
    program = packets.compiled(plan)
    found: dict[str, dict[str, list[Any]]] = {layout: {"cold": [], "change": [], "packet": []} for layout in _LAYOUTS}
    with Worker("sections.packets:Client", program=str(program)) as client:
        # What is compared with comes first: where it cannot be loaded there is nothing to measure.
        nodes = {
            layout: Worker(f"sections.xtables:{role}", directory=str(plan.scratch))
            for layout, role in (("usual", "Usual"), ("netagent", "Ours"))
        }
        try:
            for number, (layout, node) in enumerate(nodes.items(), 1):
                plan.say(f"xtables: programming {_LAYOUTS[layout]}, {size}")
                node.ask("connect", client=client.pid, number=number)
                client.ask("up", number=number)
                try:
                    found[layout]["cold"].append(node.ask("program", file=str(files[layout])))
                except WorkerError as error:
                    if layout == "netagent":
                        raise
                    return _unmeasured(str(error).strip().splitlines()[-1])
            for turn in range(min(plan.rounds, _ROUNDS_MOST)):
                plan.say(f"xtables: round {turn + 1}")
                plan.settle()
                for number, (layout, node) in enumerate(nodes.items(), 1):
                    found[layout]["change"] += _changes(plan, node, layout, wanted, turn)
                    found[layout]["packet"].append(
                        packets.through_services(client, node, number, size, plan.flows, turn)
                    )
        finally:
            for node in nodes.values():
                node.close()
    return section(size, found)


def _unmeasured(reason: str) -> report.Section:
    return report.Section("Mode iptables", (), {}, (f"Not measured: {reason}",))


def _items(wanted: cluster.Cluster) -> list[tuple[str, str]]:
    nodes = cluster.nodes_of(wanted.endpoints)
    found = [("Node", cluster.node_json(1)), ("ServiceCIDR", cluster.service_cidr_json(1))]
    for service in wanted.services:
        found.append(("Service", cluster.service_json(service, 1)))
        found += (
            ("EndpointSlice", cluster.slice_json(service, number, endpoints, 1, nodes=nodes))
            for number, endpoints in service.slices()
        )
    return found


def _changes(plan: Plan, node: Worker, layout: str, wanted: cluster.Cluster, turn: int) -> list[Any]:
    """Replace the first endpoint of some Services by one that runs elsewhere."""
    found = []
    for index in range(_CHANGES):
        number = turn * _CHANGES + index
        service = wanted.services[number % len(wanted.services)]
        service = service._replace(endpoints=(cluster.later_address(number), *service.endpoints[1:]))
        if layout == "netagent":
            line = cluster.slice_json(service, 0, service.slice_of(0)[1], 2, nodes=cluster.nodes_of(wanted.endpoints))
            found.append(node.ask("change", line=line))
        else:
            path: Path = plan.scratch / "xtables-change"
            path.write_text("".join(f"{line}\n" for line in usual_xtables.change(wanted, service)))
            found.append(node.ask("change", file=str(path)))
    return found


def section(size: cluster.Size, found: dict[str, dict[str, list[Any]]]) -> report.Section:
    """The section for what was found of each layout."""
    rows = []
    for layout, what in found.items():
        rows.append(
            (
                _LAYOUTS[layout],
                figures.spread((one["seconds"] for one in what["cold"]), factor=1e3),
                figures.spread((one["processor"] for one in what["cold"]), factor=1e3),
                figures.spread((one["seconds"] for one in what["change"]), factor=1e3),
                figures.spread((one["processor"] for one in what["change"]), factor=1e3),
                figures.spread(what["packet"]),
            )
        )
    shares = {
        "change": _median_ratio(found, "change", lambda one: float(one["processor"])),
        "packet": _median_ratio(found, "packet", float),
    }
    columns = ("rules", "cold, ms", "processor, ms", "one endpoint, ms", "processor, ms", "first packet, ns")
    table = report.Table(f"Legacy tables at {size}", columns, rows)
    large = size.services >= _BUDGET_SIZE.services and size.endpoints >= _BUDGET_SIZE.endpoints
    checks = [
        report.Check(f"mode iptables at {_BUDGET_SIZE}: {what}", f"{share:.2f}", share <= most if large else None)
        for what, share, most in (
            ("first packet at most a quarter of the usual layout's", shares["packet"], _PACKET_SHARE),
            ("processor time of a changed endpoint at most a quarter", shares["change"], _CHANGE_SHARE),
        )
    ]
    return report.Section("Mode iptables", (table,), {str(size): found}, _NOTES, checks)


def _median_ratio(found: dict[str, dict[str, list[Any]]], what: str, value: Any) -> float:
    ours, theirs = (list(map(value, found[layout][what])) for layout in ("netagent", "usual"))
    return figures.summary(figures.ratios(ours, theirs)).median


_NOTES = (
    "The usual layout is that of kube-proxy's iptables mode, written by scripts/lib/bench/usual_xtables.py, loaded by "
    f"{_RESTORE}; a changed endpoint rewrites its Service's chains and the list of all Services, as there. Ours: a "
    "sync from planned objects to the kernel's answer. Processor time is that of the process and of the tools that it "
    "runs. Both layouts are there at the same time and take turns; ratios are taken pair by pair.",
)
