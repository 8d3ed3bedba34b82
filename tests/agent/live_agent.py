"""`netagent run` on a live API server as a process in the namespace of the test, and what the kernel has of it.

For tests under `kernel.isolated`: `begin` first, then a server (in the test's process) and an `Agent` on it.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from netagent import settings
from netagent.agent import planner, reconciler
from netagent.model import addresses
from netagent.nftables import backend, layout, report, ruleset, shapes, tables
from netagent.source import decode
from netagent.source.faults import BadObject
from netagent.source.kinds import Kind
from netagent.source.store import Store
from tests import builders, kernel, patience
from tests.apiserver import ApiServer, Cluster

NODE = "node-1"
NODE_ADDRESS = "192.0.2.1"
METRICS = "http://127.0.0.1:10249"
HEALTH = "http://127.0.0.1:10256"
# What a test waits at most: only a hang takes as long. The promise (2 s after the end of any trouble) is measured.
BOUND = patience.HANGS

# The command line cannot change how patient the reflector is. This does, in the process itself.
_PATIENCE = """
import functools
from netagent.agent import live
from netagent.source.api import pacing
live.ApiSource = functools.partial(live.ApiSource, pacing=pacing.Pacing(**{pacing!r}))
{preface}
from netagent.cli.main import main
main()
"""

Manifests = Sequence[builders.Manifest]


def begin() -> None:
    """Make the empty namespace a host: loopback, with the address of the node."""
    for command in (f"addr add {NODE_ADDRESS}/32 dev lo", "link set lo up"):
        subprocess.run(["ip", *command.split()], check=True, timeout=BOUND)


def small_cluster(*more: builders.Manifest, services: int = 10) -> Cluster:
    """This node and another, a ServiceCIDR, and Services s0, s1, ... with a slice and an endpoint each."""
    made = Cluster(builders.node_manifest(), builders.node_manifest("node-2"), builders.service_cidr_manifest())
    for number in range(services):
        made.apply(builders.service_manifest(f"s{number}", cluster_ip=f"10.96.{number // 250}.{number % 250 + 1}"))
        made.apply(builders.slice_manifest(f"s{number}", f"10.180.{number // 250}.{number % 250 + 1}"))
    for manifest in more:
        made.apply(manifest)
    return made


def manifests_of(server: ApiServer) -> list[builders.Manifest]:
    """All objects of the server."""
    return [manifest for kind in Kind for manifest in server.cluster.manifests(kind)]


# The process ----------------------------------------------------------------------------------------------------


class Agent:
    """`netagent run` until the end of the block; then it is killed, if it still runs.

    `arguments` go to the command; `preface` is run by the process before it; `pacing` changes that of the reflector
    (see Pacing).
    """

    def __init__(self, url: str, *arguments: str, preface: str = "", **pacing: float) -> None:
        changed = ["-c", _PATIENCE.format(pacing=pacing, preface=preface)]
        program = changed if pacing or preface else ["-m", "netagent"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *program, "-v", "run", "--master", url, "--node-name", NODE, *arguments],
            stderr=self._errors,
        )

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if error is not None:
            error.add_note(f"the agent said:\n{self.said()[-6000:]}")
        self._errors.close()

    def said(self) -> str:
        """What it wrote to standard error so far."""
        return Path(f"/proc/self/fd/{self._errors.fileno()}").read_text()

    def end(self, number: int) -> int:
        """Send a signal and wait for the end: the exit code."""
        self.process.send_signal(number)
        return self.process.wait(BOUND)

    def rss_bytes(self) -> int:
        """Its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def until_listening(self) -> None:
        """Wait until the metrics server answers."""
        eventually(lambda: get(f"{METRICS}/healthz").status == 200, what="the metrics server answers")

    def metric(self, name: str, **labels: str) -> float:
        """A sample by name and labels."""
        for line in get(f"{METRICS}/metrics").body.splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and all(f'{label}="{wanted}"' in rest for label, wanted in labels.items()):
                return float(value)
        raise KeyError(name)


class Page(NamedTuple):
    """An answer over HTTP; status 0 is none."""

    status: int
    body: str = ""
    headers: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default, and nobody changes it

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def get(url: str) -> Page:
    """GET, without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=BOUND) as answer:
            return Page(
                answer.status, answer.read().decode(), {name.lower(): text for name, text in answer.getheaders()}
            )
    except urllib.error.HTTPError as error:
        with error:
            headers = {name.lower(): text for name, text in error.headers.items()}
            return Page(error.code, error.read().decode(), headers)
    except (OSError, http.client.HTTPException):
        return Page(0)


def eventually(condition: Callable[[], bool], *, seconds: float = BOUND, what: str = "") -> float:
    """Wait for a condition; return the seconds that it took. AssertionError after this many."""
    return patience.until(condition, what, seconds=seconds, pause=0.01)


# The kernel -----------------------------------------------------------------------------------------------------


def planned(manifests: Iterable[builders.Manifest]) -> planner.Planner:
    """A fresh plan of these objects; those that no agent can use are left out."""
    plan = planner.Planner(settings.Settings(), node_name=NODE)
    plan.store.replace(_objects(manifests))
    return plan


def _objects(manifests: Iterable[builders.Manifest]) -> list[Any]:
    store = Store(NODE)
    for manifest in manifests:
        try:
            store.apply(decode.convert(Kind(manifest["kind"]), manifest, []))
        except BadObject:
            continue
    slices = [item for owner in store._slices_by_service for item in store.slices_of(owner)]
    node = [store.node] if store.node else []
    return [*store.services.values(), *slices, *node, *store.service_cidrs.values()]


def wrong(manifests: Iterable[builders.Manifest]) -> list[str]:
    """What `netagent diff` would say of these objects: nothing when the kernel is exactly right."""
    tables_here = backend.Backend(affinity_clients=settings.Settings().affinity_clients)
    try:
        reconcile = reconciler.Reconciler(planned(manifests), tables_here, stale_flow_protocols=frozenset())
        reconcile.prepare()
        pending = tables_here.pending()
        if not pending:
            return []
        actual = [tables_here.actual(family) for family in addresses.Family]
        return list(report.lines(pending, tables_here.tables.desired(), actual)) or ["something"]
    finally:
        tables_here.close()


def until_right(
    manifests: Callable[[], Iterable[builders.Manifest]] | ApiServer,
    *,
    seconds: float = BOUND,
    meanwhile: Callable[[], None] = lambda: None,
) -> float:
    """Wait until the kernel is exactly as these objects want it; return how long that took.

    `meanwhile` is called all the time, to look whether anything is wrong on the way.
    """
    wanted = (lambda: manifests_of(manifests)) if isinstance(manifests, ApiServer) else manifests
    begun = time.monotonic()
    while differences := wrong(wanted()):
        meanwhile()
        assert time.monotonic() - begun < seconds, f"not right within {seconds} s:\n" + "\n".join(differences[:20])
        time.sleep(0.005)
    return time.monotonic() - begun


def diff_process(server: ApiServer) -> subprocess.CompletedProcess[bytes]:
    """`netagent diff` with the server's objects, as a user would ask: exit code 0 is exactly right."""
    content = builders.as_json(builders.list_manifest(*manifests_of(server)))
    return subprocess.run(
        [sys.executable, "-m", "netagent", "diff", "-f", "-", "--node-name", NODE],
        input=content,
        capture_output=True,
        timeout=60,
        check=False,
    )


def listings() -> dict[str, str]:
    """Our tables with handles, without counters: equal ones mean that nobody touched anything.

    Without who owns them, which is the process that runs, and nobody when none does.
    """
    names = [line.removeprefix("table ") for line in kernel.nft("list tables").splitlines()]
    return {name: _OWNER.sub("", kernel.listing(name)) for name in names if name.endswith(" netagent")}


_OWNER = re.compile(r" progname \S+|\n\tflags [a-z, |]*$", re.MULTILINE)


# What a packet to a frontend meets: the chain of its verdict, and the endpoints that it may be sent to.
Holding = tuple[str, frozenset[bytes]]
_REFUSED: Holding = (layout.REFUSE, frozenset())


def _holdings(elements: Callable[[str], ruleset.Elements]) -> dict[bytes, Holding]:
    endpoints: dict[bytes, set[bytes]] = defaultdict(set)
    for key, value in elements(layout.BACKENDS).items():
        assert isinstance(value, bytes)
        endpoints[key[:-4]].add(value[:6])
    held: dict[bytes, Holding] = {}
    for key, value in elements(layout.FRONTENDS).items():
        chain = shapes.chain_of({layout.SHAPES: elements(layout.SHAPES)}, value)
        held[key] = ("nowhere" if chain is None else chain, frozenset(endpoints[key]))
    return held


def _planned_holdings(manifests: Iterable[builders.Manifest]) -> dict[bytes, Holding]:
    plan = planned(manifests)
    desired = tables.Tables(affinity_clients=settings.Settings().affinity_clients)
    desired.set_rules(plan.replan().rules or ())
    desired.update(plan.forwarding.frontends, plan.forwarding.frontends)
    elements = desired.lowered[addresses.Family.IPV4].table.elements
    return _holdings(lambda name: elements.get(name, {}))


class NeverWrong:
    """Looks again and again whether every IPv4 frontend in the kernel is as it was or as it shall be.

    What is equal in both must always be there. What differs may be absent, refused, as before, as after, or lead to
    endpoints of both. Owns: a netlink socket. Use: `look` as often as possible; `looks` counts the consistent ones.
    """

    def __init__(self, before: Manifests, after: Manifests) -> None:
        self._before = _planned_holdings(before)
        self._after = _planned_holdings(after)
        self._kernel = backend.Backend(affinity_clients=settings.Settings().affinity_clients)
        self.looks = 0

    def look(self) -> None:
        self._kernel.read()
        if self._kernel.moved():  # a commit came while we were reading
            return
        self.looks += 1
        actual = self._kernel.actual(addresses.Family.IPV4)
        held = _holdings(lambda name: actual.elements.get(name, {}))
        for key in held.keys() | self._before.keys() | self._after.keys():
            before, after, now = self._before.get(key), self._after.get(key), held.get(key)
            if now in (before, after):
                continue
            assert before != after, f"{key.hex()} is {now}, and should be {before} all the time"
            if now in (None, _REFUSED):
                continue
            allowed = frozenset().union(*(holding[1] for holding in (before, after) if holding))
            assert now[1], f"{key.hex()} is {now} without an endpoint"
            assert now[1] <= allowed, f"{key.hex()} is {now}: neither {before} nor {after}"
