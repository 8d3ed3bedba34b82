"""What the doctor says: findings, how grave they are, and in which order they are told."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import msgspec


class Severity(enum.StrEnum):
    """How grave a finding is. The last two want somebody to act."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def needs_action(self) -> bool:
        """Whether somebody has to do something: now, or before it hurts."""
        return self in (Severity.WARNING, Severity.ERROR)


_ORDER = (Severity.ERROR, Severity.WARNING, Severity.INFO, Severity.OK)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a check found.

    `check` is a stable name for scripts. `summary` is a sentence without a full stop, `evidence` what it rests on, a
    fact a line, and `remedy` what to do; "" where there is nothing to do.
    """

    check: str
    severity: Severity
    summary: str
    evidence: tuple[str, ...] = ()
    remedy: str = ""


def ok(check: str, summary: str, *evidence: str) -> Finding:
    """All is well with this."""
    return Finding(check=check, severity=Severity.OK, summary=summary, evidence=evidence)


def info(check: str, summary: str, *evidence: str, remedy: str = "") -> Finding:
    """Worth knowing; nobody has to act."""
    return Finding(check=check, severity=Severity.INFO, summary=summary, evidence=evidence, remedy=remedy)


def warning(check: str, summary: str, *evidence: str, remedy: str) -> Finding:
    """Will hurt some traffic, or does already."""
    return Finding(check=check, severity=Severity.WARNING, summary=summary, evidence=evidence, remedy=remedy)


def error(check: str, summary: str, *evidence: str, remedy: str) -> Finding:
    """Services do not work as they should."""
    return Finding(check=check, severity=Severity.ERROR, summary=summary, evidence=evidence, remedy=remedy)


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first, then by the name of the check, then by what they say."""
    return tuple(sorted(found, key=lambda each: (_ORDER.index(each.severity), each.check, each.summary)))


def worst(found: Iterable[Finding]) -> Severity:
    """The gravest severity; OK without findings."""
    return min((each.severity for each in found), key=_ORDER.index, default=Severity.OK)


def document(found: Iterable[Finding]) -> dict[str, Any]:
    """Findings as plain data, for JSON and YAML."""
    ordered = in_order(found)
    counts = {severity.value: sum(each.severity is severity for each in ordered) for severity in _ORDER}
    return {
        "verdict": worst(ordered).value,
        "counts": counts,
        "findings": [
            {
                "check": each.check,
                "severity": each.severity.value,
                "summary": each.summary,
                "evidence": list(each.evidence),
                "remedy": each.remedy,
            }
            for each in ordered
        ],
    }
