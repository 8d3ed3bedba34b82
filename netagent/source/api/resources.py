"""Where each kind is found at the API server, and which of its objects a proxy must ignore."""

from __future__ import annotations

from typing import assert_never

import msgspec

from netagent.source.kinds import Kind

Parameters = tuple[tuple[str, str], ...]


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A collection that is listed and watched.

    `optional`: older API servers do not have it, and then it has no objects. `droppable_field_selector`: an API server
    that does not know the field may be asked without; the Store leaves out the same objects by itself.
    """

    kind: Kind
    path: str
    label_selector: str = ""
    field_selector: str = ""
    optional: bool = False
    droppable_field_selector: bool = False

    @property
    def selectors(self) -> Parameters:
        """The selectors as query parameters."""
        pairs = (("labelSelector", self.label_selector), ("fieldSelector", self.field_selector))
        return tuple(pair for pair in pairs if pair[1])

    @property
    def drops_field_selector(self) -> bool:
        """Whether it has a field selector and is as good without."""
        return self.droppable_field_selector and bool(self.field_selector)

    def of_one(self, namespace: str, name: str) -> Resource:
        """Where the object of this name is listed, or is not if it does not match.

        By its namespace's path, not a field selector for the namespace: older API servers (1.20 does) read the objects
        of all namespaces for that, and by this path every one of them asks etcd for a single key.
        """
        head, _, tail = self.path.rpartition("/")
        path = f"{head}/namespaces/{namespace}/{tail}" if namespace else self.path
        fields = dict.fromkeys(filter(None, (f"metadata.name={name}", *self.field_selector.split(","))))
        return msgspec.structs.replace(self, path=path, field_selector=",".join(fields))

    def without_field_selector(self) -> Resource:
        """The same for an API server that does not know the field."""
        return msgspec.structs.replace(self, field_selector="")


_PROXY_NAME = "service.kubernetes.io/service-proxy-name"


def resource_of(kind: Kind, *, node_name: str, proxy_name: str | None = None) -> Resource:
    """The collection of a kind, without what kube-proxy would leave out; of the Nodes only the one of this name.

    With `proxy_name`, the Services that are labelled for the proxy of this name, and not those without the label.
    """
    match kind:
        case Kind.SERVICE:
            return Resource(
                kind=kind,
                path="/api/v1/services",
                label_selector=f"{_PROXY_NAME}={proxy_name}" if proxy_name else f"!{_PROXY_NAME}",
                field_selector="spec.clusterIP!=None",
                droppable_field_selector=True,
            )
        case Kind.ENDPOINT_SLICE:
            return Resource(
                kind=kind,
                path="/apis/discovery.k8s.io/v1/endpointslices",
                label_selector="!service.kubernetes.io/headless",
            )
        case Kind.NODE:
            return Resource(kind=kind, path="/api/v1/nodes", field_selector=f"metadata.name={node_name}")
        case Kind.SERVICE_CIDR:
            return Resource(kind=kind, path="/apis/networking.k8s.io/v1/servicecidrs", optional=True)
        case _:
            assert_never(kind)
