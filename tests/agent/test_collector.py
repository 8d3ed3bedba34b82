"""The garbage collector leaves alone what came with the start, and goes on looking at what comes later."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from netagent.agent import collector, reconciler

_REPORT = reconciler.SyncReport(0, 0, 0.0, ())


@pytest.fixture
def own_collector() -> Iterator[None]:
    """The collector of the test process is as before afterwards."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


class _Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.mark.usefixtures("own_collector")
def test_the_first_sync_settles_the_collector_and_garbage_still_goes() -> None:
    pace = collector.CollectorPace()
    starting = gc.get_threshold()
    pace.synced(_REPORT)
    running, frozen = gc.get_threshold(), gc.get_freeze_count()
    assert starting[0] > running[0] > 0
    assert frozen > 1000
    late = _Cycle()
    seen = weakref.ref(late)
    del late
    pace.synced(_REPORT)
    assert gc.get_freeze_count() <= frozen, "once; some of what was frozen may be gone"
    keep = [_Cycle() for _ in range(2 * running[0])]
    assert seen() is None, "a young pass has come by itself"
    assert keep
