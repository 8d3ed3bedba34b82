"""The pages netagent(8), netagent-COMMAND(8) and kubectl-netagent(1), from the help that click prints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from manual.roff import Page

_PROGRAM = "netagent"
_OTHERS = (("netagent.conf", 5), ("netagent-rules", 7), ("kubectl-netagent", 1))
_NATURE = """
Turns Services, EndpointSlices and Nodes of Kubernetes into rules of the kernel's packet filter on a node, so that the
kernel alone handles every packet. `netagent run` stays and follows an API server or a directory; all other commands
look, or do one thing, and end.

Standard output is data, standard error is talk. What a pipe reads is never wrapped or coloured.
"""
_EXAMPLES = (
    ("What this node should do; needs no root", "netagent dump -f examples --node-name demo-node -o table"),
    ("What a sync would change", "netagent diff -f examples --node-name demo-node"),
    ("Do it, and follow an API server", "netagent -v run --kubeconfig /etc/netagent/kubeconfig"),
    ("Remove all of it, and nothing else", "netagent cleanup"),
)
_ENVIRONMENT = (
    ("KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT", "Where the API server is, for `run` in a pod."),
    ("NO_COLOR", "Set to anything: no colours."),
    (
        "STATE_DIRECTORY",
        "Where mode iptables notes which variant it writes to; systemd sets it.  Else /var/lib/netagent.",
    ),
    ("XTABLES_LOCKFILE", "The lock of xtables, for mode iptables.  Else /run/xtables.lock."),
)


def pages(group: click.Group, plugin: click.Command, *, version: str) -> Iterator[Page]:
    """A page for the program, one for each of its commands, and one for the kubectl plugin."""
    found = list(_commands(group, (_PROGRAM,)))
    names = [("-".join(words), 8) for words, _ in found]
    yield _overview(group, found, names, version)
    for words, command in found:
        yield _page(words, command, 8, version, [(_PROGRAM, 8)])
    others = [(_PROGRAM, 8), ("kubectl", 1)]
    yield _page(("kubectl", _PROGRAM), plugin, 1, version, others)


def _commands(group: click.Group, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if command is None or command.hidden:
                continue
            yield (*words, name), command
            if isinstance(command, click.Group):
                yield from _commands(command, (*words, name))


def _overview(
    group: click.Group,
    found: list[tuple[tuple[str, ...], click.Command]],
    names: list[tuple[str, int]],
    version: str,
) -> Page:
    page = Page(_PROGRAM, 8, purpose=_purpose(group), version=version)
    page.heading("SYNOPSIS")
    page.synopsis(_PROGRAM, "[OPTIONS]", "COMMAND", "[ARGS]...")
    page.heading("DESCRIPTION")
    page.prose(_NATURE)
    page.heading("COMMANDS")
    for words, command in found:
        page.item(" ".join(words[1:]), f"{_purpose(command)}. See `{'-'.join(words)}`(8).")
    page.heading("OPTIONS")
    _options(page, group)
    page.item("-h, --help", "Say how it is used, and end; after a command, how that is used.")
    if group.epilog:
        page.heading("EXIT STATUS")
        page.prose("\n".join(line for line in group.epilog.splitlines() if line.strip() != "Exit codes:"))
    page.heading("ENVIRONMENT")
    for name, text in _ENVIRONMENT:
        page.item(name, text)
    page.heading("EXAMPLES")
    for text, line in _EXAMPLES:
        page.paragraph(f"{text}:")
        page.verbatim([line])
    page.see_also([*names, *_OTHERS])
    return page


def _page(
    words: tuple[str, ...], command: click.Command, section: int, version: str, others: list[tuple[str, int]]
) -> Page:
    purpose = _purpose(command)
    page = Page("-".join(words), section, purpose=f"{purpose[:1].lower()}{purpose[1:]}", version=version)
    page.heading("SYNOPSIS")
    has_options = any(isinstance(parameter, click.Option) for parameter in command.params)
    options = [command.options_metavar or ""] if has_options else []
    page.synopsis(" ".join(words), *options, *map(_argument, _arguments(command)))
    page.heading("DESCRIPTION")
    page.prose(inspect.cleandoc(command.help or ""))
    if has_options:
        page.heading("OPTIONS")
        _options(page, command)
    if command.epilog:
        page.heading("NOTES")
        page.prose(inspect.cleandoc(command.epilog))
    page.see_also(others)
    return page


def _purpose(command: click.Command) -> str:
    """The first sentence of a command's help."""
    first = " ".join(inspect.cleandoc(command.help or "").partition("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".")


def _options(page: Page, command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            page.item(_names(parameter), _meaning(parameter))


def _names(option: click.Option) -> str:
    # Not click's own lines: they differ between its versions.
    flag = option.is_flag or option.count
    value = "" if flag else f" {_value(option)}"
    negative = f" / {', '.join(option.secondary_opts)}" if option.secondary_opts else ""
    return f"{', '.join(sorted(option.opts, key=len))}{negative}{value}"


def _value(parameter: click.Parameter) -> str:
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "|".join(map(str, parameter.type.choices))
    return {"integer": "N", "float": "N"}.get(parameter.type.name.split()[0], parameter.type.name.split()[0].upper())


def _meaning(option: click.Option) -> str:
    text = option.help or ""
    default = option.default
    if option.show_default and not option.is_flag and isinstance(default, str | int | float):
        text += f"  [default: {default}]"
    return f"{text}  [required]" if option.required else text


def _arguments(command: click.Command) -> list[click.Argument]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Argument)]


def _argument(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    choice = isinstance(argument.type, click.Choice)
    name = _value(argument) if choice else (argument.name or "").upper()
    name = name if argument.required and argument.nargs == 1 else f"[{name}]"
    return f"{name}..." if argument.nargs != 1 else name
