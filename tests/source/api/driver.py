"""Drives a Reflector without sockets: a clock that is moved by hand, and answers given as bytes."""

from __future__ import annotations

import json
from typing import Any

from netagent.source.api.events import Event
from netagent.source.api.exchange import Request
from netagent.source.api.pacing import Pacing
from netagent.source.api.reflector import Reflector, Step
from netagent.source.api.resources import resource_of
from netagent.source.kinds import Kind
from tests import builders

Manifest = dict[str, Any]


class Driver:
    """A Reflector and the server that it believes in.

    `now` is the time; `random` what every random choice gives.
    """

    def __init__(self, kind: Kind = Kind.SERVICE, **pacing: Any) -> None:
        self.now = 1000.0
        self.random = 0.5
        self.reflector = Reflector(
            resource_of(kind, node_name="node-1"),
            pacing=Pacing(**pacing),
            clock=lambda: self.now,
            randomness=lambda: self.random,
        )
        self.requests: list[Request] = []
        self.waits: list[float] = []

    @property
    def step(self) -> Step:
        return self.reflector.step

    @property
    def error(self) -> str:
        return str(self.reflector.error or "")

    def ask(self) -> dict[str, str]:
        """Wait as long as the reflector wants, take its request, return the parameters."""
        wait = self.reflector.delay()
        self.waits.append(wait)
        self.now += wait
        self.requests.append(self.reflector.request())
        return dict(self.requests[-1].parameters)

    def answer(self, status: int, *pieces: bytes, end: bool = True, **headers: str) -> list[Event]:
        """Give an answer in these pieces, and its end; return what it told."""
        self.reflector.answered(status, {name.replace("_", "-"): value for name, value in headers.items()})
        events: list[Event] = []
        for piece in (*pieces, b"") if end else pieces:
            if self.reflector.wants_more:
                events += self.reflector.received(piece)
        return events

    def refuse(self, code: int, reason: str = "", message: str = "", **headers: str) -> list[Event]:
        """Ask, and answer with an error."""
        self.ask()
        body = {"kind": "Status", "code": code, "reason": reason, "message": message}
        return self.answer(code, json.dumps(body).encode(), **headers)

    def list(self, *manifests: Manifest, version: str = "10", token: str = "") -> list[Event]:
        """Ask for a list, and answer with this page."""
        parameters = self.ask()
        assert "watch" not in parameters
        return self.answer(200, page(*manifests, kind=self.reflector.kind, version=version, token=token))

    def probe(self, *manifests: Manifest, version: str = "10") -> Request:
        """Ask whether the server has gone back in time, and answer with this page; return what was asked."""
        assert self.step is Step.PROBE
        assert self.list(*manifests, version=version) == []
        return self.requests[-1]

    def fall_silent(self) -> None:
        """Nothing more comes on the open watch, for as long as it may."""
        self.now += self.requests[-1].silence_seconds
        self.reflector.fell_silent("Read timed out")

    def watch(self, *lines: bytes) -> list[Event]:
        """Ask for a watch, and say these lines; it stays open."""
        parameters = self.ask()
        assert parameters.get("watch") == "1"
        return self.answer(200, *lines, end=False)

    def say(self, *lines: bytes) -> list[Event]:
        """Say further lines on the open watch."""
        return [event for line in lines if self.reflector.wants_more for event in self.reflector.received(line)]

    def end(self, *, after: float = 0.0) -> None:
        """The server ends the watch."""
        self.now += after
        self.reflector.received(b"")


def synced(*manifests: Manifest, version: str = "10", kind: Kind = Kind.SERVICE, **pacing: Any) -> Driver:
    """A driver with an open watch after a list of these."""
    driver = Driver(kind, **pacing)
    driver.list(*manifests, version=version)
    driver.watch()
    return driver


def page(*manifests: Manifest, kind: str = "Service", version: str = "10", token: str = "") -> bytes:
    metadata = {"resourceVersion": version} | ({"continue": token} if token else {})
    return builders.as_json({"kind": f"{kind}List", "metadata": metadata, "items": list(manifests)})


def line(type: str, manifest: Manifest, version: str | None = None) -> bytes:
    """A line of a watch."""
    made = manifest
    if version is not None:
        made = manifest | {"metadata": manifest.get("metadata", {}) | {"resourceVersion": version}}
    return builders.as_json({"type": type, "object": made}) + b"\n"


def bookmark(version: str) -> bytes:
    return line("BOOKMARK", {"kind": "Service", "metadata": {"resourceVersion": version}})


def error_line(code: int, message: str = "", **details: Any) -> bytes:
    return line("ERROR", {"kind": "Status", "code": code, "message": message, "details": details})
