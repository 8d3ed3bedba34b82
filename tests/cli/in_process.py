"""Commands run within the test's own process: the same code from the arguments on, without a start of Python."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from netagent.cli.main import main


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def netagent(*arguments: str | Path, stdin: bytes = b"") -> Done:
    """Run a command; in the network namespace of the caller, if it has one of its own."""
    log = logging.getLogger("netagent")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    try:
        result = CliRunner().invoke(main, list(map(str, arguments)), input=stdin)
    finally:
        log.handlers, log.level, log.propagate = handlers, level, propagate
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)
