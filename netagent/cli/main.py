"""The commands of netagent, each a thin walk along the one line from source to kernel."""

from __future__ import annotations

import _thread
import faulthandler
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

import netagent
from netagent import errors, settings
from netagent.cli import ending, lazy, logs, options, planning, progress

# Who is told to end takes no longer. What is left then would be waiting for others.
_END_SECONDS: Final = 0.8

if TYPE_CHECKING:
    from netagent.agent import dataplanes, loop, planner, reconciler

_EXIT_CODES = """
\b
Exit codes:
  0  done            1  runtime error (diff: differs)   2  usage or configuration
  3  unreadable source        4  missing privilege      5  missing kernel feature
  6  commit refused  7  object set aside under --strict
  8  diff: runtime error     9  another agent works here   10  no agent here
  70  a bug of netagent
"""


# Commands in modules of their own, loaded when they are asked for.
_ELSEWHERE: Final[dict[str, str]] = {
    "bundle": "netagent.cli.bundle",
    "explain": "netagent.cli.explain",
    "completion": "netagent.cli.completion",
    "doctor": "netagent.cli.doctor",
    "drift": "netagent.cli.drift",
    "get": "netagent.cli.get",
    "status": "netagent.cli.status",
    "top": "netagent.cli.top",
    "trace": "netagent.cli.trace",
    "whatif": "netagent.cli.whatif",
}


@click.group(
    cls=lazy.LazyGroup,
    elsewhere=_ELSEWHERE,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("-v", "--verbose", count=True, help="Say more on standard error; twice for everything.")
def main(verbose: int) -> None:
    """Kubernetes Services as nftables rules.

    Turns Services, EndpointSlices and Nodes into netfilter state, so that the kernel alone handles every packet.
    """
    logs.set_up(verbose)


@main.command()
@options.common
@click.option(
    "-o",
    "--output",
    type=click.Choice(["nft", "iptables", "json", "yaml", "table"]),
    default=None,
    help="nft: a script for `nft -f`; iptables: one for `iptables-restore --noflush`; the others show the plan.  "
    "[default: nft, or what --mode says]",
)
@ending.ending()
def dump(output: str | None, **given: Any) -> None:
    """Print what should be in the kernel. Needs no root, no kernel, no network."""
    from netagent.cli import views

    source = options.source_of(**given)
    plan = _planned(source)
    replanned = plan.replan()
    _report_conflicts(plan)
    current = plan.forwarding.frontends
    match output or ("nft" if source.wanted.mode is settings.Mode.NFTABLES else "iptables"):
        case "nft":
            _print(views.as_nft(replanned.rules or (), current, affinity_clients=source.wanted.affinity_clients))
        case "iptables":
            _print(views.as_iptables(replanned.rules or (), current))
        case "table":
            _print(views.as_table(current))
        case "json":
            click.echo(views.as_json(views.plan_document(source.node_name, current)), nl=False)
        case _:
            click.echo(views.as_yaml(views.plan_document(source.node_name, current)), nl=False)


@main.command()
@options.common
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "nft", "iptables"]),
    default="text",
    show_default=True,
    help="text: for people; nft, iptables: the single operations as the tool of the mode takes them.",
)
@ending.ending(differs=8)
def diff(output: str, **given: Any) -> None:
    """Print what a sync would do. Exit code 0: nothing; 1: something; more: an error."""
    source = options.source_of(**given)
    tool = "nft" if source.wanted.mode is settings.Mode.NFTABLES else "iptables"
    if output not in ("text", tool):
        raise errors.ConfigError(f"-o {output} is not for mode {source.wanted.mode.value}, whose tool is {tool}")
    with _reconciler(source) as reconcile:
        reconcile.prepare()
        backend = reconcile.backend
        _print(backend.describe() if output == "text" else backend.commands())
        differs = bool(backend.pending())
    sys.exit(1 if differs else 0)


@main.command()
@options.common
@ending.ending()
def sync(**given: Any) -> None:
    """Bring the kernel in line once."""
    from netagent import conntrack
    from netagent.agent import dataplanes, presence, reconciler

    source = options.source_of(**given)
    with progress.shown("bringing the kernel in line"), presence.claimed(), _reconciler(source) as reconcile:
        report = reconcile.sync()
        _report_conflicts(reconcile.planner)
        for owner, reason in report.refused.items():
            options.say(f"set aside: Service {owner}: {reason}")
        options.say(
            f"{report.operations} operations in {report.transactions} transactions, {report.seconds * 1000:.1f} ms"
        )
        retired = dataplanes.retire_predecessors(reconcile.backend)
        for name in retired.removed:
            options.say(f"removed the rules of mode {name}")
        for reason in retired.failed:
            options.say(reason)
        cleaner = conntrack.FlowCleaner(local_addresses=reconciler.node_port_addresses(reconcile))
        reconciler.drop_stale_flows(cleaner, report.stale_flows)
    if report.refused:
        raise errors.CommitRejectedError("the kernel refused the Services above; everything else is in force", errno=0)


@main.command()
@options.live
@ending.ending()
def run(master: str | None, **given: Any) -> None:
    """Stay, and keep the kernel in line: with a file or directory (-f), else with an API server.

    Ends on SIGTERM or SIGINT and leaves the rules in place. SIGHUP makes it read its configuration again.
    """
    from netagent.agent import loop, presence

    faulthandler.enable()  # a watchdog's SIGABRT leaves a trace
    hangups = _until_it_runs()
    if given["path"] == "-":
        raise errors.ConfigError("run follows a file, a directory or an API server, not standard input")
    if given["path"] and (master or given["kubeconfig"]):
        raise errors.ConfigError("-f and --kubeconfig or --master name two sources; give one")
    source = options.source_of(**given)
    with presence.claimed() as listening, _reconciler(source, to_stay=True) as reconcile:
        following = (
            _following_files(source.path, reconcile, source, given, listening)
            if source.path
            else _following_server(reconcile, source, master, given, listening)
        )
        with following as running:
            loop.follow_signals(running, ending=_end_in_time)
            if hangups:
                running.reload()
            running.run()
    logs.end()


def _until_it_runs() -> list[int]:
    """Have SIGTERM and SIGINT end the process at once, as there is nothing yet to end in good order; return where
    SIGHUPs are noted, which would kill it otherwise."""
    hangups: list[int] = []

    def end(signal_number: int, frame: FrameType | None) -> None:
        _end_in_time()
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGHUP, lambda signal_number, frame: hangups.append(signal_number))
    return hangups


def _end_in_time() -> None:
    """End the process with exit code 0 within a second, whatever it is caught in: a sync of thousands of Services, a
    connection that hangs. Nothing is lost by it: the rules are the kernel's, and no commit is done by halves.

    For a signal handler: it waits for nothing, and takes no lock (as threading.Thread would).
    """
    _thread.start_new_thread(_end, ())


def _end() -> None:
    time.sleep(_END_SECONDS)
    os._exit(0)


@contextmanager
def _following_files(
    path: str,
    reconcile: reconciler.Reconciler,
    source: options.Source,
    given: dict[str, Any],
    listening: socket.socket | None,
) -> Iterator[loop.Loop]:
    """A loop that follows manifests, and answers on its local socket."""
    from netagent import conntrack
    from netagent.agent import collector, dataplanes, feed, loop, reconciler, reloading
    from netagent.agent.local import serving

    again = reloading.Reloading(reconcile, lambda: options.source_of(**given).wanted, configured=source.wanted.families)
    with (
        closing(feed.DirectoryFeed(path)) as manifests,
        serving.serving(listening, reconcile, node_name=source.node_name, source=manifests) as chronicle,
    ):
        yield loop.Loop(
            manifests,
            reconcile,
            cleaner=conntrack.FlowCleaner(local_addresses=reconciler.node_port_addresses(reconcile)),
            pace=loop.pace_of(source.wanted),
            observers=[collector.CollectorPace(), dataplanes.Retiring(reconcile.backend), chronicle],
            reload=again.reload,
        )


@contextmanager
def _following_server(
    reconcile: reconciler.Reconciler,
    source: options.Source,
    master: str | None,
    given: dict[str, Any],
    listening: socket.socket | None,
) -> Iterator[loop.Loop]:
    """A loop that follows an API server."""
    from netagent.agent import live
    from netagent.source.api.credentials import Access

    flags = {name: str(value) for name, value in given.items() if value not in (None, ())}
    access = Access(kubeconfig=source.wanted.kubeconfig, server=master)
    with live.agent(
        reconcile,
        source.wanted,
        node_name=source.node_name,
        access=access,
        flags=flags,
        read=lambda: options.source_of(**given).wanted,
        local=listening,
    ) as running:
        yield running


@main.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    default=None,
    help="KubeProxyConfiguration file, or the ConfigMap that holds one: YAML or JSON.  [default: none]",
)
@ending.ending()
def sysctl(config_path: str | None) -> None:
    """Set the host's connection tracking limits as the configuration says.

    A step of its own, so that the agent needs no right to write them. What cannot be written is said, and is no error.
    """
    from netagent.agent import host_sysctls

    wanted = options.settings_of(config_path, mode=None).settings
    host_sysctls.load_conntrack()
    for outcome in host_sysctls.set_sysctls(host_sysctls.wanted_sysctls(wanted.conntrack, cores=os.cpu_count() or 1)):
        options.say(str(outcome))


@main.command()
@options.tolerated
@click.option(
    "--kube-proxy", is_flag=True, help="Also remove what kube-proxy left in any of its modes; say what first."
)
@ending.ending()
def cleanup(kube_proxy: bool) -> None:
    """Remove all that is ours from the kernel, and nothing else. A second time is fine.

    Takes the options of the other commands; none of them matters: every mode and every family goes. What is ours stays
    while an agent runs: without --kube-proxy that is an error.
    """
    retired = _remove_ours(beside_agent=kube_proxy)
    removed = [f"removed the rules of mode {name}" for name in retired.removed]
    failed = list(retired.failed)
    if kube_proxy:
        done = _remove_kube_proxy()
        removed += done.removed
        failed += done.failed
    for line in (*removed, *failed) or ("nothing to remove",):
        options.say(line)
    if failed:
        raise errors.NetagentError("not everything could be removed")


def _remove_ours(*, beside_agent: bool) -> dataplanes.Retired:
    """Remove our rules of all modes. HeldError while an agent runs, unless there is something to do beside it: then its
    rules stay, and that is said."""
    from netagent.agent import dataplanes, presence

    try:
        with presence.claimed():
            return dataplanes.retire_predecessors(None)
    except errors.HeldError:
        if not beside_agent:
            raise
        options.say("an agent of netagent runs here; its rules stay")
        return dataplanes.Retired((), ())


def _remove_kube_proxy() -> dataplanes.Retired:
    """Remove what kube-proxy left, after saying what it is."""
    from netagent.agent import dataplanes
    from netagent.iptables import kube_proxy

    leftovers = kube_proxy.Leftovers()
    found = leftovers.found()
    if not found:
        return dataplanes.Retired((), ())
    options.say("kube-proxy left these, which are removed now:")
    for line in found:
        options.say(f"  {line}")
    notes = leftovers.notes()
    try:
        leftovers.remove()
    except errors.NetagentError as error:
        return dataplanes.Retired((), (f"not all that kube-proxy left: {error}",))
    return dataplanes.Retired(("removed what kube-proxy left", *notes), ())


@main.command()
@options.tolerated
def version() -> None:
    """Print the version."""
    click.echo(f"netagent {netagent.__version__}")


def _planned(source: options.Source) -> planner.Planner:
    """A plan of the source's manifests, for one pass over everything: then the process ends, and nothing would be
    collected."""
    gc.disable()
    found = planning.planned(source)
    for remark in found.remarks:
        options.say(remark)
    return found.planner


@contextmanager
def _reconciler(source: options.Source, *, to_stay: bool = False) -> Iterator[reconciler.Reconciler]:
    """A reconciler on this network namespace, the kernel checked. `to_stay`: for an agent, whose objects come later."""
    from netagent.agent import dataplanes, planner, reconciler

    plan = planner.Planner(source.wanted, node_name=source.node_name) if to_stay else _planned(source)
    opened = dataplanes.opened(source.wanted, to_stay=to_stay)
    with closing(opened.backend):
        plan.use(opened.settings)
        protocols = reconciler.stale_flow_protocols(source.wanted)
        yield reconciler.Reconciler(plan, opened.backend, stale_flow_protocols=protocols)


def _report_conflicts(plan: planner.Planner) -> None:
    from netagent.agent import reporting

    reporting.log_conflicts(plan.forwarding.conflicts())


def _print(lines: Iterator[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
