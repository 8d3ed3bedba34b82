"""A conversation with an API server, as a Reflector has it.

The input is a script: each step is a byte that says what happens, a byte for how much, and the bytes of a body.
"""

from __future__ import annotations

from netagent.source.api.events import Applied, Event, Listed, Quarantined, feed
from netagent.source.api.pacing import Pacing
from netagent.source.api.reflector import Reflector
from netagent.source.api.resources import resource_of
from netagent.source.kinds import Kind
from netagent.source.store import Store
from tests.fuzz.targets import _checks

LIST = (
    b'{"kind":"ServiceList","metadata":{"resourceVersion":"10"},"items":[{"metadata":{"name":"web",'
    b'"namespace":"default","resourceVersion":"9"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}]}'
)
ADDED = (
    b'{"type":"ADDED","object":{"metadata":{"name":"dns","namespace":"default","resourceVersion":"11"},'
    b'"spec":{"clusterIP":"10.96.0.2","ports":[{"port":53}]}}}\n'
)
DELETED = b'{"type":"DELETED","object":{"metadata":{"name":"dns","namespace":"default","resourceVersion":"12"}}}\n'
BOOKMARK = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"13"}}}\n'
GONE = b'{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}\n'
# Whole answers, so that a script gets somewhere in few bytes.
CANNED = (LIST, ADDED, DELETED, BOOKMARK, GONE, b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"}}')

WORDS = (*CANNED, *(bytes((step, 0)) for step in range(9)), b"\n", b'"resourceVersion":"', b'"continue":"x"', b"9" * 30)

_STATUSES = (200, 200, 200, 400, 401, 403, 404, 410, 429, 500, 504, 0)
_HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"retry-after": "5"},
    {"content-encoding": "gzip\x1b[2J"},
    {"retry-after": "\u0663"},
    {"retry-after": "9" * 40},
)
_STEPS_MOST = 400
_PAGE_MOST = 8192
_LINE_MOST = 2048


class _Conversation:
    """A Reflector, the Store that follows it, and what it has been told."""

    def __init__(self, kind: Kind) -> None:
        self.now = 1000.0
        self.reflector = Reflector(
            resource_of(kind, node_name="node-1"),
            pacing=Pacing(max_page_bytes=_PAGE_MOST, max_line_bytes=_LINE_MOST, max_objects=50),
            clock=lambda: self.now,
            randomness=lambda: 0.5,
        )
        self._store = Store("node-1")
        self._asked = False

    def ask(self) -> None:
        self.now += self.reflector.delay()
        request = self.reflector.request()
        self._asked = True
        _checks.require(request.silence_seconds >= 0, "less than no silence")
        _checks.require(request.path.isascii() and request.path.isprintable(), "a path with other characters")

    def answer(self, amount: int) -> None:
        if not self._asked:
            self.ask()
        self._asked = False
        self.reflector.answered(_STATUSES[amount % 12], _HEADERS[amount // 12 % len(_HEADERS)])

    def hear(self, body: bytes) -> None:
        if self.reflector.wants_more:
            self.follow(self.reflector.received(body))

    def follow(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Listed():
                    for one in (*event.quarantined, *event.remarks):
                        _checks.fit_to_be_shown(str(one))
                case Applied():
                    _checks.fit_for_planning(event.object)
                case Quarantined():
                    _checks.fit_to_be_shown(str(event))
        feed(self._store, events)

    def check(self) -> None:
        reflector = self.reflector
        if reflector.error:
            _checks.fit_to_be_shown(str(reflector.error))
        _checks.require(0 <= reflector.delay() < 1e6, "it waits for ever")


def run(data: bytes) -> None:
    """Have the conversation; at the end a request can be made."""
    if not data:
        return
    talk = _Conversation(tuple(Kind)[data[0] % len(Kind)])
    at = 1
    for _ in range(_STEPS_MOST):
        if at + 2 > len(data):
            break
        step, amount = data[at] % 10, data[at + 1]
        at += 2
        match step:
            case 0:
                talk.ask()
            case 1:
                talk.answer(amount)
            case 2 | 3:
                talk.hear(data[at : at + amount])
                at += amount
            case 4:
                talk.hear(CANNED[amount % len(CANNED)])
            case 5:
                talk.hear(b"")
            case 6:
                talk.now += amount * amount
            case 7:
                talk.reflector.failed("broke off")
            case 8:
                talk.reflector.fell_silent("Read timed out")
            case _:
                # What has been heard already, in other pieces.
                piece = CANNED[amount % len(CANNED)]
                cut = amount % len(piece)
                talk.hear(piece[:cut] or b"\n")
                talk.hear(piece[cut:])
        talk.check()
    talk.ask()
