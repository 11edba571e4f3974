"""All exhibits of this folder."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

from examples.museum.exhibit import Exhibit


def exhibits() -> list[Exhibit]:
    """One for each file of this folder that has an `EXHIBIT`."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [import_module(f"examples.museum.{name}") for name in names if name not in ("__main__", "collection")]
    return [module.EXHIBIT for module in modules if hasattr(module, "EXHIBIT")]
