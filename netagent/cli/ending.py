"""How a command ends: errors become an exit code and one clear line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from netagent import errors
from netagent.cli import options


def ending(*, differs: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Errors end the process with their exit code and one clear line. `differs`: what stands for a plain 1."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return command(*args, **kwargs)
            except errors.NetagentError as error:
                for line in str(error).split("\n"):
                    options.say(line)
                sys.exit(differs if error.exit_code == 1 else error.exit_code)
            except BrokenPipeError:
                # Whoever read our output has had enough; that is no error, and nothing more can be written.
                sys.stderr.close()
                sys.exit(0)

        return wrapped

    return decorate
