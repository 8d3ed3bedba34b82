"""Where the time goes: one stage under a profiler, and its most expensive functions. As scripts/profile runs it."""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import gc
import io
import os
import pstats
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import agents, cluster, namespaces, plan, state
from .sections import change

_STAGES = {
    "cold": "from the bytes of the lists to the kernel, in an empty namespace",
    "change": "endpoints replaced, from the bytes of the watch to the kernel",
    "restart": "from the bytes of the lists, on programmed tables; then an audit",
    "run": "a storm of changes through `netagent run`, its loop's thread",
}
_HZ = 1000
# py-spy needs so long until it samples.
_ATTACH_SECONDS = 1.0
# Within this, the profiler runs: what is prepared and thrown away is not in the profile.
Profiled = Callable[[str], contextlib.AbstractContextManager[None]]


def main() -> int:
    """Do what the command line says; return the exit code."""
    options = _parser().parse_args()
    try:
        if options.bare:
            return _bare(options)
        match options.tool:
            case "cprofile":
                return _with_cprofile(options)
            case "py-spy":
                return _with_py_spy(options)
            case "perf":
                return _with_perf(options)
            case _:
                return _with_py_spy(options) if shutil.which("py-spy") else _with_cprofile(options)
    except OSError as error:
        print(f"cannot profile here: {error}", file=sys.stderr)
        return 69  # EX_UNAVAILABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/profile", description=__doc__)
    stages = "; ".join(f"{name}: {what}" for name, what in _STAGES.items())
    parser.add_argument("stage", choices=_STAGES, help=stages)
    parser.add_argument(
        "--size", type=cluster.size, default=cluster.Size(5000, 10), help="Services x endpoints (5000x10)"
    )
    parser.add_argument("--changes", type=int, default=1000, help="for change: how many (1000)")
    parser.add_argument("--rate", type=int, default=5000, help="for run: changes a second (5000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for run: how long (5)")
    parser.add_argument("--top", type=int, default=25, help="functions to print (25)")
    parser.add_argument("--cumulative", action="store_true", help="by the time within and below, not within alone")
    parser.add_argument("--no-gc", action="store_true", help="without Python's garbage collector")
    parser.add_argument(
        "--tool",
        choices=("auto", "cprofile", "py-spy", "perf"),
        default="auto",
        help="auto: py-spy where it is installed, else cProfile (calls look dearer); perf: the kernel as well",
    )
    parser.add_argument("-o", "--output", type=Path, help="keep the profile in this file, for other programs")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    return parser


# --- the stages -------------------------------------------------------------------------------------------------


def _run_stage(options: argparse.Namespace, profiled: Profiled) -> None:
    """The stage, in a fresh namespace."""
    namespaces.fresh()
    if options.no_gc:
        gc.disable()
    with tempfile.TemporaryDirectory(prefix="netagent-profile-") as scratch:
        {"cold": _cold, "change": _change, "restart": _restart}[options.stage](options, Path(scratch), profiled)


def _cold(options: argparse.Namespace, scratch: Path, profiled: Profiled) -> None:
    pages = scratch / "pages"
    state.write_pages(cluster.cluster(options.size), pages)
    measured = state.State()
    with profiled("decode and store"):
        measured.list_all(pages)
    with profiled("plan, lower, diff, encode, commit"):
        measured.sync()


def _change(options: argparse.Namespace, scratch: Path, profiled: Profiled) -> None:
    pages = scratch / "pages"
    size = options.size
    state.write_pages(cluster.cluster(size, more=change.MORE), pages)
    measured = change.Change(str(pages), size.services, size.endpoints)
    measured.load()
    lines = measured.prepared("endpoint replaced", options.changes)
    with profiled(f"{options.changes} endpoints replaced"):
        for one in lines:
            measured.measured(one)


def _restart(options: argparse.Namespace, scratch: Path, profiled: Profiled) -> None:
    pages = scratch / "pages"
    state.write_pages(cluster.cluster(options.size), pages)
    first = state.State()
    first.list_all(pages)
    first.sync()
    first.backend.close()
    del first
    gc.collect()
    measured = state.State()
    measured.list_all(pages)
    with profiled("the first sync of a fresh process"):
        measured.sync()
    with profiled("an audit: read back, and compare"):
        measured.backend.read()
        measured.sync()


# --- the tools --------------------------------------------------------------------------------------------------


def _bare(options: argparse.Namespace) -> int:
    """The stage without a profiler: one is around this process."""

    @contextlib.contextmanager
    def timed(title: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        print(f"{title}: {time.perf_counter() - started:.3f} s", file=sys.stderr)

    _run_stage(options, timed)
    return 0


def _with_cprofile(options: argparse.Namespace) -> int:
    if options.stage == "run":
        return _run_with_cprofile(options)
    number = 0

    @contextlib.contextmanager
    def profiled(title: str) -> Iterator[None]:
        nonlocal number
        profiler = cProfile.Profile()
        started = time.perf_counter()
        profiler.enable()
        try:
            yield
        finally:
            profiler.disable()
            seconds = time.perf_counter() - started
            if options.output:
                profiler.dump_stats(options.output.with_suffix(f".{number}.prof"))
                number += 1
            print(f"== {title}: {seconds:.3f} s under cProfile, {options.size}")
            print(_top(pstats.Stats(profiler, stream=io.StringIO()), options))

    _run_stage(options, profiled)
    return 0


def _top(stats: pstats.Stats, options: argparse.Namespace) -> str:
    stream: Any = stats.stream  # type: ignore[attr-defined]
    stats.sort_stats("cumulative" if options.cumulative else "tottime").print_stats(options.top)
    kept = (line.rstrip() for line in stream.getvalue().splitlines())
    tops = (f"{directory}/" for directory in (Path(__file__).resolve().parents[3], sys.prefix, sys.base_prefix))
    text = "\n".join(line for line in kept if line)
    for top in tops:
        text = text.replace(top, "")
    return text + "\n"


class ProfiledAgent(agents.WatchedAgent):
    """In a worker: an agent whose main thread, the loop, is profiled."""

    def profile(self, path: str) -> None:
        """Run, and write the profile when it has ended."""
        profiler = cProfile.Profile()
        profiler.enable()
        try:
            self.run()
        finally:
            profiler.disable()
            profiler.dump_stats(path)


def _run_with_cprofile(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="netagent-profile-") as scratch:
        path = options.output or Path(scratch) / "run.prof"
        order = agents.Order("profile:ProfiledAgent", "profile", {"path": str(path)})
        with agents.Running(_plan(options, Path(scratch)), options.size, order=order) as running:
            running.server.ask("storm", rate=options.rate, seconds=options.seconds)
            time.sleep(1)
            running.stop()
        print(f"== the loop's thread of `netagent run`, {options.size}, {options.rate} changes a second")
        print("(with its start, its first sync, and poll, in which it waits; other threads: --tool py-spy)")
        print(_top(pstats.Stats(str(path), stream=io.StringIO()), options))
    return 0


def _plan(options: argparse.Namespace, scratch: Path) -> plan.Plan:
    return plan.Plan(
        scratch=scratch,
        sizes=(options.size,),
        rounds=1,
        changes=1,
        storm_size=options.size,
        storm_rate=options.rate,
        storm_seconds=options.seconds,
        frontends=(),
        usual_frontends=(),
        flows=1,
        reference_sizes=(),
    )


def _with_py_spy(options: argparse.Namespace) -> int:
    if shutil.which("py-spy") is None:
        print("py-spy is not installed (pip install py-spy); --tool cprofile needs nothing", file=sys.stderr)
        return 69
    with tempfile.TemporaryDirectory(prefix="netagent-profile-") as scratch:
        if options.stage == "run":
            title = f"`netagent run`, {options.rate} changes a second, all of its threads"
            with agents.Running(_plan(options, Path(scratch)), options.size) as running:
                with _spied(title, running.pid, options):
                    running.server.ask("storm", rate=options.rate, seconds=options.seconds)
                running.stop()
        else:
            _run_stage(options, lambda title: _spied(title, os.getpid(), options))
    return 0


@contextlib.contextmanager
def _spied(title: str, pid: int, options: argparse.Namespace) -> Iterator[None]:
    """Sample a process while this lasts, then print where it was."""
    with tempfile.TemporaryDirectory(prefix="netagent-profile-") as scratch:
        raw = options.output or Path(scratch) / "stacks"
        record = ["py-spy", "record", "--rate", str(_HZ), "--format", "raw", "--output", str(raw), "--pid", str(pid)]
        spy = subprocess.Popen(record, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(_ATTACH_SECONDS)
        try:
            yield
        finally:
            spy.send_signal(signal.SIGINT)
            spy.wait()
        if not raw.exists():
            raise PermissionError("py-spy needs the right to trace processes (CAP_SYS_PTRACE)")
        print(f"== {title}, {options.size}: samples of py-spy, {_HZ} a second")
        print(_top_of_stacks(raw.read_text().splitlines(), options))


def _top_of_stacks(lines: Iterable[str], options: argparse.Namespace) -> str:
    """The functions with most samples, of stacks as `outer;inner COUNT`."""
    samples: Counter[str] = Counter()
    total = 0
    for line in lines:
        stack, _, count = line.rpartition(" ")
        total += int(count)
        frames = stack.split(";")
        for frame in set(frames) if options.cumulative else frames[-1:]:
            samples[frame] += int(count)
    return "\n".join(f"{count:8} {count / total:6.1%}  {name}" for name, count in samples.most_common(options.top))


def _with_perf(options: argparse.Namespace) -> int:
    if shutil.which("perf") is None:
        print("perf is not installed (apt-get install linux-perf); --tool cprofile needs nothing", file=sys.stderr)
        return 69
    if options.stage == "run":
        print("perf is for cold, change and restart: the process of `run` is another one", file=sys.stderr)
        return 64
    with tempfile.TemporaryDirectory(prefix="netagent-profile-") as scratch:
        data = options.output or Path(scratch) / "perf.data"
        # The processor's own counters are not to be had in most virtual machines; this event needs none.
        record = ["perf", "record", "--quiet", "-e", "cpu-clock", "-F", str(_HZ), "-o", str(data), "--", *_ourselves()]
        done = subprocess.run(record, check=False)
        if done.returncode or not data.exists():
            print("perf does not work here: see kernel.perf_event_paranoid, and whether we are root", file=sys.stderr)
            return 69
        command = ["perf", "report", "--stdio", "--quiet", "-i", str(data), "--sort", "dso,symbol"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        lines = [line.rstrip() for line in shown.splitlines() if line.strip() and not line.startswith("#")]
        print(
            f"== {options.stage}, {options.size}: samples of perf ({_HZ} a second of processor), preparation included"
        )
        print("\n".join(lines[: options.top]))
        if not any("[k]" in line for line in lines):
            print("(no symbol of the kernel: kernel.kptr_restrict, or no right to see it)")
    return 0


def _ourselves() -> list[str]:
    """The command that does the stage without a profiler."""
    return [sys.executable, "-P", "-m", "bench.profile", "--bare", *sys.argv[1:]]


if __name__ == "__main__":
    sys.exit(main())
