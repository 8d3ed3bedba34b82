"""Chains by shape: everything that frontends differ in, except their endpoints, is in the name of the chain that
they jump to. Frontends of one shape share one chain, so the number of chains is that of the shapes in use.

A chain finds its frontend's endpoints in shared maps, under the frontend's own address and a random slot number.
Another selection algorithm or weights are other slot numbers here and another kind of chain, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2s
from typing import NamedTuple

from netagent.nftables import layout, ruleset
from netagent.nftables.constants import IFNAMSIZ
from netagent.nftables.ruleset import Field
from netagent.plan import frontends, node

# Slots of a frontend's second list (the local endpoints under external traffic policy Local) start here: the number
# of a list is in the upper half of the packet priority, that of a slot in the lower.
LOCAL_OFFSET = 1 << 16
# Bit of an affinity group's number that tells the list of local endpoints from that of all.
LOCAL_GROUP = 1 << 16


class Shape(NamedTuple):
    """What the frontends of one chain have in common.

    `endpoint_count` and `local_count` are numbers of endpoints; `local_count` is None without a second list.
    `local_first`: the first list is the local one (internal traffic policy Local), with affinity records of its own.
    """

    verdict: frontends.Verdict
    masquerade: frontends.Masquerade
    node_port: bool
    endpoint_count: int
    local_count: int | None
    affinity_seconds: int | None
    local_first: bool
    ranges: bool


def shape_of(frontend: frontends.Frontend) -> Shape:
    """The shape of a frontend."""
    # By position: this runs once for each of 44,000 Services.
    ranges = frontend.source_ranges is not None
    if frontend.verdict is not frontends.Verdict.SERVE:
        return Shape(frontend.verdict, frontends.Masquerade.CLUSTER_IP, False, 0, None, None, False, ranges)
    affinity, local = frontend.affinity_seconds, frontend.local_endpoints
    return Shape(
        frontend.verdict,
        frontend.masquerade,
        not frontend.key.address,
        len(frontend.endpoints),
        None if local is None else len(local),
        affinity,
        affinity is not None and frontend.endpoints_are_local,
        ranges,
    )


@lru_cache(maxsize=4096)  # every frontend asks, and there are few shapes
def entry(shape: Shape) -> str:
    """Name of the chain that frontends of this shape go to; "" where the verdict is simply to drop."""
    if shape.ranges:
        return f"ranges-{_inner(shape) or 'drop'}"
    return _inner(shape)


def number_of(name: str) -> int:
    """The number that stands for the chain of this name in a frontend's element: the same in every process.

    32 bits of a hash, so two names may have the same: whoever hands numbers out has to look.
    """
    number = int.from_bytes(blake2s(name.encode(), digest_size=4).digest())
    # nft has names for these two.
    return 1 if number in (0, 0xFFFFFFFF) else number


def chain_of(elements: Mapping[str, ruleset.Elements], value: ruleset.Value | None) -> str | None:
    """Name of the chain that an element of FRONTENDS or NODEPORTS leads to, "" for dropping; None if it leads nowhere.

    `elements` are those of its table, by set.
    """
    if not isinstance(value, ruleset.Owned):
        return None
    verdict = elements.get(layout.SHAPES, {}).get(value.value)
    return verdict.chain if isinstance(verdict, ruleset.VerdictValue) else None


def chains_of(shape: Shape, rules: node.NodeRules) -> tuple[ruleset.Chain, ...]:
    """The chains that a shape needs, those that others lead to first."""
    chains: list[ruleset.Chain] = []
    inner = _inner(shape)
    if shape.verdict is frontends.Verdict.SERVE:
        if shape.affinity_seconds is not None:
            chains += _affinity_chains(shape, shape.affinity_seconds)
        chains.append(ruleset.Chain(inner, tuple(_serving(shape, rules))))
    if shape.ranges:
        allowed: ruleset.Statement = ruleset.Goto(inner) if inner else ruleset.Drop()
        chains.append(
            ruleset.Chain(
                entry(shape),
                ((ruleset.InSet(layout.RANGE_KEY, layout.SOURCE_RANGES), allowed), (ruleset.Drop(),)),
            )
        )
    return tuple(chains)


def _inner(shape: Shape) -> str:
    """Name of the chain behind the check of source ranges."""
    if shape.verdict is frontends.Verdict.DROP:
        return ""
    if shape.verdict is frontends.Verdict.REJECT:
        return layout.REFUSE
    policy = {
        frontends.Masquerade.CLUSTER_IP: "cluster-ip",
        frontends.Masquerade.ALWAYS: "external",
        frontends.Masquerade.NEVER_LOCAL: "local",
    }[shape.masquerade]
    name = f"{'nodeport-' if shape.node_port else ''}{policy}-random-{shape.endpoint_count}"
    if shape.local_count is not None:
        name += f"-{shape.local_count}"
    if shape.affinity_seconds is not None:
        name += f"-affinity-{shape.affinity_seconds}{'-local' if shape.local_first else ''}"
    return name


def _serving(shape: Shape, rules: node.NodeRules) -> list[ruleset.Rule]:
    """The rules of a serving chain: mark what is to be masqueraded, then choose."""
    mark = ruleset.SetMark(rules.masquerade_mark)
    first = _choose(shape, shape.endpoint_count, local=False)
    if shape.masquerade is frontends.Masquerade.ALWAYS:
        return [*_prepare(shape), (mark, *first)]
    if shape.masquerade is frontends.Masquerade.CLUSTER_IP:
        strangers = (mark,) if rules.masquerade_all else _from_pods(rules, negate=True, then=(mark,))
        return [*_prepare(shape), *((strangers,) if strangers else ()), first]
    # External traffic policy Local. Pods of this node and its own processes are served as if their packets had left
    # for the load balancer and come back, wherever the endpoints are.
    host: ruleset.Rule = (ruleset.IsLocal(Field.SOURCE_TYPE), mark, *first)
    chosen = [*_prepare(shape)]
    pods = _from_pods(rules, negate=False, then=first)
    if pods:
        chosen.append(pods)
    chosen.append(host)
    if shape.local_count:
        return [*chosen, _choose(shape, shape.local_count, local=True)]
    return [*chosen, (ruleset.Drop(),)]


def _from_pods(rules: node.NodeRules, *, negate: bool, then: ruleset.Rule) -> ruleset.Rule:
    """A rule for packets of local pods (negated: of anybody else); () when pods cannot be told."""
    match rules.local_pods:
        case None:
            return ()
        case node.SourcePrefix(prefix):
            return (ruleset.InPrefix(Field.SOURCE, prefix, negate), *then)
        case node.InputInterface(name):
            return (ruleset.InputName(name, prefix=False, negate=negate), *then)
        case node.InputInterfacePrefix(prefix=name):
            # Nothing can follow a prefix as long as a name may be, and nft takes no "*" there.
            return (ruleset.InputName(name, prefix=len(name) < IFNAMSIZ - 1, negate=negate), *then)


def _prepare(shape: Shape) -> list[ruleset.Rule]:
    """With affinity, the first rule finds the number of the Service port's list of endpoints."""
    if shape.affinity_seconds is None:
        return []
    key, ports = (
        (layout.NODEPORT_KEY, layout.AFFINITY_NODEPORTS)
        if shape.node_port
        else (layout.FRONTEND_KEY, layout.AFFINITY_PORTS)
    )
    return [(ruleset.SetPriority(ruleset.Lookup(key, ports)),)]


def _choose(shape: Shape, count: int, *, local: bool) -> ruleset.Rule:
    """Statements that send the connection to one of `count` endpoints of the first list, or of the local one."""
    if shape.affinity_seconds is not None:
        return (ruleset.Goto(_affinity_chain(shape.affinity_seconds, count, local=local or shape.local_first)),)
    slot = ruleset.Slot(count, LOCAL_OFFSET if local else 0)
    return (
        ruleset.SetPriority(slot),
        ruleset.Goto(layout.NODEPORT_TO_ENDPOINT if shape.node_port else layout.TO_ENDPOINT),
    )


def _affinity_chain(seconds: int, count: int, *, local: bool) -> str:
    return f"affinity-{seconds}{'-local' if local else ''}-random-{count}"


def _affinity_chains(shape: Shape, seconds: int) -> list[ruleset.Chain]:
    chains = [sticky_choice(seconds, shape.endpoint_count, local=shape.local_first)]
    if shape.local_count:
        chains.append(sticky_choice(seconds, shape.local_count, local=True))
    return chains


def sticky_choice(seconds: int, count: int, *, local: bool) -> ruleset.Chain:
    """Back to the endpoint that the client met last, else a random one, which is recorded.

    The packet priority carries first the number of the list, in its upper half, then that of an endpoint: list and
    index. A record of an endpoint that has left the list names a number that leads nowhere, so an endpoint's
    records die with its element, in the same transaction.
    """
    endpoint = ruleset.Dnat(ruleset.Lookup(layout.AFFINITY_ENDPOINT_KEY, layout.AFFINITY_ENDPOINTS))
    slots = (ruleset.Group(), ruleset.Slot(count))

    def record(operation: ruleset.DynamicOperation, timeout_seconds: int) -> ruleset.Record:
        return ruleset.Record(
            operation, layout.AFFINITY, layout.RECORD_KEY, value=Field.PRIORITY, timeout_seconds=timeout_seconds
        )

    recall = ruleset.SetPriority(ruleset.Lookup((Field.PRIORITY, Field.SOURCE), layout.AFFINITY))
    choose = ruleset.SetPriority(ruleset.Lookup(slots, layout.AFFINITY_SLOTS))
    first = ruleset.SetPriority(
        ruleset.Lookup((ruleset.Group(), ruleset.Slot(1)), layout.AFFINITY_SLOTS),
    )
    rules: list[ruleset.Rule] = [
        (recall, record(ruleset.DynamicOperation.UPDATE, seconds)),
        (endpoint,),
        (choose,),
        (record(ruleset.DynamicOperation.DELETE, 0),),
        (record(ruleset.DynamicOperation.ADD, seconds),),
        (endpoint,),
        # As without affinity: a slot may leave under the packet's feet.
        (first,),
        (endpoint,),
    ]
    if local:
        rules.insert(0, (ruleset.OrPriority(LOCAL_GROUP),))
    return ruleset.Chain(_affinity_chain(seconds, count, local=local), tuple(rules))
