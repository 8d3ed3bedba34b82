"""Points of reference: the same clusters as text through `nft -f`, ours and the usual layout, and ours by netlink."""

from __future__ import annotations

import resource
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import cluster, figures, report, state, usual
from bench.plan import Plan
from bench.workers import Worker
from netagent.nftables import text

from . import memory

_MOST_SECONDS = 300.0
_MOST_ROUNDS = 3
_WAYS = {
    "netlink": "netagent, netlink transaction",
    "text": "netagent's rules as text, nft -f",
    "usual": "a chain for each Service and endpoint, nft -f",
}


class Netlink:
    """In a worker: programs a cluster by netlink, and can write the same as text."""

    def __init__(self, pages: str) -> None:
        self._state = state.State()
        self._pages = Path(pages)

    def measure(self, script: str) -> dict[str, Any]:
        """Program it; write the text to a file. `seconds` are those of the commit, `lines` 0."""
        self._state.list_all(self._pages)
        self._state.reconciler.prepare()
        self._state.probe.clock.take()
        before = memory.kernel_bytes()
        processor = time.process_time()
        started = time.perf_counter()
        self._state.backend.commit()
        seconds = time.perf_counter() - started
        processor = time.process_time() - processor
        stages = self._state.probe.clock.take()
        after = memory.kernel_bytes()
        with open(script, "w") as file:
            file.writelines(f"{line}\n" for line in text.script(self._state.backend.tables.desired()))
        return {
            "seconds": seconds,
            "send": stages["send"],
            "processor": processor,
            "kernel": sum(after.values()) - sum(before.values()),
        }


class Script:
    """In a worker: loads a script with `nft -f`."""

    def measure(self, script: str) -> dict[str, Any]:
        """Load it. `resident` is the most that nft held."""
        before = memory.kernel_bytes()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        command = ["nft", "-f", script]
        done = subprocess.run(command, timeout=_MOST_SECONDS, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nft failed: {done.stderr.strip()[:500]}")
        seconds = time.perf_counter() - started
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        after = memory.kernel_bytes()
        return {
            "seconds": seconds,
            "processor": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
            "resident": now.ru_maxrss << 10,
            "kernel": sum(after.values()) - sum(before.values()),
        }


def run(plan: Plan) -> report.Section:
    """Every size and way in every round, in a fresh namespace each."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    notes: list[str] = []
    for size in plan.reference_sizes:
        found[str(size)] = {way: [] for way in _WAYS}
        lines = usual.script(cluster.cluster(size))
        _script(plan, size, "usual").write_text("".join(f"{line}\n" for line in lines))
    for number in range(min(plan.rounds, _MOST_ROUNDS)):
        for size in plan.reference_sizes:
            for way, rounds in found[str(size)].items():
                if number and not rounds:
                    continue  # it failed before
                plan.say(f"reference: round {number + 1}, {size}, {_WAYS[way]}")
                plan.settle()
                try:
                    rounds.append(_measure(plan, size, way))
                except RuntimeError as error:
                    if way == "netlink":
                        raise
                    notes.append(f"{size}, {_WAYS[way]}: {str(error).strip().splitlines()[-1]}")
    return section(found, notes)


def _script(plan: Plan, size: cluster.Size, way: str) -> Path:
    return plan.scratch / f"{way}-{size.services}-{size.endpoints}.nft"


def _measure(plan: Plan, size: cluster.Size, way: str) -> Any:
    if way == "netlink":
        with Worker("sections.reference:Netlink", pages=str(plan.pages(size))) as worker:
            return worker.ask("measure", script=str(_script(plan, size, "text")))
    with Worker("sections.reference:Script") as worker:
        return worker.ask("measure", script=str(_script(plan, size, way)))


def section(found: dict[str, dict[str, list[dict[str, Any]]]], notes: list[str]) -> report.Section:
    """The section for these rounds of these ways at these sizes."""
    rows = []
    for size, ways in found.items():
        ours = [one["seconds"] for one in ways["netlink"]]
        for way, rounds in ways.items():
            if not rounds:
                continue
            times = figures.ratios([one["seconds"] for one in rounds], ours[: len(rounds)])
            rows.append(
                (
                    size,
                    _WAYS[way],
                    figures.spread((one["seconds"] for one in rounds), factor=1e3),
                    figures.spread(times) if way != "netlink" else "",
                    figures.spread((one["processor"] for one in rounds), factor=1e3),
                    figures.spread((one["resident"] for one in rounds), factor=1e-6) if way != "netlink" else "",
                    figures.spread((one["kernel"] for one in rounds), factor=1e-6),
                )
            )
    table = report.Table(
        "Loading a cluster into an empty namespace",
        ("Services x endpoints", "way", "ms", "times netlink", "processor, ms", "nft resident, MB", "kernel, MB"),
        rows,
    )
    return report.Section("Points of reference", (table,), found, (*_NOTES, *notes))


_NOTES = (
    "From a transaction, or a file, to the kernel. Netlink: encoding, the send call, its answer. `nft -f`: the "
    "process from its start to its end, the file in the page cache. The usual layout is that of kube-proxy's "
    "nftables mode, written by scripts/lib/bench/usual.py; making the text is not in the time. What its first "
    "packets cost is in First packet.",
)
