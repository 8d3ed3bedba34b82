"""What is the same for all Services: the jumps from built-in chains, and the chains that every ruleset has.

    nat     PREROUTING, OUTPUT          -> SERVICES -> FRONTENDS (tree) -> chain of a Service port -> DNAT
                                                    -> NODE-PORTS (tree) -> the same, for local destinations
            POSTROUTING                 -> POSTROUTING -> masquerade what is marked, and what loops back (HAIRPIN, tree)
    filter  INPUT, FORWARD, OUTPUT, new -> FILTER -> VERDICTS (tree), CLUSTER-IPS (tree), ServiceCIDRs,
                                                     REFUSED-PORTS (tree) for local destinations
            FORWARD                     -> FORWARD -> drop what is invalid (INVALID, tree), accept what we translated

(each of ours with NETAGENT- before it).

The nat table can neither reject nor drop. So a connection that is to be refused leaves it untranslated, by ACCEPT,
which keeps it from the node ports and from others' rules behind ours; and the filter table, which new connections
pass next, sees it with the address that the client dialled. What the nat table translated has the conntrack state
DNAT and leaves the chain FILTER at its first rule; so a Service that somebody may not use (source ranges) or cannot
use (external policy Local without a local endpoint) needs one DROP in VERDICTS: whom the nat table served does not
come there. All of it is asked of packets in state NEW only: what is established is never cut.

As kube-proxy does in this mode, FORWARD accepts the masqueraded connections and whatever belongs to a connection that
was translated, so that node ports work where the policy of FORWARD is DROP, as Docker sets it. Different from
kube-proxy, it accepts no established connection of anybody else.
"""

from __future__ import annotations

from netagent.iptables import dispatch, names, text
from netagent.iptables.ruleset import ChainName, Jump, Rules
from netagent.model import addresses
from netagent.plan import node

_NAT, _FILTER = "nat", "filter"


def _own(table: str, name: str) -> ChainName:
    return ChainName(table, names.PREFIX + name)


SERVICES = _own(_NAT, "SERVICES")
FRONTENDS = _own(_NAT, "FRONTENDS")
NODE_PORTS = _own(_NAT, "NODE-PORTS")
POSTROUTING = _own(_NAT, "POSTROUTING")
MASQUERADE = _own(_NAT, "MASQUERADE")
HAIRPIN = _own(_NAT, "HAIRPIN")
FILTER = _own(_FILTER, "FILTER")
VERDICTS = _own(_FILTER, "VERDICTS")
CLUSTER_IPS = _own(_FILTER, "CLUSTER-IPS")
REFUSED_PORTS = _own(_FILTER, "REFUSED-PORTS")
REFUSE = _own(_FILTER, "REFUSE")
FORWARD = _own(_FILTER, "FORWARD")
INVALID = _own(_FILTER, "INVALID")

DROP = "-j DROP"
ACCEPT = "-j ACCEPT"

_LOOPBACK = {
    addresses.Family.IPV4: addresses.parse_prefix("127.0.0.0/8"),
    addresses.Family.IPV6: addresses.parse_prefix("::1/128"),
}
_UNREACHABLE = {
    addresses.Family.IPV4: "icmp-port-unreachable",
    addresses.Family.IPV6: "icmp6-port-unreachable",
}
_MASQUERADE = "-j MASQUERADE --random-fully"
# With route_localnet (see `netagent.iptables.loopback`) the kernel no longer keeps others away from loopback addresses.
_NOT_FROM_ELSEWHERE = f"! -s 127.0.0.0/8 -d 127.0.0.0/8 {DROP}"


def to(chain: ChainName | str) -> str:
    """The target that goes to a chain and comes back."""
    return f"-j {chain if isinstance(chain, str) else chain.chain}"


# Where kube-proxy puts its own: before everybody else's.
JUMPS = (
    Jump(_NAT, "PREROUTING", to(SERVICES), first=True),
    Jump(_NAT, "OUTPUT", to(SERVICES), first=True),
    Jump(_NAT, "POSTROUTING", to(POSTROUTING), first=True),
    Jump(_FILTER, "INPUT", f"-m conntrack --ctstate NEW {to(FILTER)}", first=True),
    Jump(_FILTER, "FORWARD", f"-m conntrack --ctstate NEW {to(FILTER)}", first=True),
    Jump(_FILTER, "FORWARD", to(FORWARD), first=True),
    Jump(_FILTER, "OUTPUT", f"-m conntrack --ctstate NEW {to(FILTER)}", first=True),
)


def trees(family: addresses.Family) -> dict[ChainName, dispatch.Tree]:
    """The dispatch trees that every ruleset has, empty, by their first chain."""
    bits = family.address_bytes * 8
    spaces = {
        FRONTENDS: dispatch.Space(bits, ports=True),
        NODE_PORTS: dispatch.Space(0, ports=True),
        HAIRPIN: dispatch.Space(bits, ports=False, side=dispatch.Side.SOURCE),
        VERDICTS: dispatch.Space(bits, ports=True),
        CLUSTER_IPS: dispatch.Space(bits, ports=False),
        REFUSED_PORTS: dispatch.Space(0, ports=True),
        INVALID: dispatch.Space(bits, ports=False, side=dispatch.Side.SOURCE),
    }
    return {root: dispatch.Tree(space, root) for root, space in spaces.items()}


def chains(rules: node.NodeRules) -> dict[ChainName, Rules]:
    """The chains that every ruleset of this node has, but for those of the trees."""
    mark = rules.masquerade_mark
    unallocated = [f"{text.inside('-d', cidr)}-m addrtype ! --dst-type LOCAL {DROP}" for cidr in rules.service_cidrs]
    return {
        SERVICES: (to(FRONTENDS), *_node_ports(rules, NODE_PORTS)),
        POSTROUTING: (
            f"{text.has_mark(mark)} {to(MASQUERADE)}",
            f"-m conntrack --ctstate DNAT {to(HAIRPIN)}",
        ),
        # The bit is cleared so that a second pass (through a tunnel, say) is not masqueraded again.
        MASQUERADE: (text.flip_mark(mark), _MASQUERADE),
        FILTER: (
            "-m conntrack --ctstate DNAT -j RETURN",
            *([_NOT_FROM_ELSEWHERE] if rules.node_ports_on_loopback else ()),
            to(VERDICTS),
            to(CLUSTER_IPS),
            *unallocated,
            *_node_ports(rules, REFUSED_PORTS),
        ),
        # With the ICMP error alone a TCP client on this host would wait for its own timeout: the error arrives while
        # connect() still owns the socket.
        REFUSE: ("-p tcp -j REJECT --reject-with tcp-reset", f"-j REJECT --reject-with {_UNREACHABLE[rules.family]}"),
        FORWARD: (
            # A segment that conntrack cannot place is not translated back: it would reach the client with a source
            # that the client never dialled, and be answered by a reset that ends a healthy connection.
            *([f"-p tcp -m conntrack --ctstate INVALID {to(INVALID)}"] if rules.drop_invalid else ()),
            f"{text.has_mark(mark)} {ACCEPT}",
            f"-m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctstate DNAT {ACCEPT}",
        ),
    }


def hairpin_rule(address: bytes) -> str:
    """Masquerade a connection from an endpoint to itself."""
    return f"-s {text.host(address)} -d {text.host(address)} {_MASQUERADE}"


def invalid_rule(address: bytes) -> str:
    """Drop a packet from an endpoint."""
    return f"-s {text.host(address)} {DROP}"


def _node_ports(rules: node.NodeRules, chain: ChainName) -> list[str]:
    """Packets to the addresses that accept node ports go to a chain. The cheap test comes first: only packets to
    candidates cost a route lookup."""
    loopback = _LOOPBACK[rules.family]
    result = []
    covered = any(loopback.address in prefix or prefix.address in loopback for prefix in rules.node_port_prefixes)
    if covered and not rules.node_ports_on_loopback:
        result.append(f"-d {text.network(loopback)} -j RETURN")
    for prefix in rules.node_port_prefixes:
        result.append(f"{text.inside('-d', prefix)}-m addrtype --dst-type LOCAL {to(chain)}")
    return result
