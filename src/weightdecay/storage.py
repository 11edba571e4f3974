"""Files and directories that are whole or not there, however the process that writes them ends."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from weightdecay.errors import StorageError


def cache_directory() -> Path:
    """Where trained tokenizers and prepared corpora are kept: `$XDG_CACHE_HOME/weightdecay`, or under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "weightdecay"


def is_file(path: Path) -> bool:
    """Whether a regular file lies there, links followed; a name that no file can have is not an error."""
    return _is(stat.S_ISREG, path)


def is_directory(path: Path) -> bool:
    """Whether a directory lies there, links followed; a name that none can have is not an error."""
    return _is(stat.S_ISDIR, path)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or directory still has this name; another process may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write that takes the name `path` only when all of it is on the disk.

    Raises:
        StorageError: the disk refused; whatever was at `path` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".partial-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def build_directory(final: Path, build: Callable[[Path], None]) -> bool:
    """Has `build` fill a directory that takes the name `final` only when it is done; does nothing if `final` exists.

    Of several processes that want the same directory one builds and the others wait for it; what a killed one left
    is swept away by the next.

    Returns:
        Whether it was built here.

    Raises:
        StorageError: the disk refused; nothing is left.
    """
    partial = final.with_name(final.name + ".partial")
    try:
        while not final.exists():
            partial.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel lets go when we are killed
                if is_at(descriptor, partial):  # not if it was finished, or given up, while we waited
                    _fill(partial, build)
                    partial.rename(final)
                    sync(final.parent)
                    return True
            finally:
                os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{final}: cannot be written: {error.strerror or error}") from error
    return False


def _fill(partial: Path, build: Callable[[Path], None]) -> None:
    for left_over in partial.iterdir():
        left_over.unlink()
    try:
        build(partial)
        sync(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):  # pathlib lets ENAMETOOLONG through
        return False
