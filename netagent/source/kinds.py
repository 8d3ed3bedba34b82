"""The kinds that we read, and the key of an object among all of them."""

from __future__ import annotations

import enum
from typing import assert_never

from netagent.model import objects


class Kind(enum.StrEnum):
    """A kind that we read, as the API spells it."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    SERVICE_CIDR = "ServiceCIDR"

    @property
    def namespaced(self) -> bool:
        return self in (Kind.SERVICE, Kind.ENDPOINT_SLICE)

    @property
    def api_group(self) -> str:
        """The API group, "" for core."""
        match self:
            case Kind.SERVICE | Kind.NODE:
                return ""
            case Kind.ENDPOINT_SLICE:
                return "discovery.k8s.io"
            case Kind.SERVICE_CIDR:
                return "networking.k8s.io"
            case _:
                assert_never(self)


# Namespace and name, or the name alone for kinds that have no namespace. A ServiceName is one, too.
Key = tuple[str, str] | str
ObjectKey = tuple[Kind, Key]


def kind_named(kind: str, api_version: str) -> Kind | None:
    """The kind that a manifest names, None if it is not one of ours (a Service of Knative is not).

    An absent apiVersion ("") is taken for the right one; every version of our API groups is.
    """
    try:
        known = Kind(kind)
    except ValueError:
        return None
    group, slash, _ = api_version.rpartition("/")
    return known if not api_version or (group if slash else "") == known.api_group else None


def key_for(kind: Kind, namespace: str, name: str) -> ObjectKey:
    """The key of an object of this kind."""
    return (kind, (namespace, name) if kind.namespaced else name)


def object_key(item: objects.Object) -> ObjectKey:
    """The key of a decoded object."""
    match item:
        case objects.Service():
            return (Kind.SERVICE, (item.namespace, item.name))
        case objects.EndpointSlice():
            return (Kind.ENDPOINT_SLICE, (item.namespace, item.name))
        case objects.Node():
            return (Kind.NODE, item.name)
        case objects.ServiceCIDR():
            return (Kind.SERVICE_CIDR, item.name)
        case _:
            assert_never(item)
