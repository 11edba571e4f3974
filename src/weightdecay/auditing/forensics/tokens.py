"""Which tokens came in a training: counted from shards, arrays of ids, or text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightdecay.data.corpus import open_corpus
from weightdecay.data.finding import is_prepared
from weightdecay.data.prepare import open_prepared
from weightdecay.data.shards import encode_documents, open_shard
from weightdecay.data.tokenizer import load_tokenizer
from weightdecay.errors import ConfigError, DamagedError, DataError

_AT_ONCE = 1 << 22  # tokens


def count_tokens(sources: Sequence[str | Path], rows: int, tokenizer: Path | None = None) -> npt.NDArray[np.int64]:
    """How often each id comes, [rows].

    Args:
        sources: directories that `weightdecay data prepare` wrote (its training part), shards (.wdt or other names),
            .npy arrays of ids, .bin files of 16-bit ids (as nanoGPT writes them; 32-bit above 65,536 rows), or text.
        rows: of the embedding.
        tokenizer: what text is encoded with.

    Raises:
        DataError: an id that the embedding has no row for, text without a tokenizer, or what cannot be read as tokens.
    """
    counts = np.zeros(rows, np.int64)
    if absent := [str(source) for source in sources if not Path(source).exists()]:
        raise DataError([f"{source}: no such file or directory" for source in absent])
    for source in sources:
        for ids in _ids(Path(source), rows, tokenizer):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
                raise DataError(
                    f"{source}: token id {int(ids.max())} has no row in an embedding of {rows}: are these the tokens "
                    "that the model was trained on?"
                )
            counts += np.bincount(ids.astype(np.int64), minlength=rows)
    if not counts.any():
        raise DataError(f"{', '.join(map(str, sources))}: no tokens there")
    return counts


def _ids(source: Path, rows: int, tokenizer: Path | None) -> Iterator[npt.NDArray[Any]]:
    if is_prepared(source):
        yield from _pieces(open_prepared(source, verify=False).training.tokens)
    elif source.suffix == ".npy":
        yield from _pieces(_array(source))
    elif source.suffix == ".bin":
        yield from _pieces(_plain(source, rows))
    elif _is_shard(source):
        yield from _pieces(open_shard(source, verify=False).tokens)
    else:
        yield from _text(source, tokenizer)


def _pieces(tokens: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    flat = tokens.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        yield np.asarray(flat[start : start + _AT_ONCE])


def _array(source: Path) -> npt.NDArray[Any]:
    try:
        ids: npt.NDArray[Any] = np.load(source, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise  # not damaged: its owner has to let us
    except (OSError, ValueError) as error:
        raise DamagedError(f"{source}: cannot be read as an array of token ids: {error}") from error
    if not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"{source} holds {ids.dtype}: token ids are whole numbers")
    return ids


def _plain(source: Path, rows: int) -> npt.NDArray[Any]:
    kind = np.dtype("<u2" if rows <= 1 << 16 else "<u4")
    try:
        size = source.stat().st_size
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}") from error
    if not size or size % kind.itemsize:
        raise DamagedError(f"{source}: {size} bytes are no whole number of {8 * kind.itemsize}-bit token ids")
    return np.memmap(source, kind, mode="r")


def _is_shard(source: Path) -> bool:
    try:
        with source.open("rb") as file:
            return file.read(8) == b"WDTOKENS"
    except OSError:
        return False


def _text(source: Path, tokenizer: Path | None) -> Iterator[npt.NDArray[Any]]:
    if tokenizer is None:
        raise DataError(
            f"{source} is text: name the tokenizer.json that the model was trained with (--tokenizer FILE), since none "
            "lies beside the checkpoint"
        )
    encoder = load_tokenizer(tokenizer)
    for batch in encode_documents(open_corpus([str(source)]).documents(), encoder):
        yield np.asarray(batch.tokens)
