"""Random clusters, as a backend sees them: Frontends as the plan makes them, and rules of a node.

Everything comes from small pools, so that Services share endpoints, claim each other's addresses, and have the same
shapes. A *state* is a dictionary of Frontends by key; a *history* is a list of states, each a few Services away from
the one before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from hypothesis import strategies as st

from netagent.model import addresses, objects
from netagent.model.addresses import Family, Protocol
from netagent.plan import endpoints, frontends, node, prefixes, services

State = dict[frontends.FrontendKey, frontends.Frontend]

FAMILIES = tuple(Family)
_HIGH = {Family.IPV4: bytes((10,)), Family.IPV6: bytes.fromhex("fd00")}


def address(family: Family, network: int, host: int) -> bytes:
    """A packed address: 10.network.0.host, or fd00:network::host."""
    if family is Family.IPV4:
        return bytes((10, network, host >> 8, host & 255))
    return bytes.fromhex("fd00") + network.to_bytes(2) + bytes(10) + host.to_bytes(2)


def endpoint(family: Family, host: int, port: int = 8080) -> bytes:
    """The endpoint key of pod number `host`."""
    return addresses.endpoint_key(address(family, 180, host), port)


# Strategies are made once, not at every draw: that takes hypothesis as long as the drawing.


@functools.cache
def _endpoint_keys(family: Family) -> st.SearchStrategy[tuple[bytes, ...]]:
    keys = tuple(endpoint(family, host, port) for host in range(1, 10) for port in (8080, 8081))
    return st.frozensets(st.sampled_from(keys), max_size=7).map(lambda found: tuple(sorted(found)))


@functools.cache
def prefixes_of(family: Family, *, most: int = 4, shortest: int = 1) -> st.SearchStrategy[tuple[addresses.Prefix, ...]]:
    """Disjoint, sorted networks of a family; () included."""
    bits = family.address_bytes * 8

    def one(number: int, length: int) -> addresses.Prefix:
        return addresses.network(_HIGH[family] + number.to_bytes(family.address_bytes - len(_HIGH[family])), length)

    wide = st.builds(one, st.integers(0, 2**20), st.integers(shortest, bits))
    near = st.builds(one, st.integers(0, 255), st.integers(bits - 8, bits))
    return st.lists(wide | near, max_size=most).map(lambda found: prefixes.collapsed(found, family))


@functools.cache
def lists(family: Family) -> st.SearchStrategy[endpoints.EndpointLists]:
    """The lists of endpoints of a Service port. Without cluster-wide endpoints there are no local ones."""
    return _lists(family)


@st.composite
def _lists(draw: st.DrawFn, family: Family) -> endpoints.EndpointLists:
    cluster = draw(_endpoint_keys(family))
    everything = draw(_endpoint_keys(family))
    local = tuple(sorted({*_some(draw, cluster), *_some(draw, everything)})) if cluster else ()
    return endpoints.EndpointLists(
        cluster=cluster,
        local=local,
        cluster_hairpin=_some(draw, tuple(sorted({key[:-2] for key in cluster}))),
        local_hairpin=tuple(sorted({key[:-2] for key in local})),
        serving=cluster,
    )


def _some(draw: st.DrawFn, found: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Some of these, in their order; none and all included."""
    chosen = draw(_masks(len(found)))
    return tuple(key for index, key in enumerate(found) if chosen >> index & 1)


@functools.cache
def _masks(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << count) - 1)


affinity_seconds = st.none() | st.sampled_from((1, 600, 10800, 86400))


_policies = st.sampled_from(objects.TrafficPolicy)
_ports = st.lists(st.sampled_from(((80, Protocol.TCP), (53, Protocol.UDP), (53, Protocol.TCP))), unique=True)
_node_ports = st.none() | st.integers(30000, 30006)


@functools.cache
def service(family: Family, number: int) -> st.SearchStrategy[tuple[frontends.Frontend, ...]]:
    """The Frontends of Service `number`: its own cluster IP, and whatever else it may claim."""
    return _service(family, number)


@functools.cache
def _ranges(family: Family) -> st.SearchStrategy[tuple[addresses.Prefix, ...] | None]:
    return st.none() | prefixes_of(family)


@st.composite
def _service(draw: st.DrawFn, family: Family, number: int) -> tuple[frontends.Frontend, ...]:
    internal_policy = draw(_policies)
    external_policy = draw(_policies)
    seconds = draw(affinity_seconds)
    vips = draw(_claims(family, network=30))
    external_ips = draw(_claims(family, network=31))
    ranges = draw(_ranges(family)) if vips else None
    result: list[frontends.Frontend] = []
    ports = draw(_ports)
    for port, protocol in ports or [(80, Protocol.SCTP)]:
        owner = frontends.ServicePortName("default", f"service-{number}", f"port-{port}", protocol)
        found = draw(lists(family))
        internal = services.internal_decision(internal_policy, found)
        external = services.external_decision(external_policy, found)
        claims: list[tuple[frontends.FrontendKind, bytes, int, services.Decision]] = [
            (frontends.FrontendKind.CLUSTER_IP, address(family, 96, number), port, internal),
            *((frontends.FrontendKind.LOAD_BALANCER, vip, port, external) for vip in vips),
            *((frontends.FrontendKind.EXTERNAL_IP, external_ip, port, external) for external_ip in external_ips),
        ]
        node_port = draw(_node_ports)
        if node_port is not None:
            claims.append((frontends.FrontendKind.NODE_PORT, b"", node_port, external))
        result += [
            frontends.Frontend(
                key=frontends.FrontendKey(family, packed, protocol, dialled),
                kind=kind,
                owner=owner,
                affinity_seconds=seconds,
                source_ranges=ranges if kind is frontends.FrontendKind.LOAD_BALANCER else None,
                serving_endpoints=() if protocol is Protocol.TCP else found.serving,
                **decision._asdict(),
            )
            for kind, packed, dialled, decision in claims
        ]
    return tuple(result)


@functools.cache
def _claims(family: Family, *, network: int) -> st.SearchStrategy[tuple[bytes, ...]]:
    one = st.sampled_from([address(family, network, host) for host in range(1, 4)])
    return st.lists(one, max_size=2, unique=True).map(tuple)


def merged(found: Iterable[tuple[frontends.Frontend, ...]]) -> State:
    """Every key's first claimant keeps it."""
    result: State = {}
    for of_service in found:
        for frontend in of_service:
            result.setdefault(frontend.key, frontend)
    return result


_SERVICES = 4


_some_services = st.sets(st.integers(1, _SERVICES), max_size=_SERVICES)
_one_or_two_services = st.sets(st.integers(1, _SERVICES), min_size=1, max_size=2)
_yes_or_no = st.booleans()


@st.composite
def states(draw: st.DrawFn, family: Family) -> State:
    """The Frontends of up to four Services."""
    numbers = draw(_some_services)
    return merged(draw(service(family, number)) for number in sorted(numbers))


@st.composite
def histories(draw: st.DrawFn, family: Family, *, most: int = 5) -> list[State]:
    """At least two states, each one or two Services away from the one before it."""
    found = {number: draw(service(family, number)) for number in draw(_some_services)}
    history = [merged(found[number] for number in sorted(found))]
    for _ in range(draw(st.integers(1, most - 1))):
        for number in draw(_one_or_two_services):
            gone = number in found and draw(_yes_or_no)
            if gone:
                del found[number]
            else:
                found[number] = draw(service(family, number))
        history.append(merged(found[number] for number in sorted(found)))
    return history


_interface_names = st.sampled_from(("c", "cni0", "cbr-0.1", "a-name_of.15-by"))


def local_pods(family: Family) -> st.SearchStrategy[node.LocalPods | None]:
    """Every way to tell a node's pods from others."""
    networks = prefixes_of(family, most=1).filter(bool).map(lambda found: node.SourcePrefix(found[0]))
    return st.one_of(
        st.none(),
        networks,
        _interface_names.map(node.InputInterface),
        _interface_names.map(node.InputInterfacePrefix),
    )


def node_rules(family: Family) -> st.SearchStrategy[node.NodeRules]:
    """Rules of a node for a family."""
    everywhere = st.just((addresses.Prefix(bytes(family.address_bytes), 0),))
    loopback = addresses.parse_prefix("127.0.0.0/8" if family is Family.IPV4 else "::1/128")
    return st.builds(
        node.NodeRules,
        family=st.just(family),
        local_pods=local_pods(family),
        masquerade_all=st.booleans(),
        masquerade_mark=st.integers(0, 31).map(lambda bit: 1 << bit),
        node_port_prefixes=everywhere | prefixes_of(family, most=3) | st.just((loopback,)),
        service_cidrs=prefixes_of(family, most=2),
        drop_invalid=st.booleans(),
    )


def plain_rules(family: Family) -> node.NodeRules:
    """Rules of a node for tests that are about something else."""
    return node.NodeRules(
        family=family,
        local_pods=node.SourcePrefix(addresses.network(address(family, 180, 0), 16 if family is Family.IPV4 else 32)),
        masquerade_all=False,
        masquerade_mark=1 << 14,
        node_port_prefixes=(addresses.Prefix(bytes(family.address_bytes), 0),),
        service_cidrs=(addresses.network(address(family, 96, 0), 16 if family is Family.IPV4 else 32),),
        drop_invalid=True,
    )


def cluster_ip_frontend(
    family: Family = Family.IPV4,
    *,
    number: int = 1,
    count: int = 2,
    hairpin: bool = False,
    affinity: int | None = None,
    kind: frontends.FrontendKind = frontends.FrontendKind.CLUSTER_IP,
    first: int = 1,
) -> frontends.Frontend:
    """A frontend on 10.96.x.x:80 with `count` endpoints, the pods `first` and following."""
    found = tuple(sorted(endpoint(family, host) for host in range(first, first + count)))
    external = kind is not frontends.FrontendKind.CLUSTER_IP
    return frontends.Frontend(
        key=frontends.FrontendKey(family, address(family, 96, number), Protocol.TCP, 80),
        kind=kind,
        owner=frontends.ServicePortName("default", f"service-{number}", "", Protocol.TCP),
        verdict=frontends.Verdict.SERVE if found else frontends.Verdict.REJECT,
        masquerade=frontends.Masquerade.ALWAYS if external else frontends.Masquerade.CLUSTER_IP,
        endpoints=found,
        hairpin_addresses=tuple(key[:-2] for key in found) if hairpin else (),
        affinity_seconds=affinity,
    )


def state_of(*found: frontends.Frontend) -> State:
    """Frontends by key."""
    return {frontend.key: frontend for frontend in found}
