"""Single objects as the API sends them: the first byte chooses the kind, the others are its JSON."""

from __future__ import annotations

import json

import msgspec

from netagent.source import decode
from netagent.source.faults import BadObject, Remark
from netagent.source.kinds import Kind, object_key
from tests.fuzz.targets import _checks

WORDS = (
    *(b'"metadata":{', b'"name":"', b'"namespace":"', b'"uid":"', b'"labels":{', b'"annotations":{', b'"spec":{'),
    *(b'"ports":[{', b'"port":', b'"nodePort":', b'"protocol":"SCTP"', b'"clusterIP":"None"', b'"clusterIPs":['),
    *(b'"ipFamilies":["IPv6"', b'"externalIPs":["', b'"loadBalancerSourceRanges":["', b'"sessionAffinityConfig":{'),
    *(b'"addressType":"FQDN"', b'"endpoints":[{', b'"addresses":["', b'"conditions":{', b'"hints":{"forZones":[{'),
    *(b'"status":{"loadBalancer":{"ingress":[{"ip":"', b'"ipMode":"', b"null", b"true", b"1e5", b"-1", b"65536"),
    *(b"::ffff:10.0.0.1", b"fe80::1%eth0", b"010.0.0.1", b"0.0.0.0/0", b"::/0", b"\\u0000", b"\\ud83d", b"\\u202e"),
    *(b'"creationTimestamp":"2024-02-30T00:00:00Z"', b"9" * 60, b"[[[[", b"{{", b'"', b"\\", b"\xff", b"}", b"]"),
)

_KINDS = tuple(Kind)


def run(data: bytes) -> None:
    """Decode as JSON bytes and as plain values: both come to the same, or the object is bad."""
    if not data:
        return
    kind, text = _KINDS[data[0] % len(_KINDS)], data[1:]
    remarks: list[Remark] = []
    try:
        made = decode.decode(kind, text, remarks)
    except BadObject as bad:
        _told(bad)
        _as_values(kind, text)
        return
    _checks.fit_for_planning(made)
    _checks.require(object_key(made)[0] is kind, "another kind")
    for remark in remarks:
        _checks.fit_to_be_shown(str(remark))
    _checks.require(decode.decode(kind, text, []) == made, "decoded twice, and not the same")


def _as_values(kind: Kind, text: bytes) -> None:
    """What is bad as bytes may be good as values (Python's json takes more than the standard), and is safe then."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return
    try:
        _checks.fit_for_planning(decode.convert(kind, values, []))
    except BadObject as bad:
        _told(bad)


def _told(bad: BadObject) -> None:
    _checks.fit_to_be_shown(str(bad))
    _checks.require(bool(bad.reason), "no reason")
    # An Event on the object carries all of this to the API server.
    msgspec.json.encode([bad.namespace, bad.name, bad.uid, bad.field, bad.reason])
