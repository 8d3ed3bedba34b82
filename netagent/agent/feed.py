"""Where the agent's objects come from while it runs."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from netagent import errors
from netagent.agent import reporting
from netagent.source import directory, manifests, store

log = logging.getLogger(__name__)

# A writer of several files is given this long, in seconds, to finish before the directory is read.
_SETTLE_SECONDS = 0.01


class Feed(Protocol):
    """A source of objects that goes on.

    `fileno` becomes readable when there may be something to `take`, which puts it into the Store and says whether
    that may concern forwarding; it never blocks for long, and taking too often does no harm. `in_sync` tells whether
    the Store holds a complete first state: before that, nothing may be programmed. `close` ends it.
    """

    def fileno(self) -> int: ...

    def take(self, into: store.Store) -> bool: ...

    @property
    def in_sync(self) -> bool: ...

    def close(self) -> None: ...


class DirectoryFeed:
    """Manifests in a file or directory, followed.

    Owns: the watch, and the last reading. Use: as any feed; `read_at`, `trouble` and `set_aside` tell any thread how it
    stands. Goals: a file that is bad now costs nothing, its last good objects hold; a
    directory that is gone for a moment neither. SourceError if it cannot be read at first.
    Threading: none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._watch = directory.DirectoryWatch(path)
        self._reporter = reporting.SourceReporter()
        self._reading: manifests.Reading | None = manifests.read(path)
        self._fresh = True
        self._read_at = time.time()
        self._trouble = ""
        self._reporter.report(self._reading)

    @property
    def path(self) -> str:
        """The file or directory."""
        return self._path

    @property
    def read_at(self) -> float:
        """When it was last read, seconds since the epoch. What has not changed since is as it was then."""
        return self._read_at

    @property
    def trouble(self) -> str:
        """Why it cannot be read now; "" if it can."""
        return self._trouble

    @property
    def set_aside(self) -> tuple[manifests.Quarantined, ...]:
        """What of it is set aside."""
        return self._reading.quarantined if self._reading else ()

    def fileno(self) -> int:
        return self._watch.fileno()

    @property
    def in_sync(self) -> bool:
        return not self._fresh

    def take(self, into: store.Store) -> bool:
        if not self._fresh:
            if not self._watch.changed():
                return False
            time.sleep(_SETTLE_SECONDS)
            self._watch.changed()
            if not self._read():
                return False
        self._fresh = False
        assert self._reading
        return into.replace(self._reading.objects)

    def _read(self) -> bool:
        try:
            self._reading = manifests.read(self._path, previous=self._reading)
        except errors.SourceError as error:
            # It may be back in a moment (a volume that is mounted anew); until then the last objects hold.
            log.warning("manifests cannot be read; keeping the last ones", extra={"reason": str(error)})
            self._trouble = str(error)
            return False
        self._read_at, self._trouble = time.time(), ""
        self._reporter.report(self._reading)
        return True

    def close(self) -> None:
        self._watch.close()
