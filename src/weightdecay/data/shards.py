"""Token ids in a file that is mapped into memory, with a header that tells what they are and whether they are whole.

offset  bytes  field (little-endian)
     0      8  magic "WDTOKENS"
     8      4  version, 1
    12      4  bytes a token: 2 for vocabularies up to 65,536, else 4, unsigned
    16      8  number of tokens
    24      8  number of documents; an end-of-text token follows each
    32      8  bytes of UTF-8 text the tokens stand for
    40      8  vocabulary size
    48     32  SHA-256 of the tokens as they lie in the file
    80     32  SHA-256 of the tokenizer
   112     32  SHA-256 of the corpus
   144     32  SHA-256 of the 144 bytes before
   176     80  zeros
   256         the tokens
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from weightdecay.data.fidelity import Trials, is_tried, trials
from weightdecay.data.pieces import pieces
from weightdecay.data.reading import Document
from weightdecay.data.tokenizer import Tokenizer
from weightdecay.errors import DamagedError, DataError
from weightdecay.storage import whole_file

MAGIC = b"WDTOKENS"
VERSION = 1
HEADER_BYTES = 256

_FIELDS = struct.Struct("<8sIIQQQQ32s32s32s")
_DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}

# Texts are handed to the tokenizer in batches of this many characters, so memory does not grow with the input.
BATCH_CHARACTERS = 1 << 19

# So many batches are encoded at once, whatever the number of cores: the tokenizers library shares out the texts of a
# batch among threads of its own, and while the last texts of one batch are finished and its tokens taken out, those
# threads have the other.
_AT_ONCE = 2

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class EncodedBatch(NamedTuple):
    """Tokens in order, with the bytes of text they stand for and the documents that end among them.

    Attributes:
        trials: what came back of some of the text from its tokens.
    """

    tokens: npt.ArrayLike
    n_bytes: int
    n_documents: int
    trials: Trials = Trials()


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says about its tokens."""

    token_bytes: int
    n_tokens: int
    n_documents: int
    n_bytes: int
    vocab_size: int
    sha256: str
    tokenizer_sha256: str
    corpus_sha256: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return _DTYPES[self.token_bytes]

    def pack(self) -> bytes:
        """The header as the file's first 256 bytes."""
        hashes = (bytes.fromhex(h) for h in (self.sha256, self.tokenizer_sha256, self.corpus_sha256))
        counts = (self.n_tokens, self.n_documents, self.n_bytes, self.vocab_size)
        fields = _FIELDS.pack(MAGIC, VERSION, self.token_bytes, *counts, *hashes)
        return (fields + hashlib.sha256(fields).digest()).ljust(HEADER_BYTES, b"\0")


@dataclass(frozen=True)
class Shard:
    """An open shard: `tokens` is mapped, not read, so a file larger than memory is no matter."""

    path: Path
    header: ShardHeader
    tokens: Tokens


class _Batch(NamedTuple):
    """Pieces of text, which of them end a document, and of which it is tried what comes back."""

    pieces: list[str]
    ends: list[int]
    tried: list[int]


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[EncodedBatch]:
    """The tokens of documents, an end-of-text token after each, in batches of about half a million characters.

    Batches are encoded while the caller uses those before and further text is read: tokenizers release Python's lock
    meanwhile. They come in order, and no more than three are there at once.
    """
    with ThreadPoolExecutor(_AT_ONCE, "tokenising") as workers:
        encoded: deque[Future[EncodedBatch]] = deque()
        for batch in _batches(documents, tokenizer):
            encoded.append(workers.submit(_encoded, batch, tokenizer))
            if len(encoded) > _AT_ONCE:
                yield encoded.popleft().result()
        while encoded:
            yield encoded.popleft().result()


def _batches(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[_Batch]:
    batch = _Batch([], [], [])
    characters = 0
    for index, document in enumerate(documents):
        for number, piece in enumerate(pieces(document.blocks(), tokenizer.cuts)):
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = _Batch([], [], []), 0
            if is_tried(index, number):
                batch.tried.append(len(batch.pieces))
            batch.pieces.append(piece)
            characters += len(piece)

        # A document without text ends nothing.
        last = len(batch.pieces) - 1
        if batch.pieces and (not batch.ends or batch.ends[-1] != last):
            batch.ends.append(last)
    if batch.pieces:
        yield batch


def _encoded(batch: _Batch, tokenizer: Tokenizer) -> EncodedBatch:
    ids = tokenizer.encode_batch(batch.pieces)
    tried = trials(tokenizer, ((batch.pieces[index], ids[index]) for index in batch.tried))
    for index in batch.ends:
        ids[index].append(tokenizer.end_of_text_id)
    n_bytes = sum(len(piece.encode()) for piece in batch.pieces)
    # By way of `array`, which reads lists of numbers in little more than half of numpy's time.
    tokens = np.concatenate([np.frombuffer(array("q", part), np.int64) for part in ids])
    return EncodedBatch(tokens, n_bytes, len(batch.ends), tried)


def write_shard(
    path: Path, batches: Iterable[EncodedBatch], *, vocab_size: int, tokenizer_sha256: str, corpus_sha256: str
) -> ShardHeader:
    """Writes tokens as they come; the file takes its name when all of it is on the disk.

    Raises:
        DataError: a token id is not in the vocabulary.
        StorageError: the disk refused; nothing is left.
    """
    token_bytes = 2 if vocab_size <= 1 << 16 else 4
    n_tokens = n_documents = n_bytes = 0
    digest = hashlib.sha256()
    with whole_file(path) as file:
        file.write(bytes(HEADER_BYTES))
        for batch in batches:
            tokens = np.asarray(batch.tokens)
            outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
            if outside.size:
                first = int(outside[0])
                raise DataError(
                    f"{path}: token id {tokens[first]} at token {n_tokens + first} is not in a vocabulary of "
                    f"{vocab_size}: the tokenizer and its vocabulary size do not fit"
                )
            payload = tokens.astype(_DTYPES[token_bytes]).tobytes()
            file.write(payload)
            digest.update(payload)
            n_tokens += tokens.size
            n_bytes += batch.n_bytes
            n_documents += batch.n_documents
        header = ShardHeader(
            token_bytes, n_tokens, n_documents, n_bytes, vocab_size, digest.hexdigest(), tokenizer_sha256, corpus_sha256
        )
        file.seek(0)
        file.write(header.pack())
    return header


def open_shard(path: Path, *, verify: bool = True, tokenizer_sha256: str | None = None) -> Shard:
    """Maps a shard's tokens.

    Args:
        verify: read all tokens once and compare their SHA-256.
        tokenizer_sha256: refuse a shard that was written with another tokenizer.

    Raises:
        DamagedError: not a shard, truncated, or changed since it was written.
        DataError: not there, written by a newer version, or with another tokenizer.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file, path)
            file.seek(0, 2)
            expected = HEADER_BYTES + header.n_tokens * header.token_bytes
            if file.tell() != expected:
                raise DamagedError(
                    f"{path}: {file.tell()} bytes long, not the {expected} of its {header.n_tokens} tokens"
                )
            file.seek(HEADER_BYTES)
            if verify and hashlib.file_digest(file, "sha256").hexdigest() != header.sha256:
                raise DamagedError(f"{path}: the tokens are not those that were written (SHA-256 differs)")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if tokenizer_sha256 is not None and header.tokenizer_sha256 != tokenizer_sha256:
        raise DataError(
            f"{path}: written with another tokenizer (SHA-256 {header.tokenizer_sha256[:12]}…, wanted "
            f"{tokenizer_sha256[:12]}…): prepare the text again with this one"
        )
    if not header.n_tokens:
        return Shard(path, header, np.empty(0, header.dtype))
    mapped = np.memmap(path, header.dtype, mode="r", offset=HEADER_BYTES, shape=(header.n_tokens,))
    return Shard(path, header, cast(Tokens, mapped))


def _read_header(file: IO[bytes], path: Path) -> ShardHeader:
    raw = file.read(HEADER_BYTES)
    if raw[: len(MAGIC)] != MAGIC:
        raise DamagedError(f"{path}: not a token shard (it does not begin with {MAGIC.decode()})")
    if len(raw) < HEADER_BYTES:
        raise DamagedError(f"{path}: truncated within its header")
    _, version, token_bytes, n_tokens, n_documents, n_bytes, vocab_size, *hashes = _FIELDS.unpack_from(raw)
    if version > VERSION:
        raise DataError(f"{path}: shard version {version} is newer than this weightdecay reads ({VERSION}): update it")
    if hashlib.sha256(raw[: _FIELDS.size]).digest() != raw[_FIELDS.size : _FIELDS.size + 32] or version < 1:
        raise DamagedError(f"{path}: the header is not what was written (SHA-256 differs)")
    if any(raw[_FIELDS.size + 32 :]) or token_bytes not in _DTYPES:
        raise DamagedError(f"{path}: the header is of no kind that is known")
    return ShardHeader(token_bytes, n_tokens, n_documents, n_bytes, vocab_size, *(h.hex() for h in hashes))
