"""The steps of the behaviour cases as worlds to explain: the objects after each step, the host, and who connects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from netagent import settings
from netagent.agent import planner
from netagent.explain import world
from netagent.explain.story import Client, SourceKind
from netagent.model import addresses, objects
from netagent.source import decode
from netagent.source.faults import BadObject
from netagent.source.kinds import Kind, ObjectKey, key_for, object_key
from tests.cases import loader

_WITHOUT_AGENT = ("cleanup", "stop-agent", "flush-ruleset")
_KINDS = {"host": SourceKind.NODE, "pod": SourceKind.POD}


class Step(NamedTuple):
    """The world after a step of a case, and the flows that are checked there."""

    place: str
    world: world.World
    flows: tuple[Mapping[str, Any], ...]


def steps(case: Mapping[str, Any]) -> Iterator[Step]:
    """The steps of a case, each planned anew from its objects. Not those in which the agent does not run."""
    defaults = loader.plan()["defaults"]
    wanted = settings_of({**defaults, **case["config"]})
    name = settings.node_name_of(wanted, None, case["node"]["name"])
    current: dict[ObjectKey, objects.Object] = {}
    last_node: objects.Node | None = None
    for number, step in enumerate(case["steps"], 1):
        for gone in step.get("delete", ()):
            current.pop(key_for(Kind(gone["kind"]), gone.get("namespace") or "", gone["name"]), None)
        for manifest in step["apply"]:
            _apply(current, manifest)
        node = current.get((Kind.NODE, name), last_node)
        assert node is None or isinstance(node, objects.Node)
        last_node = node
        if step.get("action", {}).get("type") in _WITHOUT_AGENT:
            return
        plan = planner.Planner(wanted, node_name=name)
        found = [*current.values(), *([node] if node else [])]
        plan.store.replace(found)
        plan.replan()
        own = case["node"]
        texts = [*own["ips"], *own.get("extra_ips", ()), *own.get("gateway_ips", ())]
        made = world.world_of(plan, others=found, host_addresses=map(addresses.parse_address, texts))
        yield Step(f"{case['id']}, step {number}", made, tuple(step["flows"]))


def explainable(flow: Mapping[str, Any]) -> bool:
    """Whether a flow begins a connection by a port: an existing connection is nothing that rules decide."""
    return flow["proto"] != "icmp" and "reuse" not in flow and "stream" not in flow


def has_connections(case: Mapping[str, Any]) -> bool:
    """Whether `steps` gives a flow that is explainable."""
    for step in case["steps"]:
        if step.get("action", {}).get("type") in _WITHOUT_AGENT:
            return False
        if any(map(explainable, step["flows"])):
            return True
    return False


def client_of(flow: Mapping[str, Any], source: str) -> Client:
    """Who makes a flow."""
    kind = _KINDS.get(flow["from"].partition(":")[0], SourceKind.OUTSIDE)
    return Client(kind, addresses.parse_address(source))


def settings_of(config: Mapping[str, Any], mode: str = "nftables") -> settings.Settings:
    """The settings of a case, by way of the file that an operator would write."""
    of_mode = ("masqueradeAll", "masqueradeBit", "minSyncPeriod", "syncPeriod")
    document = {
        "apiVersion": settings.API_VERSION,
        "kind": settings.KIND,
        "mode": mode,
        "nftables": {key: config[key] for key in of_mode if key in config},
        **{key: value for key, value in config.items() if key not in (*of_mode, "localhostNodePorts")},
    }
    return settings.parse(json.dumps(document), origin="case").settings


def _apply(current: dict[ObjectKey, objects.Object], manifest: Mapping[str, Any]) -> None:
    """Take one object; a bad one leaves the version before it in place."""
    try:
        item = decode.decode(Kind(manifest["kind"]), json.dumps(manifest).encode(), [])
    except BadObject:
        return
    current[object_key(item)] = item
