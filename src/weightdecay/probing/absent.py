"""What stands in a copy for a thing that is not copied: a model, a process group, a file."""

from __future__ import annotations

from typing import Any, NoReturn

from weightdecay.errors import OptimizerError


class CannotCopyError(OptimizerError):
    """A step needs something that cannot be copied, or that is not copied on purpose."""


class Absent:
    """Stands where a model or a process group stood, and says so when it is used."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def __repr__(self) -> str:
        return f"({object.__getattribute__(self, '_what')}, which is not copied)"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise CannotCopyError(f"its step needs {object.__getattribute__(self, '_what')}, which is not copied")

    def __getattribute__(self, key: str) -> Any:
        if key.startswith("__") and key.endswith("__"):
            return object.__getattribute__(self, key)
        return object.__getattribute__(self, "_refuse")()

    __call__ = __iter__ = __len__ = __bool__ = __getitem__ = __setitem__ = __setattr__ = __enter__ = __contains__ = (
        lambda self, *_, **__: object.__getattribute__(self, "_refuse")()
    )
