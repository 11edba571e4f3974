"""From what a user names (files, folders, globs, datasets) to sources of documents, in an order that never changes."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from weightdecay.data.reading import EncodingErrors, HubDataset, JsonLines, Parquet, Source, TextFile
from weightdecay.errors import DataError
from weightdecay.storage import is_directory, is_file

HUB_PREFIX = "hf:"

# What is taken from a folder. A file that is named itself, or by a glob, is read whatever its suffix.
_PROSE = ".txt .text .md .markdown .rst .adoc .tex .org .log .html .htm"
_CODE = """
    .py .pyi .pyx .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .java .kt .scala .go .rs .rb .php .pl .pm .lua .r .jl .m .swift
    .cs .fs .hs .ml .mli .clj .ex .exs .erl .el .lisp .scm .zig .nim .dart .js .jsx .mjs .ts .tsx .vue .css .scss .sh
    .bash .zsh .fish .ps1 .sql .proto .toml .ini .cfg .yaml .yml .cmake
"""
_JSON_LINES = {".jsonl", ".ndjson"}
_PARQUET = {".parquet"}
TEXT_SUFFIXES = {*_PROSE.split(), *_CODE.split()}
KNOWN_SUFFIXES = TEXT_SUFFIXES | _JSON_LINES | _PARQUET


class Found:
    """Sources, each once however often it was named, and counts of what was left aside on the way."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._by_identity: dict[str, tuple[str, Source]] = {}

    def add(self, name: str, source: Source, identity: str) -> None:
        """Takes a source unless it is here; `name` orders it among the others, `identity` tells it apart."""
        self._by_identity.setdefault(identity, (name, source))

    def sources(self) -> tuple[Source, ...]:
        """In the order of their names, then of where they lie: never the order the disk happens to list them in."""
        in_order = sorted(self._by_identity.items(), key=lambda item: (item[1][0], item[0]))
        return tuple(source for _, (_, source) in in_order)

    def walk(self, root: Path, without: Set[str] = frozenset()) -> Iterator[tuple[str, Path]]:
        """(POSIX path from `root`, path) of the files under it, without hidden ones and the folders named in `without`.

        Links to files are followed and broken ones counted; links to folders are not, so no loop can catch us.
        """
        for folder, subfolders, files in os.walk(root):
            subfolders[:] = [name for name in subfolders if name not in without and not name.startswith(".")]
            for file in files:
                path = Path(folder, file)
                if file.startswith("."):
                    continue
                if is_file(path):
                    yield path.relative_to(root).as_posix(), path
                elif path.is_symlink() and not is_directory(path):
                    self.counts["broken_links"] += 1


def find_sources(asked: Sequence[str], text_key: str, errors: EncodingErrors) -> Found:
    """The sources that paths, globs and `hf:NAME` stand for.

    Raises:
        DataError: some of them stand for nothing; all of those at once.
    """
    found = Found()
    faults = []
    for each in asked:
        if each.startswith(HUB_PREFIX):
            found.add(each, HubDataset(each.removeprefix(HUB_PREFIX), text_key, errors), each)
        elif not each:  # an unset variable of a shell; as a path it would be the current folder
            faults.append("'': an empty path")
        elif is_directory(Path(each)):
            _add_folder(found, Path(each), text_key, errors)
        else:
            files = list(_files(each))
            for name, path in files:
                found.add(name, _source_of(path, name, text_key, errors), os.path.realpath(path))
            if not files:
                faults.append(f"{each}: " + ("matches no file" if glob.has_magic(each) else "no such file or folder"))
    if faults:
        raise DataError(faults)
    return found


def _add_folder(found: Found, root: Path, text_key: str, errors: EncodingErrors) -> None:
    for name, path in found.walk(root):
        if _kind(path) in KNOWN_SUFFIXES:
            found.add(name, _source_of(path, name, text_key, errors), os.path.realpath(path))
        else:
            found.counts["ignored_files"] += 1


def _files(asked: str) -> Iterator[tuple[str, Path]]:
    """(name within the corpus, path) of a file or of a glob's files; the name does not tell where the corpus lies."""
    path = Path(asked)
    if is_file(path):
        yield path.name, path
    elif glob.has_magic(asked):
        fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        try:
            for match in fixed.glob(path.relative_to(fixed).as_posix()):
                if is_file(match):
                    yield match.relative_to(fixed).as_posix(), match
        except ValueError as error:
            raise DataError(f"{asked}: {error}") from None


def _kind(path: Path) -> str:
    """The suffix that tells what a file is, .gz taken off."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def _source_of(path: Path, name: str, text_key: str, errors: EncodingErrors) -> Source:
    kind = _kind(path)
    if kind in _PARQUET:
        return Parquet(path, name, text_key, errors)
    if kind in _JSON_LINES:
        return JsonLines(path, name, text_key, errors)
    return TextFile(path, name, errors)
