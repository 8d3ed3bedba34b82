"""`kubectl netagent`, with a kubectl that has pods and runs what it is asked to run in them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from netagent import errors
from netagent.cli import kubectl

TOP = Path(__file__).resolve().parents[2]
# A busy machine may take its time.
SECONDS = 60

# Knows `get pods` and `exec` as kubectl has them: filters by selector and node, and runs the command after `--`, with
# the name of the pod in POD. What it was asked goes to the file named in ASKED, a line for each call.
FAKE = """#!{python} -IS
import json, os, subprocess, sys

with open(os.environ["ASKED"], "a") as asked:
    print(json.dumps(sys.argv[1:]), file=asked)
words = [*sys.argv[1:], "--"]
own, command = words[: words.index("--")], words[words.index("--") + 1 : -1]
pairs = dict(zip(own, own[1:]))
with open(os.environ["PODS"]) as file:
    pods = json.load(file)
pods = [pod for pod in pods if pod["metadata"]["namespace"] == pairs["--namespace"]]
if "get" in own:
    if os.environ.get("REFUSED"):
        print("Error from server (Forbidden)", file=sys.stderr)
        sys.exit(1)
    key, _, value = pairs["--selector"].partition("=")
    node = pairs.get("--field-selector", "").partition("spec.nodeName=")[2]
    found = [
        pod for pod in pods
        if pod["metadata"]["labels"].get(key) == value and (not node or pod["spec"]["nodeName"] == node)
    ]
    print(json.dumps({{"kind": "List", "items": found}}))
    sys.exit(0)
assert "exec" in own and pairs["--container"] == "netagent"
name = next(name for name in (pod["metadata"]["name"] for pod in pods) if name in own)
stdin = None if "--stdin" in own else subprocess.DEVNULL
sys.exit(subprocess.run(command, stdin=stdin, env={{**os.environ, "POD": name}}, check=False).returncode)
"""

# In the pods: says where it is and what it was given; the exit code of node worker-2's is 8.
AGENT = """#!{python} -IS
import os, sys
print(os.environ["POD"], *sys.argv[1:])
if "-" in sys.argv:
    print(sys.stdin.read())
sys.exit(8 if os.environ["POD"] == "netagent-2" else 0)
"""


def pod(name: str, node: str, *, phase: str = "Running", going: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "kube-system",
        "labels": {"app.kubernetes.io/name": "netagent"},
    }
    if going:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": phase}}


PODS = [
    pod("netagent-1", "worker-1"),
    pod("netagent-0", "worker-1", going=True),
    pod("netagent-2", "worker-2"),
    pod("netagent-3", "worker-3", phase="Pending"),
]
OTHER = {
    "metadata": {"name": "coredns", "namespace": "kube-system", "labels": {}},
    "spec": {"nodeName": "worker-4"},
    "status": {"phase": "Running"},
}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Cluster(NamedTuple):
    place: Path

    def run(self, *words: str, text: str = "", program: Callable[[], None] = kubectl.main, **variables: str) -> Done:
        """Run the plugin as kubectl would, in a child process that it may leave to another program."""
        files = [self.place / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(text)
        child = os.fork()
        if child == 0:
            try:
                for number, path in enumerate(files):
                    os.dup2(
                        os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number
                    )
                self._become(program, words, variables)
            finally:
                os._exit(99)  # nothing of pytest's is cleaned up here
        _, status = os.waitpid(child, 0)
        return Done(os.waitstatus_to_exitcode(status), files[1].read_text(), files[2].read_text())

    def _become(self, program: Callable[[], None], words: tuple[str, ...], variables: dict[str, str]) -> None:
        signal.alarm(SECONDS)
        os.chdir(self.place)
        os.environ["PATH"] = f"{self.place}{os.pathsep}{os.environ['PATH']}"
        os.environ.update(ASKED=str(self.place / "asked"), PODS=str(self.place / "pods"), **variables)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: SIM115
        sys.argv = ["kubectl-netagent", *words]
        code: object = 0
        try:
            program()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.place / "asked").read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    (tmp_path / "asked").touch()
    (tmp_path / "pods").write_text(json.dumps([*PODS, OTHER]))
    for name, text in (("kubectl", FAKE), ("netagent", AGENT)):
        (tmp_path / name).write_text(text.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    return Cluster(tmp_path)


def test_a_command_runs_in_the_nodes_pod_with_its_options_and_its_exit_code(cluster: Cluster) -> None:
    done = cluster.run("--node", "worker-2", "get", "frontends", "-n", "shop")
    assert (done.returncode, done.stdout, done.stderr) == (8, "netagent-2 get frontends -n shop\n", "")


def test_the_pod_that_is_going_is_not_the_one(cluster: Cluster) -> None:
    assert cluster.run("--node", "worker-1", "status").stdout == "netagent-1 status\n"


@pytest.mark.parametrize("words", [("status", "--node", "worker-1"), ("status", "--node=worker-1")])
def test_the_node_may_stand_after_the_command(words: tuple[str, ...], cluster: Cluster) -> None:
    assert cluster.run(*words).stdout == "netagent-1 status\n"


def test_kubectl_is_told_context_kubeconfig_and_namespace(cluster: Cluster) -> None:
    flags = ("--context", "lab", "--kubeconfig", "/k", "--agent-namespace", "kube-system")
    cluster.run(*flags, "--node", "worker-1", "version")
    assert len(cluster.asked()) == 2
    for asked in cluster.asked():
        assert asked[:6] == ["--context", "lab", "--kubeconfig", "/k", "--namespace", "kube-system"]


def test_only_the_pods_of_the_node_are_asked_for(cluster: Cluster) -> None:
    cluster.run("--node", "worker-1", "version")
    assert "spec.nodeName=worker-1" in cluster.asked()[0]


def test_several_nodes_take_turns_and_the_highest_exit_code_is_the_plugins(cluster: Cluster) -> None:
    done = cluster.run("--node", "worker-2", "--node", "worker-1", "status")
    assert done.stdout == "netagent-2 status\nnetagent-1 status\n"
    assert done.stderr == "netagent: node worker-2\nnetagent: node worker-1\n"
    assert done.returncode == 8


def test_all_nodes_are_those_with_a_pod_and_one_that_does_not_run_is_named(cluster: Cluster) -> None:
    done = cluster.run("--all-nodes", "status")
    assert done.returncode == 3
    assert "on node worker-3, the pod netagent-3 is Pending, not Running" in done.stderr
    (cluster.place / "pods").write_text(json.dumps(PODS[:3]))
    assert cluster.run("--all-nodes", "status").stdout == "netagent-1 status\nnetagent-2 status\n"


@pytest.mark.parametrize("words", [("-f", "change.yaml"), ("-fchange.yaml",), ("--filename=change.yaml",)])
def test_a_file_is_read_here_and_handed_to_the_pod(words: tuple[str, ...], cluster: Cluster) -> None:
    (cluster.place / "change.yaml").write_text("kind: Service\n")
    done = cluster.run("--node", "worker-1", "whatif", *words)
    assert done.stdout == "netagent-1 whatif -f -\nkind: Service\n\n"
    assert "--stdin" in cluster.asked()[1]


def test_standard_input_reaches_every_node(cluster: Cluster) -> None:
    done = cluster.run("--node", "worker-1", "--node", "worker-2", "whatif", "-f", "-", text="kind: Node\n")
    assert done.stdout.count("kind: Node\n") == 2


def test_standard_input_of_a_script_is_left_alone(cluster: Cluster) -> None:
    cluster.run("--node", "worker-1", "status", text="worker-2\n")
    assert "--stdin" not in cluster.asked()[1]


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("--node", "worker-9", "status"), 3, "there is no pod of netagent"),
        (("--node", "worker-4", "status"), 3, "there is no pod of netagent"),
        (("--node", "worker-3", "status"), 3, "netagent-3 is Pending"),
        (("--agent-namespace", "other", "--all-nodes", "status"), 3, "no pod of netagent"),
        (("--node", "worker-1", "whatif", "-f", "missing.yaml"), 3, "cannot read missing.yaml"),
        (("--node", "worker-1", "whatif", "-f"), 2, "-f needs a file"),
        (("--node", "worker-1", "diff", "-f", "a", "-f", "b"), 2, "-f may be given once"),
        (("--node", "worker-1", "--all-nodes", "status"), 2, "exclude each other"),
        (("status", "--node"), 2, "--node needs the name of a node"),
        (("--node", "worker-1"), 2, "there is no command"),
        (("--nod", "worker-1", "status"), 2, "No such option"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: tuple[str, ...], code: int, complaint: str, cluster: Cluster
) -> None:
    done = cluster.run(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_what_kubectl_says_is_heard(cluster: Cluster) -> None:
    done = cluster.run("--node", "worker-1", "status", REFUSED="yes")
    assert done.returncode == 3
    assert "Error from server (Forbidden)" in done.stderr


def test_a_missing_kubectl_is_named(cluster: Cluster) -> None:
    done = cluster.run("--node", "worker-1", "status", PATH="/nonexistent")
    assert (done.returncode, done.stderr) == (
        5,
        "netagent: there is no kubectl on the PATH, by which the pods are reached\n",
    )


def test_without_a_node_the_command_runs_on_this_machine(cluster: Cluster) -> None:
    done = cluster.run("version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "netagent")
    assert done.stderr == "netagent: on this machine; --node NODE is for the pod on a node\n"
    assert cluster.asked() == []
    refused = cluster.run("dump", "-f", "missing")
    assert refused.returncode == 3


def test_help_lists_netagents_commands(cluster: Cluster) -> None:
    for words in ((), ("--help",), ("-h",)):
        said = cluster.run(*words)
        text = said.stdout + said.stderr
        assert text.startswith("Usage: kubectl netagent [--node NODE]...")
        assert "\n  diff " in text
        assert "\n  cleanup " in text


def test_words_after_two_dashes_are_the_commands(cluster: Cluster) -> None:
    assert kubectl.lifted(["get", "--", "--node"], nodes=("a",), everywhere=False) == kubectl.Request(
        ("get", "--", "--node"), ("a",), False
    )


def test_a_node_that_is_named_twice_is_asked_once() -> None:
    assert kubectl.lifted(["--node", "a", "status", "--node", "a"], nodes=("a",), everywhere=False).nodes == ("a",)


def test_an_empty_list_of_pods_is_an_error_and_not_silence() -> None:
    with pytest.raises(errors.SourceError, match="no pod of netagent"):
        kubectl.running({"items": []}, wanted=())


def test_the_label_is_the_one_that_the_daemonset_gives_its_pods() -> None:
    daemonset = yaml.safe_load((TOP / "deploy/base/daemonset.yaml").read_text())
    template = daemonset["spec"]["template"]
    key, _, value = kubectl._PODS.partition("=")
    assert template["metadata"]["labels"][key] == value
    assert [container["name"] for container in template["spec"]["containers"]] == [kubectl._CONTAINER]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("--node", "worker-1", "dif"), ["diff\tPrint what a sync would do."]),
        (("--node", ""), ["worker-1", "worker-2", "worker-3"]),
        (("status", "--node", "worker-2"), ["worker-2"]),
        (("--agent-namespace", "other", "--node", ""), []),
        (("completion", "z"), ["zsh"]),
    ],
)
def test_kubectl_is_told_what_fits(words: tuple[str, ...], offered: list[str], cluster: Cluster) -> None:
    done = cluster.run(*words, program=kubectl.complete)
    assert done.stdout.splitlines() == [*offered, ":4"]
    assert done.stderr == ""


def test_where_kubectl_does_not_tell_no_node_is_offered(cluster: Cluster) -> None:
    assert cluster.run("--node", "", program=kubectl.complete, REFUSED="yes").stdout == ":4\n"
    assert cluster.run("--node", "", program=kubectl.complete, PATH="/nonexistent").stdout == ":4\n"
