"""What can go wrong, classed by who has to act.

Every error says what failed, on what, why, and what happens now. The command line turns the class into an exit
code (see `exit_code`); nothing else in the project exits.
"""

from __future__ import annotations


class NetagentError(Exception):
    """Base of all errors that netagent raises on purpose."""

    exit_code = 1


class ConfigError(NetagentError):
    """The configuration or the command line is wrong: the operator acts."""

    exit_code = 2


class SourceError(NetagentError):
    """Objects cannot be read (file gone, API away): we retry, or the operator names another source."""

    exit_code = 3


class PrivilegeError(NetagentError):
    """The process may not do this: it needs CAP_NET_ADMIN in its network namespace."""

    exit_code = 4


class UnsupportedError(NetagentError):
    """The host lacks something that we need; the message names the CONFIG_ option or the version."""

    exit_code = 5


class CommitRejectedError(NetagentError):
    """The kernel refused a transaction, and nothing of it was applied.

    `operation` is the text of the operation at fault (None when the kernel did not say), `errno` the kernel's code.
    """

    exit_code = 6

    def __init__(self, message: str, *, errno: int, operation: str | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.operation = operation


class StaleGenerationError(CommitRejectedError):
    """Somebody committed between our read and our write: we re-read and retry."""


class QuarantineError(NetagentError):
    """Objects had to be set aside, and the operator asked for all or nothing (--strict)."""

    exit_code = 7


class HeldError(NetagentError):
    """Another process holds what there can be one of: it is named, and the operator decides which one goes."""

    exit_code = 9


class NoAgentError(NetagentError):
    """No agent runs in this network namespace, and the question was for it."""

    exit_code = 10


class InvariantError(NetagentError):
    """A bug of ours: please report it."""

    exit_code = 70
