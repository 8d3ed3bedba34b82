"""Node ports: which addresses answer on them, and why another one does not."""

from __future__ import annotations

from netagent import settings
from netagent.explain import remedies
from netagent.explain.story import Cause, Missing, Reason
from netagent.explain.world import World
from netagent.model import addresses, objects
from netagent.plan import frontends


def elsewhere(world: World, missing: Missing) -> Reason | None:
    """A node port, dialled on an address that does not answer on it."""
    if missing.port is None:
        return None
    rules = world.rules[missing.family]
    found = world.frontends.get(frontends.FrontendKey(missing.family, b"", missing.protocol, missing.port))
    shown = addresses.format_address(missing.address)
    if found is None:
        return None
    owner = f"{missing.port}/{missing.protocol.name.lower()} is the node port of {found.owner}"
    if is_loopback(missing.address):
        return Reason(
            cause=Cause.NODE_PORT_LOOPBACK,
            why=(f"{owner}, but node ports do not answer on loopback addresses ({_loopback_words(world)})",),
            change=(f"dial an address of this node that accepts node ports: {accepting_words(world, missing.family)}",),
        )
    if any(missing.address in prefix for prefix in rules.service_cidrs):
        return None
    local = world.host.is_local(missing.address)
    accepted = world.accepts_node_ports(missing.address)
    if local and accepted:
        return None
    if accepted:
        why = f"{owner}, but {shown} is no address of this node{world.node_in_brackets} as far as is known"
    else:
        why = f"{owner}, but {shown} is not an address that accepts node ports"
    return Reason(
        cause=Cause.NODE_PORT_ADDRESS,
        why=(why, _accepting_setting(world, missing.family), *_node_unknown(world)),
        change=(
            f"dial an address that accepts them: {accepting_words(world, missing.family)}",
            "or widen nodePortAddresses in netagent's configuration",
        ),
    )


def _loopback_words(world: World) -> str:
    if world.settings.mode is settings.Mode.NFTABLES:
        return "never in mode nftables, as in kube-proxy"
    if not world.settings.localhost_node_ports:
        return "the setting iptables.localhostNodePorts is false"
    return "they do for IPv4 in mode iptables, if nodePortAddresses includes 127.0.0.1"


def _accepting_setting(world: World, family: addresses.Family) -> str:
    if world.settings.node_ports_on_primary and not world.kernel_only:
        return "the setting nodePortAddresses is primary: the Node's own address of each family alone"
    networks = remedies.networks(world.rules[family].node_port_prefixes)
    who = "the rules let" if world.kernel_only else "the setting nodePortAddresses lets"
    return f"{who} addresses of this node in {networks} accept them"


def _node_unknown(world: World) -> tuple[str, ...]:
    return (
        ()
        if world.node or world.kernel_only
        else (f"the Node object {world.context.name} is unknown, and with it its addresses",)
    )


def answers(world: World, address: bytes) -> bool:
    """Whether an address is one of this node's that accepts node ports."""
    if not world.host.is_local(address):
        return False
    rules = world.rules[addresses.family_of(address)]
    if is_loopback(address):
        return rules.node_ports_on_loopback and world.accepts_node_ports(address)
    return world.accepts_node_ports(address)


def accepting(world: World, family: addresses.Family) -> list[bytes]:
    """The addresses of this host, as far as known, that accept node ports: the node's own first."""
    own = world.context.node_ip(family)
    found = [
        address
        for address in sorted(world.host.addresses)
        if addresses.family_of(address) is family and world.accepts_node_ports(address) and not is_loopback(address)
    ]
    return sorted(found, key=lambda address: (address != own, address))


def accepting_words(world: World, family: addresses.Family) -> str:
    found = [addresses.format_address(address) for address in accepting(world, family)]
    return remedies.listed(found) or "none is known"


_LOOPBACK = (addresses.parse_prefix("127.0.0.0/8"), addresses.parse_prefix("::1/128"))


def is_loopback(address: bytes) -> bool:
    return any(address in prefix for prefix in _LOOPBACK)


def own_address(world: World, missing: Missing) -> Reason | None:
    """An address of this host, on a port that is nobody's node port."""
    if not world.host.is_local(missing.address):
        return None
    shown = addresses.format_address(missing.address)
    if missing.port is None:
        why = f"{shown} is an address of this node, and no Service has a node port there"
        return Reason(cause=Cause.NOT_A_NODE_PORT, why=(why,))
    keys = [
        key for key in world.frontends if not key.address and key.port == missing.port and key.family is missing.family
    ]
    if keys and world.accepts_node_ports(missing.address):
        protocols = "/".join(sorted(key.protocol.name for key in keys))
        owner = world.frontends[keys[0]].owner
        return Reason(
            cause=Cause.WRONG_PROTOCOL,
            why=(f"{missing.port} is the node port of {owner} for {protocols} only, not for {missing.protocol.name}",),
            change=(f"dial it with {protocols}",),
        )
    return Reason(
        cause=Cause.NOT_A_NODE_PORT,
        why=(
            f"{shown} is an address of this node, and no Service has the node port {missing.port}: such connections "
            "are for a process of this node",
            *_service_with_port(world, missing.port),
        ),
        change=("kubectl get services -A -o wide",),
    )


def _service_with_port(world: World, number: int) -> tuple[str, ...]:
    """Services that have the number as their own port, which is not dialled on a node's address."""
    found = [
        f"{name} (node port {port.node_port})" if port.node_port else f"{name} (no node port)"
        for name, service in sorted(world.services.items())
        for port in service.ports
        if port.port == number and service.type in (objects.ServiceType.NODE_PORT, objects.ServiceType.LOAD_BALANCER)
    ]
    return (f"{number} is the Service port of {remedies.listed(found, 3)}",) if found else ()
