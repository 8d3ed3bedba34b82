"""`kubectl netagent`: the same commands, run where they have something to look at, in netagent's pod on a node.

kubectl runs the program kubectl-netagent that it finds on the PATH. Which pod, and how to reach it, kubectl is asked.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from click import shell_completion

from netagent import errors
from netagent.cli import ending, options
from netagent.cli import main as commands

_PROGRAM: Final = "kubectl netagent"
# What deploy/base gives the pods and their container.
_PODS: Final = "app.kubernetes.io/name=netagent"
_CONTAINER: Final = "netagent"
_NAMESPACE: Final = "kube-system"
_STDIN: Final = "-"
# -f FILE, -fFILE, --filename FILE, --filename=FILE
_FILE: Final = re.compile(r"-f.*|--filename(=.*)?", re.DOTALL)
# What kubectl does with the words that a completion program prints: offer them, and no files.
_NO_FILES: Final = ":4"


class Pod(NamedTuple):
    """A pod of netagent. `phase` is Kubernetes' own word, or Terminating."""

    name: str
    node: str
    phase: str


class Request(NamedTuple):
    """What is to be run: `words` are a command of netagent with its options, on `nodes` or on every node that has a pod
    (`everywhere`); on this machine where neither is given."""

    words: tuple[str, ...]
    nodes: tuple[str, ...]
    everywhere: bool

    @property
    def is_here(self) -> bool:
        return not self.nodes and not self.everywhere


class _Plugin(click.Command):
    """A command whose help ends with the list of netagent's commands."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with click.Context(commands.main, info_name=_PROGRAM) as listing:
            commands.main.format_commands(listing, formatter)


@click.command(
    "kubectl-netagent",
    cls=_Plugin,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "allow_interspersed_args": False},
    options_metavar="[--node NODE]... [OPTIONS]",
)
@click.option("--node", "nodes", multiple=True, metavar="NODE", help="Run it in the pod on this node; may be repeated.")
@click.option("--all-nodes", "everywhere", is_flag=True, help="Run it in the pods on all nodes, one after another.")
@click.option("--agent-namespace", default=_NAMESPACE, show_default=True, help="Namespace of netagent's pods.")
@click.option("--context", default=None, help="Context of the kubeconfig.  [default: the current one]")
@click.option(
    "--kubeconfig", default=None, type=click.Path(), help="How to reach the API server.  [default: kubectl's]"
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGS]...")
@ending.ending()
def plugin(
    words: tuple[str, ...],
    nodes: tuple[str, ...],
    everywhere: bool,
    agent_namespace: str,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Run a command of netagent in its pod on a node.

    \b
    kubectl netagent --node worker-1 status
    kubectl netagent --node worker-1 explain default/web
    kubectl netagent --all-nodes doctor

    Without a node the command runs on this machine, as `netagent COMMAND` does: dump, explain and whatif with -f need
    no node. --node and --all-nodes may also stand after the command; all other options there are the command's.
    A file after -f is read here and handed to the pod. The exit code is that of the command, the highest of all nodes.
    """
    request = lifted(words, nodes=nodes, everywhere=everywhere)
    if request.is_here:
        options.say("on this machine; --node NODE is for the pod on a node")
        commands.main.main(args=list(request.words), prog_name=_PROGRAM)
    if not request.words:
        raise errors.ConfigError(f"there is no command to run; {_PROGRAM} --help lists them")
    if request.nodes and request.everywhere:
        raise errors.ConfigError("--node and --all-nodes exclude each other")
    kubectl = (_kubectl(), *_flags(context=context, kubeconfig=kubeconfig), "--namespace", agent_namespace)
    pods = _pods(kubectl, request)
    given = Given.of(request.words)
    if len(pods) == 1:
        _become(kubectl, pods[0], given)
    sys.exit(max([_run(kubectl, pod, given) for pod in pods]))


def main() -> None:
    """The program kubectl-netagent."""
    plugin.main(prog_name=_PROGRAM)


def complete() -> None:
    """The program kubectl_complete-netagent: kubectl asks it what fits after the words of a command line."""
    *before, incomplete = sys.argv[1:] or [""]
    offered = _nodes(before) if before[-1:] == ["--node"] else _words(before, incomplete)
    for line in offered:
        if line.startswith(incomplete):
            click.echo(line)
    click.echo(_NO_FILES)


def _nodes(before: Sequence[str]) -> list[str]:
    """The nodes that have a pod of netagent; none where kubectl does not tell, as nobody reads messages now."""
    pairs = dict(itertools.pairwise(before))
    flags = _flags(context=pairs.get("--context"), kubeconfig=pairs.get("--kubeconfig"))
    found = shutil.which("kubectl")
    if found is None:
        return []
    place = ("--namespace", pairs.get("--agent-namespace", _NAMESPACE))
    asked = (found, *flags, *place, "get", "pods", "--selector", _PODS, "--output", "json")
    done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    try:
        return sorted({_pod(document).node for document in json.loads(done.stdout).get("items", ())} - {""})
    except ValueError:
        return []


def _words(before: Sequence[str], incomplete: str) -> list[str]:
    """Commands, options and values, each with what it means where that is known."""
    asking = shell_completion.ShellComplete(commands.main, {}, _PROGRAM, "")
    request = lifted(before, nodes=(), everywhere=False)
    items = asking.get_completions(list(request.words), incomplete)
    return [f"{item.value}\t{item.help}" if item.help else str(item.value) for item in items]


def lifted(words: Sequence[str], *, nodes: tuple[str, ...], everywhere: bool) -> Request:
    """Take --node and --all-nodes out of the words of a command, up to a word that is `--`: whoever types them at the
    end means the same. ConfigError when --node has no value."""
    found, kept = list(nodes), list[str]()
    rest = iter(words)
    for word in rest:
        if word == "--":
            kept += (word, *rest)
        elif word == "--all-nodes":
            everywhere = True
        elif word.startswith("--node="):
            found.append(word.partition("=")[2])
        elif word == "--node":
            value = next(rest, None)
            if value is None:
                raise errors.ConfigError("--node needs the name of a node")
            found.append(value)
        else:
            kept.append(word)
    return Request(tuple(kept), tuple(dict.fromkeys(found)), everywhere)


class Given(NamedTuple):
    """What the command in the pod gets: its words, and standard input where the words ask for it (else None)."""

    words: tuple[str, ...]
    stdin: bytes | None

    @classmethod
    def of(cls, words: Sequence[str]) -> Given:
        """A file after -f becomes standard input, as the pod has no such file. SourceError if it cannot be read."""
        places = [place for place, word in enumerate(words) if _FILE.fullmatch(word)]
        if not places:
            return cls(tuple(words), None)
        if len(places) > 1:
            raise errors.ConfigError("-f may be given once when the command runs in a pod")
        place = places[0]
        path = words[place].removeprefix("-f").removeprefix("--filename").removeprefix("=")
        after = place + 1
        if not path:
            if after == len(words):
                raise errors.ConfigError(f"{words[place]} needs a file")
            path, after = words[after], after + 1
        kept = (*words[:place], "-f", _STDIN, *words[after:])
        try:
            content = sys.stdin.buffer.read() if path == _STDIN else Path(path).read_bytes()
        except OSError as error:
            raise errors.SourceError(f"cannot read {path}: {error.strerror} (the pod gets one file)") from error
        return cls(kept, content)


def running(documents: Any, *, wanted: Iterable[str]) -> tuple[Pod, ...]:
    """The pods to run a command in, by node: one for each node of a PodList that has one that runs, or for each of the
    nodes that are `wanted`. SourceError names a node without one, and what there is instead."""
    by_node: dict[str, list[Pod]] = {}
    for document in documents.get("items", ()):
        pod = _pod(document)
        by_node.setdefault(pod.node, []).append(pod)
    chosen = []
    for node in tuple(wanted) or sorted(by_node):
        pods = sorted(by_node.get(node, ()))
        ready = [pod for pod in pods if pod.phase == "Running"]
        if ready:
            chosen.append(ready[-1])
        elif pods:
            raise errors.SourceError(f"on node {node}, the pod {pods[-1].name} is {pods[-1].phase}, not Running")
        else:
            raise errors.SourceError(f"there is no pod of netagent (label {_PODS}) on node {node}")
    if not chosen:
        raise errors.SourceError(f"there is no pod of netagent (label {_PODS}) in this namespace")
    return tuple(chosen)


def _pod(document: Any) -> Pod:
    metadata = document.get("metadata", {})
    phase = "Terminating" if metadata.get("deletionTimestamp") else document.get("status", {}).get("phase", "Unknown")
    return Pod(metadata.get("name", ""), document.get("spec", {}).get("nodeName", ""), phase)


def _pods(kubectl: tuple[str, ...], request: Request) -> tuple[Pod, ...]:
    narrow = ("--field-selector", f"spec.nodeName={request.nodes[0]}") if len(request.nodes) == 1 else ()
    asked = (*kubectl, "get", "pods", "--selector", _PODS, *narrow, "--output", "json")
    done = subprocess.run(
        asked, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False
    )  # it says itself why not
    if done.returncode:
        raise errors.SourceError(f"kubectl cannot list the pods (exit code {done.returncode})")
    try:
        return running(json.loads(done.stdout), wanted=request.nodes)
    except ValueError as error:
        raise errors.SourceError(f"kubectl printed no list of pods: {error}") from error


def _command(kubectl: tuple[str, ...], pod: Pod, given: Given) -> list[str]:
    """The kubectl command line. A terminal is passed on; standard input only to those who ask for it, so that a loop
    over nodes in a script keeps its own."""
    flags = []
    if given.stdin is not None:
        flags = ["--stdin"]
    elif sys.stdin.isatty() and sys.stdout.isatty():
        flags = ["--stdin", "--tty"]
    return [*kubectl, "exec", *flags, pod.name, "--container", _CONTAINER, "--", "netagent", *given.words]


def _become(kubectl: tuple[str, ...], pod: Pod, given: Given) -> None:
    """Let kubectl take the place of this process, with its signals and its terminal; does not return, unless there is
    input to hand over."""
    if given.stdin is not None:
        sys.exit(_run(kubectl, pod, given, headed=False))
    command = _command(kubectl, pod, given)
    os.execv(command[0], command)


def _run(kubectl: tuple[str, ...], pod: Pod, given: Given, *, headed: bool = True) -> int:
    if headed:
        options.say(f"node {pod.node}")
        sys.stderr.flush()
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if given.stdin is None else {"input": given.stdin}
    return subprocess.run(_command(kubectl, pod, given), check=False, **source).returncode


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise errors.UnsupportedError("there is no kubectl on the PATH, by which the pods are reached")
    return found


def _flags(**given: str | None) -> tuple[str, ...]:
    return tuple(word for name, value in given.items() if value for word in (f"--{name}", value))
