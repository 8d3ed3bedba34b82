"""What every target requires of objects and of words for people."""

from __future__ import annotations

from netagent.model import objects

_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")
# The longest sentence about one object, whatever is in it.
_SENTENCE_MOST = 1500


class Broken(AssertionError):
    """A promise is broken."""


def require(holds: bool, what: str) -> None:
    """Like assert, also where Python is told to leave those out."""
    if not holds:
        raise Broken(what)


def fit_to_be_shown(text: str) -> None:
    """Require one line of bounded length that no terminal obeys."""
    require(text.isprintable(), f"not printable: {text!a}"[:300])
    require(len(text) <= _SENTENCE_MOST, f"too long, {len(text)} characters: {text[:200]!a}")


def fit_for_planning(made: objects.Object) -> None:
    """Require what everybody after the decoder relies on."""
    for text in (made.name, getattr(made, "namespace", "")):
        require(_NAME.issuperset(text), f"hostile name {text!a}")
    require(bool(made.name), "no name")
    match made:
        case objects.Service():
            lengths = [len(address) for address in made.cluster_ips]
            require(len(set(lengths)) == len(lengths), "two cluster IPs of one family")
            for port in made.ports:
                require(_NAME.issuperset(port.name), f"hostile name of a port {port.name!a}")
                require(1 <= port.port <= 65535 and 0 <= port.node_port <= 65535, "no port")
        case objects.EndpointSlice():
            size = made.family.address_bytes if made.family else 0
            require(all(len(one.address) == size for one in made.endpoints), "an endpoint of another family")
            for one in made.endpoints:
                require(_NAME.issuperset(one.node or ""), f"hostile name of a node {one.node!a}")
        case objects.Node():
            require(all(key.isascii() and key.isprintable() for key in made.taint_keys), "hostile taint")
        case objects.ServiceCIDR():
            pass
