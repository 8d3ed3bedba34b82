"""Lines for people, wherever they go."""

from __future__ import annotations

import subprocess
import sys


def test_what_cannot_be_written_does_not_turn_success_into_failure() -> None:
    """Lines that stay in the buffer of a full disk: without `end` the interpreter ends with 120."""
    script = (
        "import sys\nfrom netagent.cli import logs\nsys.stderr.reconfigure(line_buffering=False, write_through=False)\n"
    )
    script += "sys.stderr.write('x')\n"
    codes = []
    for last in ("", "logs.end()\n"):
        with open("/dev/full", "wb") as full:
            codes.append(subprocess.run([sys.executable, "-c", script + last], stderr=full, check=False).returncode)
    assert codes == [120, 0]
