"""A text, and one tiny study carried out for all tests of the room to look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.studies.tiny import in_this_process
from weightdecay.studies.directory import StudyDirectory


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 30 kB in twelve documents."""
    folder = tmp_path_factory.mktemp("source")
    for part in range(12):
        lines = [f"{n} plus {part} is {n + part}; {n} times {part} is {n * part}.\n" for n in range(70)]
        (folder / f"part{part}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def carried_out_study(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    path = tmp_path_factory.mktemp("studies") / "tiny"
    outcomes = in_this_process(path, [str(source)])
    assert {outcome.outcome for outcome in outcomes.values()} == {"finished"}
    return path


@pytest.fixture
def study(carried_out_study: Path, tmp_path: Path) -> Callable[[], StudyDirectory]:
    """A copy to break."""

    def copied() -> StudyDirectory:
        shutil.copytree(carried_out_study, tmp_path / "study")
        return StudyDirectory.open(tmp_path / "study")

    return copied
