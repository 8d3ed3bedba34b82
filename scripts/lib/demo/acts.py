"""The acts of the demo: what is tried, and what must come of it."""

from __future__ import annotations

import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from . import clients, universe
from .agent import Agent
from .clients import Burst, KeptConnections, Stream, Target
from .cluster import Manifests, Pod
from .report import Report, milliseconds
from .universe import Place, Universe

CONNECTIONS = 300
PER_SECOND = 200
# Bounds on what takes some 0.5 s and 0.02 s; a busy machine may take its time.
START_SECONDS = 20.0
FOLLOW_SECONDS = 5.0
# While connections run: how long nothing happens before and after each change.
REST_SECONDS = 0.7
# This long without an answer from a pod, at PER_SECOND connections, means that it gets no new ones.
SILENCE_SECONDS = 0.5
# A client that must not be answered waits this long.
DROPPED_SECONDS = 0.5
# A fair choice is further off than this many standard deviations once in 500 million counts.
DEVIATIONS = 6

CLIENT_POD = "shell"

Found = TypeVar("Found")


class NotReadyError(Exception):
    """netagent did not do in time what the rest of the demo needs."""


class Stage(NamedTuple):
    """Everything that an act needs; `web_pods` are those that `web` may be scaled to."""

    report: Report
    manifests: Manifests
    universe: Universe
    agent: Agent
    web_pods: tuple[Pod, ...]

    @property
    def shell(self) -> Place:
        """The pod that clients run in."""
        return self.universe.pod(CLIENT_POD)

    def target(self, service: str, address: str | None = None, *, family: int = 4) -> Target:
        """The first port of a Service, on its cluster IP unless an address is given."""
        spec = self.manifests.service(service)["spec"]
        port = spec["ports"][0]
        own = next(one for one in spec["clusterIPs"] if (":" in one) == (family == 6))
        return Target(address or own, port["port"], port["protocol"].lower())

    def names(self, service: str, *, node: str | None = None) -> set[str]:
        """The pods behind a Service at first, all or those of one node."""
        return {pod.name for pod in self.manifests.pods(service) if node in (None, pod.node)}


# Start -----------------------------------------------------------------------------------------------------------


def start(stage: Stage) -> None:
    """Start netagent. NotReadyError if no Service works in time."""
    stage.report.heading(stage.agent.command_line)
    target = stage.target("web")
    started = time.monotonic()
    stage.agent.start()
    with stage.shell.entered():
        while True:
            try:
                clients.ask(target, patience=0.1)
                break
            except OSError as error:
                if stage.agent.exit_code is not None:
                    raise NotReadyError(f"netagent ended with exit code {stage.agent.exit_code}") from error
                if time.monotonic() - started > START_SECONDS:
                    raise NotReadyError(f"{target} does not answer after {START_SECONDS:.0f} s: {error}") from error
                time.sleep(0.01)
    stage.report.say(f"  the first connection to {target} works after {milliseconds(time.monotonic() - started)}")


# Frontends -------------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """A frontend to be tried: its name, what to dial, where from, the pods that must answer, and whether these must
    see the client's own address, the node's, or (True and False) some this, some that. One pod of them for all if
    sticky."""

    frontend: str
    target: Target
    place: Place
    origin: str
    pods: set[str]
    own_address: frozenset[bool] = frozenset({True})
    sticky: bool = False


def frontends(stage: Stage) -> int:
    """Send connections to a frontend of each kind; return how many."""
    report = stage.report
    report.heading(f"{CONNECTIONS} connections to each kind of frontend")
    report.table_head()
    trials = _trials(stage)
    for trial in trials:
        result = clients.burst(trial.place, trial.target, CONNECTIONS)
        answers = ", ".join(f"{pod} {times}" for pod, times in sorted(result.pods.items()))
        seen = {address not in universe.NODE_ADDRESSES[universe.NODE] for address in result.seen}
        if trial.place is stage.universe.node:
            seen = {True}  # its own address is the node's
        shown = " or ".join("itself" if own else "the node" for own in sorted(seen, reverse=True))
        report.table_row(trial.frontend, str(trial.target), trial.origin, answers, shown, failed=result.failed)
        what = f"{trial.frontend} {trial.target} from {trial.origin}"
        for error, times in result.errors.items():
            report.expect(False, f"{what}: {times} connections failed: {error}")
        report.expect(_fair(trial, result), f"{what}: {answers} instead of {', '.join(sorted(trial.pods))} evenly")
        report.expect(seen == trial.own_address, f"{what}: pods see {shown or 'nobody'}")
    _closed(stage)
    _refused(stage)
    _show_kernel(report)
    return len(trials) * CONNECTIONS + 1 + CONNECTIONS


def _trials(stage: Stage) -> list[Trial]:
    shell, outside, node = stage.shell, stage.universe.outside, stage.universe.node
    web, shop = stage.target("web"), stage.manifests.service("shop")["spec"]
    node_port = Target(universe.NODE_ADDRESSES[universe.NODE][0], shop["ports"][0]["nodePort"])
    balancer = stage.manifests.service("api")["status"]["loadBalancer"]["ingress"][0]["ip"]
    by_node = frozenset({False})
    local_api = stage.names("api", node=universe.NODE)  # externalTrafficPolicy: Local
    hairpin = stage.manifests.pods("web")[0].name
    shops, webs = stage.names("shop"), stage.names("web")
    return [
        Trial("cluster IP", web, shell, "pod shell", webs),
        Trial("cluster IP", stage.target("web", family=6), shell, "pod shell", webs),
        Trial("cluster IP", web, node, "demo-node", webs),
        # The pod that reaches itself sees the node's address, because it would not answer its own.
        Trial("own cluster IP", web, stage.universe.pod(hairpin), f"pod {hairpin}", webs, frozenset({True, False})),
        Trial("node port", node_port, outside, "outside", shops, by_node),
        Trial("external IP", stage.target("shop", shop["externalIPs"][0]), outside, "outside", shops, by_node),
        Trial("load balancer", stage.target("api", balancer), outside, "outside", local_api),
        Trial("cluster IP", stage.target("dns"), shell, "pod shell", stage.names("dns")),
        Trial("sticky", stage.target("cart"), shell, "pod shell", stage.names("cart"), sticky=True),
    ]


def _fair(trial: Trial, result: Burst) -> bool:
    """Whether the right pods answered, and none more often than chance has it."""
    answered = result.pods.keys()
    if trial.sticky:
        return len(answered) == 1 and answered <= trial.pods
    if answered != trial.pods:
        return False
    total, share = result.pods.total(), 1 / len(trial.pods)
    allowed = DEVIATIONS * math.sqrt(total * share * (1 - share))
    return all(abs(times - total * share) <= allowed for times in result.pods.values())


def _closed(stage: Stage) -> None:
    """A client outside the source ranges of a load balancer is not answered."""
    balancer = stage.manifests.service("api")["status"]["loadBalancer"]["ingress"][0]["ip"]
    target, stranger = stage.target("api", balancer), universe.ROUTER_ADDRESSES[0]
    with stage.universe.outside.entered():
        try:
            answer = clients.ask(target, source=stranger, patience=DROPPED_SECONDS)
            outcome, good = f"{answer.pod} answered", False
        except TimeoutError:
            outcome, good = "nobody", True
        except OSError as error:
            outcome, good = str(error), False
    stage.report.table_row(
        "load balancer", str(target), stranger, f"{outcome}: not in the source ranges", "", failed=int(not good)
    )
    stage.report.expect(good, f"load balancer {target} from {stranger}, not in its ranges: {outcome}")


def _refused(stage: Stage) -> None:
    """Where there is no endpoint, connections are refused at once."""
    target = stage.target("idle")
    result = clients.burst(stage.shell, target, CONNECTIONS)
    refused = result.errors.pop("connection refused", 0)
    median = milliseconds(statistics.median(result.seconds))
    shown = f"refused {refused}, each in {median}"
    stage.report.table_row("no endpoints", str(target), "pod shell", shown, "", failed=CONNECTIONS - refused)
    stage.report.expect(
        refused == CONNECTIONS,
        f"no endpoints {target}: {refused} of {CONNECTIONS} refused, else {dict(result.errors) or dict(result.pods)}",
    )
    # A lost packet costs a second or more.
    stage.report.expect(statistics.median(result.seconds) < 0.5, f"no endpoints {target}: refused only after {median}")


def _show_kernel(report: Report) -> None:
    """What anybody can see with nft: where each frontend leads, and how many connections began there."""
    command = ["nft", "list", "map", "ip", "netagent", "frontends"]
    report.heading(" ".join(command))
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    report.expect(listed.returncode == 0, f"nft cannot list what netagent made: {listed.stderr.strip()}")
    elements = listed.stdout.rpartition("elements = {")[2].split("}")[0]
    for element in sorted(" ".join(line.split()).rstrip(",") for line in elements.splitlines()):
        report.say(f"  {element}")


# Change while connections run ------------------------------------------------------------------------------------


def scale(stage: Stage) -> int:
    """Scale a Service up and down while connections run; return how many were made."""
    report, target = stage.report, stage.target("web")
    few = tuple(pod for pod in stage.web_pods if pod.name in ("web-2", "web-5"))
    first = stage.names("web")
    report.heading(
        f"Scaling web from {len(first)} to {len(stage.web_pods)} to {len(few)} pods, "
        f"with {PER_SECOND} new connections a second"
    )
    with clients.kept(stage.shell, target) as kept, Stream(stage.shell, target, per_second=PER_SECOND) as stream:
        kept.open(12)
        _rest(kept)
        grown = _grow(stage, stream, stage.web_pods, new=_names(stage.web_pods) - first)
        kept.open(12)
        _rest(kept)
        gone = _names(stage.web_pods) - _names(few)
        shrunk = _shrink(stage, stream, few, gone=gone)
        left_behind = kept.count(gone)
        _rest(kept)
    _sum_up(report, stream, _names(stage.web_pods), changes=[grown, shrunk])
    report.say(
        f"  {len(kept)} connections kept open, {left_behind} of them to pods that left: "
        f"{kept.requests} requests, {len(kept.errors)} failed"
    )
    report.expect(not kept.errors, f"kept connections: {'; '.join(kept.errors[:3])}")
    return len(stream.moments) + len(kept)


def restart(stage: Stage) -> int:
    """Kill netagent and start it again while connections run; return how many were made."""
    report = stage.report
    pods = tuple(pod for pod in stage.web_pods if pod.name in ("web-1", "web-2", "web-5"))
    report.heading(f"Killing netagent, with {PER_SECOND} new connections a second: the rules stay in the kernel")
    with Stream(stage.shell, stage.target("web"), per_second=PER_SECOND) as stream:
        _rest()
        stage.agent.kill()
        killed = time.monotonic()
        stage.manifests.scale("web", pods)
        _rest()
        report.expect(
            stream.first_answer({"web-1"}, since=killed) is None, "web-1 answers, but nobody can have told the kernel"
        )
        stage.agent.start()
        started = time.monotonic()
        report.say(f"  {milliseconds(started - killed)} without netagent; web.yaml gains web-1 meanwhile")
        answered = _wait(lambda: stream.first_answer({"web-1"}, since=started), START_SECONDS)
        if answered is None:
            report.expect(False, f"web-1 does not answer {START_SECONDS:.0f} s after the new start of netagent")
        else:
            report.say(f"  started again: web-1 answers after {milliseconds(answered - started)}")
        _rest()
    _sum_up(report, stream, _names(pods), changes=[killed, started])
    return len(stream.moments)


def _grow(stage: Stage, stream: Stream, pods: tuple[Pod, ...], *, new: set[str]) -> float:
    """Put new pods into web.yaml and wait for one of them; when it was written."""
    written = time.monotonic()
    stage.manifests.scale("web", pods)
    answered = _wait(lambda: stream.first_answer(new, since=written), FOLLOW_SECONDS)
    if answered is None:
        stage.report.expect(False, f"none of the new pods answers {FOLLOW_SECONDS:.0f} s after web.yaml was written")
    else:
        stage.report.say(
            f"  web.yaml written with {len(pods)} pods: the first answer of a new pod after "
            f"{milliseconds(answered - written)}"
        )
    return written


def _shrink(stage: Stage, stream: Stream, pods: tuple[Pod, ...], *, gone: set[str]) -> float:
    """Take pods out of web.yaml and wait until they get no new connections; when it was written."""
    written = time.monotonic()
    stage.manifests.scale("web", pods)

    def last() -> float:
        return stream.last_answer(gone, since=written) or written

    if _wait(lambda: time.monotonic() - last() > SILENCE_SECONDS or None, FOLLOW_SECONDS):
        stage.report.say(
            f"  web.yaml written with {len(pods)} pods: the last new connection to one that left after "
            f"{milliseconds(last() - written)}"
        )
    else:
        stage.report.expect(False, f"pods still get connections {FOLLOW_SECONDS:.0f} s after they left web.yaml")
    return written


def _sum_up(report: Report, stream: Stream, pods: set[str], *, changes: list[float]) -> None:
    """Say what became of a stream; `changes` are the times at which something was done to it."""
    counts = {pod: sum(one.pod == pod for one in stream.moments) for pod in sorted(pods)}
    shown = ", ".join(f"{pod} {times}" for pod, times in counts.items())
    report.say(
        f"  {len(stream.moments)} connections, {len(stream.failed)} failed, "
        f"the slowest took {milliseconds(stream.slowest_seconds)}"
    )
    report.say(f"  answered by {shown}")
    for moment in stream.failed[:3]:
        since = min((moment.asked - change for change in changes if change <= moment.asked), default=None)
        when = "before any change" if since is None else f"{milliseconds(since)} after a change"
        report.expect(False, f"a connection failed: {moment.error}; it began {when}")
    report.expect(len(stream.moments) > 0, "no connection was made at all")


def _rest(kept: KeptConnections | None = None) -> None:
    """Let time go by, in which kept connections are used."""
    until = time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        if kept:
            kept.use()
        time.sleep(0.05)


def _wait(look: Callable[[], Found | None], seconds: float) -> Found | None:
    """What `look` finds, as soon as it finds something; None if it does not in time."""
    until = time.monotonic() + seconds
    while (found := look()) is None and time.monotonic() < until:
        time.sleep(0.005)
    return found


def _names(pods: Iterable[Pod]) -> set[str]:
    return {pod.name for pod in pods}
