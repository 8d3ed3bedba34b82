"""Services that the kernel refuses something of: they stay as they were, all others go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from netagent import conntrack, errors
from netagent.agent import backends, backoff
from netagent.model import objects
from netagent.plan import frontends

log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 1.0
_MOST_RETRY_SECONDS = 300.0


class _Refusal:
    """What is known of one Service. `last_good`: what the kernel has at the keys that it was refused at."""

    __slots__ = ("again_at", "backoff", "last_good", "reason", "tried")

    def __init__(self) -> None:
        self.last_good: dict[frontends.FrontendKey, frontends.Frontend | None] = {}
        self.reason = ""
        self.again_at = 0.0
        self.backoff = backoff.BackOff(first=_FIRST_RETRY_SECONDS, most=_MOST_RETRY_SECONDS)
        self.tried = False


class Refusals:
    """The quarantine of Services of which the kernel refused an operation.

    Owns: which, why, what the kernel has of them instead, and when each is tried again. Use: `retry` before a commit,
    `set_aside` when one is refused and before the next try, `committed` when one went through.
    Goals: one Service that the kernel cannot take costs itself alone, and of that only what is new; it is tried again
    ever more seldom, and at once when it changes.
    Threading: the loop's.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[objects.ServiceName, _Refusal] = {}

    @property
    def reasons(self) -> dict[objects.ServiceName, str]:
        """The Services that are set aside, and why. For any thread."""
        return {owner: refusal.reason for owner, refusal in list(self._refused.items())}

    @property
    def keys(self) -> frozenset[frontends.FrontendKey]:
        """The keys at which the kernel does not have what is planned."""
        return frozenset(key for refusal in self._refused.values() for key in refusal.last_good)

    def seconds_to_retry(self) -> float | None:
        """Until the next one is due; None if none waits."""
        if not self._refused:
            return None
        return max(0.0, min(refusal.again_at for refusal in self._refused.values()) - self._clock())

    def retry(
        self,
        backend: backends.Backend,
        planned: Mapping[frontends.FrontendKey, frontends.Frontend],
        *,
        changed: Iterable[objects.ServiceName],
    ) -> None:
        """Want all of those again that have `changed` since, or whose time has come."""
        now = self._clock()
        again = set(changed)
        for owner, refusal in self._refused.items():
            refusal.tried = owner in again or now >= refusal.again_at
            if refusal.tried:
                backend.update(refusal.last_good, planned)

    def set_aside(
        self,
        owner: objects.ServiceName,
        error: errors.CommitRejectedError,
        *,
        backend: backends.Backend,
        uncommitted: Iterable[conntrack.FrontendChange],
        planned: Mapping[frontends.FrontendKey, frontends.Frontend],
    ) -> bool:
        """Want for a Service what the kernel has of it. False if it is set aside in this very commit already: then it
        was not this."""
        refusal = self._refused.get(owner)
        if refusal is not None and not refusal.tried:
            return False
        if refusal is None:
            refusal = self._refused[owner] = _Refusal()
        for change in uncommitted:
            if _belongs(change.before, owner) or _belongs(change.after, owner):
                refusal.last_good.setdefault(change.key, change.before)
        if not refusal.last_good:  # nothing of it is new: the kernel cannot take what it had, either
            refusal.last_good = {key: None for key, frontend in planned.items() if _belongs(frontend, owner)}
        last_good = {key: frontend for key, frontend in refusal.last_good.items() if frontend is not None}
        backend.update(refusal.last_good, last_good)
        refusal.tried = False
        wait = refusal.backoff.failed()
        refusal.again_at = self._clock() + wait
        if refusal.reason != str(error):
            refusal.reason = str(error)
            facts = {"service": str(owner), "reason": refusal.reason, "again_in_seconds": round(wait, 1)}
            log.warning("set aside: the kernel refuses a Service; the others go on", extra=facts)
        return True

    def committed(self) -> None:
        """A commit went through: what was tried in it is good again."""
        for owner in [owner for owner, refusal in self._refused.items() if refusal.tried]:
            del self._refused[owner]
            log.info("no longer set aside: Service %s", owner)

    def forget(self) -> None:
        """Everything is planned anew."""
        self._refused = {}


def _belongs(frontend: frontends.Frontend | None, owner: objects.ServiceName) -> bool:
    return frontend is not None and frontend.owner.owner == owner
