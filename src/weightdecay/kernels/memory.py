"""What the allocator does with memory that a step has freed and the next one wants again."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

# Of glibc's malloc.h: how much free memory at the heap's end goes back to the system, from which size on a block comes
# from the system by itself and goes back there when it is freed, and how many such blocks there may be.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER, _MANY = 2**31 - 1, 1 << 20

# Of smaller blocks a step has too many: a fault a page would cost more than the gaps that they leave.
_GIVEN_BACK_FROM_BYTES = 1 << 19


def keep_freed_memory(*, sparing: bool = False) -> bool:
    """Let this process keep what it frees, so that the system need not zero it anew for the next step.

    Every step frees what the next one asks for; given back in between, it costs a fault a page, a tenth of a small
    model's step. What is kept has gaps between what lives on, though, so that the process holds more than it uses.
    Called before the weights are made, whose places then suit.

    Args:
        sparing: give blocks of 512 KiB or more back at once, for less memory at a step's price in time.

    Returns:
        Whether the allocator takes the advice: glibc does.
    """
    allocator = _allocator("mallopt")
    if allocator is None:
        return False
    kept = [(_M_TRIM_THRESHOLD, _NEVER), (_M_MMAP_MAX, _MANY if sparing else 0)]
    if sparing:
        kept.append((_M_MMAP_THRESHOLD, _GIVEN_BACK_FROM_BYTES))
    return all(allocator(which, value) for which, value in kept)


def give_back_freed_memory() -> None:
    """Return to the system what this process has freed and kept; only glibc can be asked."""
    if (trim := _allocator("malloc_trim")) is not None:
        trim(0)


def resident_bytes() -> int:
    """What this process has of the machine's memory now; 0 where the system does not say."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The most that it ever had; 0 where the system does not say."""
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _allocator(function: str) -> Any:
    """A function of the C library's allocator; None of another system's, which lacks it."""
    try:
        return getattr(ctypes.CDLL(None), function)
    except (OSError, AttributeError, TypeError):
        return None
