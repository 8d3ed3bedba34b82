"""What the health server and the metrics server of the agent answer on their paths."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from netagent import settings
from netagent.agent.health import messages, server, state

Answered = Callable[[str, int], None]

_WARNING: Final = "Warning: This page is for people. It may change at any time; do not parse it.\n"


def health_pages(health: state.AgentHealth, *, answered: Answered = lambda path, status: None) -> server.Handler:
    """Return the handler of the health server: /healthz, /livez and /readyz. `answered` is told each answer of
    theirs."""

    def handler(request: messages.Request) -> messages.Response:
        path = request.path
        report = health.report()
        if path == "/healthz":
            response = _health(report, with_node=True)
        elif path == "/livez":
            response = _health(report, with_node=False)
        elif path == "/readyz":
            response = _ready(report)
        else:
            return _not_found()
        answered(path, response.status)
        return response

    return handler


def metrics_pages(
    *,
    exposition: Callable[[str], tuple[bytes, str]],
    slis: Callable[[str], tuple[bytes, str]],
    configuration: Callable[[], settings.Settings],
    status: Callable[[], Mapping[str, str]],
    flags: Mapping[str, str],
) -> server.Handler:
    """Return the handler of the metrics server.

    `exposition` and `slis` turn an Accept header into a body and its content type; `status` has what /statusz shows,
    `flags` the command line as parsed.
    """

    def handler(request: messages.Request) -> messages.Response:
        accept = request.fields.get("accept", "")
        match request.path:
            case "/metrics":
                return messages.Response(200, *exposition(accept))
            case "/metrics/slis":
                return messages.Response(200, *slis(accept))
            case "/healthz":
                return messages.Response(200, b"ok")
            case "/proxyMode":
                return messages.Response(200, configuration().mode.value.encode())
            case "/configz":
                body = msgspec.json.encode({"netagent": configuration()}, enc_hook=str)
                return messages.Response(200, body, "application/json")
            case "/statusz":
                return _text_page("netagent statusz", {name: f": {text}" for name, text in status().items()})
            case "/flagz":
                return _text_page("netagent flagz", {name: f"={text}" for name, text in flags.items()})
            case _:
                return _not_found()

    return handler


def status_of(
    report: state.Report,
    *,
    version: str,
    started: float,
    mode: settings.Mode,
    node_name: str,
    unexpected_errors: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, str]:
    """Return the lines of /statusz that every agent has, by name. `started` is seconds since the epoch,
    `unexpected_errors` counts what broke and was survived, by what broke."""
    up = datetime.timedelta(seconds=max(0, int(report.now - started)))
    lines = {
        "Version": version,
        "Started": state.rfc3339(started),
        "Up": str(up),
        "Node": node_name,
        "Mode": mode.value,
        "Healthy": _yes(report.healthy),
        "Ready": _yes(report.ready),
        "Node eligible": _yes(report.node_eligible),
    }
    for family, (healthy, synced) in report.families.items():
        lines[f"Last sync {family.value}"] = (
            f"{state.rfc3339(synced) if synced else 'never'}{'' if healthy else ', late'}"
        )
    if unexpected_errors:
        counted = ", ".join(f"{where} {count}" for where, count in sorted(unexpected_errors.items()))
        lines["Unexpected errors"] = counted if report.sound else f"{counted}; again and again"
    for kind, in_sync in report.sources.items():
        lines[f"Source {kind}"] = "in sync" if in_sync else "not in sync yet"
    return lines


def _health(report: state.Report, *, with_node: bool) -> messages.Response:
    """kube-proxy's answer. An agent that is well was "updated" just now, because load balancers look at the time.

    One that breaks again and again is to be started anew (no `with_node`); its rules serve, so its node keeps its
    clients.
    """
    good = report.healthy and (report.node_eligible if with_node else report.sound)
    body: dict[str, object] = {
        "lastUpdated": state.rfc3339(report.now if good else report.last_updated),
        "currentTime": state.rfc3339(report.now),
    }
    if with_node:
        body["nodeEligible"] = report.node_eligible
    body["healthy"] = report.healthy and (with_node or report.sound)
    body["status"] = {
        family.value: {"lastUpdated": state.rfc3339(synced), "healthy": healthy}
        for family, (healthy, synced) in report.families.items()
    }
    return _json(200 if good else 503, body)


def _ready(report: state.Report) -> messages.Response:
    body = {
        "currentTime": state.rfc3339(report.now),
        "ready": report.ready,
        "status": {family.value: {"synced": synced is not None} for family, (_, synced) in report.families.items()},
        "sources": {kind: {"inSync": in_sync} for kind, in_sync in report.sources.items()},
    }
    return _json(200 if report.ready else 503, body)


def _json(status: int, body: object) -> messages.Response:
    return messages.Response(status, json.dumps(body).encode(), "application/json")


def _text_page(title: str, lines: Mapping[str, str]) -> messages.Response:
    body = f"{title}\n{_WARNING}\n" + "".join(f"{name}{text}\n" for name, text in lines.items())
    return messages.Response(200, body.encode())


def _not_found() -> messages.Response:
    return messages.Response(404, b"404 page not found\n")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
