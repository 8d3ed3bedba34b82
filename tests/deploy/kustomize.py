"""As much of kustomize as deploy/ uses: resources, and JSON patches (RFC 6902) by kind and name. Refuses all else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_HEADER = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


def build(directory: Path) -> list[Manifest]:
    """The objects that `kubectl kustomize DIRECTORY` prints, in another order."""
    wanted = yaml.safe_load((directory / "kustomization.yaml").read_text())
    unknown = wanted.keys() - {*_HEADER, "namespace", "resources", "patches"}
    assert not unknown, f"{directory}: this small kustomize does not know {unknown}"
    assert {key: wanted[key] for key in _HEADER} == _HEADER
    manifests: list[Manifest] = []
    for name in wanted["resources"]:
        path = directory / name
        manifests += build(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    for patch in wanted.get("patches", ()):
        target = patch["target"]
        found = [
            manifest
            for manifest in manifests
            if (manifest["kind"], manifest["metadata"]["name"]) == (target["kind"], target["name"])
        ]
        assert found, f"{directory}: nothing to patch: {target}"
        for manifest in found:
            for operation in yaml.safe_load(patch["patch"]):
                _apply(manifest, **operation)
    if "namespace" in wanted:
        assert all(
            manifest["metadata"]["namespace"] == wanted["namespace"]
            for manifest in manifests
            if not manifest["kind"].startswith("Cluster")
        ), "write the namespace into the manifests, so that one can read them"
    return manifests


def _apply(document: Any, *, op: str, path: str, value: Any = None) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path.removeprefix("/").split("/")]
    where = document
    for part in parents:
        where = where[int(part)] if isinstance(where, list) else where[part]
    value = copy.deepcopy(value)
    match op, where:
        case "add", list():
            where.insert(len(where) if last == "-" else int(last), value)
        case "add", dict():
            where[last] = value
        case "replace", list():
            where[int(last)] = value
        case "replace", dict():
            assert last in where, f"nothing to replace at {path}"
            where[last] = value
        case "remove", list():
            del where[int(last)]
        case "remove", dict():
            del where[last]
        case _:
            raise AssertionError(f"this small kustomize does not know {op}")
