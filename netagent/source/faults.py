"""What decoding finds fault with: objects set aside whole (BadObject), single entries left out (Remark)."""

from __future__ import annotations

import msgspec

from netagent.source.kinds import Kind, ObjectKey, key_for


class BadObject(ValueError):
    """An object that cannot be used; it is set aside and harms nobody else.

    `namespace` and `name` are "" as long as they are unknown or are not names at all: a hostile name gets no
    further than into `reason`, escaped. `field` is the path of the field at fault ("spec.ports[1].port"), ""
    for the whole object. `uid` is that of the bad version, "" when it cannot be told.
    """

    def __init__(
        self, kind: Kind, *, namespace: str = "", name: str = "", field: str = "", reason: str, uid: str = ""
    ) -> None:
        super().__init__(sentence(kind, namespace, name, field, reason))
        self.kind = kind
        self.namespace = namespace
        self.name = name
        self.field = field
        self.reason = reason
        self.uid = uid

    @property
    def key(self) -> ObjectKey | None:
        """Its key, so that the last good version can be kept; None when it has no usable name."""
        return key_for(self.kind, self.namespace, self.name) if self.name else None


class Remark(msgspec.Struct, frozen=True):
    """An entry of a good object that was left out, or something else that its owner should know."""

    kind: Kind
    namespace: str
    name: str
    field: str
    reason: str
    origin: str = ""

    def __str__(self) -> str:
        return sentence(self.kind, self.namespace, self.name, self.field, self.reason)


def sentence(kind: str, namespace: str, name: str, field: str, reason: str) -> str:
    """`Service default/web: spec.ports[1].port: 70000 is not ...`, without the parts that are unknown."""
    full_name = f"{namespace}/{name}" if namespace and name else name
    subject = " ".join(part for part in (kind, full_name) if part)
    return ": ".join(part for part in (subject, field, reason) if part)


def quoted(text: str) -> str:
    """Foreign text, fit for a terminal and a log: ASCII, in quotes, escaped, and not longer than a line."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
