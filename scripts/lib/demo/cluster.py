"""What the manifests say: Services, and the pods behind them. No network."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Document = dict[str, Any]


class Port(NamedTuple):
    """A port that a pod answers on; the protocol is "tcp" or "udp"."""

    protocol: str
    number: int


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod: its name, the name of its node, its addresses as text, at most one of each family, and its ports."""

    name: str
    node: str
    addresses: tuple[str, ...]
    ports: tuple[Port, ...] = ()


class Manifests:
    """A directory of manifests of our own, that we may change.

    Owns: the directory. Use: the pods and Services as they stand at first; then `scale`.
    """

    def __init__(self, examples: Path, directory: Path) -> None:
        """Copy the examples. OSError or yaml.YAMLError if they cannot be read."""
        self.directory = directory
        self._documents: dict[str, list[Document]] = {}
        for path in sorted(examples.glob("*.yaml")):
            text = path.read_text()
            (directory / path.name).write_text(text)
            self._documents[path.name] = [document for document in yaml.safe_load_all(text) if document]

    def service(self, name: str) -> Document:
        """The Service of this name. LookupError if there is none."""
        found = [one for one in self._all("Service") if one["metadata"]["name"] == name]
        if len(found) != 1:
            raise LookupError(f"the examples have {len(found)} Services named {name!r}, and the demo needs one")
        return found[0]

    def slices(self, service: str) -> list[Document]:
        """The EndpointSlices of a Service."""
        return [
            one
            for one in self._all("EndpointSlice")
            if one["metadata"]["labels"]["kubernetes.io/service-name"] == service
        ]

    def pods(self, service: str | None = None) -> list[Pod]:
        """The pods behind one Service, or behind all."""
        slices = self.slices(service) if service else self._all("EndpointSlice")
        found: dict[str, Pod] = {}
        for one in slices:
            ports = tuple(Port(port["protocol"].lower(), port["port"]) for port in one["ports"])
            for endpoint in one["endpoints"]:
                name = endpoint["targetRef"]["name"]
                pod = found.get(name) or Pod(name, endpoint["nodeName"], (), ports)
                found[name] = dataclasses.replace(pod, addresses=(*pod.addresses, *endpoint["addresses"]))
        return list(found.values())

    def scale(self, service: str, pods: Iterable[Pod]) -> None:
        """Make these the pods behind a Service: rewrite the file that has its slices, in one step."""
        members = list(pods)
        name = next(name for name, documents in self._documents.items() if _is_of(service, documents))
        documents = copy.deepcopy(self._documents[name])
        for one in documents:
            if one["kind"] == "EndpointSlice":
                wanted = ":" if one["addressType"] == "IPv6" else "."
                one["endpoints"] = [
                    {"addresses": [address], "nodeName": pod.node, "targetRef": {"kind": "Pod", "name": pod.name}}
                    for pod in members
                    for address in pod.addresses
                    if wanted in address
                ]
        # A hidden name is no manifest; the rename makes it one at once and complete.
        draft = self.directory / f".{name}"
        draft.write_text(yaml.safe_dump_all(documents, sort_keys=False))
        os.replace(draft, self.directory / name)

    def _all(self, kind: str) -> list[Document]:
        return [one for documents in self._documents.values() for one in documents if one["kind"] == kind]


def _is_of(service: str, documents: list[Document]) -> bool:
    return any(one["kind"] == "Service" and one["metadata"]["name"] == service for one in documents)
