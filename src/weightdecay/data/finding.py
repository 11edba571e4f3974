"""From what a user names (files, folders, globs, datasets) to sources of documents, in an order that never changes."""

from __future__ import annotations

import errno
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from weightdecay.data.opening import COMPRESSED_SUFFIXES
from weightdecay.data.reading import HowToRead, Separated, Source, TextFile
from weightdecay.data.rows import Delimited, HubDataset, Json, JsonLines, Parquet
from weightdecay.data.stdin import STDIN, stdin_file
from weightdecay.declared.values import with_home
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
# Named themselves, these and .json are read row by row; in a folder they are settings and measurements, not text.
_TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
# What `data prepare` leaves; only both together are its mark.
CORPUS_RECORD, TRAINING_SHARD = "corpus.json", "train.bin"
TEXT_SUFFIXES = {*_PROSE.split(), *_CODE.split()}
KNOWN_SUFFIXES = TEXT_SUFFIXES | _JSON_LINES | _PARQUET


class Found:
    """Sources, each once however often it was named, and what was left aside or could not be looked into on the way.

    Attributes:
        counts: what was left aside, by name.
        ignored: files of other kinds, by their suffix.
        faults: folders and files that may not be read: a corpus without them would not be the one that was asked for.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.faults: list[str] = []
        self._by_identity: dict[str, tuple[str, Source]] = {}

    def add(self, name: str, source: Source, identity: str) -> None:
        """Takes a source unless it is here; `name` orders it among the others, `identity` tells it apart."""
        self._by_identity.setdefault(identity, (name, source))

    def sources(self) -> tuple[Source, ...]:
        """In the order of their names, then of where they lie: never the order the disk happens to list them in."""
        in_order = sorted(self._by_identity.items(), key=lambda item: (item[1][0], item[0]))
        return tuple(source for _, (_, source) in in_order)

    def leave_aside(self, kind: str) -> None:
        """Counts what is not read."""
        self.counts["ignored_files"] += 1
        self.ignored[kind] += 1

    def walk(self, root: Path, without: Set[str] = frozenset()) -> Iterator[tuple[str, Path]]:
        """(POSIX path from `root`, path) of the files under it, without hidden ones and the folders named in `without`.

        Links to files are followed and broken ones counted; links to folders are not, so no loop can catch us, and are
        counted among what is ignored.
        """
        for folder, subfolders, files in os.walk(root, onerror=self._unreadable):
            for name in subfolders:
                if not name.startswith(".") and Path(folder, name).is_symlink():
                    self.leave_aside("link to a folder")
            subfolders[:] = [name for name in subfolders if name not in without and not name.startswith(".")]
            for file in files:
                path = Path(folder, file)
                if file.startswith("."):
                    continue
                if is_file(path):
                    yield path.relative_to(root).as_posix(), path
                elif refused := _refusal(path):  # the folder lists its files and lets nobody at them
                    self.faults.append(refused)
                elif path.is_symlink() and not is_directory(path):
                    self.counts["broken_links"] += 1

    def _unreadable(self, error: OSError) -> None:
        self.faults.append(f"{error.filename}: cannot be read: {error.strerror or error}")

    def raise_if_unreadable(self) -> None:
        """All that may not be read, at once.

        Raises:
            DataError: there is any.
        """
        if self.faults:
            raise DataError(self.faults)


def is_prepared(path: Path) -> bool:
    """Whether this is a directory that `data prepare` wrote."""
    return is_file(path / CORPUS_RECORD) and is_file(path / TRAINING_SHARD)


def find_sources(asked: Sequence[str], how: HowToRead) -> Found:
    """The sources that paths, globs, `hf:NAME` and `-` stand for.

    Raises:
        DataError: some of them stand for nothing or may not be read; all of those at once.
    """
    found = Found()
    for each in asked:
        if each.startswith(HUB_PREFIX):
            _add(found, each, HubDataset(each.removeprefix(HUB_PREFIX), how), each, how)
        elif each == STDIN:
            path, kind = stdin_file(how.text_key)
            _add(found, "stdin", _source_of(path, "stdin", how, kind), STDIN, how)
        elif not each:  # an unset variable of a shell; as a path it would be the current folder
            found.faults.append("'': an empty path")
        elif is_directory(path := Path(with_home(each))):
            _add_folder(found, path, how)
        else:
            _add_files(found, each, how)
    found.raise_if_unreadable()
    return found


def _add(found: Found, name: str, source: Source, identity: str, how: HowToRead) -> None:
    found.add(name, Separated(source, how.separator) if how.separator else source, identity)


def _add_folder(found: Found, root: Path, how: HowToRead) -> None:
    if is_prepared(root):  # its text is not there, but tokens, which would be passed over as no text
        found.faults.append(f"{root}: is prepared already: train on it by itself, or prepare its text with the rest")
        return
    for name, path in found.walk(root):
        kind = _kind(path)
        if kind in KNOWN_SUFFIXES:
            _add(found, name, _source_of(path, name, how), os.path.realpath(path), how)
        else:
            found.leave_aside(kind or "no suffix")


def _add_files(found: Found, asked: str, how: HowToRead) -> None:
    """A file, or a glob's; the name within the corpus does not tell where the corpus lies."""
    path = Path(with_home(asked))
    if is_file(path):
        _add(found, path.name, _source_of(path, path.name, how), os.path.realpath(path), how)
    elif not glob.has_magic(asked):
        found.faults.append(f"{asked}: {_why_not(path)}")
    else:
        files = list(_matching(found, path))
        for name, match in files:
            _add(found, name, _source_of(match, name, how), os.path.realpath(match), how)
        if not files:
            found.faults.append(f"{asked}: matches no file")


def _matching(found: Found, path: Path) -> Iterator[tuple[str, Path]]:
    """(name within the corpus, path) of a glob's files. pathlib passes over folders that may not be read, we do not."""
    fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    pattern = path.relative_to(fixed)
    try:
        looked_into = {fixed}
        for depth in range(1, len(pattern.parts)):
            looked_into.update(fixed.glob(Path(*pattern.parts[:depth]).as_posix()))
        for folder in sorted(looked_into):
            if is_directory(folder) and not os.access(folder, os.R_OK | os.X_OK):
                found.faults.append(f"{folder}: cannot be read: {os.strerror(errno.EACCES)}")
        for match in fixed.glob(pattern.as_posix()):
            if is_file(match):
                yield match.relative_to(fixed).as_posix(), match
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _refusal(path: Path) -> str:
    """Why nobody is let at what lies there; empty if it is only not there."""
    try:
        path.stat()
    except PermissionError as error:
        return f"{path}: cannot be read: {error.strerror or error}"
    except (OSError, ValueError):
        pass
    return ""


def _why_not(path: Path) -> str:
    if refused := _refusal(path):
        return refused.removeprefix(f"{path}: ")
    try:
        path.stat()
    except (OSError, ValueError):
        return "no such file or folder"
    return f"neither a file nor a folder; what comes through a pipe is read from stdin: --data {STDIN}"


def _kind(path: Path) -> str:
    """The suffix that tells what a file is, that of its compression taken off."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED_SUFFIXES else path.name).suffix.lower()


def _source_of(path: Path, name: str, how: HowToRead, kind: str = "") -> Source:
    kind = kind or _kind(path)
    if kind in _PARQUET:
        return Parquet(path, name, how)
    if kind in _JSON_LINES:
        return JsonLines(path, name, how)
    if kind == ".json":
        return Json(path, name, how)
    if kind in _TABLES:
        return Delimited(path, name, how, _TABLES[kind])
    return TextFile(path, name, how.encoding_errors)
