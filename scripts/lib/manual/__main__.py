"""Write the files that are generated, or say which are not what they should be. See scripts/build-man."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import netagent
from manual import commands, configuration, rules
from netagent.cli import kubectl
from netagent.cli import main as program

_TOP = Path(__file__).resolve().parents[3]
_PAGES = Path("share/man")
_SCHEMA = Path("docs/configuration.schema.json")


def files() -> dict[Path, str]:
    """All that is generated: path from the top of the repository, and text."""
    version = netagent.__version__
    pages = [
        *commands.pages(program.main, kubectl.plugin, version=version),
        configuration.page(version=version),
        rules.page(version=version),
    ]
    found = {_PAGES / page.path: str(page) for page in pages}
    found[_SCHEMA] = json.dumps(configuration.schema(), indent=2, ensure_ascii=False) + "\n"
    return found


def stale(top: Path) -> list[str]:
    """What is wrong with the files under `top`, one sentence each; empty when all are as they should be."""
    wanted = files()
    there = {path.relative_to(top) for path in (top / _PAGES).rglob("*") if path.is_file()}
    wrong = [f"{path}: nothing generates it any more" for path in sorted(there - wanted.keys())]
    for path, text in wanted.items():
        if not (top / path).exists():
            wrong.append(f"{path}: is missing")
        elif (top / path).read_text() != text:
            wrong.append(f"{path}: is not what the program says now")
    return wrong


def write(top: Path) -> None:
    """Make the files under `top` what they should be."""
    wanted = files()
    for path in (top / _PAGES).rglob("*"):
        if path.is_file() and path.relative_to(top) not in wanted:
            path.unlink()
    for path, text in wanted.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        write(_TOP)
        return 0
    wrong = stale(_TOP)
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        print("scripts/build-man writes them anew", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
