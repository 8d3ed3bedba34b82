"""For all tests: what a machine's load must not decide, and what tests that run side by side must not share."""

from __future__ import annotations

import atexit
import contextlib
import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

# Two workers share two cores with whatever else runs; how long an example takes says nothing about netagent, nor does
# how long it takes to think of one.
settings.register_profile("netagent", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("netagent")

# Network namespaces share the file that xtables programs lock. A process of tests has its own.
_LOCK = Path(tempfile.gettempdir()) / f"netagent-tests-{os.getpid()}.lock"
os.environ["XTABLES_LOCKFILE"] = str(_LOCK)


@atexit.register
def _forget_lock() -> None:
    with contextlib.suppress(OSError):
        _LOCK.unlink()
