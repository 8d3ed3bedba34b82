"""`netagent whatif`: what a change of objects would do on this node, before it is applied."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from netagent import errors
from netagent.cli import ending, manifest_facts, options, situation
from netagent.model import objects

if TYPE_CHECKING:
    from netagent.agent import planner
    from netagent.explain import change
    from netagent.source.kinds import ObjectKey

_KINDS: Final = {
    "service": "Service", "services": "Service", "svc": "Service",
    "endpointslice": "EndpointSlice", "endpointslices": "EndpointSlice",
    "node": "Node", "nodes": "Node", "no": "Node",
    "servicecidr": "ServiceCIDR", "servicecidrs": "ServiceCIDR",
}  # fmt: skip


class Wanted(NamedTuple):
    """A change: objects as they will be, keys of those that go, and what is to be said of them."""

    applied: tuple[objects.Object, ...]
    deleted: tuple[ObjectKey, ...]
    set_aside: tuple[str, ...]
    notes: tuple[str, ...]


@click.command()
@click.option(
    "--base",
    metavar="FILE|DIR|-",
    default=None,
    help="Manifests of the cluster as it is.  [default: what the running agent knows]",
)
@click.option(
    "--delete",
    "deleted",
    metavar="KIND/NAMESPACE/NAME",
    multiple=True,
    help="An object that would go: service/shop/web, endpointslice/shop/web-1, node/worker-a; may be repeated.",
)
@options.output(help="text is for people; json and yaml are stable.")
@options.looking
@ending.ending(differs=8)
def whatif(base: str | None, deleted: tuple[str, ...], output: str, **given: Any) -> None:
    """Tell what a change would do on this node. Nothing is touched.

    -f has the changed objects: those of the same kind and name are replaced, others are new, all else stays. What the
    API server keeps of a Service (cluster IP, node ports, load balancer address, age) may be left out of it.

    Tells the operations in the kernel, what clients of each frontend would notice and with which chances they would get
    its endpoints, conflicts that would come and go, objects that would be set aside, and which established flows would
    be dropped.

    \b
    Exit codes, as `kubectl diff` and `netagent diff`: 0 nothing would change;
    1 something would, or is set aside; more: an error (8: runtime error).

    \b
    Examples:
      netagent whatif -f new-web.yaml
      netagent whatif --delete service/shop/web
      netagent whatif -f new-web.yaml --base cluster.json --node-name worker-a
    """
    from netagent.explain import change

    source = options.source_of(**given)
    if source.path is None and not deleted:
        raise errors.ConfigError("give a change: -f MANIFESTS, or --delete KIND/NAMESPACE/NAME")
    if base == source.path == "-":
        raise errors.ConfigError("-f and --base cannot both be standard input")
    seen = situation.look(source._replace(path=base))
    if seen.planner is None:
        raise errors.NoAgentError("no agent runs in this network namespace to start from: give --base MANIFESTS")
    for remark in seen.remarks:
        options.say(remark)
    wanted = _wanted(source, deleted, seen.planner)
    if source.strict and wanted.set_aside:
        raise errors.QuarantineError(f"{len(wanted.set_aside)} objects would have to be set aside")
    effect = change.effect_of(seen.planner, wanted.applied, wanted.deleted)
    _print(effect, wanted, seen, output)
    sys.exit(1 if effect or wanted.set_aside else 0)


def _wanted(source: options.Source, deleted: tuple[str, ...], plan: planner.Planner) -> Wanted:
    from netagent.explain import change
    from netagent.source import manifests

    gone = tuple(_key_of(text, plan) for text in deleted)
    if source.path is None:
        return Wanted((), gone, (), ())
    stdin = sys.stdin.buffer.read() if source.path == manifests.STDIN else b""
    reading = manifests.read(source.path, stdin=io.BytesIO(stdin))
    headless = {name for name, facts in manifest_facts.ManifestFacts(reading, stdin)().items() if facts.headless}
    if not reading.objects and not reading.quarantined and not gone:
        raise errors.SourceError(f"{source.path}: there is no Service, EndpointSlice, Node or ServiceCIDR in it")
    notes = [str(remark) for remark in reading.remarks]
    if reading.ignored:
        notes.append(f"{reading.ignored} objects of other kinds do not concern netagent")
    applied: list[objects.Object] = []
    free = change.free_cluster_ips(plan.store, reading.objects)
    owners = {item.service for item in reading.objects if isinstance(item, objects.EndpointSlice)}
    for item in reading.objects:
        if isinstance(item, objects.Service):
            filled = change.completed(item, plan.store.services.get(item.key))
            if not filled.service.cluster_ips and item.key not in headless:
                filled = change.supposed(filled, free)
            notes += _service_notes(filled, plan, owners)
            applied.append(filled.service)
        else:
            applied.append(item)
    return Wanted(tuple(applied), gone, tuple(map(str, reading.quarantined)), tuple(notes))


def _service_notes(
    filled: change.Completed, plan: planner.Planner, owners: set[objects.ServiceName | None]
) -> Iterator[str]:
    service = filled.service
    if filled.kept:
        yield f"Service {service.key}: not in the manifest and kept as it is: {', '.join(filled.kept)}"
    if service.type is objects.ServiceType.EXTERNAL_NAME:
        return
    if filled.supposed:
        yield f"Service {service.key} gets its cluster IP when it is applied; {filled.supposed} stands for it here"
        if service.type is objects.ServiceType.NODE_PORT and not all(port.node_port for port in service.ports):
            yield f"Service {service.key} gets node ports when it is applied; those that it does not name are not shown"
    if not service.cluster_ips:
        yield f"Service {service.key} has no cluster IP: without one (headless, or not given yet) nothing of it is here"
    elif service.key not in owners and not plan.store.slices_of(service.key):
        yield (
            f"Service {service.key} has no EndpointSlice: Kubernetes makes them for its pods; until then its clients "
            "are refused"
        )


def _key_of(text: str, plan: planner.Planner) -> ObjectKey:
    """The key of an object that is there. ConfigError if it is not, or makes no sense."""
    from netagent.source.kinds import Kind, key_for

    kind_text, _, rest = text.partition("/")
    kind = Kind(_KINDS[kind_text.lower()]) if kind_text.lower() in _KINDS else None
    namespace, slash, name = rest.rpartition("/")
    if kind is None or not name or "/" in namespace or bool(slash) is not kind.namespaced:
        raise errors.ConfigError(
            f"--delete {text!r}: give KIND/NAMESPACE/NAME for services and endpointslices, KIND/NAME for nodes and "
            "servicecidrs"
        )
    if not _is_there(kind.value, namespace, name, plan):
        raise errors.ConfigError(f"--delete {text!r}: there is no such object to start with")
    return key_for(kind, namespace, name)


def _is_there(kind: str, namespace: str, name: str, plan: planner.Planner) -> bool:
    store = plan.store
    match kind:
        case "Service":
            return objects.ServiceName(namespace, name) in store.services
        case "EndpointSlice":
            return store.slice_of_key((namespace, name)) is not None
        case "Node":
            return store.node is not None and store.node.name == name
        case _:
            return name in store.service_cidrs


# Output ---------------------------------------------------------------------------------------------------------


def _print(effect: change.Effect, wanted: Wanted, seen: situation.Situation, output: str) -> None:
    from netagent.cli import views
    from netagent.escaping import printable
    from netagent.explain import change_text

    if output == "text":
        for line in change_text.lines(effect, set_aside=wanted.set_aside, notes=wanted.notes):
            click.echo(printable(line))
        return
    document = {
        "origin": seen.origin.value,
        "node": seen.node_name,
        "mode": seen.settings.mode.value,
        **change_text.document(effect, set_aside=wanted.set_aside, notes=wanted.notes),
    }
    click.echo(views.as_json(document) if output == "json" else views.as_yaml(document), nl=False)
