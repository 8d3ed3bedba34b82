"""Bytes of an API server: the first byte says as what the others are read."""

from __future__ import annotations

import math

import msgspec

from netagent.source.api import messages, witness
from netagent.source.api.listing import Listing
from netagent.source.kinds import Kind
from tests.fuzz.targets import _checks

WORDS = (
    *(b'"kind":"ServiceList"', b'"kind":"Status"', b'"metadata":{"resourceVersion":"', b'"continue":"', b'"items":['),
    *(b'"type":"ADDED"', b'"type":"BOOKMARK"', b'"type":"ERROR"', b'"type":"DELETED"', b'"object":{', b'"code":410'),
    *(b'"details":{"retryAfterSeconds":', b'"causes":[{"reason":"ResourceVersionTooLarge"}]', b'"message":"'),
    *(b"Too large resource version", b"\xc2\xb2", b"\xd9\xa1", b"9" * 30, b"9" * 400, b"-1", b"1e400", b"null", b"\n"),
    *(b'{"metadata":{"name":"a","namespace":"b","resourceVersion":"5"}}', b"\\u202e", b"\x1b[2J", b"{", b"}", b","),
)

_MAX_OBJECTS = 50


def run(data: bytes) -> None:
    """Read bytes as what an API server sends."""
    if not data:
        return
    _READERS[data[0] % len(_READERS)](data[1:])


def _pages(data: bytes) -> None:
    """Pages of a list, with NULs between them, and the watch that begins from there."""
    listing = Listing(Kind.SERVICE)
    try:
        for body in data.split(b"\0")[:20]:
            listing.add(messages.page_of(body, "ServiceList"), max_objects=_MAX_OBJECTS)
    except messages.BadMessageError as error:
        _checks.fit_to_be_shown(str(error))
    listed = listing.listed()
    for made in listed.objects:
        _checks.fit_for_planning(made)
    for told in (*listed.quarantined, *listed.remarks):
        _checks.fit_to_be_shown(str(told))
    for number in range(12):
        listing.outlasts(float(number))
    if listing.witness:
        _checks.fit_to_be_shown(str(listing.witness))


def _status(data: bytes) -> None:
    status = messages.status_of(data[0] if data else 0, data[1:])
    _checks.fit_to_be_shown(status.words)
    _checks.require(isinstance(status.version_too_large, bool), "neither yes nor no")
    _checks.require(math.isfinite(status.retry_after_seconds), "no number of seconds")


def _event(data: bytes) -> None:
    """Two events, one after the other, of the same object."""
    first, _, second = data.partition(b"\n")
    try:
        heads = [messages.head_of(messages.event_of(line).object) for line in (first, second or first)]
    except messages.BadMessageError as error:
        _checks.fit_to_be_shown(str(error))
        return
    made = witness.witness(heads[0], exists=bool(len(data) & 1))
    if made:
        _checks.fit_to_be_shown(made.contradiction(heads[1]))
        try:
            made.looked_up([msgspec.Raw(first), msgspec.Raw(second)])
        except messages.BadMessageError as error:
            _checks.fit_to_be_shown(str(error))


def _header(data: bytes) -> None:
    text = data.decode("latin-1")
    _checks.require(math.isfinite(messages.retry_after_seconds(text)), "no number of seconds")
    one, _, other = text.partition(" ")
    _checks.require(not (messages.is_older(one, other) and messages.is_older(other, one)), "each before the other")


_READERS = (_pages, _status, _event, _header)
