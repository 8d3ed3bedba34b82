"""A process that measures, in a network namespace of its own or of another process; it does what its parent says.

    python -m bench.worker '{"role": "sections.cold:Cold", "join": null, "arguments": {...}}'

Commands come as lines of JSON on standard input ([method, arguments]), answers go out the same way ({"result": ...} or
{"error": ...}). It ends with its input.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Be the role that the command line names."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.loads(sys.argv[1])
    # What is printed by mistake, here or in a child, goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        role = _role(order)
    except Exception:  # noqa: BLE001 - the outermost frame: whatever it is, the parent tells
        _say(answers, {"error": traceback.format_exc()})
        return
    _say(answers, {"result": {"pid": os.getpid(), "started": time.monotonic()}})
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            _say(answers, {"result": getattr(role, method)(**arguments)})
        except Exception:  # noqa: BLE001 - as above
            _say(answers, {"error": traceback.format_exc()})


def _role(order: dict[str, Any]) -> Any:
    from . import namespaces

    if order["join"]:
        namespaces.join(order["join"])
    else:
        namespaces.fresh()
    module, _, name = order["role"].partition(":")
    return getattr(importlib.import_module(f"bench.{module}"), name)(**order["arguments"])


def _say(where: Any, what: dict[str, Any]) -> None:
    where.write(json.dumps(what) + "\n")


if __name__ == "__main__":
    main()
