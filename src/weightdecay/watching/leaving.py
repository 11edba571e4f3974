"""How a watched process ends: in its own time, by `os._exit`, by becoming another program, or after a given step."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

from weightdecay.watching.program import Program, is_python, python_options
from weightdecay.watching.tracebacks import unseen

How = Literal["ended", "left", "replaced"]
"""In its own time; by `os._exit`; by becoming another program."""

_asked_to_stop = False


def guard(finish: Callable[[How, int | None], int | None], hand_on: Callable[[Any, bool], None]) -> None:
    """Have the last word in this process, however it ends; not in its forks.

    Args:
        finish: is given how it ends and with which code, None where that is not known here, and returns the code that
            it is to end with.
        hand_on: lets a program that takes this one's place, with the given environment, go on watching; it is told
            whether that is Python.
    """
    own = os.getpid()

    def at_exit() -> None:
        if os.getpid() == own and (code := finish("ended", None)) is not None:
            _flush()
            leave(code)  # which nothing else can change at this point

    leave, execv, execve = os._exit, os.execv, os.execve

    @unseen
    def watched_exit(status: int) -> NoReturn:
        if os.getpid() == own:
            code = finish("left", status)
            status = status if code is None else code
        leave(status)

    @unseen
    def watched_execv(path: Any, arguments: Any) -> NoReturn:
        become(path, arguments, None)

    @unseen
    def watched_execve(path: Any, arguments: Any, environment: Mapping[Any, Any] | None) -> NoReturn:
        become(path, arguments, environment)

    def become(path: Any, arguments: Any, environment: Mapping[Any, Any] | None) -> NoReturn:
        words = _of_watched_python(path, arguments) if os.getpid() == own else None
        given = os.environ if environment is None else dict(environment)
        if os.getpid() == own:
            hand_on(given, words is not None)
            # `os.execvp` tries all folders of PATH, and what is not there does not take this program's place.
            if words is None and (isinstance(path, int) or os.access(path, os.X_OK)):
                finish("replaced", None)
        arguments = arguments if words is None else words
        if environment is None:
            execv(path, arguments)
        execve(path, arguments, given)

    # `os.execl`, `os.execvp` and the rest call these by their names in `os`.
    atexit.register(at_exit)
    os._exit, os.execv, os.execve = watched_exit, watched_execv, watched_execve  # type: ignore[assignment]


def _of_watched_python(path: Any, arguments: Sequence[Any]) -> list[str] | None:
    """The words by which a Python program starts watched; None if it is none that could be."""
    try:
        words = [os.fsdecode(word) for word in arguments]
        if not is_python(os.fsdecode(path)):
            return None
        options, program = python_options(words[1:])
        Program.of(program)
    except Exception:  # a wrong command line: its own fault is to be seen
        return None
    return [words[0], *options, "-m", "weightdecay.watching", *program]


def stop() -> NoReturn:
    """End the program as if it had come to its end; at once where it does not let itself be ended so."""
    global _asked_to_stop
    if not _asked_to_stop and threading.current_thread() is threading.main_thread():
        _asked_to_stop = True
        raise SystemExit(0)
    _flush()
    os._exit(0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # not there, full, or closed
            continue
