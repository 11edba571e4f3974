"""What the allocator does with memory that a step has freed and the next one wants again."""

from __future__ import annotations

import ctypes
import functools

# Of glibc's malloc.h. From the largest size that it takes on, a block comes from the system and goes back there.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 << 20
_NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep blocks below 32 MiB that it frees, so that the system need not zero them anew.

    Every step frees what the next one asks for; given back in between, it costs a fault a page, a tenth of a small
    model's step. Returns whether the allocator takes the advice: glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, another allocator
        return False
    return all(
        mallopt(which, size) for which, size in ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _NEVER))
    )


def give_back_freed_memory() -> None:
    """Return to the system what this process has freed and kept; only glibc can be asked."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another system, another allocator
        return
    trim(0)
