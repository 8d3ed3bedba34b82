"""`netagent doctor`: what keeps this host from serving Services well, and what to do about it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from netagent import settings
from netagent.cli import ending, options
from netagent.escaping import printable

if TYPE_CHECKING:
    from rich.text import Text

    from netagent.doctor import findings


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    default=None,
    help="KubeProxyConfiguration file, or the ConfigMap that holds one: YAML or JSON.  [default: the running agent's "
    "settings, else the defaults]",
)
@click.option(
    "--mode",
    type=click.Choice(["nftables", "iptables", "ipvs"]),
    default=None,
    help="The kernel's engine; ipvs is served by nftables.  [default: what the configuration says]",
)
@click.option("-a", "--all", "everything", is_flag=True, help="Tell also what is well, and what is only worth knowing.")
@options.output(help="text: for people; json and yaml have everything, also what is well.")
@ending.ending()
def doctor(config_path: str | None, mode: str | None, everything: bool, output: str) -> None:
    """Look for what keeps this host from serving Services well.

    Kernel, sysctls, connection tracking, conflicting software, ports, interfaces, clock. Looks at the network namespace
    that it runs in, and changes nothing. Exit code 0: all is well; 1: there are warnings or errors.
    """
    from netagent.cli import views
    from netagent.doctor import examination, findings

    wanted, configured = _settings(config_path, mode)
    seen = examination.gather(wanted, configured=configured, guess_mode=not configured and mode is None)
    found = examination.judge(seen)
    match output:
        case "json":
            click.echo(views.as_json(findings.document(found)), nl=False)
        case "yaml":
            click.echo(views.as_yaml(findings.document(found)), nl=False)
        case _:
            _print(found, everything=everything)
    sys.exit(1 if findings.worst(found).needs_action else 0)


def _settings(path: str | None, mode: str | None) -> tuple[settings.Settings, bool]:
    """The settings to judge by, and whether they are an operator's: a file's, the running agent's, or the defaults."""
    if path is not None or mode is not None:
        parsed = options.settings_of(path, mode)
        return settings.override(parsed.settings, mode=mode), path is not None
    from netagent import errors
    from netagent.agent.local import client, snapshot

    try:
        # A Service that nobody has: the settings come with any answer, and the objects of a large cluster need not.
        return snapshot.read(client.ask("/objects?service=default/-", seconds=_SECONDS).body).settings, True
    except errors.NetagentError:
        return settings.Settings(), False


def _print(found: Sequence[findings.Finding], *, everything: bool) -> None:
    from rich.console import Console

    # Lines are broken by us, for a terminal, or by nobody: what a pipe reads is never wrapped.
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    width = console.width if console.is_terminal else None
    for each in found:
        if everything or each.severity.needs_action:
            for line in _lines(each, width):
                console.print(line)
    console.print(_verdict(found))


_SECONDS = 10.0  # for the agent's answer; one that hangs is a finding, and somebody waits for it
_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "cyan", "ok": "green"}
_INDENT = 8


def _lines(finding: findings.Finding, width: int | None) -> Iterator[Text]:
    from rich.text import Text

    first, *others = _broken(f"{finding.check}: {finding.summary}", _INDENT, width)
    word = finding.severity.value.upper()
    yield Text.assemble((f"{word:{_INDENT}}", _STYLES[finding.severity.value]), first)
    yield from (Text(" " * _INDENT + line) for line in others)
    said = [("found: ", printable(fact)) for fact in finding.evidence]
    for label, text in [*said, *([("do:    ", finding.remedy)] if finding.remedy else [])]:
        head, *tail = _broken(text, _INDENT + len(label), width)
        yield Text(" " * _INDENT + label + head)
        yield from (Text(" " * (_INDENT + len(label)) + line) for line in tail)


def _broken(text: str, indent: int, width: int | None) -> list[str]:
    """The text in lines that fit beside an indent; in one line without a width."""
    if width is None:
        return [text]
    return textwrap.wrap(text, max(20, width - indent), break_long_words=False, break_on_hyphens=False) or [""]


def _verdict(found: Sequence[findings.Finding]) -> Text:
    from rich.text import Text

    errors, warnings = (sum(each.severity.value == severity for each in found) for severity in ("error", "warning"))
    if not errors and not warnings:
        return Text("all well", style=_STYLES["ok"])
    words = [
        f"{count} {name}{'s' * (count != 1)}" for count, name in ((errors, "error"), (warnings, "warning")) if count
    ]
    return Text(", ".join(words), style=_STYLES["error" if errors else "warning"])
