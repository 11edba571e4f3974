"""Walking the packages imports all of them, which the default suite is spared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:  # noqa: ARG001
    return True if config.option.markexpr == "not long" else None


@pytest.fixture(autouse=True)
def one_thread_and_no_compiler() -> Iterator[None]:
    """Some packages compile each step, which takes longer here than all the steps do, and does the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
    torch.set_num_threads(before)
