"""What a study's runs read: a small text out of a pool of documents, and texts derived from it.

The pool is the running Python's standard library, or what `--data` names. A study copies what it takes into its own
directory, so that it can be carried out anew on another machine, by the same bytes. Derived texts keep the main text's
tokenizer and held-out part, byte by byte: what is planted, or added, changes the training part alone, and losses on
the held-out part stay comparable.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightdecay.data.corpus import Corpus, open_corpus, standard_library
from weightdecay.data.prepare import Prepared, open_prepared, prepare, prepare_text
from weightdecay.data.shards import EncodedBatch, write_shard
from weightdecay.data.tokenizer import Tokenizer
from weightdecay.errors import DataError
from weightdecay.storage import build_directory, whole_file
from weightdecay.studies.canaries import CanaryPlan, make_canaries

MAIN, OTHER = "main", "other"

# Of the pool's documents those that are neither a few lines nor most of the text by themselves.
_SMALLEST_DOCUMENT, _LARGEST_DOCUMENT = 2_000, 60_000
_SEED = 5  # of the places where copies are planted


@dataclass(frozen=True)
class TextPlan:
    """One text.

    Attributes:
        n_bytes: taken from the pool, in whole documents.
        skip_bytes: of the pool that other texts have taken.
        tokenizer: trained on it; empty takes the main text's.
        of_main: whether it is the main text with more: `more_bytes` of the pool's other documents, and `canaries`.
    """

    n_bytes: int = 0
    skip_bytes: int = 0
    tokenizer: str = ""
    of_main: bool = False
    more_bytes: int = 0
    canaries: CanaryPlan | None = None


def make_texts(folder: Path, plans: Mapping[str, TextPlan], sources: Sequence[str]) -> dict[str, Prepared]:
    """Every text of a study, in `folder`; those that are there already are opened.

    Args:
        sources: of the pool; none is the standard library.

    Raises:
        DataError: the pool cannot be read, or is too small.
    """
    pool: list[tuple[str, str]] = []
    made: dict[str, Prepared] = {}
    for name, plan in sorted(plans.items(), key=lambda item: item[0] != MAIN):  # the others are derived from it
        path = folder / name
        if not path.exists():
            pool = pool or _pool(sources)
            _make(folder, name, plan, pool, made.get(MAIN))
        made[name] = open_prepared(path)
    return made


def identity(prepared: Prepared) -> dict[str, str]:
    """What must be equal for two losses to be compared."""
    return {
        "corpus_sha256": prepared.corpus_sha256,
        "tokenizer_sha256": prepared.tokenizer.sha256,
        "held_out_sha256": prepared.held_out.header.sha256,
    }


def _pool(sources: Sequence[str]) -> list[tuple[str, str]]:
    """(name, text) of all documents, in an order that neither names nor machines decide."""
    corpus: Corpus = open_corpus(sources) if sources else standard_library()
    documents = [(document.path, "".join(document.blocks())) for document in corpus.documents()]
    return sorted(documents, key=lambda each: hashlib.sha256(each[0].encode("utf-8", "surrogateescape")).digest())


def _make(folder: Path, name: str, plan: TextPlan, pool: Sequence[tuple[str, str]], main: Prepared | None) -> None:
    if plan.of_main:
        assert main is not None
        tokens, added = _derived_tokens(plan, pool, main, folder)
        build_directory(folder / name, lambda partial: _write_derived(partial, name, tokens, added, main))
        return

    text = folder / f"{name}-text"
    build_directory(text, lambda partial: _copy(_taken(pool, plan), partial))
    if plan.tokenizer:
        prepare_text([str(text)], folder / name, plan.tokenizer)
    else:
        assert main is not None
        prepare(open_corpus([str(text)]), main.tokenizer, folder / name)


def _taken(pool: Sequence[tuple[str, str]], plan: TextPlan) -> list[tuple[str, str]]:
    """The next `n_bytes` after `skip_bytes` of the pool's middle-sized documents; of a pool without any, all of it.

    Raises:
        DataError: there is not half as much.
    """
    middle = [(name, text) for name, text in pool if _SMALLEST_DOCUMENT <= len(text) <= _LARGEST_DOCUMENT]
    taken, skipped, n_bytes = [], 0, 0
    for name, text in middle or pool:
        size = len(text.encode())
        if skipped < plan.skip_bytes:
            skipped += size
        elif n_bytes < plan.n_bytes:
            taken.append((name, text))
            n_bytes += size
    if n_bytes < plan.n_bytes / 2:
        raise DataError(f"the text has {skipped + n_bytes:,} bytes in documents of a usual size; this study needs "
                        f"{plan.skip_bytes + plan.n_bytes:,}: give more with --data")  # fmt: skip
    return taken


def _copy(documents: Sequence[tuple[str, str]], folder: Path) -> None:
    for name, text in documents:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-60:].lstrip(".") or "document"
        place = folder / (plain if Path(plain).suffix in (".py", ".txt", ".md") else f"{plain}.txt")
        if place.exists():  # two names that look alike without their special characters
            place = place.with_stem(f"{place.stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


def _derived_tokens(
    plan: TextPlan, pool: Sequence[tuple[str, str]], main: Prepared, folder: Path
) -> tuple[npt.NDArray[np.int64], int]:
    """The training tokens of the main text with more, and the bytes of text that were added."""
    end = main.tokenizer.end_of_text_id
    documents = _split(np.asarray(main.training.tokens, np.int64), end)
    n_bytes = 0
    if plan.more_bytes:
        further, n_bytes = _further(plan.more_bytes, pool, main.tokenizer, folder)
        documents += further
    generator = np.random.default_rng(_SEED)
    if plan.canaries:
        copies = make_canaries(plan.canaries, main.tokenizer).copies()
        documents = list(_planted(documents, copies, generator))
    elif plan.more_bytes:
        generator.shuffle(documents)
    ended = [part for document in documents for part in (document, np.asarray([end], np.int64))]
    return np.concatenate(ended), n_bytes


def _further(
    most: int, pool: Sequence[tuple[str, str]], tokenizer: Tokenizer, folder: Path
) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Documents of the pool that the main text does not hold, in no part of it; so many bytes of them."""
    held = {path.read_text(encoding="utf-8") for path in (folder / f"{MAIN}-text").rglob("*") if path.is_file()}
    chosen, n_bytes = [], 0
    for _, text in pool:
        if text not in held and n_bytes < most:
            chosen.append(text)
            n_bytes += len(text.encode())
    if n_bytes < 0.9 * most:
        raise DataError(f"the text has {n_bytes:,} further bytes; this study needs {most:,}: give more with --data")
    return [np.asarray(ids, np.int64) for ids in tokenizer.encode_batch(chosen)], n_bytes


def _split(tokens: npt.NDArray[np.int64], end: int) -> list[npt.NDArray[np.int64]]:
    ends = np.flatnonzero(tokens == end)
    return [tokens[first:last] for first, last in zip([0, *(ends + 1)], ends, strict=False)]


def _planted(
    documents: Sequence[npt.NDArray[np.int64]], copies: Sequence[npt.NDArray[np.int64]], generator: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """The documents with the copies inside them, at places drawn by length; none is at a document's very end."""
    lengths = np.asarray([len(document) for document in documents])
    where = np.sort(generator.integers(0, lengths.sum(), len(copies)))
    order = generator.permutation(len(copies))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for index, document in enumerate(documents):
        own = np.flatnonzero((where >= starts[index]) & (where < starts[index + 1]))
        cuts = [0, *(where[own] - starts[index]), len(document)]
        parts = [document[cuts[0] : cuts[1]]]
        for position, copy in enumerate(own):
            parts += [copies[order[copy]], document[cuts[position + 1] : cuts[position + 2]]]
        yield np.concatenate(parts)


def _write_derived(folder: Path, name: str, tokens: npt.NDArray[np.int64], added: int, main: Prepared) -> None:
    """A directory as `data prepare` writes it, with the main text's held-out part and tokenizer."""
    tokenizer = main.tokenizer
    digest = hashlib.sha256(main.corpus_sha256.encode() + tokens.astype("<i8").tobytes()).hexdigest()
    hashes: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "corpus_sha256": digest,
    }
    lengths = tokenizer.byte_lengths()
    training = main.training.header.n_bytes + added
    n_bytes = training if lengths is None else int(lengths[tokens].sum())
    held_out = main.held_out.header
    documents = int((tokens == tokenizer.end_of_text_id).sum())
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "train.bin", [EncodedBatch(tokens, n_bytes, documents)], **hashes)
    batch = EncodedBatch(np.asarray(main.held_out.tokens), held_out.n_bytes, held_out.n_documents)
    write_shard(folder / "heldout.bin", [batch], **hashes)
    tokenizer.save(folder / "tokenizer.json")

    summary = replace(
        main.summary, documents=documents + held_out.n_documents, n_bytes=n_bytes + held_out.n_bytes, separators={}
    )
    record: dict[str, Any] = {
        "name": f"{main.name}, {name}",
        "sources": main.sources,
        "sha256": digest,
        "summary": asdict(summary),
        "fidelity": asdict(main.fidelity),
    }
    with whole_file(folder / "corpus.json") as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")
