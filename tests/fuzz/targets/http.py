"""Requests to the HTTP servers: what comes in pieces is read as if it came at once, and every answer is HTTP."""

from __future__ import annotations

import re

from netagent import settings
from netagent.agent.health import messages, pages, state
from netagent.agent.metrics.collectors import Metrics
from netagent.model import addresses
from tests.fuzz.targets import _checks

WORDS = (
    *(
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"OPTIONS * ",
        b"/",
        b"/metrics",
        b"/metrics/slis",
        b"/healthz",
        b"/livez",
        b"/readyz",
    ),
    *(b" HTTP/1.1\r\n", b" HTTP/1.0\n", b" HTTP/2.0\r\n", b"\r\n\r\n", b"\n\n", b"\r", b"\0", b"Host: a\r\n", b": "),
    *(b"Accept: application/openmetrics-text; version=1.0.0; escaping=allow-utf-8\r\n", b"Accept: text/plain;q=0.5,"),
    *(
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"http://a/healthz",
        b"%0d%0a",
        b"?",
    ),
    *(b"X: " + b"a" * 200 + b"\r\n", b"\xff", b"version=", b"escaping=", b";", b",", b"=", b"/statusz", b"/configz"),
)

_STATUSES = (200, 404, 503)
_ANSWER = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [A-Za-z ]*\r\n((?:[A-Za-z-]+: [^\r\n]*\r\n)+)\r\n", re.DOTALL)
_MOST_HEAD = 1 << 14


def _clock() -> float:
    return 1000.0


_health = state.AgentHealth((addresses.Family.IPV4,), sync_period_seconds=30.0, clock=_clock, wall=_clock)
_metrics = Metrics(_health, mode=settings.Mode.NFTABLES, families=(addresses.Family.IPV4,), clock=_clock, wall=_clock)
_HANDLERS = (
    pages.health_pages(_health),
    pages.metrics_pages(
        exposition=_metrics.exposition,
        slis=_metrics.slis,
        configuration=settings.Settings,
        status=lambda: {"Node": "node-1"},
        flags={"v": "2"},
    ),
)


def run(data: bytes) -> None:
    """Read a request at once and in pieces, and answer it."""
    whole = _outcome(data)
    pieces = bytearray()
    step = max(1 + (len(data) and data[0] % 7), len(data) // 64)
    while len(pieces) < len(data):
        searched = len(pieces)
        pieces += data[searched : searched + step]
        if messages.has_head(pieces, searched=searched):
            early = _outcome(bytes(pieces))
            if early is not None:
                same = early == whole or len(data) >= messages.HEAD_BYTES_MOST
                _checks.require(same, f"in pieces {early!a}, at once {whole!a}"[:600])
                break
    if isinstance(whole, messages.Request):
        _answer(whole)


def _outcome(data: bytes) -> messages.Request | int | None:
    try:
        return messages.request_of(data)
    except messages.RequestError as error:
        _answered(messages.Response(error.status, f"{error}\n".encode()))
        return error.status


def _answer(request: messages.Request) -> None:
    _checks.require(request.path.startswith("/") or request.path == "*" or "/" not in request.target[:1], "no path")
    for handler in _HANDLERS:
        response = handler(request)
        _checks.require(response.status in _STATUSES, f"answered with {response.status}")
        _answered(response)


def _answered(response: messages.Response) -> None:
    sent = messages.bytes_of(response, date="Thu, 01 Jan 1970 00:00:00 GMT")
    head = _ANSWER.match(sent[:_MOST_HEAD])
    _checks.require(head is not None, f"no answer: {sent[:200]!a}")
    _checks.require(sent.endswith(response.body), "cut off")
