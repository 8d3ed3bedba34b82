"""What becomes of one connection: the walk through the rules, and the Service's own reasons for its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from netagent.explain import refusals, remedies
from netagent.explain.candidates import Subject
from netagent.explain.story import Cause, Dialled, Fate, Reason, Share, Source, Tale
from netagent.explain.world import World, counts_as_pod, packet_of
from netagent.model import addresses, objects
from netagent.nftables import layout, walk
from netagent.plan import frontends, services
from netagent.plan import node as nodes

_FATES = {
    walk.Fate.ENDPOINT: Fate.SERVED,
    walk.Fate.RESET: Fate.REFUSED,
    walk.Fate.UNREACHABLE: Fate.REFUSED,
    walk.Fate.DROPPED: Fate.DROPPED,
    walk.Fate.UNTOUCHED: Fate.UNHANDLED,
}


def walked(
    world: World, source: Source, dialled: Dialled, records: Mapping[bytes, bytes] | None = None
) -> tuple[walk.Possibility, ...]:
    """Everything that can happen to the first packet of a connection, by the desired rules of its family. `records` are
    those of session affinity."""
    family = dialled.family
    packet = packet_of(source, dialled, world.rules[family])
    return tuple(walk.outcomes(world.tables[family], packet, world.host, records=records))


def records_of(world: World, frontend: frontends.Frontend) -> Mapping[bytes, bytes] | None:
    """The records of session affinity, where the frontend asks for them and they can be read."""
    if frontend.affinity_seconds is None or world.records is None:
        return None
    return world.records(frontend.key.family)


def fate_of(possibilities: Sequence[walk.Possibility]) -> Fate:
    """What a client notices; the same for all endpoints that it may get."""
    return _FATES[possibilities[0].outcome.result.fate]


def shares_of(possibilities: Sequence[walk.Possibility]) -> tuple[Share, ...]:
    """How probable each endpoint is, sorted by endpoint; () if there is none."""
    total: dict[tuple[bytes, bool], Fraction] = {}
    for probability, outcome in possibilities:
        result = outcome.result
        if result.endpoint is not None:
            key = (result.endpoint, result.masquerade)
            total[key] = total.get(key, Fraction(0)) + probability
    return tuple(
        Share(endpoint, probability, masquerade) for (endpoint, masquerade), probability in sorted(total.items())
    )


def tale_of(world: World, source: Source, subject: Subject) -> Tale:
    """What becomes of a new connection from a client to a frontend."""
    possibilities = walked(world, source, subject.dialled, records_of(world, subject.frontend))
    fate, shares = fate_of(possibilities), shares_of(possibilities)
    if fate is Fate.SERVED:
        reason = Reason(cause=Cause.SERVES, why=_why_these(world, source, subject))
        notes = (
            *_source_notes(world, source, subject.frontend, shares),
            *_affinity_notes(subject.frontend, possibilities),
        )
    else:
        reason = refusals.why_not(world, source, subject)
        notes = ()
    return Tale(sources=(source,), fate=fate, reason=reason, shares=shares, notes=notes, possibilities=possibilities)


# Served ---------------------------------------------------------------------------------------------------------


def is_short_circuit(world: World, source: Source, frontend: frontends.Frontend) -> bool:
    """Whether a client of a frontend with external policy Local gets any endpoint: pods and processes of this node."""
    if frontend.local_endpoints is None:
        return False
    return world.host.is_local(source.address) or counts_as_pod(source, world.rules[frontend.key.family])


def is_masqueraded(world: World, source: Source, frontend: frontends.Frontend) -> bool:
    """Whether endpoints see this node's address in place of a client's, but for the client that is the endpoint."""
    rules = world.rules[frontend.key.family]
    match frontend.masquerade:
        case frontends.Masquerade.ALWAYS:
            return True
        case frontends.Masquerade.NEVER_LOCAL:
            return not counts_as_pod(source, rules) and world.host.is_local(source.address)
        case frontends.Masquerade.CLUSTER_IP:
            return rules.masquerade_all or (rules.local_pods is not None and not counts_as_pod(source, rules))


def _why_these(world: World, source: Source, subject: Subject) -> tuple[str, ...]:
    """Why a client gets these endpoints, where that is not plain."""
    frontend, found = subject.frontend, subject.found
    why: list[str] = []
    if frontend.source_ranges is not None:
        why.append("the client's address is in an allowed source range")
    if frontend.local_endpoints is not None:
        if is_short_circuit(world, source, frontend):
            why.append(
                "external policy Local does not restrict clients on this node: they get any endpoint, as if they had "
                "come by way of the load balancer"
            )
        else:
            why.append(
                "external policy Local: clients from elsewhere get endpoints of this node"
                f"{world.node_in_brackets} alone"
            )
            return tuple(why)
    elif frontend.endpoints_are_local:
        why.append(f"internal policy Local: endpoints of this node{world.node_in_brackets} alone")
        return tuple(why)
    if found and not found.ready and found.draining:
        why.append("no endpoint is ready, so those that terminate and still serve get the connections")
    elif found and found.topology.by == "zone":
        why.append(f"topology hints: endpoints that are reserved for zone {world.context.zone}, this node's")
    elif found and found.topology.by == "node":
        why.append(f"topology hints: endpoints that are reserved for this node ({world.context.name})")
    elif found and found.topology.remark:
        why.append(f"topology hints: {found.topology.remark}")
        if world.node is None:
            why.append(refusals.node_unknown(world))
    return tuple(why)


def _source_notes(
    world: World, source: Source, frontend: frontends.Frontend, shares: tuple[Share, ...]
) -> tuple[str, ...]:
    """Whose address the endpoints see, and why."""
    itself = [share for share in shares if addresses.endpoint_address(share.endpoint) == source.address]
    rules = world.rules[frontend.key.family]
    masquerade = is_masqueraded(world, source, frontend)
    notes: list[str] = []
    if masquerade or len(itself) < len(shares):
        reason = _masquerade_reason(frontend, rules) if masquerade else _kept_reason(frontend, rules)
        who = "this node's address instead of the client's" if masquerade else "the client's own address"
        notes.append(f"the endpoint sees {who}: {reason}")
    for share in itself:
        if share.masquerade and not masquerade:
            notes.append(
                f"if the endpoint chosen is the client itself ({addresses.format_endpoint(share.endpoint)}), it sees "
                "this node's address (hairpin): otherwise its answer would not come back by way of this node"
            )
    return tuple(notes)


def _masquerade_reason(frontend: frontends.Frontend, rules: nodes.NodeRules) -> str:
    match frontend.masquerade:
        case frontends.Masquerade.ALWAYS:
            return (
                "external policy Cluster may choose an endpoint of another node, and the answer has to come back by "
                "way of this one"
            )
        case frontends.Masquerade.NEVER_LOCAL:
            return "the client is a process of this node"
        case _ if rules.masquerade_all:
            return "the setting masqueradeAll asks for it"
        case _:
            return f"the client is not one of the pods that this node tells by {_pods_words(rules)}"


def _kept_reason(frontend: frontends.Frontend, rules: nodes.NodeRules) -> str:
    match frontend.masquerade:
        case frontends.Masquerade.NEVER_LOCAL:
            return "external policy Local keeps it"
        case _ if rules.local_pods is None:
            return (
                "this node cannot tell pods from others (no clusterCIDR, and no other detectLocalMode that works), so "
                "it keeps everybody's"
            )
        case _:
            return f"the client is one of the pods that this node tells by {_pods_words(rules)}"


def _pods_words(rules: nodes.NodeRules) -> str:
    match rules.local_pods:
        case nodes.SourcePrefix(prefix):
            return f"their addresses, {prefix}"
        case nodes.InputInterface(name):
            return f"their interface, {name}"
        case nodes.InputInterfacePrefix(prefix=name):
            return f"their interfaces, {name}..."
        case None:
            return "nothing"


def _affinity_notes(frontend: frontends.Frontend, possibilities: Sequence[walk.Possibility]) -> tuple[str, ...]:
    if frontend.affinity_seconds is None:
        return ()
    probes = [probe for step in possibilities[0].outcome.steps for probe in step.probes]
    if any(probe.set == layout.AFFINITY and probe.element is not None for probe in probes):
        return (
            "session affinity: this client was here before, and keeps its endpoint until "
            f"{_span(frontend.affinity_seconds)} after its last new connection",
        )
    return (
        f"session affinity: a client address keeps its endpoint until {_span(frontend.affinity_seconds)} after its "
        "last new connection; the chances are those of a client that has none yet",
    )


def _span(seconds: int) -> str:
    for size, word in ((3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {word}"
    return f"{seconds} s"


# Of a Service port -------------------------------------------------------------------------------------------------


def local_only(world: World, subject: Subject, sources: Sequence[Source]) -> bool:
    """Whether none of these clients can get an endpoint of another node."""
    frontend = subject.frontend
    if frontend.kind is frontends.FrontendKind.CLUSTER_IP:
        internal = subject.service.internal_policy if subject.service else objects.TrafficPolicy.CLUSTER
        return frontend.endpoints_are_local or internal is objects.TrafficPolicy.LOCAL
    if frontend.local_endpoints is None:
        return False
    return not any(is_short_circuit(world, source, frontend) for source in sources)


def settings_words(world: World, service: objects.Service, frontend: frontends.Frontend) -> tuple[str, ...]:
    """What of a Service decides about a frontend."""
    words: list[str] = []
    if frontend.kind is frontends.FrontendKind.CLUSTER_IP:
        words.append(f"internal traffic policy {service.internal_policy.value}")
    else:
        words.append(f"external traffic policy {services.external_policy_of(service, world.context).value}")
    if frontend.affinity_seconds is not None:
        words.append(f"session affinity of {_span(frontend.affinity_seconds)}")
    if frontend.source_ranges is not None:
        words.append(f"sources allowed: {remedies.networks(frontend.source_ranges)}")
    return tuple(words)
