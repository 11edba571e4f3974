"""A corpus: documents in a fixed order, a part of them held out, and a hash that names exactly this text.

    from weightdecay.data.corpus import open_corpus, standard_library

    corpus = standard_library()                         # the running Python's own source code
    corpus = open_corpus(["books/", "notes/*.md"])      # your files

A corpus is scanned once when it is opened (for its size, its hash and the split) and streamed from then on.
"""

from __future__ import annotations

import hashlib
import math
import platform
import sys
import sysconfig
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weightdecay.data.finding import Found, find_sources
from weightdecay.data.heldout import HELD_OUT, Split, choose_split, split_key
from weightdecay.data.opening import EncodingErrors, control_characters
from weightdecay.data.reading import Document, HowToRead, MissingText, Source, TextFile
from weightdecay.data.separators import KnownSeparators
from weightdecay.errors import DataError

# Told what is being done, how many bytes of text of it are done, and how many there are (None while nobody knows).
Progress = Callable[[str, int, int | None], None]

SMALLEST_STANDARD_LIBRARY_BYTES = 5_000_000

# Directories of the standard library that are tests, or tables of characters.
_NOT_FOR_TRAINING = {"test", "tests", "idle_test", "encodings"}
# What is installed beside it, which can be many times as many files.
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Summary:
    """What a corpus holds, in documents and in UTF-8 bytes of normalised text, and what was left aside.

    Attributes:
        replaced: places that were not UTF-8.
        empty: documents without a character.
        rows_without_text: let pass by `missing_text`.
        ignored_files, ignored: files of other kinds in folders, and how many of each suffix.
        control_characters: zeros and others that no text holds.
        separators: texts that elsewhere end a document and here stand in one as they are, and how often.
    """

    documents: int
    n_bytes: int
    held_out_documents: int
    held_out_bytes: int
    replaced: int = 0
    empty: int = 0
    ignored_files: int = 0
    broken_links: int = 0
    rows_without_text: int = 0
    control_characters: int = 0
    ignored: Mapping[str, int] = field(default_factory=dict)
    separators: Mapping[str, int] = field(default_factory=dict)

    @property
    def held_out_share(self) -> float:
        """The held-out part of the bytes, 0 to 1."""
        return self.held_out_bytes / self.n_bytes

    def remarks(self) -> list[str]:
        """What a user should know of the reading, in words; nothing where all was as one would think."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.ignored.items(), key=lambda i: (-i[1], i)))
        of_kinds = f" ({kinds})" if kinds else ""
        said = [
            (self.ignored_files, f"files of other kinds left aside{of_kinds}: name one to read it"),
            (self.broken_links, "links that lead nowhere left aside"),
            (self.rows_without_text, "rows without text left out"),
            (self.replaced, "places that were not UTF-8 replaced by U+FFFD"),
            (
                self.control_characters,
                "control characters in the text, zeros or the like: is a file damaged, or no text?",
            ),
        ]
        spelt = [
            f"the text spells {name} {count:,} times, which is read as ordinary text; --separator '{name}' ends a "
            "document there"
            for name, count in self.separators.items()
        ]
        return [f"{count:,} {words}" for count, words in said if count] + spelt


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, streamed from their sources; two corpora of one `sha256` hold the same text.

    Args:
        name: for people.
        sources: what was asked for, as it was asked.
        summary: documents, bytes, the held-out part.
        sha256: of every document's path and normalised text, in order.
    """

    name: str
    sources: tuple[str, ...]
    summary: Summary
    sha256: str
    _sources: tuple[Source, ...] = field(repr=False)
    _split: Split = field(repr=False)

    def documents(self) -> Iterator[Document]:
        """All of them, the held-out ones too."""
        return self._split.documents(_documents(self._sources))

    def training(self) -> Iterator[Document]:
        """What a model and a tokenizer may learn from."""
        return self._split.training(_documents(self._sources))

    def held_out(self) -> Iterator[Document]:
        """What they are judged on and never see."""
        return self._split.held_out(_documents(self._sources))


def standard_library() -> Corpus:
    """The running Python's standard library: real text that every machine has.

    Modules named in `sys.stdlib_module_names` alone, which leaves out site-packages and build-specific files; no
    directory named test, tests, idle_test or encodings. The text differs between versions of Python, so a loss is
    comparable only at an equal `sha256`.

    Raises:
        DataError: there is no library of at least 5 MB (a stripped or frozen Python).
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = Found()
    total = 0
    if (root / "os.py").is_file():
        for name, path in found.walk(root, without=_NOT_FOR_TRAINING | _INSTALLED):
            module = name.partition("/")[0].removesuffix(".py")
            if name.endswith(".py") and module in sys.stdlib_module_names:
                found.add(name, TextFile(path, name, "replace"), name)
                total += path.stat().st_size
    if total < SMALLEST_STANDARD_LIBRARY_BYTES:
        raise DataError(
            f"this Python's standard library in {root} has {total / 1e6:.1f} MB of source, too little to train on "
            f"(at least {SMALLEST_STANDARD_LIBRARY_BYTES / 1e6:.0f} MB): give your own text with --data PATH"
        )
    found.raise_if_unreadable()
    found.counts.clear()  # what is left aside here is not the user's concern
    found.ignored.clear()
    return _scan(f"the standard library of Python {platform.python_version()}", ("stdlib",), found)


def open_corpus(
    sources: Sequence[str],
    *,
    text_key: str = "text",
    encoding_errors: EncodingErrors = "strict",
    missing_text: MissingText = "refuse",
    separator: str = "",
    progress: Progress | None = None,
) -> Corpus:
    """The documents of files, folders, globs, stdin and Hugging Face datasets.

    Args:
        sources: paths, globs, `-` for stdin or `hf:NAME[:CONFIGURATION]`. A text file is one document; of .jsonl and
            .parquet, and of .json, .csv and .tsv that are named themselves, each row is one. All but parquet also
            packed by gzip, bzip2 or xz. Folders are searched for known suffixes, without hidden files and without
            following links to folders.
        text_key: the key or column that holds the text of a row; `a.b` looks into objects.
        encoding_errors: "strict", or "replace" to put U+FFFD, counted, in the place of what is not UTF-8.
        missing_text: "refuse", or "skip" to leave out, counted, rows whose text is missing or null.
        separator: ends a document wherever it stands; empty for none.
        progress: told that the text is read, and how far.

    Raises:
        DataError: paths that do not exist or may not be read (all at once), no text at all, bad UTF-8 or JSON (with
            file and place).
    """
    if encoding_errors not in ("strict", "replace"):
        raise DataError(f"encoding errors: 'strict' or 'replace', not '{encoding_errors}'")
    if missing_text not in ("refuse", "skip"):
        raise DataError(f"missing text: 'refuse' or 'skip', not '{missing_text}'")
    if not sources:
        raise DataError("no data given: name at least one file, folder, glob or hf:DATASET")
    found = find_sources(sources, HowToRead(text_key, encoding_errors, missing_text, separator))
    return _scan(", ".join(sources), tuple(sources), found, progress)


def _documents(sources: Sequence[Source], progress: Progress | None = None) -> Iterator[Document]:
    if progress is None:
        for source in sources:
            yield from source.documents()
        return

    sizes = [source.size() for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    done = 0
    for source, size in zip(sources, sizes, strict=True):
        of_source = 0

        def told(n_bytes: int, before: int = done, most: float = size or math.inf) -> None:
            nonlocal of_source
            of_source += n_bytes
            progress("reading", before + int(min(of_source, most)), total)

        for document in source.documents():
            yield document.telling(told)
        done += size or of_source


def _sizes(split: Split, sources: Sequence[Source], n_bytes: Sequence[int]) -> Iterator[int]:
    """The bytes of each held-out document; tails have to be read for them."""
    if split.tails is None:
        yield from (size for size, side in zip(n_bytes, split.sides, strict=True) if side == HELD_OUT)
    else:
        for document in split.held_out(_documents(sources)):
            yield sum(len(block.encode()) for block in document.blocks())


def _scan(name: str, asked: tuple[str, ...], found: Found, progress: Progress | None = None) -> Corpus:
    """Reads all text once, in bounded memory: 24 bytes a document stay."""
    sources = found.sources()
    counts = found.counts
    separators = KnownSeparators()
    digest = hashlib.sha256()
    keys, byte_counts, character_counts = array("Q"), array("Q"), array("Q")
    for document in _documents(sources, progress):
        text_digest, n_bytes, characters = hashlib.sha256(), 0, 0
        for block in document.read():
            encoded = block.text.encode()
            text_digest.update(encoded)
            n_bytes += len(encoded)
            characters += len(block.text)
            counts["replaced"] += block.replaced
            counts["control_characters"] += control_characters(encoded)
            separators.look_in(block.text)
        separators.end_document()
        counts["rows_without_text"] += document.lacks_text
        path = document.path.encode("utf-8", "surrogateescape")
        digest.update(len(path).to_bytes(8, "little") + path + text_digest.digest())
        keys.append(split_key(document.path))
        byte_counts.append(n_bytes)
        character_counts.append(characters)
    n_bytes = sum(byte_counts)
    if not n_bytes:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.ignored.most_common())
        aside = f"; {counts['ignored_files']} files of other kinds were left aside ({kinds})" if kinds else ""
        aside += f"; {counts['rows_without_text']} rows have no text" if counts["rows_without_text"] else ""
        raise DataError(f"no text in {name}: all of it is empty, or of no kind that is read as text{aside}")
    split = choose_split(keys, byte_counts, character_counts)
    held_out = list(_sizes(split, sources, byte_counts))
    summary = Summary(
        documents=len(keys) - byte_counts.count(0),
        n_bytes=n_bytes,
        held_out_documents=len(held_out),
        held_out_bytes=sum(held_out),
        empty=byte_counts.count(0) - counts["rows_without_text"],
        replaced=counts["replaced"],
        ignored_files=counts["ignored_files"],
        broken_links=counts["broken_links"],
        rows_without_text=counts["rows_without_text"],
        control_characters=counts["control_characters"],
        ignored=dict(sorted(found.ignored.items())),
        separators=separators.counts,
    )
    return Corpus(name, asked, summary, digest.hexdigest(), sources, split)
