"""What can be done about each cause: sentences and commands, for people who look after Services."""

from __future__ import annotations

from collections.abc import Sequence

from netagent.explain.facts import Facts
from netagent.model import addresses, objects
from netagent.plan import frontends


def look_at_slices(name: objects.ServiceName) -> str:
    return f"kubectl -n {name.namespace} get endpointslices -l kubernetes.io/service-name={name.name} -o wide"


def look_at_pods(name: objects.ServiceName, selector: str = "") -> str:
    chosen = f" -l '{selector}'" if selector else ""
    return f"kubectl -n {name.namespace} get pods -o wide --show-labels{chosen}"


def look_at_service(name: objects.ServiceName) -> str:
    return f"kubectl -n {name.namespace} get service {name.name} -o yaml"


def no_endpoints(name: objects.ServiceName, facts: Facts | None) -> tuple[str, ...]:
    """What to do if no endpoint belongs to a Service; with facts, the selector is known."""
    if facts is None:
        return (
            "compare the Service's selector with the labels of the pods:",
            f"kubectl -n {name.namespace} get service {name.name} -o jsonpath='{{.spec.selector}}'",
            look_at_pods(name),
        )
    if not facts.selector:
        return (
            "give the Service a selector, or write EndpointSlices with the label "
            f"kubernetes.io/service-name: {name.name}",
            look_at_slices(name),
        )
    selector = ",".join(f"{key}={value}" for key, value in sorted(facts.selector.items()))
    return (
        "give pods these labels, or correct the selector; which pods it matches:",
        look_at_pods(name, selector),
        look_at_pods(name),
    )


def unready(name: objects.ServiceName) -> tuple[str, ...]:
    return (
        "find out why the pods are not ready: most often a readiness probe fails",
        look_at_pods(name),
        f"kubectl -n {name.namespace} describe pods",
    )


def terminating(name: objects.ServiceName) -> tuple[str, ...]:
    return (
        "start pods in place of those that end: is the Deployment scaled to 0, or can no new pod start?",
        look_at_pods(name),
    )


def ports(
    name: objects.ServiceName, port: objects.ServicePort, mismatched: Sequence[objects.EndpointSlice]
) -> tuple[str, ...]:
    """What to do if the slices have no port of the Service port's name and protocol."""
    same_name = any(one.name == port.name for item in mismatched for one in item.ports)
    wanted = f'"{port.name}"' if port.name else "the empty one"
    first = (
        f"give the port one protocol in the Service ({port.protocol.name} there) and in its EndpointSlices"
        if same_name
        else f"the port's name in the EndpointSlices has to be the Service's ({wanted})"
    )
    return (
        first,
        "if Kubernetes makes the slices: a targetPort that is a name has to be the name of a port of the containers",
        look_at_slices(name),
    )


def local_policy(name: objects.ServiceName, *, internal: bool, health_check_port: int) -> tuple[str, ...]:
    field = "internalTrafficPolicy" if internal else "externalTrafficPolicy"
    found = ["run a ready pod of the Service on this node"]
    if not internal:
        health = (
            f" (its health check, port {health_check_port} of every node, tells which)" if health_check_port else ""
        )
        found.append(f"or let clients and the load balancer use nodes that have one{health}")
    found.append(f"or set {field}: Cluster, which uses endpoints of all nodes")
    return (*found, look_at_pods(name))


def source_ranges(name: objects.ServiceName) -> tuple[str, ...]:
    return (
        "add the client's network to spec.loadBalancerSourceRanges",
        f"kubectl -n {name.namespace} get service {name.name} -o jsonpath='{{.spec.loadBalancerSourceRanges}}'",
    )


def defined_ports(service: objects.Service) -> str:
    """The ports that a Service has, for a sentence."""
    found = [
        f"{port.port}/{port.protocol.name.lower()}" + (f" ({port.name})" if port.name else "") for port in service.ports
    ]
    return ", ".join(found) or "none"


def kind_words(frontend: frontends.Frontend) -> str:
    """What kind of address a frontend is."""
    match frontend.kind:
        case frontends.FrontendKind.CLUSTER_IP:
            return "cluster IP"
        case frontends.FrontendKind.EXTERNAL_IP:
            return "external IP"
        case frontends.FrontendKind.LOAD_BALANCER:
            return "load balancer address"
        case frontends.FrontendKind.NODE_PORT:
            return "node port"


def age_words(created: str) -> str:
    return f"created {created}" if created else "whose age is unknown, which counts as oldest"


def listed(texts: Sequence[str], most: int = 8) -> str:
    """Texts for a sentence, and how many more there are."""
    shown = ", ".join(texts[:most])
    return f"{shown} and {len(texts) - most} more" if len(texts) > most else shown


def networks(prefixes: Sequence[addresses.Prefix]) -> str:
    return listed([str(prefix) for prefix in prefixes]) or "none"
