"""Signals that come during an audit reach the program's handlers after it, as if they had come a moment later.

A handler may raise, as that of Ctrl-C does. In the midst of an audit this would be taken for the audit's own failure.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Held:
    """In here signals wait; a second one of the same number waits no longer, since somebody is impatient."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # handlers run in the main thread
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):  # and neither the system's own, nor another language's
                self._handlers[number] = handler
                signal.signal(number, self._wait)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._deliver()

    def _deliver(self) -> None:
        if self._waiting:
            try:
                signal.raise_signal(self._waiting.pop(0))
            finally:  # whose handler may have raised
                self._deliver()

    def _wait(self, number: int, frame: FrameType | None) -> None:
        if number in self._waiting:
            self._waiting.remove(number)
            self._handlers[number](number, frame)
        else:
            self._waiting.append(number)
