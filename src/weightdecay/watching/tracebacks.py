"""A program's tracebacks, without the frames of ours that stand between its own."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep  # noqa: PTH100, PTH120  # no pathlib before the program


def unseen(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A function of ours around one of others, whose errors tell nothing of it."""

    @functools.wraps(function)
    def called(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        try:
            return function(*arguments, **named)
        except BaseException as error:
            hide_own_frames(error)
            raise

    return called


def hide_own_frames(error: BaseException) -> None:
    """Have an error that passes us tell nothing of us. Called where it is caught; a bare `raise` adds no frame."""
    error.__traceback__ = without_own_frames(error.__traceback__)


def without_own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The same entries, but those of functions of this room."""
    kept = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_HERE):
            kept.append(traceback)
        traceback = traceback.tb_next

    following = None
    for entry in reversed(kept):
        entry.tb_next = following
        following = entry
    return following
