"""Stale flows are dropped aside: it may take long, and nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from netagent import conntrack
from netagent.agent import reconciler
from netagent.model import addresses
from netagent.plan import frontends

log = logging.getLogger(__name__)

# Frontends that may wait for a pass one by one; beyond that one pass looks at all that there are.
_WAITING_MOST: Final = 16384
_STOP_SECONDS: Final = 0.2
_COPY_ATTEMPTS: Final = 10

Current = Callable[[], Mapping[frontends.FrontendKey, frontends.Frontend]]


class FlowSweeper:
    """Drops the stale flows of frontends that changed, in a thread of its own.

    Owns: the thread, and which frontends wait for a pass. Use: `start`, `submit` after each commit, `stop`.
    Goals: a frontend waits once, however often it is submitted, and what its flows may keep is asked when its pass
    begins, so that a pass that comes late cuts no flow that is good by then; what waits has a bound, beyond which the
    next pass looks at every frontend that there is (flows of those that are gone expire by themselves); what goes wrong
    is told, and ends nothing; a stop does not wait for a pass.
    Threading: `start`, `submit` and `stop` belong to one thread. `dropped` (a report, and seconds) and `stumbled` are
    called in the sweeper's.
    """

    def __init__(
        self,
        cleaner: conntrack.FlowCleaner,
        *,
        current: Current,
        protocols: Callable[[], Collection[addresses.Protocol]],
        dropped: Callable[[conntrack.CleanReport, float], None],
        stumbled: Callable[[Exception], None],
        most: int = _WAITING_MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`current` gives the Frontends that there are now, `protocols` those of which flows are dropped at all."""
        self._cleaner = cleaner
        self._current = current
        self._protocols = protocols
        self._dropped = dropped
        self._stumbled = stumbled
        self._most = most
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: set[frontends.FrontendKey] = set()
        self._everything = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="stale-flows", daemon=True)

    @property
    def waiting(self) -> int:
        """How many frontends wait for a pass one by one."""
        return len(self._waiting)

    def start(self) -> None:
        self._thread.start()

    def submit(self, rules: Collection[conntrack.StaleFlows]) -> None:
        """Have these frontends looked at soon. Never blocks."""
        with self._changed:
            self._waiting.update(rule.key for rule in rules)
            if len(self._waiting) > self._most:
                log.warning("too many frontends wait for their stale flows to be dropped; looking at all of them")
                self._waiting.clear()
                self._everything = True
            self._changed.notify()

    def stop(self) -> bool:
        """End soon. False when a pass is still caught in a system call: it is abandoned, and ends by itself."""
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify()
        self._cleaner.cancel()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    # --- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._everything or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
                keys, self._waiting = self._waiting, set()
                everything, self._everything = self._everything, False
            try:
                self._pass(keys, everything=everything)
            except Exception as error:  # noqa: BLE001 - the outermost frame of this thread
                self._stumbled(error)

    def _pass(self, keys: set[frontends.FrontendKey], *, everything: bool) -> None:
        started = self._clock()
        current = self._current()
        if everything:
            protocols = self._protocols()
            keys = keys | {key for key in _copied(current) if key.protocol in protocols}
        # The plan may be ahead of the kernel by a commit. What that takes away will be submitted after it.
        rules = tuple(_rule_of(key, current.get(key)) for key in sorted(keys, key=_order))
        report = reconciler.drop_stale_flows(self._cleaner, rules)
        if report and not self._stopping:
            self._dropped(report, self._clock() - started)


def _rule_of(key: frontends.FrontendKey, frontend: frontends.Frontend | None) -> conntrack.StaleFlows:
    return conntrack.StaleFlows(key, frozenset(frontend.serving_endpoints) if frontend else frozenset())


def _order(key: frontends.FrontendKey) -> tuple[object, ...]:
    return (key.family.value, *key[1:])


def _copied(
    current: Mapping[frontends.FrontendKey, frontends.Frontend],
) -> list[frontends.FrontendKey]:
    """The keys of a mapping that another thread may be changing."""
    for _ in range(_COPY_ATTEMPTS - 1):
        try:
            return list(current)
        except RuntimeError:  # it changed its size under our feet
            time.sleep(0.01)
    return list(current)
