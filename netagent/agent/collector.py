"""Python's garbage collector at the agent's pace.

Nearly all that the agent holds lives for long and has no cycles: looking through it again and again while it comes
costs a third of a cold start (measured at 30,000 Services: 0.7 s of 2.6 s), and later each full pass would stop the
loop. So little is looked at until the first sync, and what is there then is left alone for good.
"""

from __future__ import annotations

import gc

from netagent.agent import loop, reconciler

# Objects that come before a young, a middle-aged and a full pass: see gc.set_threshold.
_STARTING = (2_000_000, 50, 1000)
_RUNNING = (10_000, 20, 20)


class CollectorPace(loop.Observer):
    """Sets the pace of the collector: for the start when it is made, for the long run after the first sync.

    Owns: the settings of the collector in this process. Use: make it an observer of the loop. Threading: none.
    """

    def __init__(self) -> None:
        gc.set_threshold(*_STARTING)
        self._settled = False

    def synced(self, report: reconciler.SyncReport) -> None:
        if not self._settled:
            self._settled = True
            gc.freeze()
            gc.set_threshold(*_RUNNING)
