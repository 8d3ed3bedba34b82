"""Data planes that cases are replayed against: the contract, and those that need nothing but a command."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from . import universe

Manifest = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """What a data plane is given: the node to run in, and the files that say what is wanted.

    `manifests` holds one JSON file for each current object, `config_file` a KubeProxyConfiguration. Both are there
    before the data plane is made, the objects of a step before its `apply`.
    """

    node: universe.Namespace
    node_name: str
    mode: str
    manifests: Path
    config_file: Path

    def filled(self, argv: Sequence[str]) -> list[str]:
        """A command line with {manifests}, {config}, {node} and {mode} filled in."""
        names = {"manifests": str(self.manifests), "config": str(self.config_file)}
        return [part.format(**names, node=self.node_name, mode=self.mode) for part in argv]


class DataPlane(Protocol):
    """Whatever programs the kernel of the node under test.

    Optional: `restart_agent()`, `stop_agent()`, `start_agent()`, `cleanup()`; a case whose actions need one that is
    not there is skipped. After `stop_agent` or `cleanup`, `apply` is not called until the agent is started again.
    `close()` is called at the end of a case and must end every process that was started.
    """

    def apply(self, step_number: int, objects: list[Manifest], config: dict[str, Any]) -> None:
        """Return when the node forwards according to `objects`, all that exist after step `step_number` (from 1).

        The same objects are in the site's directory. An exception fails the case.
        """

    def close(self) -> None:
        """End what was started. The namespaces go away after that."""


Factory = Callable[[Site], DataPlane]


class Nothing:
    """A node without any data plane: every packet passes through. Shows what the harness itself does."""

    def __init__(self, site: Site) -> None:
        del site

    def apply(self, step_number: int, objects: list[Manifest], config: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class Command:
    """Runs one command to its end at every step, such as `netagent sync`.

    `argv` may contain {manifests}, {config}, {node} and {mode}. A failing command fails the case with its own words.
    """

    def __init__(self, site: Site, argv: Sequence[str], *, seconds: float = 120) -> None:
        self._site = site
        self._argv = site.filled(argv)
        self._seconds = seconds

    @classmethod
    def factory(cls, argv: Sequence[str]) -> Factory:
        """A factory for `replay`."""
        return lambda site: cls(site, argv)

    def apply(self, step_number: int, objects: list[Manifest], config: dict[str, Any]) -> None:
        self._site.node.run(self._argv, timeout=self._seconds)

    def close(self) -> None:
        pass


class Agent:
    """Keeps an agent running that watches the directory itself, such as `netagent run`.

    `argv` as for Command. `in_sync(site, step_number)` says whether the agent is through with what the directory
    holds; it is asked every 20 ms. An agent that ends by itself, or is not in sync in time, fails the case with what
    it wrote last. Owns: the process, its log file next to the manifests.
    """

    def __init__(
        self, site: Site, argv: Sequence[str], in_sync: Callable[[Site, int], bool], *, seconds: float = 60
    ) -> None:
        self._site = site
        self._argv = site.filled(argv)
        self._in_sync = in_sync
        self._seconds = seconds
        self._log = site.manifests.with_name("agent.log")
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def factory(cls, argv: Sequence[str], in_sync: Callable[[Site, int], bool]) -> Factory:
        """A factory for `replay`."""
        return lambda site: cls(site, argv, in_sync)

    def apply(self, step_number: int, objects: list[Manifest], config: dict[str, Any]) -> None:
        if self._process is None:
            self.start_agent()
        until = time.monotonic() + self._seconds
        while not self._in_sync(self._site, step_number):
            ended = self._process.poll() if self._process else None
            if ended is not None or time.monotonic() > until:
                fate = f"exited with {ended}" if ended is not None else f"is not in sync after {self._seconds} s"
                raise RuntimeError(f"the agent {fate}: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def start_agent(self) -> None:
        """Start the agent; it is not waited for."""
        with self._log.open("ab") as log:
            self._process = self._site.node.popen(self._argv, stdout=log, stderr=log)

    def stop_agent(self) -> None:
        """End the agent by SIGTERM, by SIGKILL if that takes 10 s."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart_agent(self) -> None:
        """Stop, start."""
        self.stop_agent()
        self.start_agent()

    def close(self) -> None:
        self.stop_agent()


def dumps(document: dict[str, Any]) -> str:
    """A document as text that both JSON and YAML readers take."""
    return json.dumps(document, indent=1) + "\n"


def write_object(directory: Path, manifest: Manifest) -> None:
    """Put an object into the directory; a reader sees the old file or the new one, never half of it."""
    target = directory / file_name(manifest)
    temporary = target.with_name(f".{target.name}.new")
    temporary.write_text(dumps(manifest))
    os.replace(temporary, target)


def remove_object(directory: Path, manifest: Manifest) -> None:
    """Take an object out of the directory. FileNotFoundError if it was not there."""
    (directory / file_name(manifest)).unlink()


def file_name(manifest: Manifest) -> str:
    """The file of an object: kind, namespace and name. Takes manifests as well as a case's `delete` entries."""
    metadata = manifest.get("metadata") or manifest
    return f"{manifest['kind']}_{metadata.get('namespace') or ''}_{metadata['name']}.json".lower()


def kube_proxy_configuration(settings: dict[str, Any], mode: str) -> dict[str, Any]:
    """The KubeProxyConfiguration document that says what a case's flat settings say."""
    settings = dict(settings)
    shared = {
        key: settings.pop(key)
        for key in ("masqueradeAll", "masqueradeBit", "minSyncPeriod", "syncPeriod")
        if key in settings
    }
    localhost = settings.pop("localhostNodePorts", None)
    sections: dict[str, Any] = {"nftables": shared, "iptables": dict(shared)}
    if localhost is not None:
        sections["iptables"]["localhostNodePorts"] = localhost
    if "conntrack" in settings:
        sections["conntrack"] = settings.pop("conntrack")
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        **settings,
        **sections,
    }
