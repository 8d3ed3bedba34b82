"""The demo, as scripts/demo runs it once everything is set up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
PROGRAMS = ("ip", "nft", "setpriv", "unshare")
# It takes some ten; a machine that is busy with other tests may take its time.
SECONDS = 600


def namespaces() -> list[str]:
    """The command prefix that makes the demo's namespaces; the test is skipped where there can be none."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    prefix = ["unshare", "--net", "--mount"]
    if os.geteuid() != 0:
        prefix.append("--map-root-user")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces of our own: {tried.stderr.strip()}")
    return prefix


@pytest.mark.kernel
@pytest.mark.slow
def test_the_demo_reaches_every_frontend_and_loses_no_connection() -> None:
    environment = {**os.environ, "PYTHONPATH": str(TOP / "scripts/lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*namespaces(), sys.executable, "-P", "-m", "demo"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for row in (
        r"cluster IP +10\.96\.0\.80:80 +pod shell +web-1 \d+, web-2 \d+, web-3 \d+ +itself +0$",
        r"cluster IP +\[fd00:10:96::80\]:80 +pod shell +web-1 \d+, web-2 \d+, web-3 \d+ +itself +0$",
        r"node port +192\.0\.2\.10:30080 +outside +shop-1 \d+, shop-2 \d+ +the node +0$",
        r"external IP +203\.0\.113\.20:80 +outside +shop-1 \d+, shop-2 \d+ +the node +0$",
        r"load balancer +203\.0\.113\.10:443 +outside +api-1 \d+, api-2 \d+ +itself +0$",
        r"cluster IP +10\.96\.0\.10:53/udp +pod shell +dns-1 \d+, dns-2 \d+ +itself +0$",
        r"sticky +10\.96\.0\.83:80 +pod shell +cart-\d 300 +itself +0$",
        r"no endpoints +10\.96\.0\.84:80 +pod shell +refused 300, .* +0$",
    ):
        assert re.search(f"^{row}", done.stdout, re.MULTILINE), f"no row {row} in:\n{said}"
    assert len(re.findall(r"^  \d+ connections, 0 failed, ", done.stdout, re.MULTILINE)) == 2, said
    assert re.search(r"^All as expected: \d+ connections, none failed", done.stdout, re.MULTILINE), said
