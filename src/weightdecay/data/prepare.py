"""Prepared data: a corpus as token shards in a directory, made once and reused.

    DIR/
      train.bin      shards, see shards.py
      heldout.bin
      tokenizer.json
      corpus.json    where the text came from, how much it is, its hash

`prepare` writes such a directory for keeps, `prepared_for` finds or makes one in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from weightdecay.data.corpus import Corpus, Progress, Summary, open_corpus, standard_library
from weightdecay.data.fidelity import Fidelity, FidelityProbe
from weightdecay.data.finding import CORPUS_RECORD, TRAINING_SHARD, is_prepared
from weightdecay.data.opening import EncodingErrors
from weightdecay.data.reading import HowToRead, MissingText
from weightdecay.data.shards import (
    VERSION,
    EncodedBatch,
    Shard,
    ShardHeader,
    encode_documents,
    open_shard,
    write_shard,
)
from weightdecay.data.tokenizer import Tokenizer, load_tokenizer
from weightdecay.data.tokenizer_specs import check_tokenizer_spec, make_tokenizer
from weightdecay.errors import DamagedError, DataError
from weightdecay.storage import build_directory, cache_directory, whole_file, why_no_directory

HELD_OUT_SHARD = "heldout.bin"


@dataclass(frozen=True)
class Prepared:
    """A corpus ready to train on.

    Args:
        path: the directory.
        name: of the corpus, for people.
        sources: what was asked for, as it was asked.
        summary: documents, bytes, the held-out part.
        corpus_sha256: of the corpus; losses are comparable only where it is equal.
        tokenizer: what the shards were written with.
        training, held_out: the tokens.
        fidelity: how much of the text the tokens keep.
    """

    path: Path
    name: str
    sources: tuple[str, ...]
    summary: Summary
    corpus_sha256: str
    tokenizer: Tokenizer
    training: Shard
    held_out: Shard
    fidelity: Fidelity

    @property
    def n_tokens(self) -> int:
        """Of both parts."""
        return self.training.header.n_tokens + self.held_out.header.n_tokens

    def remarks(self) -> list[str]:
        """What a user should know of how the text was read and tokenised, in words."""
        lost = self.fidelity.remark()
        return [*self.summary.remarks(), *([lost] if lost else [])]

    def held_out_bytes(self, n_tokens: int | None = None) -> float:
        """Bytes of text that the first `n_tokens` held-out tokens stand for (all of them if None).

        Exact where each token stands for fixed bytes (all byte-level tokenizers); otherwise in proportion.
        """
        header = self.held_out.header
        if n_tokens is None or n_tokens >= header.n_tokens:
            return header.n_bytes
        lengths = self.tokenizer.byte_lengths()
        if lengths is None:
            return header.n_bytes * n_tokens / header.n_tokens
        return int(lengths[self.held_out.tokens[:n_tokens]].sum())


@dataclass(frozen=True)
class Inspection:
    """What lies in a directory of prepared data; both shards were read and found as they were written."""

    prepared: Prepared
    training: ShardHeader
    held_out: ShardHeader
    tokenizer_sha256: str
    training_sample: str
    held_out_sample: str


def prepare(corpus: Corpus, tokenizer: Tokenizer, out_dir: Path, *, progress: Progress | None = None) -> Prepared:
    """Writes a corpus as token shards into a new directory, in bounded memory; a killed one leaves no such directory.

    Args:
        progress: told how many bytes of text are read, and written as tokens, and how many there are.

    Raises:
        DataError: the directory is there already, or a source changed while it was read.
        StorageError: the disk refused; nothing is left.
    """
    _refuse_if_there(out_dir)
    if not build_directory(out_dir, lambda partial: _write(corpus, tokenizer, partial, progress)):
        _refuse_if_there(out_dir)
    return open_prepared(out_dir, verify=False)


def open_prepared(path: Path, *, verify: bool = True) -> Prepared:
    """Opens a directory that `prepare` wrote.

    Args:
        verify: read all tokens and compare their hashes.

    Raises:
        DataError: there is no such directory, or its parts do not belong together.
        DamagedError: something in it is not what was written.
    """
    record = _read_record(path)
    tokenizer = load_tokenizer(path / "tokenizer.json")
    shards = [
        open_shard(path / name, verify=verify, tokenizer_sha256=tokenizer.sha256)
        for name in (TRAINING_SHARD, HELD_OUT_SHARD)
    ]
    for shard in shards:
        if shard.header.corpus_sha256 != record["sha256"]:
            raise DataError(f"{shard.path}: belongs to another corpus than corpus.json beside it")
    summary = Summary(**record["summary"])
    measured = record.get("fidelity")  # older versions did not try the tokenizer
    return Prepared(
        path,
        record["name"],
        tuple(record["sources"]),
        summary,
        record["sha256"],
        tokenizer,
        shards[0],
        shards[1],
        Fidelity.from_record(measured) if measured else Fidelity.of_tokens(tokenizer, shards[1].tokens),
    )


def prepared_for(
    sources: Sequence[str] = (),
    tokenizer_spec: str = "bpe:4096",
    *,
    text_key: str = "text",
    encoding_errors: EncodingErrors = "strict",
    missing_text: MissingText = "refuse",
    separator: str = "",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """What to train on: prepared data as it is, or text prepared now and kept in the cache.

    Args:
        sources: see `open_corpus`; none for the standard library. One directory that `prepare` wrote is taken as it
            is, its tokenizer too.
        tokenizer_spec: see `make_tokenizer`.
        cache_dir: the user's cache if None.
        progress: see `prepare`.

    Raises:
        DataError, DamagedError, StorageError: see `open_corpus`, `make_tokenizer`, `open_prepared` and `prepare`.
    """
    if len(sources) == 1 and is_prepared(Path(sources[0])):
        refuse_another_reading(Path(sources[0]), HowToRead(text_key, encoding_errors, missing_text, separator))
        return open_prepared(Path(sources[0]))
    cache = cache_dir or cache_directory()
    how = {"text_key": text_key, "encoding_errors": encoding_errors, "missing_text": missing_text}
    corpus, tokenizer = _corpus_and_tokenizer(sources, tokenizer_spec, how | {"separator": separator}, cache, progress)
    path = _place_in(cache, corpus.sha256, tokenizer.sha256)
    if path.exists():
        try:
            if _is_measured(path, tokenizer):
                return _as_asked(open_prepared(path), corpus)
            raise DataError(f"{path}: its tokenizer was not tried")
        except (DataError, DamagedError):
            shutil.rmtree(path, ignore_errors=True)  # a cache is only a cache
    build_directory(path, lambda partial: _write(corpus, tokenizer, partial, progress))
    return _as_asked(open_prepared(path, verify=False), corpus)


def from_cache(corpus_sha256: str, tokenizer_sha256: str, cache_dir: Path | None = None) -> Prepared | None:
    """What `prepared_for` keeps of a text that need not be there any longer; None if it has none, or a damaged one."""
    path = _place_in(cache_dir or cache_directory(), corpus_sha256, tokenizer_sha256)
    try:
        return open_prepared(path) if is_prepared(path) else None
    except (DataError, DamagedError):
        return None


def prepare_text(
    sources: Sequence[str],
    out_dir: Path,
    tokenizer_spec: str = "bpe:4096",
    *,
    text_key: str = "text",
    encoding_errors: EncodingErrors = "strict",
    missing_text: MissingText = "refuse",
    separator: str = "",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """`prepare` from what a user names: all of `weightdecay data prepare`. Arguments and errors as `prepared_for`."""
    _refuse_if_there(out_dir)
    cache = cache_dir or cache_directory()
    how = {"text_key": text_key, "encoding_errors": encoding_errors, "missing_text": missing_text}
    corpus, tokenizer = _corpus_and_tokenizer(sources, tokenizer_spec, how | {"separator": separator}, cache, progress)
    return prepare(corpus, tokenizer, out_dir, progress=progress)


def refuse_another_reading(path: Path, how: HowToRead) -> None:
    """Raise where a way of reading text is asked for beside prepared data, whose text was read long ago.

    Raises:
        DataError: it is.
    """
    plain = HowToRead()
    asked = {item.name: getattr(how, item.name) for item in fields(how)}
    if other := {name: value for name, value in asked.items() if value != getattr(plain, name)}:
        raise DataError(
            [
                f"--{name.replace('_', '-')} {value}: {path} is prepared already, and no text of it is read: leave it "
                "out, or prepare the text again with it"
                for name, value in other.items()
            ]
        )


def inspect(path: Path, *, sample_tokens: int = 64) -> Inspection:
    """Checks a directory of prepared data and shows what is in it.

    Raises:
        DataError, DamagedError: see `open_prepared`.
    """
    prepared = open_prepared(path)

    def sample(shard: Shard) -> str:
        return prepared.tokenizer.decode(shard.tokens[:sample_tokens].tolist())

    return Inspection(
        prepared,
        prepared.training.header,
        prepared.held_out.header,
        prepared.tokenizer.sha256,
        sample(prepared.training),
        sample(prepared.held_out),
    )


def _place_in(cache: Path, corpus_sha256: str, tokenizer_sha256: str) -> Path:
    key = hashlib.sha256(f"{VERSION} {corpus_sha256} {tokenizer_sha256}".encode()).hexdigest()
    return cache / "prepared" / key[:32]


def _is_measured(path: Path, tokenizer: Tokenizer) -> bool:
    """Whether the cache knows what the tokenizer loses; older versions did not ask, and bytes have nothing to lose."""
    return tokenizer.byte_lengths() is not None or "fidelity" in _read_record(path)


def _as_asked(prepared: Prepared, corpus: Corpus) -> Prepared:
    """What the cache holds, under the names by which the same text was asked for this time."""
    return replace(prepared, name=corpus.name, sources=corpus.sources, summary=corpus.summary)


def _corpus_and_tokenizer(
    sources: Sequence[str], tokenizer_spec: str, how: Mapping[str, Any], cache_dir: Path, progress: Progress | None
) -> tuple[Corpus, Tokenizer]:
    check_tokenizer_spec(tokenizer_spec)  # before a long scan
    corpus = open_corpus(sources, **how, progress=progress) if sources else standard_library()
    return corpus, make_tokenizer(tokenizer_spec, corpus, cache_dir=cache_dir, progress=progress)


def _refuse_if_there(out_dir: Path) -> None:
    """An empty directory may be filled; anything else is somebody's."""
    if out_dir.is_dir() and not any(out_dir.iterdir()):
        out_dir.rmdir()
    if out_dir.exists():
        raise DataError(f"{out_dir}: is there already; give another --out, or remove it")


def _write(corpus: Corpus, tokenizer: Tokenizer, directory: Path, progress: Progress | None) -> None:
    hashes = {"tokenizer_sha256": tokenizer.sha256, "corpus_sha256": corpus.sha256}
    n_bytes = 0
    probe = FidelityProbe(tokenizer)

    def counted(batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
        nonlocal n_bytes
        for batch in batches:
            yield batch
            n_bytes += batch.n_bytes
            probe.count(batch.tokens, batch.trials)
            if progress is not None:
                progress("writing tokens", n_bytes, corpus.summary.n_bytes)

    for name, documents in ((TRAINING_SHARD, corpus.training()), (HELD_OUT_SHARD, corpus.held_out())):
        batches = counted(encode_documents(documents, tokenizer))
        write_shard(directory / name, batches, vocab_size=tokenizer.vocab_size, **hashes)
    if n_bytes != corpus.summary.n_bytes:
        raise DataError(f"{corpus.name}: changed while it was read; prepare it again when nothing writes to it")
    tokenizer.save(directory / "tokenizer.json")
    record = {
        "name": corpus.name,
        "sources": corpus.sources,
        "sha256": corpus.sha256,
        "summary": asdict(corpus.summary),
        "fidelity": asdict(probe.result()),
    }
    with whole_file(directory / CORPUS_RECORD) as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise DataError(f"{path}: {why_no_directory(path)}; weightdecay data prepare SRC… --out DIR makes one")
    if not is_prepared(path):
        raise DataError(f"{path}: holds no prepared data; make some with: weightdecay data prepare SRC… --out {path}")
    try:
        record: dict[str, Any] = json.loads((path / CORPUS_RECORD).read_text("utf-8"))
        missing = {"name", "sources", "sha256", "summary"} - record.keys()
        Summary(**record["summary"])
        if "fidelity" in record:
            Fidelity.from_record(record["fidelity"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path / 'corpus.json'}: damaged: {error}") from None
    if missing:
        raise DamagedError(f"{path / 'corpus.json'}: damaged: without {', '.join(sorted(missing))}")
    return record
