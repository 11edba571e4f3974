"""SIGTERM and Ctrl-C: the first asks the loop to save and leave, the second leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_STDERR = 2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# One Ctrl-C can arrive twice: from the terminal, which tells every process in the foreground, and again from a launcher
# that passes it on (ours, torchrun, timeout, srun). What comes within this time is the first one's echo.
ECHO_S = 1.0


class StopRequest:
    """While entered, remembers the first signal in `signal_number` (0 for none) instead of dying of it.

    Handlers belong to the main thread; in another thread nothing is installed and nothing is ever requested.

    Args:
        before_leaving: called when a second signal ends the process.
        tells: whether the first one is answered with a line on stderr.
    """

    def __init__(self, before_leaving: Callable[[], None] = lambda: None, *, tells: bool = False) -> None:
        self.signal_number = 0
        self._since = 0.0
        self._before_leaving = before_leaving
        self._tells = tells
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.signal_number:
            self.signal_number, self._since = number, time.monotonic()
            if self._tells:
                with contextlib.suppress(OSError):  # past Python's streams: one may be in the middle of a write
                    os.write(_STDERR, b"\nsaving after this step, then leaving; once more leaves at once\n")
        elif time.monotonic() - self._since > ECHO_S:
            self._before_leaving()
            os._exit(128 + number)
