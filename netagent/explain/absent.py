"""Why nobody serves what was dialled: an address without this port, or without any Service."""

from __future__ import annotations

from collections.abc import Iterator

from netagent.explain import node_ports, remedies
from netagent.explain.story import Cause, Missing, Reason
from netagent.explain.world import World
from netagent.model import addresses, objects


def reason_of(world: World, missing: Missing) -> Reason:
    """The cause, the most particular one first. NOBODYS_ADDRESS if nothing at all is known of the address."""
    for find in (
        _port_of_a_service,
        _port_in_rules,
        _of_another_proxy,
        _external_ip,
        _by_manifest,
        _endpoint_itself,
        node_ports.elsewhere,
        _unallocated,
        node_ports.own_address,
    ):
        reason = find(world, missing)
        if reason:
            return reason
    shown = addresses.format_address(missing.address)
    return Reason(
        cause=Cause.NOBODYS_ADDRESS,
        why=(
            f"no Service that is known here has the address {shown}, so netagent leaves such packets alone",
            *_perhaps_set_aside(world),
            *_perhaps_anothers(world),
            *(() if world.facts else ("load balancer addresses with ipMode Proxy are left alone on purpose",)),
        ),
        change=("kubectl get services -A -o wide", *_look_at_set_aside(world), *_look_at_node(world)),
    )


def claims_of(service: objects.Service, world: World) -> Iterator[tuple[str, bytes]]:
    """The addresses that a Service asks this node to serve, and what each is."""
    for address in service.cluster_ips:
        yield "cluster IP", address
    for address in service.vips:
        yield "load balancer address", address
    if world.context.allow_external_ips:
        for address in service.external_ips:
            yield "external IP", address


def _holders(world: World, address: bytes, *, ours: bool) -> list[tuple[objects.Service, str]]:
    """The Services that have an address, and what it is for each; sorted by name."""
    return [
        (service, what)
        for _, service in sorted(world.services.items())
        if world.is_ours(service) is ours and service.type is not objects.ServiceType.EXTERNAL_NAME
        for what, claimed in claims_of(service, world)
        if claimed == address
    ]


def _port_of_a_service(world: World, missing: Missing) -> Reason | None:
    holders = _holders(world, missing.address, ours=True)
    if not holders or missing.port is None:
        return None
    service, what = holders[0]
    others = [str(holder.key) for holder, _ in holders[1:] if holder.key != service.key]
    shown = addresses.format_address(missing.address)
    why = [
        f"{shown} is the {what} of Service {service.key}, whose ports are {remedies.defined_ports(service)}",
        *([f"other Services have the address too: {remedies.listed(others)}"] if others else []),
        *port_hints(world, service, missing.port, missing.protocol),
    ]
    if what != "cluster IP":
        why.append("ports of such an address that no Service has are left to the host")
    same_number = [port for holder, _ in holders for port in holder.ports if port.port == missing.port]
    if same_number:
        protocols = "/".join(sorted(port.protocol.name for port in same_number))
        why.insert(0, f"port {missing.port} is there for {protocols} only, not for {missing.protocol.name}")
        change = (f"dial it with {protocols}, or add a {missing.protocol.name} port to the Service",)
        return Reason(cause=Cause.WRONG_PROTOCOL, why=tuple(why), change=change)
    why.insert(0, f"no Service has port {missing.port}/{missing.protocol.name.lower()} at this address")
    return Reason(
        cause=Cause.PORT_UNDEFINED,
        why=tuple(why),
        change=(
            "dial a port that the Service has, or add this one to spec.ports",
            remedies.look_at_service(service.key),
        ),
    )


def _port_in_rules(world: World, missing: Missing) -> Reason | None:
    """A port that nobody has at an address of the kernel's rules, where these are all that is known."""
    if not world.kernel_only or missing.port is None:
        return None
    held = sorted(
        (key.port, key.protocol.name.lower(), str(frontend.owner.owner))
        for key, frontend in world.frontends.items()
        if key.family is missing.family and key.address == missing.address
    )
    if not held:
        return None
    ports = remedies.listed([f"{port}/{protocol} ({owner})" for port, protocol, owner in held])
    asked = f"{missing.port}/{missing.protocol.name.lower()}"
    same_number = [protocol for port, protocol, _ in held if port == missing.port]
    return Reason(
        cause=Cause.WRONG_PROTOCOL if same_number else Cause.PORT_UNDEFINED,
        why=(f"the kernel's rules have no {asked} at this address; those that they have are {ports}",),
        change=("dial a port that is there, or add this one to the Service's spec.ports",),
    )


def port_hints(world: World, service: objects.Service, number: int, protocol: addresses.Protocol) -> tuple[str, ...]:
    """What a port number means for a Service that does not have it as a port: node port, or port of its endpoints."""
    found: list[str] = []
    for port in service.ports:
        if port.node_port == number:
            found.append(f"{number} is the node port of its port {port.port}: that is dialled on a node's address")
    for port in service.ports:
        numbers = {
            one.port
            for item in world.slices_of(service.key)
            for one in item.ports
            if one.name == port.name and one.protocol is port.protocol
        }
        if number in numbers and port.protocol is protocol:
            found.append(f"{number} is the port of its endpoints (targetPort); clients of the Service dial {port.port}")
    return tuple(dict.fromkeys(found))


_LABEL = "service.kubernetes.io/service-proxy-name"


def other_proxy(world: World, service: objects.Service) -> tuple[str, ...]:
    """Why a Service is not netagent's."""
    label = _LABEL
    if service.proxy_name is not None:
        return (
            f"Service {service.key} has the label {label}={service.proxy_name}: it is another proxy's, and netagent "
            "leaves it alone",
        )
    return (
        f"this netagent serves Services with the label {label}={world.context.proxy_name} alone (setting "
        f"netagent.serviceProxyName), and Service {service.key} has none",
    )


def _of_another_proxy(world: World, missing: Missing) -> Reason | None:
    holders = _holders(world, missing.address, ours=False)
    if not holders:
        return None
    service, _ = holders[0]
    change = ("remove the label, or look at the proxy that it names", remedies.look_at_service(service.key))
    return Reason(cause=Cause.OTHER_PROXY, why=other_proxy(world, service), change=change)


EXTERNAL_IPS_OFF = "external IPs are switched off on this node (feature gate AllowServiceExternalIPs: false)"


def external_ips_off(service: objects.Service) -> Reason:
    """Why external IPs of a Service are not served."""
    return Reason(
        cause=Cause.EXTERNAL_IPS_OFF,
        why=(f"it is an external IP of Service {service.key}, and {EXTERNAL_IPS_OFF}",),
        change=("set featureGates.AllowServiceExternalIPs: true in netagent's configuration, or use a load balancer",),
    )


def _external_ip(world: World, missing: Missing) -> Reason | None:
    if world.context.allow_external_ips:
        return None
    for _, service in sorted(world.services.items()):
        if missing.address in service.external_ips and world.is_ours(service):
            return external_ips_off(service)
    return None


def _by_manifest(world: World, missing: Missing) -> Reason | None:
    """What the manifests say beside: an ingress in mode Proxy, or a Service that was set aside."""
    if world.facts is None:
        return None
    aside = {objects.ServiceName(one.namespace, one.name): one for one in world.set_aside if one.kind == "Service"}
    for name, facts in sorted(world.facts().items()):
        if missing.address not in facts.addresses:
            continue
        if name in aside:
            return set_aside([str(aside[name])], f"Service {name} asks for this address, but is set aside")
        for one in facts.ingress:
            if one.mode == "Proxy" and _is(one.ip, missing.address):
                return Reason(cause=Cause.PROXY_MODE, why=(proxy_mode(str(name), one.ip),), change=_PROXY_MODE_CHANGE)
    return None


_PROXY_MODE_CHANGE = (
    "nothing, if the load balancer is to see the traffic; else the controller that writes "
    "status.loadBalancer.ingress has to say ipMode: VIP",
)


def proxy_mode(owner: str, ip: str) -> str:
    """Why an ingress address in mode Proxy is not served."""
    return (
        f"{ip} is a load balancer address of Service {owner} with ipMode Proxy: the load balancer wants all traffic "
        "itself, so nodes leave it alone"
    )


def set_aside(faults: list[str], first: str) -> Reason:
    """An object that cannot be used is the cause."""
    return Reason(
        cause=Cause.SET_ASIDE,
        why=(first, *faults),
        change=("correct the field that is named; until then nothing of the object is in force",),
    )


def _is(text: str, address: bytes) -> bool:
    try:
        return addresses.parse_address(text) == address
    except ValueError:
        return False


def _endpoint_itself(world: World, missing: Missing) -> Reason | None:
    owners = sorted(
        {
            str(name)
            for name, slices in world.slices.items()
            for item in slices
            for endpoint in item.endpoints
            if endpoint.address == missing.address
        }
    )
    if not owners or world.host.is_local(missing.address):
        return None
    shown = addresses.format_address(missing.address)
    return Reason(
        cause=Cause.ENDPOINT_ITSELF,
        why=(
            f"{shown} is the address of an endpoint of {remedies.listed(owners)}, and not of a Service: connections "
            "straight to a pod are the pod network's business",
        ),
        change=("dial the Service, or look at the pod network",),
    )


def _unallocated(world: World, missing: Missing) -> Reason | None:
    if world.host.is_local(missing.address):
        return None
    for prefix in world.rules[missing.family].service_cidrs:
        if missing.address in prefix:
            shown = addresses.format_address(missing.address)
            return Reason(
                cause=Cause.UNALLOCATED,
                why=(
                    f"{shown} is in the range of cluster IPs ({prefix}), but no Service that is known here has it: "
                    "such packets lead nowhere, so they are dropped",
                    *_perhaps_set_aside(world),
                    *_perhaps_anothers(world),
                ),
                change=(
                    "use the Service's name in place of an address: the Service may have been deleted, or made anew",
                    "kubectl get services -A -o wide",
                    *_look_at_set_aside(world),
                ),
            )
    return None


def _perhaps_set_aside(world: World) -> tuple[str, ...]:
    """Services whose addresses nobody knows, as they are set aside."""
    faults = [str(one) for one in world.set_aside if one.kind in ("Service", "") and not one.kept]
    return (f"set aside, and perhaps the one: {remedies.listed(faults, 3)}",) if faults else ()


def _perhaps_anothers(world: World) -> tuple[str, ...]:
    """Services of other proxies, which an agent does not follow."""
    if world.facts is not None or world.kernel_only or world.context.proxy_name is not None:
        return ()
    return (f"a Service with the label {_LABEL} is another proxy's, and unknown here",)


def _look_at_set_aside(world: World) -> tuple[str, ...]:
    """What shows the addresses of Services that are set aside."""
    names = [one for one in world.set_aside if one.kind == "Service" and one.name and not one.kept]
    if not names:
        return ()
    return (
        "or correct what is set aside, if it asks for this address",
        *(remedies.look_at_service(objects.ServiceName(one.namespace, one.name)) for one in names[:3]),
    )


def _look_at_node(world: World) -> tuple[str, ...]:
    return () if world.node or world.kernel_only else (f"kubectl get node {world.context.name} -o yaml",)
