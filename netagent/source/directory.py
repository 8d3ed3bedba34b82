"""Notice of changes in a manifest file or directory tree, through inotify."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType

import inotify_simple  # type: ignore[import-untyped]
from inotify_simple import flags

from netagent.errors import SourceError
from netagent.source import tree

# CLOSE_WRITE and not MODIFY: a file that is being written is not read half-way. ATTRIB: a file becomes readable.
_MASK = (
    flags.CLOSE_WRITE
    | flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
_ABOUT_ITSELF = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
_MAX_SYMLINKS = 40  # as the kernel, MAXSYMLINKS in include/linux/namei.h


class _Interest:
    """What matters in one watched directory: these names, and with `all_visible` every name that is not hidden."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.all_visible = False

    def __contains__(self, name: str) -> bool:
        return name in self.names or (self.all_visible and not tree.is_hidden(name))


class DirectoryWatch:
    """Tells that the manifests at a path may have changed.

    Owns: one inotify descriptor.
    Use: poll `fileno()` for input; then `changed()` drains the events and says whether to read again.
    `close()` it, or use it as a context manager.
    Goals: no change goes unnoticed: in-place writes, renames over a file, a swapped symlink anywhere on the
    way (the `..data` of a ConfigMap volume), new subdirectories, the path itself or a directory above it
    being deleted, replaced and made again, and events that the kernel had to drop. Notice may be given once
    too often, never once too seldom. A file is noticed when its writer closes it.
    Threading: none; it belongs to one thread, and no call blocks.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Watch a file or directory, which need not exist yet. SourceError when the host has no watch left."""
        self._path = Path(os.path.abspath(path))
        self._interests: dict[int, _Interest] = {}
        try:
            self._inotify = inotify_simple.INotify(nonblocking=True)
        except OSError as error:
            raise self._cannot_watch(error) from error
        try:
            self._watch_all()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DirectoryWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor to poll for input."""
        return int(self._inotify.fileno())

    def close(self) -> None:
        """Stop watching; a second time is fine."""
        self._inotify.close()

    def changed(self) -> bool:
        """Whether anything may have changed since the last call, or since the start. Never blocks.

        What is read after this call is at least as new as what was noticed; later changes are noticed later.
        """
        relevant = False
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                relevant = True
            elif (interest := self._interests.get(event.wd)) is not None:
                relevant |= bool(event.mask & _ABOUT_ITSELF) or event.name in interest
        if relevant:
            self._watch_all()
        return relevant

    def _watch_all(self) -> None:
        """Watch what has to be watched now, and nothing else.

        A directory is watched before it is looked into, so that nothing slips in between.
        """
        previous, self._interests = self._interests, {}
        target = self._follow(self._path)
        if target is not None and target.is_dir():
            self._watch_tree(target, set())
        for watch in previous.keys() - self._interests.keys():
            try:
                self._inotify.rm_watch(watch)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL: the kernel dropped it with its directory
                    raise

    def _watch_tree(self, directory: Path, seen: set[Path]) -> None:
        if directory in seen:
            return
        seen.add(directory)
        interest = self._watch(directory)
        if interest is None:
            return
        interest.all_visible = True
        try:
            entries = tree.entries(directory)
        except OSError:  # gone or closed to us meanwhile: the watch above tells when that changes
            return
        for entry in entries:
            target = self._follow(entry.path, below=directory) if entry.link else entry.path
            if entry.directory and target is not None:
                self._watch_tree(target, seen)

    def _follow(self, path: Path, *, below: Path | None = None) -> Path | None:
        """Watch every directory that decides where a path leads; return where it leads, None if nowhere.

        With `below`, an ancestor that is watched already, the way starts there.
        """
        at = below or Path("/")
        rest = list(path.relative_to(at).parts)[::-1]
        links = 0
        while rest:
            name = rest.pop()
            if name == "..":
                at = at.parent
                continue
            interest = self._watch(at)
            if interest is not None:
                interest.names.add(name)
            step = at / name
            try:
                pointer = os.readlink(step) if step.is_symlink() else None
            except OSError:
                return None
            if pointer is None:
                if not os.path.lexists(step):
                    return None
                at = step
                continue
            links += 1
            if links > _MAX_SYMLINKS:
                return None
            parts = Path(pointer).parts
            if Path(pointer).is_absolute():
                at = Path("/")
                parts = parts[1:]
            rest.extend(reversed(parts))
        return at

    def _watch(self, directory: Path) -> _Interest | None:
        """What matters in a directory, which is watched from now on; None when it is none, or closed to us."""
        try:
            watch = self._inotify.add_watch(directory, _MASK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise self._cannot_watch(error) from error
        return self._interests.setdefault(watch, _Interest())

    def _cannot_watch(self, error: OSError) -> SourceError:
        hint = {
            errno.ENOSPC: "; raise the sysctl fs.inotify.max_user_watches",
            errno.EMFILE: "; raise the sysctl fs.inotify.max_user_instances",
        }.get(error.errno or 0, "")
        return SourceError(f"cannot watch {self._path} for changes: {error.strerror or error}{hint}")
