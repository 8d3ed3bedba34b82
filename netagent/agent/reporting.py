"""What the agent tells about its work: once for each fact, not once for each time that it sees it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from netagent.agent import reconciler
from netagent.plan import forwarding, frontends
from netagent.source import manifests

log = logging.getLogger("netagent")

# Of one sync; somebody who claims every address of another Service fills no log.
_CONFLICT_LINES: Final = 20
# Syncs that only put right what others did are logged so many times in so many seconds.
_REPAIRS_LOGGED: Final = 3
_REPAIRS_SECONDS: Final = 10.0


class SyncLog:
    """Logs a line for each sync; a quiet one is for those who debug.

    Owns: when repairs were last logged. Use: `synced` after each sync.
    Goals: somebody who never rests, and makes a repair of every sync, fills no log: the journal of drift counts it.
    Threading: none.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._repairs: deque[float] = deque(maxlen=_REPAIRS_LOGGED)

    def synced(self, report: reconciler.SyncReport) -> None:
        """The kernel holds the plan."""
        worth_telling = report.operations and (report.operations > report.drift or self._is_news())
        facts = {
            "operations": report.operations,
            "transactions": report.transactions,
            "seconds": round(report.seconds, 4),
        }
        log.log(logging.INFO if worth_telling else logging.DEBUG, "sync committed", extra=facts)

    def _is_news(self) -> bool:
        """Whether a sync that does nothing but repair is to be told, as there were few of late."""
        now = self._clock()
        if len(self._repairs) == _REPAIRS_LOGGED and now < self._repairs[0] + _REPAIRS_SECONDS:
            return False
        self._repairs.append(now)
        return True


class SourceReporter:
    """Logs what is wrong with the manifests: what is new since the last reading, and what is good again.

    Owns: what was said last. Threading: none.
    """

    def __init__(self) -> None:
        self._quarantined: frozenset[str] = frozenset()
        self._remarks: frozenset[str] = frozenset()

    def report(self, reading: manifests.Reading) -> None:
        quarantined = {str(fault): fault for fault in reading.quarantined}
        for text in quarantined:
            if text not in self._quarantined:
                log.warning("set aside: %s", text)
        for text in sorted(self._quarantined - quarantined.keys()):
            log.info("no longer set aside: %s", text)
        remarks = dict.fromkeys(str(remark) for remark in reading.remarks)
        for text in remarks:
            if text not in self._remarks:
                log.warning("%s", text)
        self._quarantined = frozenset(quarantined)
        self._remarks = frozenset(remarks)


def log_conflicts(conflicts: tuple[forwarding.Conflict, ...]) -> None:
    """One warning for each frontend that two Services claim."""
    for conflict in conflicts:
        _log_claim(_claim_of(conflict), conflict.winner.owner)


class _Claim(NamedTuple):
    """What a Service port claims in vain."""

    key: frontends.FrontendKey
    loser: frontends.ServicePortName


class ConflictLog:
    """Logs which Service port does without a frontend that another one has: once when it begins, once when it ends.

    Owns: the conflicts that there are. Use: `synced` after each sync.
    Goals: what stays is told once; another winner is told anew; a flood is counted and not listed; what is gone is
    forgotten; a sync that planned nothing costs nothing.
    Threading: none.
    """

    def __init__(self) -> None:
        self._winners: dict[_Claim, frontends.ServicePortName] = {}

    def synced(self, report: reconciler.SyncReport, desired: forwarding.Forwarding) -> None:
        """The kernel has this plan now."""
        if report.planned is not None and not report.planned:
            return
        before = self._winners
        now = {_claim_of(conflict): conflict.winner.owner for conflict in desired.conflicts()}
        self._winners = now
        begun = [claim for claim, winner in now.items() if before.get(claim) != winner]
        ended = [claim for claim in before if claim not in now]
        for claim in begun[:_CONFLICT_LINES]:
            _log_claim(claim, now[claim])
        if len(begun) > _CONFLICT_LINES:
            log.warning("and %d more frontends are claimed twice", len(begun) - _CONFLICT_LINES)
        for claim in ended[:_CONFLICT_LINES]:
            log.info("%s is no longer claimed twice by %s and %s", claim.key, before[claim], claim.loser)
        if len(ended) > _CONFLICT_LINES:
            log.info("and %d more frontends are no longer claimed twice", len(ended) - _CONFLICT_LINES)


def _claim_of(conflict: forwarding.Conflict) -> _Claim:
    return _Claim(conflict.key, conflict.loser.owner)


def _log_claim(claim: _Claim, winner: frontends.ServicePortName) -> None:
    log.warning(
        "%s is claimed twice: %s has it, older or first by name; %s does without",
        claim.key,
        winner,
        claim.loser,
    )
