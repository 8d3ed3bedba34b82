"""Why a connection to a frontend gets no endpoint: the true cause, and what to change."""

from __future__ import annotations

from netagent.explain import remedies
from netagent.explain.candidates import Candidates, Subject, mismatch
from netagent.explain.story import Cause, Reason, Source
from netagent.explain.world import World
from netagent.model import addresses, objects
from netagent.plan import frontends


def why_not(world: World, source: Source, subject: Subject) -> Reason:
    """Why a client does not get an endpoint."""
    frontend = subject.frontend
    ranges = frontend.source_ranges
    if ranges is not None and not any(source.address in prefix for prefix in ranges):
        return _outside_ranges(subject, ranges)
    if frontend.verdict is frontends.Verdict.REJECT:
        return without_endpoints(world, subject)
    health = subject.service.health_check_node_port if subject.service else 0
    if frontend.verdict is frontends.Verdict.DROP:
        return Reason(
            cause=Cause.INTERNAL_LOCAL,
            why=(
                f"internal policy Local uses endpoints of this node alone, and no usable one is on {world.this_node}",
                *_elsewhere(world, subject),
                "clients wait instead of being refused, as the Service is not gone",
            ),
            change=remedies.local_policy(subject.name, internal=True, health_check_port=0),
        )
    return Reason(
        cause=Cause.EXTERNAL_LOCAL,
        why=(
            "external policy Local gives clients from elsewhere endpoints of this node alone, and no usable one is on "
            f"{world.this_node}",
            *_elsewhere(world, subject),
        ),
        change=remedies.local_policy(subject.name, internal=False, health_check_port=health),
    )


def _elsewhere(world: World, subject: Subject) -> tuple[str, ...]:
    found = subject.found
    if found is None:
        return ()
    usable = found.ready or found.draining
    placed = sorted({endpoint.node for endpoint in usable.values() if endpoint.node})
    lost = sum(1 for endpoint in usable.values() if endpoint.node is None)
    why = [f"usable endpoints are on {remedies.listed(placed)}"] if placed else []
    if world.node is None:
        why.append(node_unknown(world))
    if lost:
        why.append(
            f"of {lost} usable endpoints the slices do not say on which node they are, so they count as elsewhere"
        )
    return tuple(why)


def node_unknown(world: World) -> str:
    """What to think of if there is no Node object of this node's name."""
    return f"no Node object {world.context.name} is known: is that the name of this node?"


def _outside_ranges(subject: Subject, ranges: tuple[addresses.Prefix, ...]) -> Reason:
    if not ranges:
        first = "not one entry of the Service's loadBalancerSourceRanges can be read, so nobody gets in"
    else:
        allowed = remedies.networks(ranges)
        first = f"the Service's loadBalancerSourceRanges let in {allowed}, and the client's address is in none of them"
    why = [first]
    if subject.frontend.verdict is frontends.Verdict.REJECT:
        why.append("beside that, no endpoint could serve the connection")
    return Reason(cause=Cause.SOURCE_RANGES, why=tuple(why), change=remedies.source_ranges(subject.name))


def without_endpoints(world: World, subject: Subject) -> Reason:
    """Why no endpoint of the whole cluster can be used for a Service port."""
    found, port, name = subject.found, subject.port, subject.name
    if found is None or port is None:
        return Reason(
            cause=Cause.NO_ENDPOINTS,
            why=("the rules have no endpoint for it; the reason stands in the objects, not in the rules",),
            change=(remedies.look_at_slices(name), remedies.look_at_pods(name)),
        )
    if not found.merged:
        return _nothing_listed(world, subject, found, port)
    gone = sum(1 for endpoint in found.merged.values() if endpoint.terminating)
    unready = len(found.merged) - gone
    if not unready:
        return Reason(
            cause=Cause.TERMINATING,
            why=(f"{_all(gone)} terminating, and no longer serving",),
            change=remedies.terminating(name),
        )
    why = [f"{_all(unready)} not ready"] if not gone else [f"{unready} endpoints are not ready, {gone} are terminating"]
    return Reason(cause=Cause.NOT_READY, why=tuple(why), change=remedies.unready(name))


def _nothing_listed(world: World, subject: Subject, found: Candidates, port: objects.ServicePort) -> Reason:
    """Why no endpoint is listed for a Service port and family at all."""
    name = subject.name
    if found.mismatched:
        why = tuple(dict.fromkeys(f"EndpointSlice {item.name}: {mismatch(item, port)}" for item in found.mismatched))
        return Reason(
            cause=Cause.PORT_MISMATCH,
            why=("the Service has endpoints, but none for this port", *why),
            change=remedies.ports(name, port, found.mismatched),
        )
    family = subject.frontend.key.family
    if found.foreign:
        return Reason(
            cause=Cause.OTHER_FAMILY,
            why=(f"the Service has {found.foreign} endpoints, but none of {family.value}, as this address is",),
            change=(f"pods need {family.value} addresses to be endpoints here: is the cluster's network dual-stack?",),
        )
    return nothing_behind(world, name, found.slices)


def nothing_behind(world: World, name: objects.ServiceName, slices: int) -> Reason:
    """Why a Service has no endpoints, as far as it can be told."""
    facts = world.facts_of(name)
    aside = [
        str(one) for one in world.set_aside if is_slice_of(one.kind, one.namespace, one.name, name) and not one.kept
    ]
    if aside:
        return Reason(
            cause=Cause.SET_ASIDE,
            why=("no endpoints: an EndpointSlice that is the Service's by its name cannot be used", *aside),
            change=("correct the field that is named; kubectl get endpointslice -o yaml shows the object",),
        )
    strays = [_stray_words(item, name) for item in world.orphans if is_slice_of("EndpointSlice", *item.key, name)]
    held = f"its {slices} EndpointSlices list none" if slices else "it has no EndpointSlice"
    if slices == 1:
        held = "its EndpointSlice lists none"
    if facts is None:
        first = f"no endpoints: its selector matches no ready pod, or it has no selector ({held})"
    elif facts.selector:
        selector = ", ".join(f"{key}={value}" for key, value in sorted(facts.selector.items()))
        first = f"no endpoints: its selector matches no ready pod ({held}); the selector is {selector}"
    else:
        first = f"no endpoints: it has no selector, so Kubernetes finds no pods for it ({held})"
    return Reason(cause=Cause.NO_ENDPOINTS, why=(first, *strays), change=remedies.no_endpoints(name, facts))


def _stray_words(item: objects.EndpointSlice, name: objects.ServiceName) -> str:
    label = f"names {item.service.name}, which is no Service" if item.service else "is missing"
    return (
        f"EndpointSlice {item.namespace}/{item.name} may be meant for it, but its label kubernetes.io/service-name "
        f"{label}; it should name {name.name}"
    )


def is_slice_of(kind: str, namespace: str, slice_name: str, service: objects.ServiceName) -> bool:
    """Whether an object is, by its name, a slice that Kubernetes made for a Service."""
    return (
        kind == "EndpointSlice"
        and namespace == service.namespace
        and (slice_name == service.name or slice_name.startswith(f"{service.name}-"))
    )


def _all(count: int) -> str:
    return "its only endpoint is" if count == 1 else f"all {count} endpoints are"
