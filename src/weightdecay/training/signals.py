"""Signals that ask to stop: the first asks the loop to save and leave, the second leaves at once.

SIGINT    Ctrl-C
SIGTERM   `kill`, `timeout`, a container that is stopped, Slurm at the end of a job's time
SIGHUP    the terminal was closed, the connection lost
SIGUSR1   what Slurm is asked to send before the time is over (`#SBATCH --signal=USR1@300`)
"""

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
# Windows has the first two, and Ctrl-Break.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGBREAK")

# One Ctrl-C can arrive twice: from the terminal, which tells every process in the foreground, and again from a launcher
# that passes it on (ours, torchrun, timeout, srun). What comes within this time is the first one's echo.
ECHO_S = 1.0


def stopping_signals() -> list[signal.Signals]:
    """Those of this system that ask a run to save and leave.

    One that the caller has told us to ignore is none of them: `nohup` does so with SIGHUP.
    """
    here = [signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__]
    return [number for number in here if signal.getsignal(number) is not signal.SIG_IGN]


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
            self._previous = {number: signal.signal(number, self._handle) for number in stopping_signals()}
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
            with contextlib.suppress(Exception):  # a terminal that is gone must not keep us here
                self._before_leaving()
            os._exit(128 + number)
