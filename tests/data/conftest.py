"""The standard library, prepared once for this room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from weightdecay.data.corpus import Corpus, standard_library
from weightdecay.data.prepare import Prepared, prepared_for
from weightdecay.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def stdlib() -> Corpus:
    return standard_library()


@pytest.fixture(scope="session")
def prepared(own_cache: Path) -> Prepared:
    with FileLock(own_cache / "standard-library.lock"):  # one worker prepares it, the other one finds it
        return prepared_for((), "bpe:4096", cache_dir=own_cache / "data")


@pytest.fixture(scope="session")
def bpe(prepared: Prepared) -> Tokenizer:
    return prepared.tokenizer


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A folder of forty small files in subfolders."""
    folder = tmp_path / "books"
    for number in range(40):
        path = folder / f"shelf {number % 4}" / f"book-{number:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Book {number}.\n" + f"Line after line of it, {number}.\n" * (5 + number % 7), "utf-8")
    return folder
