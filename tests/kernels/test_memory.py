"""What a process does with freed memory, seen from the system: each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")

# Anonymous pages alone: those of files, the interpreter's own, come with what is touched first.
PROGRAM = """
import ctypes, re, sys
from weightdecay.kernels.memory import give_back_freed_memory, keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def written(megabytes):
    block = libc.malloc(round(megabytes * 2**20))
    ctypes.memset(block, 1, round(megabytes * 2**20))
    return block

if not keep_freed_memory(sparing="sparing" in sys.argv):
    sys.exit(3)  # not glibc
if "and-back" in sys.argv:
    keep_freed_memory()
before = held()
blocks = [written(size) for size in (1, 40, 1, 8)]
full = held() - before
for block in blocks:
    libc.free(block)
freed = held() - before
give_back_freed_memory()
print(full, freed, held() - before)
"""


def held(*settings: str) -> tuple[float, ...]:
    """MiB of a process over its beginning: with 50 allocated, after they were freed, after they were given back."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *settings], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("another C library")
    assert done.returncode == 0, done.stderr
    return tuple(map(float, done.stdout.split()))


@pytest.mark.parametrize("settings", [(), ("sparing", "and-back")])
def test_what_a_step_frees_stays_for_the_next_until_it_is_given_back(settings: tuple[str, ...]) -> None:
    full, freed, given_back = held(*settings)
    assert full == pytest.approx(50, abs=2)
    assert freed == pytest.approx(full, abs=1)
    assert given_back < 2


def test_a_sparing_process_gives_large_blocks_back_at_once() -> None:
    full, freed, _ = held("sparing")
    assert full == pytest.approx(50, abs=2)
    assert freed < 2
