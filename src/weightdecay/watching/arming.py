"""Waits for the program to import torch, and then has its optimizers watched.

torch is not imported before the program does it: what a program sets before (threads, visible devices) must count.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from weightdecay.watching import telling
from weightdecay.watching.tracebacks import unseen


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls something once, when a module has been imported; the import itself is Python's own.

    Args:
        name: of the module.
        then: what is called.
    """

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def arm(self) -> None:
        if self.name in sys.modules:
            self.then()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next((found for one in others if (found := one.find_spec(fullname, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self)
        return spec

    def imported(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            try:
                self.then()
            except Exception as error:  # another version of what was imported: the program goes on, and it is said
                telling.tell(f"cannot watch {self.name}: {type(error).__name__}: {error}")


class _Then(importlib.abc.Loader):
    """A module's own loader, and what comes after."""

    def __init__(self, loader: Any, after: AfterImport) -> None:
        self._loader, self._after = loader, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    @unseen
    def exec_module(self, module: ModuleType) -> None:
        # The module looks as if nobody had stood in between.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._after.imported()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
