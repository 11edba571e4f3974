"""Files and directories that are whole or not there, however the process that writes them ends; locks; the cache."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from weightdecay.errors import StorageError, StorageWarning

if TYPE_CHECKING:
    from torch import Tensor


def cache_directory() -> Path:
    """Where tokenizers, prepared corpora, kernels and forecasts lie: `$XDG_CACHE_HOME/weightdecay`, or in `~/.cache`.

    Where nothing can be written there, or nobody's home is known, a temporary directory serves this process instead,
    and a `StorageWarning` says so once.

    Raises:
        StorageError: there is no temporary directory either.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        wanted = (Path(base) if base else Path.home() / ".cache") / "weightdecay"
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except RuntimeError:  # what pathlib raises for a user without a home
        return _makeshift_cache("this user has no home directory")
    except OSError as error:
        return _makeshift_cache(f"{wanted}: {error.strerror or error}")


@cache
def _makeshift_cache(reason: str) -> Path:
    advice = "set XDG_CACHE_HOME to a directory that can be written"
    try:
        made = Path(tempfile.mkdtemp(prefix="weightdecay-"))
    except OSError as error:
        raise StorageError(f"no cache ({reason}) and no temporary directory ({error}): {advice}") from error

    atexit.register(shutil.rmtree, made, ignore_errors=True)
    warnings.warn(f"the cache cannot be used ({reason}): this time without; {advice}", StorageWarning, stacklevel=2)
    return made / "weightdecay"


def is_file(path: Path) -> bool:
    """Whether a regular file lies there, links followed; a name that no file can have is not an error."""
    return _is(stat.S_ISREG, path)


def is_directory(path: Path) -> bool:
    """Whether a directory lies there, links followed; a name that none can have is not an error."""
    return _is(stat.S_ISDIR, path)


def why_no_directory(path: Path) -> str:
    """Of a path where a directory should be and is none: whether something else lies there, or nothing."""
    return "a file, not a directory" if is_file(path) else "no such directory"


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
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no directories, and keeps their names by itself

    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock(Enum):
    """What came of an attempt to lock a file."""

    HELD = "held"
    BUSY = "busy"
    NONE_HERE = "none here"
    """The file system knows no locks (some NFS), or this Python none."""


def lock(file: IO[str], *, wait: bool = False) -> Lock:
    """Hold an open file against other processes until it is closed; the kernel lets go when the holder dies.

    Where there are no locks the caller goes on without, and a `StorageWarning` says what that risks.
    """
    # filelock brings a module of threads and leases along, which `--help` does not wait for.
    from filelock import lock_descriptor

    try:
        return Lock.HELD if lock_descriptor(file.fileno(), blocking=wait) else Lock.BUSY
    except OSError as error:
        warnings.warn(
            f"{file.name}: no locks here ({error.strerror or error}), so nothing keeps a second process out: start one "
            "at a time",
            StorageWarning,
            stacklevel=2,
        )
        return Lock.NONE_HERE


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


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A new safetensors file, readable by whom the umask lets.

    Args:
        tensors: sharing no memory; made contiguous here.
        metadata: for the file's header.

    Raises:
        OSError, SafetensorError: the disk refused.
    """
    from safetensors.torch import save_file

    # safetensors makes its file for its owner alone; a file of Python's own tells what the umask would have made of it.
    path.touch(exist_ok=False)
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    path.chmod(mode)


def build_directory(final: Path, build: Callable[[Path], None]) -> bool:
    """Has `build` fill a directory that takes the name `final` only when it is done; does nothing if `final` exists.

    Of several processes that want the same directory one builds and the others wait for it; what a killed one left
    is swept away by the next.

    Returns:
        Whether it was built here.

    Raises:
        StorageError: the disk refused; nothing is left.
    """
    partial, lock_path = (final.with_name(final.name + suffix) for suffix in (".partial", ".lock"))
    try:
        while not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            with lock_path.open("a") as file:
                lock(file, wait=True)
                # Not if it was finished, or given up, while we waited.
                if is_at(file.fileno(), lock_path) and not final.exists():
                    try:
                        _fill(partial, build)
                        partial.rename(final)
                        sync(final.parent)
                    finally:
                        with contextlib.suppress(OSError):  # Windows removes no open file, and it does no harm
                            lock_path.unlink()
                    return True
    except OSError as error:
        raise StorageError(f"{final}: cannot be written: {error.strerror or error}") from error
    return False


def _fill(partial: Path, build: Callable[[Path], None]) -> None:
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
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
