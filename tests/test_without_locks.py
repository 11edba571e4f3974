"""Whole commands in real processes where the file system knows no locks, as NFS without its lock daemon."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import SMALL

# What stands before the C library's own functions, and answers as the kernel does there.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static int refused(void) {
    fputs("asked for a lock\n", fopen(getenv("LOCKS_ASKED_FOR"), "a"));
    errno = ERRNO;
    return -1;
}

int flock(int descriptor, int operation) { return refused(); }

static int passed(const char *name, int descriptor, int command, void *argument) {
    int (*real)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, name);
    int locking = command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK;
    return locking ? refused() : real(descriptor, command, argument);
}

#define SHIMMED(name)                                          \
    int name(int descriptor, int command, ...) {               \
        va_list rest;                                          \
        va_start(rest, command);                               \
        void *argument = va_arg(rest, void *);                 \
        va_end(rest);                                          \
        return passed(#name, descriptor, command, argument);   \
    }
SHIMMED(fcntl)
SHIMMED(fcntl64)
"""
COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="libraries are preloaded so on Linux"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler here"),
]


@pytest.mark.long
@pytest.mark.parametrize("answer", ["ENOLCK", "EOPNOTSUPP"])
def test_whole_commands_run_and_say_what_the_want_of_locks_risks(answer: str, small_text: Path, tmp_path: Path) -> None:
    """Tokenizer and corpus into a cache, a training, its resume, a sample, a list: all of it, and the same weights."""
    (tmp_path / "shim.c").write_text(SHIM)
    shim = tmp_path / "shim.so"
    compiled = [
        str(COMPILER),
        "-shared",
        "-fPIC",
        f"-DERRNO={answer}",
        "-o",
        str(shim),
        str(tmp_path / "shim.c"),
        "-ldl",
    ]
    subprocess.run(compiled, check=True)
    asked = tmp_path / "asked"

    def command(*arguments: str | Path, cache: str, locks: bool = False) -> subprocess.CompletedProcess[str]:
        preloaded = {} if locks else {"LD_PRELOAD": str(shim), "LOCKS_ASKED_FOR": str(asked)}
        done = subprocess.run(
            [sys.executable, "-m", "weightdecay", *map(str, arguments)],
            capture_output=True, text=True, check=False,
            env={**os.environ, **preloaded, "XDG_CACHE_HOME": str(tmp_path / cache)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done

    asked.touch()
    train: list[str | Path] = [
        "train",
        "gpt3:nano",
        "--data",
        small_text,
        "--checkpoint-every",
        "2",
        *SMALL,
        "--tokenizer",
        "bpe:300",
    ]
    alone = command(*train, "--steps", "4", "--out", tmp_path / "run", cache="none")
    assert f"no locks here ({os.strerror(getattr(errno, answer))})" in alone.stderr
    assert asked.read_text()

    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    assert "resumed from step 2" in command(*train, "--steps", "4", "--out", tmp_path / "run", cache="none").stdout
    command("sample", tmp_path / "run", "--max-tokens", "3", cache="none")
    assert "finished" in command("runs", tmp_path, cache="none").stdout

    command(*train, "--steps", "4", "--out", tmp_path / "locked", cache="own", locks=True)
    weights = Path("checkpoints/step-00000004/model.safetensors")
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "locked" / weights).read_bytes()
