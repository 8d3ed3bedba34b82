"""One process that fuzzes one target: guided by coverage with atheris, or with our own mutations. See scripts/fuzz.

    python -m tests.fuzz.trial TARGET --engine atheris|mutations --inputs N --seconds S --findings DIRECTORY

It ends with 0, and the number of inputs in its last line of output; or with 1 at the first input that breaks
something, which is in the directory then.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import corpora, mutations

# An input costs at most so much, whatever is in it: the larger ones in proportion.
_SECONDS_MOST = 2.0
_SECONDS_A_BYTE = 20e-6
_MEMORY_MOST = 2 << 30
# Of an input, unless one that is kept has more.
_BYTES_MOST = 4096
_LOOK_AT_THE_CLOCK_EVERY = 64


class TooSlowError(AssertionError):
    """An input costs more time than its size allows."""


def main() -> None:
    arguments = _arguments()
    if arguments.engine == "atheris":
        _guided(arguments)
    sys.exit(_unguided(arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--engine", choices=("atheris", "mutations"), required=True)
    parser.add_argument("--inputs", type=int, default=0, help="0: any number")
    parser.add_argument("--seconds", type=float, default=0.0, help="0: any time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, required=True)
    return parser.parse_args()


def _measured(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The target, which fails as well if an input takes too long."""

    def measured(data: bytes) -> None:
        began = time.process_time()
        run(data)
        took = time.process_time() - began
        if took > _SECONDS_MOST + len(data) * _SECONDS_A_BYTE:
            raise TooSlowError(f"{len(data)} bytes took {took:.1f} s of the processor")

    return measured


def _unguided(arguments: argparse.Namespace) -> int:
    """Try mutations of what is kept; the number of the seed and of the input tells what was tried."""
    from tests.fuzz import targets

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_MOST if hard < 0 else min(hard, _MEMORY_MOST), hard))
    target = targets.target(arguments.target)
    run = _measured(target.run)
    chance = random.Random(arguments.seed or time.time_ns())
    inputs = [path.read_bytes() for path in corpora.kept(target.name)]
    material = mutations.Material(inputs, target.words, max([_BYTES_MOST, *map(len, inputs)]))
    end = time.monotonic() + arguments.seconds if arguments.seconds else float("inf")
    most = arguments.inputs or sys.maxsize
    tried = 0
    while tried < most and (tried % _LOOK_AT_THE_CLOCK_EVERY or time.monotonic() < end):
        data = inputs[tried] if tried < len(inputs) else mutations.mutated(material, chance)
        tried += 1
        try:
            run(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is what we are looking for
            traceback.print_exc()
            (arguments.findings / "crash").write_bytes(data)
            print(f"inputs: {tried}")
            return 1
    print(f"inputs: {tried}")
    return 0


def _guided(arguments: argparse.Namespace) -> None:
    """Hand the target to libFuzzer, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["netagent"]):
        from tests.fuzz import targets

        target = targets.target(arguments.target)
    dictionary = arguments.findings / "words"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words if word))
    made = arguments.findings / "corpus"
    made.mkdir()
    options = [
        f"-dict={dictionary}",
        f"-artifact_prefix={arguments.findings}/",
        f"-max_len={max([_BYTES_MOST, *(path.stat().st_size for path in corpora.kept(target.name))])}",
        f"-rss_limit_mb={_MEMORY_MOST >> 20}",
        "-timeout=30",
        "-print_final_stats=1",
        "-verbosity=0",
        *([f"-runs={arguments.inputs}"] if arguments.inputs else []),
        *([f"-max_total_time={max(1, round(arguments.seconds))}"] if arguments.seconds else []),
        *([f"-seed={arguments.seed}"] if arguments.seed else []),
    ]
    atheris.Setup([sys.argv[0], *options, str(made), str(corpora.directory(target.name))], _measured(target.run))
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
