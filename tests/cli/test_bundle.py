"""`netagent bundle` as a user runs it."""

from __future__ import annotations

import http.server
import os
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from tests import builders, kernel
from tests.cli.in_process import netagent
from tests.cli.test_commands import NETAGENT

SECRET = "S3cr3tVa1ue"
OBJECTS = builders.list_manifest(
    builders.service_manifest(created="2024-01-01T00:00:00Z"),
    builders.slice_manifest("web", "10.180.0.1"),
    builders.node_manifest(),
)
ON_NODE = ("--node-name", "node-1")


def _files(path: Path) -> dict[str, str]:
    """The files of a bundle by name, without the directory that all are in."""
    with tarfile.open(path) as tar:
        found = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read().decode() for name, file in found.items() if file is not None}


class _Leaky(http.server.BaseHTTPRequestHandler):
    """A metrics server that tells more than it should."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"path {self.path}\nmaster=https://me:{SECRET}@api\n--token={SECRET}\n".encode())

    def log_message(self, *_: object) -> None:
        pass


@kernel.isolated
def test_a_bundle_has_tables_plan_and_pages_without_secrets_and_a_manifest_of_all(tmp_path: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=60)
    manifests = tmp_path / "all.json"
    manifests.write_bytes(builders.as_json(OBJECTS))
    assert netagent("sync", "-f", manifests, *ON_NODE).returncode == 0
    kernel.nft(f'add chain ip netagent foreign; add rule ip netagent foreign counter comment "token: {SECRET}"')
    target = tmp_path / "b.tar.gz"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 10249), _Leaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = netagent("bundle", "-o", target, "-f", manifests, *ON_NODE)
        server.shutdown()
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    files = _files(target)
    assert not [name for name, text in files.items() if SECRET in text]
    assert 'comment "default/web' in files["tables.txt"]
    assert "# not ours: chain foreign, rule 0" in files["tables.txt"]
    assert "- chain foreign" in files["pending.txt"]
    assert "10.180.0.1:8080" in files["plan.txt"]
    assert "path /metrics" in files["agent/metrics-server/metrics.txt"]
    assert "net.ipv4.ip_forward = " in files["host/sysctls.txt"]
    assert '"check": "ip-forward"' in files["doctor.json"]
    manifest = files["MANIFEST.txt"]
    for name in files:
        assert name == "MANIFEST.txt" or f"  {name}: " in manifest
    assert "agent/status.json: no agent" in manifest  # what is not there has its reason
    assert "journal.txt: " in manifest


def test_a_bundle_can_be_made_without_rights_and_says_what_is_missing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("already without privilege")
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        pytest.skip("there is no other user in this user namespace")
    command = [
        "unshare",
        "--net",
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]
    there = subprocess.run([*command, sys.executable, "-c", "import netagent"], capture_output=True, check=False)
    if there.returncode:
        pytest.skip("another user cannot read this tree")
    done = subprocess.run([*command, *NETAGENT, "bundle", "-o", "-"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    target = tmp_path / "b.tar.gz"
    target.write_bytes(done.stdout)
    files = _files(target)
    assert "CAP_NET_ADMIN" in files["MANIFEST.txt"]
    assert "host/system.txt" in files
    assert b"Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    done = netagent("bundle", "-o", tmp_path / "nowhere" / "b.tar.gz")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert done.stdout == ""
