"""What is the same for all Services: the sets and maps of a table, its base chains, and the way of a new connection.

The number of rules here depends on the node's settings only. What differs between Services is elements, and a
handful of chains by shape (`netagent.nftables.shapes`).
"""

from __future__ import annotations

from netagent.model import addresses
from netagent.nftables import ruleset
from netagent.nftables.ruleset import Field
from netagent.plan import node

FRONTENDS = "frontends"
NODEPORTS = "nodeports"
SHAPES = "shapes"
BACKENDS = "backends"
NODEPORT_BACKENDS = "nodeport_backends"
CLUSTER_IPS = "cluster_ips"
HAIRPIN = "hairpin"
SOURCE_RANGES = "source_ranges"
AFFINITY = "affinity"
AFFINITY_PORTS = "affinity_ports"
AFFINITY_NODEPORTS = "affinity_nodeports"
AFFINITY_SLOTS = "affinity_slots"
AFFINITY_ENDPOINTS = "affinity_endpoints"

SERVICES = "services"
REFUSE = "refuse"
TO_ENDPOINT = "to-endpoint"
NODEPORT_TO_ENDPOINT = "nodeport-to-endpoint"

FRONTEND_KEY: ruleset.Key = (Field.DESTINATION, Field.PROTOCOL, Field.DESTINATION_PORT)
NODEPORT_KEY: ruleset.Key = (Field.PROTOCOL, Field.DESTINATION_PORT)
RANGE_KEY: ruleset.Key = (*FRONTEND_KEY, Field.SOURCE)
# The number before the address: nft 1.0.6 cannot write a record whose key begins with an IPv6 address.
RECORD_KEY: ruleset.Key = (ruleset.Group(), Field.SOURCE)
AFFINITY_ENDPOINT_KEY: ruleset.Key = (Field.PRIORITY, Field.PROTOCOL)
# A map is declared with any modulus; what counts is that the last part of its key is a number.
_ANY_SLOT = ruleset.Slot(2)

# NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC, linux/netfilter_ipv4.h
PRIORITY_DNAT = -100
PRIORITY_SNAT = 100
PRIORITY_FILTER = 0

_LOOPBACK = {
    addresses.Family.IPV4: addresses.parse_prefix("127.0.0.0/8"),
    addresses.Family.IPV6: addresses.parse_prefix("::1/128"),
}


def sets(*, affinity_clients: int) -> dict[str, ruleset.SetSpec]:
    """The sets and maps of a table, by name. `affinity_clients`: most client addresses that are remembered."""
    specs = (
        # Numbers of shapes, not verdicts: the kernel validates all of a verdict map whenever an element comes to it.
        ruleset.SetSpec(FRONTENDS, FRONTEND_KEY, ruleset.Data.PRIORITY, counters=True, owners=True),
        ruleset.SetSpec(NODEPORTS, NODEPORT_KEY, ruleset.Data.PRIORITY, counters=True, owners=True),
        ruleset.SetSpec(SHAPES, (Field.PRIORITY,), ruleset.Data.VERDICT),
        ruleset.SetSpec(BACKENDS, (*FRONTEND_KEY, Field.PRIORITY), ruleset.Data.ENDPOINT),
        ruleset.SetSpec(NODEPORT_BACKENDS, (*NODEPORT_KEY, Field.PRIORITY), ruleset.Data.ENDPOINT),
        ruleset.SetSpec(CLUSTER_IPS, (Field.DESTINATION,)),
        ruleset.SetSpec(HAIRPIN, (Field.SOURCE, Field.DESTINATION)),
        ruleset.SetSpec(SOURCE_RANGES, RANGE_KEY, intervals=True),
        ruleset.SetSpec(AFFINITY, (Field.PRIORITY, Field.SOURCE), ruleset.Data.PRIORITY, size=affinity_clients),
        # From what is referred to to what refers: elements are added in this order, and deleted in the reverse.
        ruleset.SetSpec(AFFINITY_ENDPOINTS, AFFINITY_ENDPOINT_KEY, ruleset.Data.ENDPOINT),
        ruleset.SetSpec(AFFINITY_SLOTS, (Field.PRIORITY, _ANY_SLOT), ruleset.Data.PRIORITY),
        ruleset.SetSpec(AFFINITY_PORTS, FRONTEND_KEY, ruleset.Data.PRIORITY),
        ruleset.SetSpec(AFFINITY_NODEPORTS, NODEPORT_KEY, ruleset.Data.PRIORITY),
    )
    return {spec.name: spec for spec in specs}


def chains(rules: node.NodeRules) -> dict[str, ruleset.Chain]:
    """The chains that every table of this node has, by name."""
    fixed = [
        _base("prerouting", ruleset.ChainType.NAT, ruleset.HookPoint.PREROUTING, PRIORITY_DNAT, _to_services()),
        _base("output", ruleset.ChainType.NAT, ruleset.HookPoint.OUTPUT, PRIORITY_DNAT, _to_services()),
        _base(
            "postrouting",
            ruleset.ChainType.NAT,
            ruleset.HookPoint.POSTROUTING,
            PRIORITY_SNAT,
            _masquerading(rules.masquerade_mark),
        ),
        ruleset.Chain(SERVICES, _dispatch(rules)),
        ruleset.Chain(TO_ENDPOINT, _to_endpoint(FRONTEND_KEY, BACKENDS)),
        ruleset.Chain(NODEPORT_TO_ENDPOINT, _to_endpoint(NODEPORT_KEY, NODEPORT_BACKENDS)),
        ruleset.Chain(
            REFUSE,
            (
                # With the ICMP error alone a TCP client on this host would wait for its own timeout: the error
                # arrives while connect() still owns the socket.
                (ruleset.IsProtocol(addresses.Protocol.TCP), ruleset.Reject(tcp_reset=True)),
                (ruleset.Reject(tcp_reset=False),),
            ),
        ),
    ]
    if rules.drop_invalid:
        fixed.append(
            _base("forward", ruleset.ChainType.FILTER, ruleset.HookPoint.FORWARD, PRIORITY_FILTER, _drop_invalid())
        )
    return {chain.name: chain for chain in fixed}


def _base(
    name: str,
    kind: ruleset.ChainType,
    point: ruleset.HookPoint,
    priority: int,
    rules: tuple[ruleset.Rule, ...],
) -> ruleset.Chain:
    return ruleset.Chain(name, rules, ruleset.Hook(kind, point, priority))


def _to_services() -> tuple[ruleset.Rule, ...]:
    return ((ruleset.Goto(SERVICES),),)


def _dispatch(rules: node.NodeRules) -> tuple[ruleset.Rule, ...]:
    """The way of a connection's first packet: the nat hooks see no other."""
    dispatch: list[ruleset.Rule] = [
        _to_shape(FRONTEND_KEY, FRONTENDS),
        (ruleset.InSet((Field.DESTINATION,), CLUSTER_IPS), ruleset.Goto(REFUSE)),
    ]
    # An address that no Service has, in a range that is for Services only, leads nowhere; unless somebody gave it
    # to this host.
    dispatch += [
        (
            ruleset.InPrefix(Field.DESTINATION, cidr),
            ruleset.IsLocal(Field.DESTINATION_TYPE, negate=True),
            ruleset.Drop(),
        )
        for cidr in rules.service_cidrs
    ]
    loopback = _LOOPBACK[rules.family]
    for prefix in rules.node_port_prefixes:
        # The cheap test first: only packets to candidates cost a route lookup.
        narrow: ruleset.Rule = (ruleset.InPrefix(Field.DESTINATION, prefix),) if prefix.length else ()
        outside: ruleset.Rule = ()
        if loopback.address in prefix or prefix.address in loopback:
            outside = (ruleset.InPrefix(Field.DESTINATION, loopback, negate=True),)
        dispatch.append(
            (*narrow, *outside, ruleset.IsLocal(Field.DESTINATION_TYPE), *_to_shape(NODEPORT_KEY, NODEPORTS))
        )
    return tuple(dispatch)


def _to_shape(key: ruleset.Key, frontends: str) -> ruleset.Rule:
    """Go to the chain of the frontend's shape; the next rule for what is no frontend."""
    return (ruleset.SetPriority(ruleset.Lookup(key, frontends)), ruleset.VerdictMap((Field.PRIORITY,), SHAPES))


def _to_endpoint(key: ruleset.Key, backends: str) -> tuple[ruleset.Rule, ...]:
    """Translate to the endpoint in the slot whose number the packet priority holds.

    These chains are the only ones that look slots up: when a chain is new to a map, the kernel walks all of the map,
    and chains of shapes come and go.
    """
    endpoint = ruleset.Dnat(ruleset.Lookup((*key, Field.PRIORITY), backends))
    # A packet may look up a slot that has just left, between the commit of the map and that of the verdict that it
    # followed. Slot 0 of a list is there as long as the list has any.
    return ((endpoint,), (ruleset.SetPriority(ruleset.Group()),), (endpoint,))


def _masquerading(mark: int) -> tuple[ruleset.Rule, ...]:
    return (
        # What the rules above left in the priority of a connection's first packet is nobody else's business.
        (ruleset.HasBits(Field.CT_STATUS, _IPS_DST_NAT), ruleset.ClearPriority()),
        # The bit is cleared so that a second pass (through a tunnel, say) is not masqueraded again.
        (ruleset.HasBits(Field.MARK, mark), ruleset.FlipMark(mark), ruleset.Masquerade()),
        (
            ruleset.HasBits(Field.CT_STATUS, _IPS_DST_NAT),
            ruleset.InSet((Field.SOURCE, Field.DESTINATION), HAIRPIN),
            ruleset.Masquerade(),
        ),
    )


def _drop_invalid() -> tuple[ruleset.Rule, ...]:
    """A segment that conntrack cannot place is not translated back: from an endpoint it would reach the client with
    a source that the client never dialled, and be answered by a reset that ends a healthy connection."""
    return (
        (
            ruleset.HasBits(Field.CT_STATE, _CT_STATE_INVALID),
            ruleset.IsProtocol(addresses.Protocol.TCP),
            ruleset.InSet((Field.SOURCE, Field.SOURCE), HAIRPIN),
            ruleset.Drop(),
        ),
    )


_CT_STATE_INVALID = 0x1  # NF_CT_STATE_INVALID_BIT, linux/netfilter/nf_conntrack_common.h
_IPS_DST_NAT = 0x20  # linux/netfilter/nf_conntrack_common.h
