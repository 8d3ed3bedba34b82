"""What the agent remembers of its own work, for whoever asks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from netagent import errors
from netagent.agent import loop, reconciler
from netagent.agent.health import state
from netagent.agent.local import documents

# An update that has waited less is not worth calling the kernel behind: syncs take milliseconds.
_AT_ONCE_SECONDS = 1.0


class Chronicle(loop.Observer):
    """Remembers what the loop did: the last sync, the last failure, how many there were, since when all is well.

    Owns: these facts. Use: as an observer of the loop; servers ask `in_sync`, `syncs`, `drift` and the other
    properties.
    Goals: its size does not grow with time.
    Threading: any thread.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._wall = wall
        self.started = wall()
        self._since = self.started
        self._turned: float | None = None
        self._waiting_since: float | None = None  # by the clock
        self._equal = False
        self._syncs = documents.Syncs()
        self._in_a_row = 0
        self._drift = documents.Drift()
        self._revision = 0
        self._unexpected: Counter[str] = Counter()

    # What the loop tells ---------------------------------------------------------------------------------------

    def turned(self) -> None:
        self._turned = self._clock()

    def queued(self) -> None:
        with self._lock:
            if self._waiting_since is None:
                self._waiting_since = self._clock()

    def synced(self, report: reconciler.SyncReport) -> None:
        now = self._wall()
        done = documents.Sync(
            at=state.rfc3339(now),
            operations=report.operations,
            transactions=report.transactions,
            seconds=round(report.seconds, 6),
        )
        with self._lock:
            if not self._equal or self._waited_long():
                self._since = now
            self._equal, self._waiting_since, self._in_a_row = True, None, 0
            before = self._syncs
            self._syncs = documents.Syncs(
                succeeded=before.succeeded + 1,
                failed=before.failed,
                last=done,
                last_change=done if report.operations else before.last_change,
                last_failure=before.last_failure and _with_count(before.last_failure, 0),
            )
            if report.planned is None or report.planned or report.operations:
                self._revision += 1
            if report.drift:
                self._drift = documents.Drift(
                    repairs=self._drift.repairs + 1, operations=self._drift.operations + report.drift, last=done.at
                )

    def failed(self, error: errors.NetagentError) -> None:
        now = self._wall()
        operation = error.operation if isinstance(error, errors.CommitRejectedError) else None
        with self._lock:
            if self._equal:
                self._since = now
            self._equal = False
            self._in_a_row += 1
            before = self._syncs
            failure = documents.Failure(
                at=state.rfc3339(now), reason=str(error), in_a_row=self._in_a_row, operation=operation
            )
            self._syncs = documents.Syncs(
                succeeded=before.succeeded,
                failed=before.failed + 1,
                last=before.last,
                last_change=before.last_change,
                last_failure=failure,
            )

    def stumbled(self, where: str, error: Exception) -> None:
        with self._lock:
            self._unexpected[where] += 1

    # What others ask -------------------------------------------------------------------------------------------

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds what was told, but for what came within the last second."""
        with self._lock:
            return self._equal and not self._waited_long()

    @property
    def since(self) -> float:
        """When that became so or ceased to be, seconds since the epoch."""
        with self._lock:
            if self._equal and self._waiting_since is not None and self._waited_long():
                return self._wall() - (self._clock() - self._waiting_since)
            return self._since

    @property
    def pending_seconds(self) -> float:
        """How long the oldest update that the kernel does not have has waited; 0 if there is none."""
        with self._lock:
            return self._clock() - self._waiting_since if self._waiting_since is not None else 0.0

    @property
    def silent_seconds(self) -> float:
        """How long ago the loop last came round; 0 before it first did."""
        return self._clock() - self._turned if self._turned is not None else 0.0

    @property
    def revision(self) -> int:
        """Another number whenever something may have changed in what is planned."""
        return self._revision

    @property
    def syncs(self) -> documents.Syncs:
        return self._syncs

    @property
    def drift(self) -> documents.Drift:
        return self._drift

    @property
    def unexpected_errors(self) -> dict[str, int]:
        """How often something failed in a way that nobody expected, by what that was."""
        with self._lock:
            return dict(sorted(self._unexpected.items()))

    def _waited_long(self) -> bool:
        return self._waiting_since is not None and self._clock() - self._waiting_since > _AT_ONCE_SECONDS


def _with_count(failure: documents.Failure, in_a_row: int) -> documents.Failure:
    return documents.Failure(at=failure.at, reason=failure.reason, operation=failure.operation, in_a_row=in_a_row)
