"""The story of a Service that is named: all that it claims on this node, or why it has nothing here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from netagent.explain import absent, node_ports, parts, refusals, remedies
from netagent.explain.story import Cause, Client, Dialled, Part, Reason, Story
from netagent.explain.targets import ServiceTarget
from netagent.explain.world import World
from netagent.model import addresses, objects
from netagent.plan import frontends, services


def story_of(world: World, target: ServiceTarget, text: str, client: Client | None) -> Story:
    """Tell of a Service. `client` None: one client of each kind."""
    service = world.services.get(target.service)
    if service is None:
        return _of_rules(world, target, text, client) if world.kernel_only else _unknown(world, target, text)
    headline = _headline(service)
    notes = tuple(_notes(world, service))
    client_family = _family(client)
    reason = _not_here(world, service) or _port_reason(world, service, target)
    if not reason and client_family and client_family not in world.families:
        reason = family_not_served(world, [client_family])
    if reason:
        return Story(target=text, headline=headline, reason=reason, notes=notes)
    wanted = [port for port in service.ports if _is_wanted(port, target)]
    families = [client_family] if client_family else list(world.families)
    claimed = services.frontends_of(service, world.slices_of(service.key), world.context, families)
    claims = [claim for claim in claimed if any(_is_of(claim, port) for port in wanted)]
    found: list[Part] = []
    for claim in sorted(claims, key=_order):
        found += _part(world, service, claim, client)
    if not claims:
        own = [addresses.family_of(address) for address in service.cluster_ips]
        reason = family_not_served(world, own) if not client_family else _no_address_of(service, client_family)
    if len(world.families) > 1 and not client_family:
        notes = (*notes, *_without_family(service))
    return Story(target=text, headline=headline, reason=reason, parts=tuple(found), notes=notes)


def _family(client: Client | None) -> addresses.Family | None:
    return addresses.family_of(client.address) if client and client.address is not None else None


def _headline(service: objects.Service) -> str:
    count = len(service.ports)
    ports = f", {count} port{'s' if count != 1 else ''}: {remedies.defined_ports(service)}" if count else ""
    return f"Service {service.key}: type {service.type.value}{ports}"


def _order(claim: frontends.Frontend) -> tuple[object, ...]:
    kinds = list(frontends.FrontendKind)
    key = claim.key
    return (claim.owner.port, key.protocol, key.family.value, kinds.index(claim.kind), key.address, key.port)


def _is_wanted(port: objects.ServicePort, target: ServiceTarget) -> bool:
    if target.protocol is not None and port.protocol is not target.protocol:
        return False
    return target.port is None or target.port in (port.name, str(port.port))


def _is_of(claim: frontends.Frontend, port: objects.ServicePort) -> bool:
    return (claim.owner.port, claim.owner.protocol) == (port.name, port.protocol)


# Parts ----------------------------------------------------------------------------------------------------------


def _part(world: World, service: objects.Service, claim: frontends.Frontend, client: Client | None) -> Iterator[Part]:
    """What a Service claims, and whether it has it."""
    key = claim.key
    holder = world.frontends.get(key)
    address = key.address or next(iter(node_ports.accepting(world, key.family)), b"")
    if holder is not None and holder.owner.owner != service.key:
        reason = Reason(
            cause=Cause.CONFLICT,
            why=(parts.conflict_words(holder, claim),),
            change=(
                "give one of the two another address or port: the one that is older keeps it",
                remedies.look_at_service(holder.owner.owner),
            ),
        )
        yield _without(world, key, claim, reason, address)
    elif holder is None:
        return  # claimed twice within the Service: the other claim tells
    elif not address:
        reason = Reason(
            cause=Cause.NODE_PORT_ADDRESS,
            why=(
                f"no address of this node is known that accepts node ports for {key.family.value}",
                *(
                    ()
                    if world.node
                    else (f"the Node object {world.context.name} is unknown, and with it its addresses",)
                ),
            ),
            change=(
                "see nodePortAddresses in netagent's configuration",
                f"kubectl get node {world.context.name} -o yaml",
            ),
        )
        yield _without(world, key, claim, reason, address)
    else:
        yield parts.part_of(world, Dialled(address, key.protocol, key.port), holder, client=client)


def _without(
    world: World, key: frontends.FrontendKey, claim: frontends.Frontend, reason: Reason, address: bytes
) -> Part:
    """A part that nobody can dial for this Service."""
    any_address = address or bytes(key.family.address_bytes)
    return Part(
        dialled=Dialled(any_address, key.protocol, key.port),
        title=f"{remedies.kind_words(claim)} that Service {claim.owner.owner} asks for",
        reason=reason,
    )


# Not here -------------------------------------------------------------------------------------------------------


def _not_here(world: World, service: objects.Service) -> Reason | None:
    """Why a Service has nothing on this node at all, whatever its ports."""
    name = service.key
    if not world.is_ours(service):
        change = ("remove the label, or look at the proxy that it names", remedies.look_at_service(name))
        return Reason(cause=Cause.OTHER_PROXY, why=absent.other_proxy(world, service), change=change)
    if service.type is objects.ServiceType.EXTERNAL_NAME:
        facts = world.facts_of(name)
        alias = f" ({facts.external_name})" if facts and facts.external_name else ""
        return Reason(
            cause=Cause.EXTERNAL_NAME,
            why=(
                f"type ExternalName: it is an alias of another name{alias} in the cluster's DNS, and has no address; "
                "no connection of its clients meets netagent",
            ),
            change=("look at DNS, and at the host that the alias names",),
        )
    if not service.cluster_ips:
        return _without_cluster_ip(world, service)
    return None


def _without_cluster_ip(world: World, service: objects.Service) -> Reason:
    facts = world.facts_of(service.key)
    if facts and not facts.headless:
        return Reason(
            cause=Cause.NO_CLUSTER_IP,
            why=("it has no cluster IP yet: the API server gives it one; a manifest that was never applied has none",),
            change=(remedies.look_at_service(service.key),),
        )
    return Reason(
        cause=Cause.HEADLESS,
        why=(
            "headless: it has no cluster IP (clusterIP: None), so DNS gives clients the addresses of the endpoints, "
            "and no connection of theirs meets netagent",
        ),
        change=("look at DNS and at the endpoints", remedies.look_at_slices(service.key)),
    )


def _port_reason(world: World, service: objects.Service, target: ServiceTarget) -> Reason | None:
    """Why the port that was asked for is none of the Service's."""
    if not service.ports:
        why = ("it has no ports, so there is nothing to dial",)
        return Reason(cause=Cause.NO_PORTS, why=why, change=("add spec.ports",))
    if any(_is_wanted(port, target) for port in service.ports):
        return None
    defined = remedies.defined_ports(service)
    same = [port for port in service.ports if _is_wanted(port, target._replace(protocol=None))]
    if same and target.protocol is not None:
        protocols = "/".join(sorted(port.protocol.name for port in same))
        return Reason(
            cause=Cause.WRONG_PROTOCOL,
            why=(
                f"it has port {target.port or '?'} for {protocols} only, not for {target.protocol.name}",
                f"its ports are {defined}",
            ),
            change=(f"dial it with {protocols}, or add a {target.protocol.name} port to the Service",),
        )
    hints: tuple[str, ...] = ()
    if target.port and target.port.isdigit():
        hints = absent.port_hints(world, service, int(target.port), target.protocol or addresses.Protocol.TCP)
    return Reason(
        cause=Cause.PORT_UNDEFINED,
        why=(f"it has no port {_asked(target)}; its ports are {defined}", *hints),
        change=("ask for a port that it has, or add this one to spec.ports", remedies.look_at_service(service.key)),
    )


def _asked(target: ServiceTarget) -> str:
    protocol = f"/{target.protocol.name.lower()}" if target.protocol else ""
    return f"{target.port or ''}{protocol}"


def family_not_served(world: World, wanted: Iterable[addresses.Family]) -> Reason:
    """Why nothing of these families is here."""
    names = " and ".join(sorted({family.value for family in wanted}))
    served = " and ".join(sorted(family.value for family in world.families))
    if world.kernel_only:
        return Reason(
            cause=Cause.FAMILY_NOT_SERVED,
            why=(f"the kernel has rules of netagent for {served} alone, and none for {names}",),
            change=("netagent status", "netagent diff -f MANIFESTS"),
        )
    return Reason(
        cause=Cause.FAMILY_NOT_SERVED,
        why=(f"{names} is not served here: this netagent serves {served} alone (--family)",),
        change=("start netagent without --family, which serves both families",),
    )


def _no_address_of(service: objects.Service, family: addresses.Family) -> Reason:
    """Why a client of one family can never dial a Service of the other."""
    return Reason(
        cause=Cause.FAMILY_NOT_SERVED,
        why=(f"it has no {family.value} address, and the client has no other",),
        change=("spec.ipFamilyPolicy: PreferDualStack gives a Service addresses of both families",),
    )


def _of_rules(world: World, target: ServiceTarget, text: str, client: Client | None) -> Story:
    """A Service as the kernel's elements name it."""
    name = target.service
    held = [one for one in world.frontends.values() if one.owner.owner == name]
    wanted = [
        one
        for one in held
        if target.port in (None, one.owner.port, str(one.key.port))
        and target.protocol in (None, one.key.protocol)
        and _family(client) in (None, one.key.family)
    ]
    found: list[Part] = []
    for claim in sorted(wanted, key=_order):
        address = claim.key.address or next(iter(node_ports.accepting(world, claim.key.family)), b"")
        if address:
            dialled = Dialled(address, claim.key.protocol, claim.key.port)
            found.append(parts.part_of(world, dialled, claim, client=client))
    headline = f"Service {name}, as the kernel's rules have it"
    if found:
        return Story(target=text, headline=headline, parts=tuple(found))
    if held:
        ports = remedies.listed(sorted({f"{one.key.port}/{one.key.protocol.name.lower()}" for one in held}))
        reason = Reason(
            cause=Cause.PORT_UNDEFINED,
            why=(f"the kernel's rules have no port {_asked(target)} of it; those that they have are {ports}",),
            change=(remedies.look_at_service(name),),
        )
        return Story(target=text, headline=headline, reason=reason)
    reason = Reason(
        cause=Cause.UNKNOWN_SERVICE,
        why=(f"the kernel's rules have nothing of a Service {name}; why, the rules cannot tell",),
        change=(remedies.look_at_service(name), f"netagent explain {name} -f MANIFESTS"),
    )
    return Story(target=text, headline=headline, reason=reason, known=False)


def _unknown(world: World, target: ServiceTarget, text: str) -> Story:
    """A Service that is not among the objects: set aside, or nobody's."""
    name = target.service
    faults = [str(one) for one in world.set_aside if (one.kind, one.namespace, one.name) == ("Service", *name)]
    if faults:
        reason = absent.set_aside(faults, f"Service {name} is set aside: netagent cannot use it as it is")
        return Story(target=text, headline=f"Service {name}", reason=reason)
    unread = [str(one) for one in world.set_aside if not one.kind or (one.kind == "Service" and not one.name)]
    why = [f"no Service {name} is known here", *_near(world, name)]
    slices = len(world.slices_of(name))
    if slices:
        counted = "is an EndpointSlice" if slices == 1 else f"are {slices} EndpointSlices"
        why.append(f"there {counted} of that name, but no Service")
    if unread:
        why.append(f"it may be in what could not be read: {remedies.listed(unread, 3)}")
    if world.facts is None and world.context.proxy_name is None:
        likely = "most likely it has" if slices else "it may have"
        why.append(
            f"{likely} the label service.kubernetes.io/service-proxy-name: it is another proxy's then, and netagent "
            "does not follow it"
        )
    change = (f"kubectl -n {name.namespace} get services --show-labels", "kubectl get services -A")
    reason = Reason(cause=Cause.UNKNOWN_SERVICE, why=tuple(why), change=change)
    return Story(target=text, headline=f"Service {name}", reason=reason, known=False)


def _near(world: World, name: objects.ServiceName) -> Iterator[str]:
    elsewhere = sorted(str(one) for one in world.services if one.name == name.name)
    if elsewhere:
        yield f"there is one of that name in another namespace: {remedies.listed(elsewhere)}"
    siblings = [one.name for one in world.services if one.namespace == name.namespace]
    near = difflib.get_close_matches(name.name, siblings, n=3, cutoff=0.6)
    if near:
        yield f"did you mean {', '.join(f'{name.namespace}/{one}' for one in sorted(near))}?"


# Beside ---------------------------------------------------------------------------------------------------------


def _notes(world: World, service: objects.Service) -> Iterator[str]:
    """What of a Service is not served, or was left out, although the rest is."""
    name = service.key
    unserved = [address for address in service.cluster_ips if addresses.family_of(address) not in world.families]
    if unserved and len(unserved) < len(service.cluster_ips):
        shown = remedies.listed(list(map(addresses.format_address, unserved)))
        yield f"{shown} is not served: this netagent serves {world.families[0].value} alone (--family)"
    if service.external_ips and not world.context.allow_external_ips:
        shown = remedies.listed([addresses.format_address(address) for address in service.external_ips])
        yield f"its external IPs ({shown}) are not served: {absent.EXTERNAL_IPS_OFF}"
    balanced = service.type is objects.ServiceType.LOAD_BALANCER
    facts = world.facts_of(name) if balanced else None  # whose reading takes time
    for one in facts.ingress if facts else ():
        if one.mode == "Proxy" and one.ip:
            yield absent.proxy_mode(str(name), one.ip)
        elif one.hostname and not one.ip:
            yield f"its load balancer is known by the name {one.hostname} alone: there is no address to serve on nodes"
    if balanced and not service.vips and not (facts and facts.ingress):
        yield "no load balancer address is served: status.loadBalancer.ingress has none yet, or none of ipMode VIP"
    if service.health_check_node_port:
        yield f"load balancers ask port {service.health_check_node_port} of each node whether it has a local endpoint"
    yield from set_aside_of(world, name)
    for noted in world.noted:
        if (noted.kind, noted.namespace, noted.name) == ("Service", *name) or refusals.is_slice_of(
            noted.kind, noted.namespace, noted.name, name
        ):
            yield f"{noted.kind} {noted.namespace}/{noted.name}: {noted.field}: {noted.reason}"


def set_aside_of(world: World, name: objects.ServiceName) -> Iterator[str]:
    """What of a Service that is served otherwise cannot be used."""
    for one in world.set_aside:
        mine = (one.kind, one.namespace, one.name) == ("Service", *name)
        if mine or refusals.is_slice_of(one.kind, one.namespace, one.name, name):
            kept = "; an older version is in use" if one.kept else ""
            yield f"set aside: {one}{kept}"


def _without_family(service: objects.Service) -> Iterator[str]:
    """A Service of one family on a node that serves both is nothing to be said of; it is if it should have both."""
    families = {addresses.family_of(address) for address in service.cluster_ips}
    for address in (*service.external_ips, *service.vips):
        family = addresses.family_of(address)
        if family not in families:
            yield (
                f"{addresses.format_address(address)} is not served: the Service has no {family.value} cluster IP, and "
                "so is not of that family"
            )
