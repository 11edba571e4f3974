"""What several rooms' tests share: a cache of their own, small text, and the real command."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings

# Nothing at the top of this file imports torch: the process that only hands tests to its workers reads it, too.
from tests.forking import ForkServer, can_fork

if TYPE_CHECKING:
    from tests.commands import Command

# How long an example takes says how busy the machine is, not whether the code is right. The default suite draws the
# same examples each time, so that a change is judged by its own; `make test-all` looks at new ones.
settings.register_profile("same-examples", deadline=None, derandomize=True)
settings.register_profile("new-examples", deadline=None)
settings.load_profile("same-examples")

# Small tensors gain nothing from a second thread, and lose much when other processes want the core.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """Modules and tests stay to the end: a search of them for what has gone takes a second, each time."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all workers of a run, in which the kernels are compiled once."""
    from weightdecay.kernels import library

    one_of_several = "PYTEST_XDIST_WORKER" in os.environ
    run = tmp_path_factory.getbasetemp()
    folder = (run.parent if one_of_several else run) / "cache"
    folder.mkdir(exist_ok=True)
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    if one_of_several:
        with FileLock(folder / "kernels.lock"), warnings.catch_warnings(action="ignore"):
            library.library()
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 2,500 bytes: a 40-step run of 256 tokens a step goes through it four times."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"{n} squared is {n * n}, and {n} cubed is {n**3}.\n" for n in range(60)]
    for part in range(6):
        (folder / f"part{part}.txt").write_text("".join(lines[part::6]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def forks(own_cache: Path) -> Iterator[ForkServer]:
    """Processes that begin at once, where they can be had."""
    with ForkServer(own_cache.parent) as server:
        yield server


@pytest.fixture(scope="session")
def weightdecay(forks: ForkServer) -> Command:
    """Runs `weightdecay ARGUMENTS` in a process of its own, as wide and as coloured as where nobody says."""
    said = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    plain = {name: value for name, value in os.environ.items() if name not in said}

    def run(*arguments: str | Path, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [*map(str, arguments)]
        if can_fork(environment):
            process = forks.start(*command, merged=False, environment={**plain, **environment})
            out, err = process.communicate(timeout)
            return subprocess.CompletedProcess(command, process.wait(0), out, err)
        return subprocess.run(
            [sys.executable, "-m", "weightdecay", *command],
            capture_output=True, text=True, timeout=timeout, check=False, env={**plain, **environment},
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real headless browser; skipped by name where there is none, unless REQUIRE_BROWSER says there has to be."""
    missing = pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip
    program = shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(program).exists():
        missing("no chromium here: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright here: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
