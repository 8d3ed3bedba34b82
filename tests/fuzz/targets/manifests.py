"""Manifest files, JSON and YAML: what is read twice is the same, and what is wrong is told in one line."""

from __future__ import annotations

import io

from netagent.source import manifests
from tests.fuzz.targets import _checks

WORDS = (
    *(b"apiVersion: v1\n", b"discovery.k8s.io/v1", b"kind: Service\n", b"kind: List\n", b"items:", b"metadata:"),
    *(b"name: ", b"namespace: ", b"spec:", b"ports:", b"endpoints:", b"addresses: [", b"- ", b"\n  ", b"\n---\n"),
    *(b"&a ", b"*a", b"<<: ", b"!!str ", b"|\n", b">-\n", b"{", b"}", b"[", b"]", b'"', b"'", b"? ", b": ", b"#"),
    *(b"%YAML 1.1\n", b"...", b"\xef\xbb\xbf", b"\\u202e", b"\\ud800", b"\x1b[31m", b"null", b"0x", b"1e999", b"\t"),
    *(b'{"kind":"Service","metadata":{"name":"a"}}', b'{"kind":"List","items":[', b'"items":[', b"9" * 50),
)


def run(data: bytes) -> None:
    """Read a file. Reading it again with the first reading to fall back to gives the same objects."""
    first = manifests.read(manifests.STDIN, stdin=io.BytesIO(data))
    for made in first.objects:
        _checks.fit_for_planning(made)
    for told in (*first.quarantined, *first.remarks):
        _checks.fit_to_be_shown(str(told))
    again = manifests.read(manifests.STDIN, stdin=io.BytesIO(data), previous=first)
    _checks.require(again.objects == first.objects, "read twice, and not the same")
    _checks.require(not again.kept, "something was kept although all is there")
