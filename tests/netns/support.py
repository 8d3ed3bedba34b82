"""Which cases can be replayed here, and why not the others. No I/O."""

from __future__ import annotations

from typing import Any

from . import layout as layouts

# What a case may require of its environment and this one has.
AVAILABLE = {
    "ipv6",
    "sctp",
    "conntrack injection",
    "lb-ip-on-node",
    "host side of pod links named veth*",
    "pods attached to bridge pods0",
    "manifests must be injected without apiserver defaulting for the nameless port",
}
SLOW = "slow"

# Keys of a step that ask for an agent which serves HTTP, talks to an API server, or is watched as a process.
FOREIGN_STEP_KEYS = {
    "healthcheck": "asks the health check node port server",
    "agent_health": "asks the agent's health or metrics server",
    "metrics": "reads metrics",
    "events": "needs an API server that records Events",
    "agent": "watches the agent's process",
}
FOREIGN_FLOW_KEYS = {"inject": "needs a server that sends segments outside the window"}

# Actions of a step: the method that a data plane must have for it, "" when the runner does it alone.
ACTIONS = {
    "sleep": "",
    "add-foreign-rules": "",
    "flush-ruleset": "",
    "occupy-port": "",
    "release-port": "",
    "restart-agent": "restart_agent",
    "start-agent": "start_agent",
    "stop-agent": "stop_agent",
    "cleanup": "cleanup",
}


class Unsupported(Exception):
    """A case cannot be replayed here; the text is a reason for pytest.skip."""


def actions_of(step: dict[str, Any]) -> list[dict[str, Any]]:
    """The actions of a step, in order."""
    many = step.get("actions")
    return list(many) if many else [step["action"]] if "action" in step else []


def unsupported(
    case: layouts.Case, *, mode: str = "nftables", slow: bool = False, packets_only: bool = False, plane: object = None
) -> str:
    """Return why this case cannot be replayed here; "" when it can.

    `slow` admits cases that wait for many seconds, `packets_only` those that ask for more than packets besides; what
    else they ask is then not checked. Without a `plane` its actions are taken for possible.
    """
    if mode not in case.get("modes", (mode,)):
        return f"not a case for {mode}"
    for tag in case.get("requires") or ():
        if tag == SLOW and not slow:
            return "slow: waits for many seconds"
        if tag != SLOW and tag not in AVAILABLE:
            return f"requires {tag}"
    for number, step in enumerate(case["steps"], 1):
        reason = _unsupported_step(step, packets_only, plane)
        if reason:
            return f"step {number} {reason}"
    return ""


def _unsupported_step(step: dict[str, Any], packets_only: bool, plane: object) -> str:
    for key, reason in FOREIGN_STEP_KEYS.items():
        if key in step and not packets_only:
            return reason
    for flow in step.get("flows") or ():
        for key, reason in FOREIGN_FLOW_KEYS.items():
            if key in flow:
                return reason
    for action in actions_of(step):
        if action["type"] not in ACTIONS:
            return f"has the action {action['type']}, which needs a live API server or more"
        if "delay_list" in action:
            return "holds a LIST back, which needs a live API server"
        for name in (action["type"], action.get("then")):
            method = ACTIONS.get(name or "", "")
            if method and plane is not None and not hasattr(plane, method):
                return f"has the action {name}, which this data plane does not know ({method})"
    return ""
