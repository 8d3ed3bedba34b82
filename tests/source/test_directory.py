"""Changes of manifest files are noticed, however they are made."""

from __future__ import annotations

import os
import select
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netagent.source.directory import DirectoryWatch
from tests.patience import HANGS


def noticed(watch: DirectoryWatch, seconds: float = HANGS) -> bool:
    """Whether the watch tells of a change in time."""
    poller = select.poll()
    poller.register(watch.fileno(), select.POLLIN)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if poller.poll(left * 1000) and watch.changed():
            return True
    return False


def settle(watch: DirectoryWatch) -> None:
    while noticed(watch, 0.02):
        pass


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "manifests"
    (top / "sub").mkdir(parents=True)
    (top / "a.yaml").write_text("a")
    (top / "sub" / "b.yaml").write_text("b")
    return top


@pytest.fixture
def watch(top: Path) -> Iterator[DirectoryWatch]:
    with DirectoryWatch(top) as watch:
        yield watch


def rename_over(top: Path) -> None:
    (top / ".a.tmp").write_text("new")
    (top / ".a.tmp").rename(top / "a.yaml")


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda top: (top / "new.yaml").write_text("x"),
    "write in place": lambda top: (top / "a.yaml").write_text("x"),
    "rename over": rename_over,
    "delete": lambda top: (top / "a.yaml").unlink(),
    "move away": lambda top: (top / "a.yaml").rename(top.parent / "a.yaml"),
    "write below": lambda top: (top / "sub" / "b.yaml").write_text("x"),
    "delete below": lambda top: shutil.rmtree(top / "sub"),
    "become readable": lambda top: (top / "a.yaml").chmod(0o600),
    "new directory": lambda top: (top / "new").mkdir(),
    "delete all": shutil.rmtree,
    "move all": lambda top: top.rename(top.parent / "elsewhere"),
    "delete above": lambda top: shutil.rmtree(top.parent),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_noticed(top: Path, watch: DirectoryWatch, change: Callable[[Path], object]) -> None:
    assert not watch.changed()
    change(top)
    assert noticed(watch)


def test_notice_is_there_as_soon_as_the_change_is(top: Path, watch: DirectoryWatch) -> None:
    poller = select.poll()
    poller.register(watch.fileno(), select.POLLIN)
    for turn in range(5):
        (top / "a.yaml").write_text(str(turn))
        assert poller.poll(0), "nobody has to wait for it, and there is no interval between two looks"
        assert watch.changed()
        settle(watch)


def test_reading_is_no_change(top: Path, watch: DirectoryWatch) -> None:
    (top / "a.yaml").read_text()
    (top / "sub" / "b.yaml").read_text()
    list(top.iterdir())
    assert not noticed(watch, 0.05)


def test_hidden_files_and_neighbours_are_no_change(top: Path, watch: DirectoryWatch) -> None:
    (top / ".a.yaml.swp").write_text("x")
    (top.parent / "other").mkdir()
    (top.parent / "other.yaml").write_text("x")
    assert not noticed(watch, 0.05)


def test_new_directories_are_watched_from_their_first_file_on(top: Path, watch: DirectoryWatch) -> None:
    (top / "one" / "two").mkdir(parents=True)
    (top / "one" / "two" / "c.yaml").write_text("x")
    assert noticed(watch)
    settle(watch)
    (top / "one" / "two" / "c.yaml").write_text("y")
    assert noticed(watch)


def test_a_directory_that_is_made_again_is_watched_again(top: Path, watch: DirectoryWatch) -> None:
    shutil.rmtree(top.parent)
    assert noticed(watch)
    settle(watch)
    top.mkdir(parents=True)
    assert noticed(watch)
    settle(watch)
    (top / "a.yaml").write_text("x")
    assert noticed(watch)


def test_a_directory_that_is_replaced_is_watched(top: Path, watch: DirectoryWatch) -> None:
    top.rename(top.parent / "old")
    (top.parent / "next").mkdir()
    (top.parent / "next").rename(top)
    assert noticed(watch)
    settle(watch)
    (top.parent / "old" / "a.yaml").write_text("nobody cares")
    assert not noticed(watch, 0.05)
    (top / "a.yaml").write_text("x")
    assert noticed(watch)


def test_the_symlink_swap_of_a_config_map_is_noticed_every_time(tmp_path: Path) -> None:
    def generation(number: int) -> None:
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "a.yaml").write_text(str(number))
        (tmp_path / "..data_tmp").symlink_to(f"..{number}")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    generation(1)
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    with DirectoryWatch(tmp_path) as watch:
        for number in (2, 3, 4):
            generation(number)
            assert noticed(watch)
            shutil.rmtree(tmp_path / f"..{number - 1}")
            settle(watch)
    with DirectoryWatch(tmp_path / "a.yaml") as watch:
        generation(5)
        assert noticed(watch)


def test_targets_of_symlinks_are_watched(tmp_path: Path) -> None:
    (tmp_path / "shared" / "deep").mkdir(parents=True)
    (tmp_path / "shared" / "a.yaml").write_text("x")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "a.yaml").symlink_to(tmp_path / "shared" / "a.yaml")
    (tmp_path / "top" / "deep").symlink_to("../shared/deep")
    (tmp_path / "top" / "loop").symlink_to("loop")
    with DirectoryWatch(tmp_path / "top") as watch:
        (tmp_path / "shared" / "a.yaml").write_text("y")
        assert noticed(watch)
        settle(watch)
        (tmp_path / "shared" / "deep" / "b.yaml").write_text("y")
        assert noticed(watch)
        settle(watch)
        (tmp_path / "shared" / "other.yaml").write_text("y")
        assert not noticed(watch, 0.05)


@pytest.mark.parametrize("change", ["create", "write in place", "rename over", "delete", "delete all", "move all"])
def test_a_single_file_is_watched_like_a_directory(top: Path, change: str) -> None:
    if change == "create":
        (top / "new.yaml").unlink(missing_ok=True)
    with DirectoryWatch(top / ("new.yaml" if change == "create" else "a.yaml")) as watch:
        (top / "sibling.yaml").write_text("x")
        assert not noticed(watch, 0.05)
        CHANGES[change](top)
        assert noticed(watch)


def test_a_relative_path_is_watched(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(top)
    with DirectoryWatch(".") as watch:
        monkeypatch.chdir("/")
        (top / "a.yaml").write_text("x")
        assert noticed(watch)


def test_more_events_than_the_kernel_keeps_are_a_change(top: Path, watch: DirectoryWatch) -> None:
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if queue > 20_000:
        pytest.skip("the queue of this host is too long to fill")
    hidden = [top / ".x", top / ".y"]  # alone they would be no change
    for _ in range(queue // 4 + 10):
        for path in hidden:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            path.unlink()
    assert watch.changed()
    settle(watch)
    (top / "a.yaml").write_text("x")
    assert noticed(watch)


def test_a_closed_watch_leaks_nothing(top: Path) -> None:
    before = os.listdir("/proc/self/fd")
    watch = DirectoryWatch(top)
    watch.close()
    watch.close()
    assert os.listdir("/proc/self/fd") == before
