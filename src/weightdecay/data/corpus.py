"""A corpus: documents in a fixed order, a part of them held out, and a hash that names exactly this text.

    from weightdecay.data.corpus import open_corpus, standard_library

    corpus = standard_library()                         # the running Python's own source code
    corpus = open_corpus(["books/", "notes/*.md"])      # your files

A corpus is scanned once when it is opened (for its size, its hash and the split) and streamed from then on.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import sysconfig
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weightdecay.data.finding import Found, find_sources
from weightdecay.data.heldout import HELD_OUT, Split, choose_split, split_key
from weightdecay.data.reading import Document, EncodingErrors, Source, TextFile
from weightdecay.errors import DataError

SMALLEST_STANDARD_LIBRARY_BYTES = 5_000_000

# Directories of the standard library that are tests, or tables of characters.
_NOT_FOR_TRAINING = {"test", "tests", "idle_test", "encodings"}


@dataclass(frozen=True)
class Summary:
    """What a corpus holds, in documents and in UTF-8 bytes of normalised text, and what was left aside."""

    documents: int
    n_bytes: int
    held_out_documents: int
    held_out_bytes: int
    replaced: int = 0
    empty: int = 0
    ignored_files: int = 0
    broken_links: int = 0

    @property
    def held_out_share(self) -> float:
        """The held-out part of the bytes, 0 to 1."""
        return self.held_out_bytes / self.n_bytes


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
        for name, path in found.walk(root, without=_NOT_FOR_TRAINING):
            module = name.partition("/")[0].removesuffix(".py")
            if name.endswith(".py") and module in sys.stdlib_module_names:
                found.add(name, TextFile(path, name, "replace"), name)
                total += path.stat().st_size
    if total < SMALLEST_STANDARD_LIBRARY_BYTES:
        raise DataError(
            f"this Python's standard library in {root} has {total / 1e6:.1f} MB of source, too little to train on "
            f"(at least {SMALLEST_STANDARD_LIBRARY_BYTES / 1e6:.0f} MB): give your own text with --data PATH"
        )
    found.counts.clear()  # what is left aside here is not the user's concern
    return _scan(f"the standard library of Python {platform.python_version()}", ("stdlib",), found)


def open_corpus(
    sources: Sequence[str], *, text_key: str = "text", encoding_errors: EncodingErrors = "strict"
) -> Corpus:
    """The documents of files, folders, globs and Hugging Face datasets.

    Args:
        sources: paths, globs or `hf:NAME[:CONFIGURATION]`. A text file is one document; of .jsonl and .parquet each
            row is one. All but parquet also gzipped (.gz). Folders are searched for known suffixes, without hidden
            files and without following links to folders.
        text_key: the key or column that holds the text of a row.
        encoding_errors: "strict", or "replace" to put U+FFFD, counted, in the place of what is not UTF-8.

    Raises:
        DataError: paths that do not exist (all at once), no text at all, bad UTF-8 or JSON (with file and place).
    """
    if encoding_errors not in ("strict", "replace"):
        raise DataError(f"encoding errors: 'strict' or 'replace', not '{encoding_errors}'")
    if not sources:
        raise DataError("no data given: name at least one file, folder, glob or hf:DATASET")
    found = find_sources(sources, text_key, encoding_errors)
    return _scan(", ".join(sources), tuple(sources), found)


def _documents(sources: Sequence[Source]) -> Iterator[Document]:
    for source in sources:
        yield from source.documents()


def _sizes(split: Split, sources: Sequence[Source], n_bytes: Sequence[int]) -> Iterator[int]:
    """The bytes of each held-out document; tails have to be read for them."""
    if split.tails is None:
        yield from (size for size, side in zip(n_bytes, split.sides, strict=True) if side == HELD_OUT)
    else:
        for document in split.held_out(_documents(sources)):
            yield sum(len(block.encode()) for block in document.blocks())


def _scan(name: str, asked: tuple[str, ...], found: Found) -> Corpus:
    """Reads all text once, in bounded memory: 24 bytes a document stay."""
    sources = found.sources()
    counts = found.counts
    digest = hashlib.sha256()
    keys, byte_counts, character_counts = array("Q"), array("Q"), array("Q")
    for document in _documents(sources):
        text_digest, n_bytes, characters = hashlib.sha256(), 0, 0
        for block in document.read():
            encoded = block.text.encode()
            text_digest.update(encoded)
            n_bytes += len(encoded)
            characters += len(block.text)
            counts["replaced"] += block.replaced
        path = document.path.encode("utf-8", "surrogateescape")
        digest.update(len(path).to_bytes(8, "little") + path + text_digest.digest())
        keys.append(split_key(document.path))
        byte_counts.append(n_bytes)
        character_counts.append(characters)
    n_bytes = sum(byte_counts)
    if not n_bytes:
        ignored = f"; {counts['ignored_files']} files of other kinds were left aside" if counts["ignored_files"] else ""
        raise DataError(f"no text in {name}: all of it is empty, or of no kind that is read as text{ignored}")
    split = choose_split(keys, byte_counts, character_counts)
    held_out = list(_sizes(split, sources, byte_counts))
    summary = Summary(
        documents=len(keys) - byte_counts.count(0),
        n_bytes=n_bytes,
        held_out_documents=len(held_out),
        held_out_bytes=sum(held_out),
        empty=byte_counts.count(0),
        replaced=counts["replaced"],
        ignored_files=counts["ignored_files"],
        broken_links=counts["broken_links"],
    )
    return Corpus(name, asked, summary, digest.hexdigest(), sources, split)
