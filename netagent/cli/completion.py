"""The command `completion`: what makes a shell complete netagent's commands and options."""

from __future__ import annotations

import click
from click import shell_completion

from netagent.cli import ending

_PROGRAM = "netagent"
# The variable by which click's scripts ask the program what fits; click derives the same name from the program's.
_VARIABLE = "_NETAGENT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@ending.ending()
def completion(shell: str) -> None:
    """Print a script that makes a shell complete netagent's commands and options.

    \b
    bash, in ~/.bashrc:                   eval "$(netagent completion bash)"
    zsh, in ~/.zshrc, after compinit:     eval "$(netagent completion zsh)"
    fish, in ~/.config/fish/config.fish:  netagent completion fish | source

    The script asks the netagent on the PATH what fits, so that it suits every version of it. bash must be 4.4 or newer.
    """
    click.echo(script(shell), nl=False)


def script(shell: str) -> str:
    """The script for a shell ("bash", "zsh" or "fish"); the same whatever shells this host has."""
    kind = shell_completion.get_completion_class(shell)
    assert kind is not None, f"click knows no completion for {shell}"
    asking = kind(click.Command(_PROGRAM), {}, _PROGRAM, _VARIABLE)
    # Not asking.source(): for bash that starts the host's bash, to see how old it is.
    text: str = kind.source_template % asking.source_vars()
    return f"{text.strip()}\n"
