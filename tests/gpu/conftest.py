"""Tests that need a CUDA device: each is skipped by name where there is none.

`WEIGHTDECAY_GPU_TESTS_ON=cpu` runs on a processor those that have a meaning there, to try the tests themselves.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
INSTEAD = os.environ.get("WEIGHTDECAY_GPU_TESTS_ON", "")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "anywhere: has a meaning on a processor, too")
    config.addinivalue_line("markers", "compiler: needs what torch.compile needs on a GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if str(item.path).startswith(f"{HERE}{os.sep}")]
    absent = not torch.cuda.is_available()
    for item in here:
        item.add_marker(pytest.mark.gpu)
        # torch warns of much that is new on a device, and says it otherwise from version to version.
        item.add_marker(pytest.mark.filterwarnings("default"))
        if absent and not (INSTEAD and item.get_closest_marker("anywhere")):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("compiler") and not _can_compile():
            item.add_marker(pytest.mark.skip(reason="torch.compile needs Triton, a C++ compiler and Python's headers"))


def _can_compile() -> bool:
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return headers and find_spec("triton") is not None and shutil.which(os.environ.get("CXX", "g++")) is not None


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(INSTEAD or "cuda")
