"""How long tests wait: for what must happen, until it does; for what must not, never by the clock alone.

No test asserts how many seconds something took: two cores that are busy with other things make any such number wrong.
That something happens at once is shown by its cause: whatever else could bring it about waits for AN_HOUR, or the
clock is the test's own, or what it must not wait for is still going on when it has happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Seconds. Only a hang takes that long.
HANGS: Final = 60.0
# Seconds. What would wait for this does not happen within any test.
AN_HOUR: Final = 3600.0


def until(
    condition: Callable[[], object],
    what: str | Callable[[], object] = "",
    *,
    seconds: float = HANGS,
    pause: float = 0.005,
) -> float:
    """Wait until it holds; return how long that took, for whoever wants to know. AssertionError when it hangs.

    `what` is what was waited for, or gives the words for it.
    """
    begun = time.monotonic()
    while not condition():
        words = what() if callable(what) and time.monotonic() - begun >= seconds else what
        assert time.monotonic() - begun < seconds, f"still not after {seconds:g} s: {words or condition}"
        time.sleep(pause)
    return time.monotonic() - begun
