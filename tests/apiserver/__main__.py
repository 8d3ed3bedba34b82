"""Serve manifests as an API server would, to try things by hand.

    python -m tests.apiserver --port 8001 examples/ &
    netagent run --master http://127.0.0.1:8001

Commands are read from standard input: `apply FILE`, `delete KIND NAME [NAMESPACE]`, `compact`, `snapshot`, `restore`,
`fault NAME [KEY=VALUE...]`, `end` (of all faults), `refuse`, `accept`, `requests`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.apiserver import ApiServer, faults
from tests.apiserver.cluster import COLLECTIONS, Manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bookmark-seconds", type=float, default=60.0)
    parser.add_argument("paths", nargs="*", type=Path)
    options = parser.parse_args()
    server = ApiServer(host=options.host, port=options.port, bookmark_seconds=options.bookmark_seconds)
    for path in options.paths:
        server.apply(*manifests(path))
    say(server.url)
    prompt(server)
    threading.Event().wait()  # without input: serve until killed


def manifests(path: Path) -> Iterator[Manifest]:
    """The objects in a file or a directory of files that the server knows."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix not in (".yaml", ".yml", ".json"):
            continue
        for document in yaml.safe_load_all(file.read_text()):
            for item in document.get("items", [document]) if document else ():
                if item.get("kind") in COLLECTIONS:
                    yield item


def prompt(server: ApiServer) -> None:
    """Carry out the commands of standard input until it ends."""
    kept: Any = None
    made: list[faults.Fault] = []
    for text in sys.stdin:
        try:
            match shlex.split(text):
                case []:
                    continue
                case ["apply", path]:
                    server.apply(*manifests(Path(path)))
                case ["delete", *what]:
                    server.delete(*what)
                case ["compact"]:
                    server.compact()
                case ["snapshot"]:
                    kept = server.snapshot()
                case ["restore"]:
                    server.restore(kept)
                case ["fault", name, *details]:
                    pairs = dict(pair.split("=", 1) for pair in details)
                    made.append(server.fault(getattr(faults, name)(**{key: _value(pairs[key]) for key in pairs})))
                case ["end"]:
                    for fault in made:
                        fault.end()
                case ["refuse"]:
                    server.refuse()
                case ["accept"]:
                    server.accept()
                case ["requests"]:
                    for seen in server.requests()[-20:]:
                        say(f"{seen.verb} {seen.kind} {seen.status} {seen.parameters}")
                case words:
                    raise ValueError(f"what is {words[0]!r}?")
            say("ok")
        except (LookupError, ValueError, TypeError, AttributeError, OSError) as error:
            say(f"error: {error!r}")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.encode() if text.startswith("{") else text


if __name__ == "__main__":
    main()
