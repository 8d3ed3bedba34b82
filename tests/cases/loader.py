"""Reads the behaviour cases of this directory, checks them, and hands them out as plain dicts.

`load_all()` returns every case, `load(path)` one, `plan()` the defaults and addresses that all of them share. In a
returned case the manifests of each step stand as dicts under `apply` (files in name order), every object has a
`metadata.uid`, every step has `apply` and `flows`, and `id` is the name of the directory. README.md describes the
form. A case that contradicts itself, the plan or its manifests is refused with a CaseError that names the place.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent

AREAS = (
    "clusterip", "service-selection", "endpointslice", "nodeport", "externalip", "loadbalancer",
    "source-ranges", "traffic-policy", "masquerade", "hairpin", "affinity", "terminating", "topology",
    "dual-stack", "no-endpoints", "undefined-port", "conntrack", "node-changes", "sync-lifecycle",
    "healthcheck-nodeport", "agent-health", "metrics-events",
)  # fmt: skip
KINDS = ("Service", "EndpointSlice", "Node", "ServiceCIDR")
PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
SOURCES = ("pod", "host", "outside", "node", "remote-pod")  # and pod:ADDRESS
STANCES = ("states-desired", "mirrors-upstream")
ACTIONS = (
    "restart-agent", "start-agent", "stop-agent", "start-without-node", "sleep", "burst", "flush-ruleset",
    "add-foreign-rules", "cleanup", "occupy-port", "release-port", "fail-dataplane", "heal-dataplane",
    "api-down", "api-up", "api-down-up",
)  # fmt: skip

# What a harness must provide; a case that lists one of these is skipped where it is missing.
REQUIREMENTS = (
    "ipv6",
    "sctp",
    "slow",
    "conntrack injection",
    "raw-packet server",
    "lb-ip-on-node",
    "pods attached to bridge pods0",
    "host side of pod links named veth*",
)

_CASE_KEYS = ({"title", "area", "modes", "node", "steps"}, {"config", "requires", "upstream_divergence"})
_NODE_KEYS = ({"name", "zone", "ips", "podCIDRs", "gateway_ips"}, {"extra_ips"})
_STEP_KEYS: tuple[set[str], set[str]] = (
    set(),
    {"note", "action", "delete", "apply", "flows", "healthcheck", "agent_health", "metrics", "events", "agent"}
    | {"conntrack_seed", "conntrack_deleted", "conntrack_kept"},
)
_FLOW_KEYS = (
    {"from", "src", "proto", "dst", "expect"},
    {"dport", "count", "interval_s", "covers_all", "min_share", "sticky", "sources", "sticky_per_source"}
    | {"remember", "same_as", "sport", "stream", "concurrent", "hold", "reuse", "keep_busy_s", "listener", "mark"}
    | {"inject", "expect_no_client_rst", "expect_source_preserved", "expect_by_mode"},
)
_EXPECT_KEYS = {
    "endpoints": ({"result", "endpoints", "masquerade"}, {"reply_bypasses_node", "unchanged"}),
    "alive": ({"result", "endpoints"}, set()),
    "reject": ({"result"}, set()),
    "drop": ({"result"}, set()),
    "passthrough": ({"result"}, set()),
}
_CONFIG_KEYS = {
    "detectLocalMode", "clusterCIDR", "detectLocal", "masqueradeAll", "masqueradeBit", "nodePortAddresses",
    "localhostNodePorts", "minSyncPeriod", "syncPeriod", "hostnameOverride",
}  # fmt: skip

# A fair choice may miss an endpoint in a flow that asks for all of them this often, not more.
_TOLERATED_MISS = 1e-4

_Yaml = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CaseError(ValueError):
    """A case is not well-formed; the message begins with its id and the place."""


def load_all() -> list[dict[str, Any]]:
    """Return every case, ordered by id. CaseError at the first that is not well-formed."""
    return [load(path) for path in case_directories()]


def case_directories() -> list[Path]:
    """The directories of the cases, in name order."""
    return sorted(file.parent for file in HERE.glob("*/case.yaml"))


@functools.cache
def plan() -> dict[str, Any]:
    """Return plan.yaml: `defaults` (settings) and `address_plan`."""
    shared: dict[str, Any] = _read_yaml(HERE / "plan.yaml")[0]
    return shared


def load(path: Path | str) -> dict[str, Any]:
    """Return the case in the directory `path`, complete and checked. CaseError if it is not well-formed."""
    directory = Path(path)
    documents = _read_yaml(directory / "case.yaml")
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise CaseError(f"{directory.name}: case.yaml must hold one mapping")
    case = {"id": directory.name, "config": {}, **documents[0]}
    case["steps"] = [
        _resolve_step(directory, step, f"{case['id']}, step {number}")
        for number, step in enumerate(case.get("steps") or (), 1)
    ]
    _Checker(case).check()
    unused = {entry.name for entry in directory.iterdir()} - {"case.yaml", *_step_directories(documents[0])}
    if unused:
        raise CaseError(f"{case['id']}: no step applies {', '.join(sorted(unused))}")
    return case


def endpoints_of(slice_: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The (protocol, address:port) pairs that an EndpointSlice lists, whatever their conditions."""
    for port in slice_.get("ports") or ():
        for endpoint in slice_.get("endpoints") or ():
            if port.get("port") and endpoint.get("addresses") and slice_["addressType"] != "FQDN":
                try:
                    address = _address(endpoint["addresses"][0])
                except ValueError:
                    continue  # some cases hold unreadable addresses on purpose
                text = f"[{address}]" if address.version == 6 else str(address)
                yield port.get("protocol", "TCP").lower(), f"{text}:{port['port']}"


def _step_directories(case: dict[str, Any]) -> Iterator[str]:
    return (step["apply"] for step in case["steps"] if "apply" in step)


def _resolve_step(directory: Path, step: dict[str, Any], place: str) -> dict[str, Any]:
    manifests: list[dict[str, Any]] = []
    if "apply" in step:
        files = sorted((directory / step["apply"]).glob("*.yaml"))
        if not files:
            raise CaseError(f"{place}: {step['apply']} holds no manifests")
        manifests = [_with_uid(document, f"{place}, {file.name}") for file in files for document in _read_yaml(file)]
    return {"flows": [], **step, "apply": manifests}


def _with_uid(manifest: dict[str, Any], place: str) -> dict[str, Any]:
    if (
        not isinstance(manifest, dict)
        or manifest.get("kind") not in KINDS
        or "name" not in manifest.get("metadata", {})
    ):
        raise CaseError(f"{place}: not a named {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    uid = str(uuid.uuid5(uuid.NAMESPACE_URL, "netagent/" + "/".join(map(str, _key(manifest)))))
    return {**manifest, "metadata": {"uid": uid, **manifest["metadata"]}}


def _key(manifest: dict[str, Any]) -> tuple[str, str | None, str]:
    return manifest["kind"], manifest["metadata"].get("namespace"), manifest["metadata"]["name"]


def _read_yaml(file: Path) -> list[Any]:
    try:
        return list(yaml.load_all(file.read_text(), Loader=_Yaml))  # a safe loader, see above
    except (OSError, yaml.YAMLError) as error:
        raise CaseError(f"{file.parent.name}: cannot read {file.name}: {error}") from error


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as an old API server may have spelt it: leading zeros in dotted quads are decimal."""
    if ":" not in text:
        text = ".".join(str(int(part)) for part in text.strip().split("."))
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _inside(address: str, networks: Iterable[str]) -> bool:
    parsed = ipaddress.ip_address(address)
    return any(
        parsed in network for network in map(ipaddress.ip_network, networks) if network.version == parsed.version
    )


class _Checker:
    """Walks one case in the order of its steps and refuses what does not fit.

    Owns what the steps so far have built up: the objects that exist, the endpoints ever listed, the names of
    remembered endpoints, held connections and UDP streams.
    """

    def __init__(self, case: dict[str, Any]) -> None:
        self._case = case
        self._place = case["id"]
        self._objects: dict[tuple[str, str | None, str], dict[str, Any]] = {}
        self._past_endpoints: set[tuple[str, str]] = set()
        self._remembered: set[str] = set()
        self._held: set[str] = set()
        self._streams: dict[str, tuple[Any, ...]] = {}
        self._needed: set[str] = set()

    def check(self) -> None:
        case = self._case
        self._keys({key: case[key] for key in case if key != "id"}, _CASE_KEYS, "case")
        self._require(case["area"] in AREAS, f"unknown area {case['area']!r}")
        self._require(case["id"].startswith(case["area"] + "-"), "the directory's name must begin with the area")
        self._require(bool(case["modes"]) and set(case["modes"]) <= {"nftables", "iptables"}, "bad modes")
        self._require(set(case["config"]) <= _CONFIG_KEYS, f"unknown setting in {sorted(case['config'])}")
        self._require(bool(case["steps"]), "no steps")
        if divergence := case.get("upstream_divergence"):
            self._keys(divergence, ({"stance", "why"}, set()), "upstream_divergence")
            self._require(divergence["stance"] in STANCES, f"unknown stance {divergence['stance']!r}")
        self._check_node()
        for number, step in enumerate(case["steps"], 1):
            self._place = f"{case['id']}, step {number}"
            self._check_step(step)
        self._place = case["id"]
        self._check_requirements()

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise CaseError(f"{self._place}: {otherwise}")

    def _keys(self, mapping: dict[str, Any], keys: tuple[set[str], set[str]], what: str) -> None:
        required, optional = keys
        missing, unknown = required - set(mapping), set(mapping) - required - optional
        self._require(not missing, f"{what} lacks {', '.join(sorted(missing))}")
        self._require(not unknown, f"{what} has unknown {', '.join(sorted(unknown))}")

    def _check_node(self) -> None:
        node, addresses = self._case["node"], plan()["address_plan"]
        self._keys(node, _NODE_KEYS, "node")
        planned = addresses["nodes"].get(node["name"])
        self._require(planned is not None and "pod gateway" in planned, f"{node['name']} is not the node under test")
        for key, planned_key in (("ips", "ips"), ("podCIDRs", "podCIDRs"), ("gateway_ips", "pod gateway")):
            self._require(set(node[key]) <= set(planned[planned_key]), f"node.{key} is not in plan.yaml")
        vips = addresses["service addresses"]["VIPs"]
        for address in node.get("extra_ips", ()):
            on_node = _inside(address, vips)
            self._require(on_node or address in planned["extra"], f"{address} is not in plan.yaml")
            self._needed |= {"lb-ip-on-node"} if on_node else set()
        nodes = [m for m in self._case["steps"][0]["apply"] if m["kind"] == "Node"]
        self._require(len(nodes) == 1 and nodes[0]["metadata"]["name"] == node["name"], "step 1 must hold the Node")
        self._require(
            nodes[0]["spec"]["podCIDRs"] == _prefix_of(node["podCIDRs"], nodes[0]), "podCIDRs of the Node differ"
        )
        internal = [a["address"] for a in nodes[0]["status"]["addresses"] if a["type"] == "InternalIP"]
        self._require(internal == node["ips"], "addresses of the Node differ from node.ips")
        zone = nodes[0]["metadata"]["labels"].get("topology.kubernetes.io/zone")
        self._require(zone == node["zone"], "zone of the Node differs from node.zone")
        if any(":" in ip for ip in node["ips"]):
            self._needed.add("ipv6")

    def _check_step(self, step: dict[str, Any]) -> None:
        self._keys(step, _STEP_KEYS, "step")
        self._require(len(step) > 2 or bool(step["apply"]) or bool(step["flows"]), "an empty step")
        if action := step.get("action"):
            self._require(action.get("type") in ACTIONS, f"unknown action {action!r}")
        for target in step.get("delete", ()):
            key = (target.get("kind"), target.get("namespace"), target.get("name"))
            self._require(key in self._objects, f"deletes {'/'.join(map(str, key))}, which does not exist")
            del self._objects[key]
        for manifest in step["apply"]:
            self._objects[_key(manifest)] = manifest
        current = {
            pair for (kind, _, _), m in self._objects.items() if kind == "EndpointSlice" for pair in endpoints_of(m)
        }
        self._past_endpoints |= current
        for number, flow in enumerate(step["flows"], 1):
            place, self._place = self._place, f"{self._place}, flow {number}"
            self._check_flow(flow, current)
            self._place = place
        self._check_conntrack(step)

    def _check_flow(self, flow: dict[str, Any], current: set[tuple[str, str]]) -> None:
        self._keys(flow, _FLOW_KEYS, "flow")
        self._require(flow["proto"] in PROTOCOLS, f"unknown protocol {flow['proto']!r}")
        self._require(
            (flow["proto"] == "icmp") == ("dport" not in flow), "dport is for tcp, udp and sctp, and needed there"
        )
        for source in [flow["src"], *flow.get("sources", ())]:
            self._check_source(flow["from"], source)
        self._check_destination(flow["dst"])
        self._require((":" in flow["src"]) == (":" in flow["dst"]), "src and dst are of different families")
        self._needed |= {"sctp"} if flow["proto"] == "sctp" else set()
        self._needed |= {"ipv6"} if ":" in flow["src"] else set()
        self._needed |= {"raw-packet server"} if "inject" in flow else set()
        idle = (flow.get("count", 1) - 1) * flow.get("interval_s", 0) + flow.get("keep_busy_s", 0)
        self._needed |= {"slow"} if idle > 3 else set()
        for expect in [flow["expect"], *flow.get("expect_by_mode", {}).values()]:
            self._check_expect(flow, expect, current)
        self._check_memory(flow)

    def _check_source(self, kind: str, source: str) -> None:
        node = self._case["node"]
        planned = plan()["address_plan"]
        others = [other for name, other in planned["nodes"].items() if name != node["name"]]
        if kind.startswith("pod:"):
            self._require(kind == f"pod:{source}", f"{kind} with src {source}")
            kind = "pod"
        self._require(kind in SOURCES, f"unknown source {kind!r}")
        fits = {
            "pod": _inside(source, node["podCIDRs"]) and source not in node["gateway_ips"],
            "host": source in {*node["ips"], *node.get("extra_ips", ()), "127.0.0.1", "::1"},
            "outside": _inside(source, planned["outside networks"]),
            "node": any(source in other["ips"] for other in others),
            "remote-pod": any(_inside(source, other["podCIDRs"]) for other in others),
        }
        self._require(fits[kind], f"{source} is no address of a client of kind {kind}")

    def _check_destination(self, destination: str) -> None:
        planned = plan()["address_plan"]
        node = self._case["node"]
        known = {*node["ips"], *node.get("extra_ips", ()), *node["gateway_ips"], "127.0.0.1", "::1"}
        known |= {ip for other in planned["nodes"].values() for ip in other["ips"]} - set(node["ips"])
        networks = [network for some in planned["service addresses"].values() for network in some]
        self._require(destination in known or _inside(destination, networks), f"dst {destination} is not in plan.yaml")

    def _check_expect(self, flow: dict[str, Any], expect: dict[str, Any], current: set[tuple[str, str]]) -> None:
        result = str(expect.get("result"))
        self._require(result in _EXPECT_KEYS, f"unknown result {result!r}")
        self._keys(expect, _EXPECT_KEYS[result], f"expect ({result})")
        self._require((result == "alive") == ("reuse" in flow), "alive is the result of reuse and of nothing else")
        known = self._past_endpoints if result == "alive" else current
        endpoints = expect.get("endpoints", [])
        for endpoint in endpoints:
            self._require((flow["proto"], endpoint) in known, f"no slice lists {flow['proto']} {endpoint}")
        self._require(("endpoints" in expect) == bool(endpoints), "an empty list of endpoints")
        if result != "endpoints":
            return
        masquerade = expect["masquerade"]
        if isinstance(masquerade, dict):
            self._require(set(masquerade) == set(endpoints), "masquerade does not name exactly the endpoints")
        else:
            self._require(isinstance(masquerade, bool), "masquerade is neither true, false nor a mapping")
        bypassing = [e for e in endpoints if self._reply_bypasses_node(flow, e, masquerade)]
        self._require(expect.get("reply_bypasses_node", []) == bypassing, f"reply_bypasses_node must be {bypassing}")
        if flow.get("covers_all"):
            draws = len(flow["sources"]) if flow.get("sticky_per_source") else flow.get("count", 1)
            miss = len(endpoints) * (1 - 1 / len(endpoints)) ** draws
            self._require(miss < _TOLERATED_MISS, f"{draws} connections may miss an endpoint by chance")

    def _reply_bypasses_node(self, flow: dict[str, Any], endpoint: str, masquerade: bool | dict[str, bool]) -> bool:
        """Client and endpoint are both elsewhere and nothing makes the answer come back through the node."""
        masqueraded = masquerade[endpoint] if isinstance(masquerade, dict) else masquerade
        address = re.sub(r"[][]|:\d+$", "", endpoint)
        local = _inside(address, self._case["node"]["podCIDRs"])
        return not masqueraded and not local and flow["from"] in ("outside", "node", "remote-pod")

    def _check_memory(self, flow: dict[str, Any]) -> None:
        if name := flow.get("same_as"):
            self._require(name in self._remembered, f"same_as {name!r} before anything was remembered by that name")
        if name := flow.get("reuse"):
            self._require(name in self._held, f"reuse {name!r} of a connection that nobody held")
        if name := flow.get("stream"):
            tuple_ = tuple(flow.get(key) for key in ("from", "src", "proto", "sport", "dst", "dport"))
            self._require("sport" in flow and flow["proto"] == "udp", "a stream is UDP with a fixed sport")
            self._require(self._streams.setdefault(name, tuple_) == tuple_, f"stream {name!r} changes its five-tuple")
        self._remembered |= {flow["remember"]} if "remember" in flow else set()
        self._held |= {flow["hold"]} if "hold" in flow else set()

    def _check_conntrack(self, step: dict[str, Any]) -> None:
        seed = step.get("conntrack_seed", [])
        for entry in seed:
            self._keys(entry, ({"id", "proto", "orig", "reply"}, set()), "conntrack_seed")
            for side in (entry["orig"], entry["reply"]):
                self._keys(side, ({"src", "sport", "dst", "dport"}, set()), "conntrack_seed")
            self._needed |= {"conntrack injection"} | ({"sctp"} if entry["proto"] == "sctp" else set())
        outcomes = step.get("conntrack_deleted", []) + step.get("conntrack_kept", [])
        self._require(
            sorted(outcomes) == sorted(entry["id"] for entry in seed), "every seeded entry is deleted or kept, once"
        )
        tuples = {(entry["proto"], *entry["orig"].values()) for entry in seed}
        self._require(len(tuples) == len(seed), "two seeded entries have the same original direction")

    def _check_requirements(self) -> None:
        listed = set(self._case.get("requires", ()))
        self._require(listed <= set(REQUIREMENTS), f"unknown requirement in {sorted(listed)}")
        detect = self._case["config"].get("detectLocalMode")
        self._needed |= {"pods attached to bridge pods0"} if detect == "BridgeInterface" else set()
        self._needed |= {"host side of pod links named veth*"} if detect == "InterfaceNamePrefix" else set()
        self._require(listed == self._needed, f"requires must be {sorted(self._needed)}")


def _prefix_of(networks: list[str], node: dict[str, Any]) -> list[str]:
    """The networks that a Node with these families announces: IPv4 alone if the Node has only IPv4 addresses."""
    single = not any(":" in address["address"] for address in node["status"]["addresses"])
    return [network for network in networks if not (single and ":" in network)]
