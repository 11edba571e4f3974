from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from weightdecay.errors import StorageError
from weightdecay.storage import build_directory, cache_directory, whole_file


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    with whole_file(path) as file:
        file.write(b"old")

    def interrupted() -> None:
        with whole_file(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_all_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def sync(descriptor: int) -> None:
        done.append(f"synced {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        real_sync(descriptor)

    def named(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def and_told(path: Path, target: Path) -> Path:
            done.append(f"named {target.name}")
            return move(path, target)

        return and_told

    real_sync = os.fsync
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(secrets, "token_hex", lambda _: "x")
    for name in ("replace", "rename"):
        monkeypatch.setattr(Path, name, named(getattr(Path, name)))

    def build(partial: Path) -> None:
        with whole_file(partial / "file") as file:
            file.write(b"text")

    assert build_directory(tmp_path / "final", build)
    assert done == [
        f"synced .partial-{os.getpid()}-x",
        "named file",
        "synced final.partial",
        "synced final.partial",
        "named final",
        f"synced {tmp_path.name}",
    ]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "x"
    with pytest.raises(StorageError, match="file/x: cannot be written: "), whole_file(path):
        pass
    with pytest.raises(StorageError, match="file/x: cannot be written: "):
        build_directory(path, lambda _partial: None)


def test_a_directory_is_built_once_and_a_failed_one_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "final"

    def fail(partial: Path) -> None:
        (partial / "a").write_text("half")
        raise RuntimeError("the reason")

    with pytest.raises(RuntimeError, match="the reason"):
        build_directory(final, fail)
    assert list(tmp_path.iterdir()) == []
    assert build_directory(final, lambda partial: (partial / "a").touch())
    assert not build_directory(final, lambda _partial: pytest.fail("built twice"))
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


BUILDER = """
import sys, time
from pathlib import Path
from weightdecay.storage import build_directory

def build(partial):
    assert not list(partial.iterdir()), "not empty"
    (partial / "a").write_text("half")
    print("building", flush=True)
    sys.stdin.readline()
    (partial / "b").write_text("whole")

print(build_directory(Path(sys.argv[1]), build), flush=True)
"""


def start_builder(final: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(final)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_a_killed_process_left_is_swept_and_never_taken_for_whole(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with start_builder(final) as first:
        assert line_of(first) == "building"
        first.send_signal(signal.SIGKILL)
    assert not final.exists()
    assert (tmp_path / "final.partial" / "a").read_text() == "half"
    with start_builder(final) as second:
        assert line_of(second) == "building"
        second.communicate("\n")
    assert sorted(path.name for path in final.iterdir()) == ["a", "b"]
    assert not (tmp_path / "final.partial").exists()


def test_of_processes_that_want_the_same_directory_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with start_builder(final) as first:
        assert line_of(first) == "building"
        with start_builder(final) as second, start_builder(final) as third:
            while not all(waits_for_a_lock(process.pid) for process in (second, third)):
                time.sleep(0.01)
            assert first.communicate("\n")[0] == "True\n"
            assert second.communicate()[0] == third.communicate()[0] == "False\n"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def waits_for_a_lock(pid: int) -> bool:
    """It holds the file open that the builder has locked."""
    return any(is_open_at(descriptor, ".lock") for descriptor in Path(f"/proc/{pid}/fd").iterdir())


def is_open_at(descriptor: Path, suffix: str) -> bool:
    try:
        return descriptor.readlink().name.endswith(suffix)
    except FileNotFoundError:  # closed while we looked
        return False


def test_the_cache_is_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "weightdecay"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "weightdecay"
