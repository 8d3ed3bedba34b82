"""What the manifests of a reading say of Services beside what netagent keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from netagent.model import objects

if TYPE_CHECKING:
    from netagent.explain.facts import Facts
    from netagent.source import manifests


class ManifestFacts:
    """The facts of all Services of a reading, read from its files when somebody asks for the first time."""

    def __init__(self, reading: manifests.Reading, stdin: bytes) -> None:
        origins = {*reading.origins.values(), *(one.origin for one in reading.quarantined)}
        self._origins = sorted(origins)
        self._stdin = stdin
        self._found: dict[objects.ServiceName, Facts] | None = None

    def __call__(self) -> Mapping[objects.ServiceName, Facts]:
        if self._found is None:
            self._found = {}
            for origin in self._origins:
                self._found.update(self._read(origin))
        return self._found

    def _read(self, origin: str) -> Mapping[objects.ServiceName, Facts]:
        from pathlib import Path

        from netagent.explain import facts
        from netagent.source import manifests

        if origin == manifests.STDIN_ORIGIN:
            return facts.facts_in(self._stdin)
        try:
            return facts.facts_in(Path(origin).read_bytes())
        except OSError:
            return {}
