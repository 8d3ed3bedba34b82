"""What a run measures: sizes, rounds, where things are."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from . import cluster, namespaces, state


@dataclass(slots=True)
class Plan:
    """What to measure.

    Owns: the files of pages in `scratch`, made when a section first asks for them. `unsettled` counts the waits for a
    quiet kernel that were given up.
    """

    scratch: Path
    sizes: tuple[cluster.Size, ...]
    rounds: int
    changes: int
    storm_size: cluster.Size
    storm_rate: int
    storm_seconds: float
    frontends: tuple[int, ...]
    usual_frontends: tuple[int, ...]
    flows: int
    reference_sizes: tuple[cluster.Size, ...]
    xtables_size: cluster.Size
    unsettled: int = 0
    progress: TextIO = field(default_factory=lambda: sys.stderr)
    _pages: dict[object, Path] = field(default_factory=dict)

    def pages(self, size: cluster.Size, more: tuple[int, ...] = (), protocol: str = "TCP") -> Path:
        """A file with the lists of the cluster of a size."""
        key = (size, more, protocol)
        if key not in self._pages:
            path = self.scratch / f"pages-{len(self._pages)}"
            state.write_pages(cluster.cluster(size, more=more, protocol=protocol), path)
            self._pages[key] = path
        return self._pages[key]

    def settle(self) -> None:
        """Let the kernel finish what others began."""
        self.unsettled += not namespaces.settle()

    def say(self, text: str) -> None:
        """Tell the person who waits."""
        self.progress.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self.progress.flush()
