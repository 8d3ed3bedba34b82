"""`netagent bundle`: everything that a bug report needs, in one file, without secrets."""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netagent import errors
from netagent.cli import ending, options, progress

if TYPE_CHECKING:
    from netagent.bundle import archive


@click.command()
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE.tar.gz|-",
    default=None,
    help="Where to write; - is standard output.  [default: netagent-bundle-HOST-TIME.tar.gz in this directory]",
)
@click.option(
    "--unit", default="netagent", show_default=True, help="The systemd unit whose last journal lines are taken."
)
@options.looking
@ending.ending()
def bundle(target: str | None, unit: str, **given: Any) -> None:
    """Put everything that a bug report needs into one file.

    Versions, status, settings, the plan, our tables and what differs, metrics, what the doctor finds, kernel, sysctls,
    interfaces and routes, the journal. Secrets are taken out, sizes are bounded, and MANIFEST.txt tells what each file
    is, what was cut, and what could not be had. Without rights or without an agent it takes what there is. Prints the
    name of the file.
    """
    from netagent.bundle import archive
    from netagent.cli import bundle_contents

    source = options.source_of(**given)
    now = int(time.time())
    name = f"netagent-bundle-{_plain(socket.gethostname())}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}"
    path = Path(target or f"{name}.tar.gz")
    if target != "-" and not path.parent.is_dir():
        raise errors.ConfigError(f"cannot write {path}: there is no directory {path.parent}")
    everything = list(bundle_contents.items(source, unit=unit))
    collected = archive.Archive()
    with progress.shown("collecting") as step:
        for index, item in enumerate(everything):
            step(f"collecting {item.name}", done=index, total=len(everything))
            collected.collect(item.name, item.made, item.get, keep=item.keep)
    packed = collected.packed(directory=name, heading=_heading(source, now), seconds=now)
    if target == "-":
        sys.stdout.buffer.write(packed)
        sys.stdout.buffer.flush()
        _say_what(collected, len(packed))
        return
    _write(path, packed)
    _say_what(collected, len(packed))
    click.echo(path)


def _heading(source: options.Source, now: int) -> list[str]:
    import netagent

    return [
        f"netagent {netagent.__version__}: a bundle for a bug report",
        f"made at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now))} by user {os.geteuid()}",
        f"node: {source.node_name}",
    ]


def _plain(name: str) -> str:
    """A host name fit for the name of a file."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", name).strip(".-") or "host"


def _write(path: Path, packed: bytes) -> None:
    """Write a file that only its owner can read, all of it or nothing. ConfigError if it cannot be."""
    try:
        descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(packed)
            os.replace(made, path)
        except BaseException:
            os.unlink(made)
            raise
    except OSError as error:
        raise errors.ConfigError(f"cannot write {path}: {error.strerror}") from error


def _say_what(collected: archive.Archive, size: int) -> None:
    files, absent = len(collected.files), len(collected.absent)
    options.say(
        f"{files} files, {size} bytes; {absent} could not be had, and MANIFEST.txt says why. "
        "Secrets were taken out; look through it before you hand it on"
    )
