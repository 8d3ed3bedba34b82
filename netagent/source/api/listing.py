"""A list that is being turned page by page, without I/O."""

from __future__ import annotations

from netagent.model import objects
from netagent.source.api import messages
from netagent.source.api.events import Listed, Quarantined, quarantined
from netagent.source.api.witness import Witness, newest_of
from netagent.source.decode import decode
from netagent.source.faults import BadObject, Remark
from netagent.source.kinds import Kind

# A page is asked for so many times more, and for so long, before the list is begun anew.
_PAGE_TRIES = 10
_PAGE_SECONDS = 60.0


class Listing:
    """The pages of a list that have come.

    Owns: their objects, and how often the next page has failed. Use: `add` each page; while there is a `token` another
    one follows; then `listed()`. Ask `outlasts` when the next page did not come.
    Goals: what has come is not asked for again, and a list ends.
    Threading: none.
    """

    def __init__(self, kind: Kind, *, began: float = 0.0) -> None:
        """`began` is when it was asked for."""
        self.began = began
        # What to ask the next page with, "" before the first and after the last.
        self.token = ""
        # Of all pages; were they of several versions, a watch from the lowest one would tell what is missing.
        self.version = ""
        # The object that changed last.
        self.witness: Witness | None = None
        self._kind = kind
        self._objects: list[objects.Object] = []
        self._quarantined: list[Quarantined] = []
        self._remarks: list[Remark] = []
        self._failures = 0
        self._failed_at = 0.0

    def add(self, page: messages.Page, *, max_objects: int) -> None:
        """Take a page. BadMessageError when there would be no end of them."""
        metadata = page.metadata
        assert metadata is not None
        assert metadata.resource_version is not None
        if not self.version or messages.is_older(metadata.resource_version, self.version):
            self.version = metadata.resource_version
        items = page.items or ()
        self.witness = newest_of(items, self.witness)
        for raw in items:
            try:
                self._objects.append(decode(self._kind, raw, self._remarks))
            except BadObject as fault:
                self._quarantined.append(quarantined(fault))
        token = metadata.continue_token or ""
        if token and (token == self.token or len(self._objects) + len(self._quarantined) > max_objects):
            raise messages.BadMessageError("the list has no end")
        self.token = token
        self._failures = 0

    def listed(self) -> Listed:
        """All that was on the pages."""
        return Listed(
            kind=self._kind,
            objects=tuple(self._objects),
            quarantined=tuple(self._quarantined),
            remarks=tuple(self._remarks),
        )

    def outlasts(self, now: float) -> bool:
        """Whether what has come is worth another try of the next page, which has failed; counts it."""
        if not self.token:
            return False
        if not self._failures:
            self._failed_at = now
        self._failures += 1
        return self._failures <= _PAGE_TRIES and now - self._failed_at <= _PAGE_SECONDS
