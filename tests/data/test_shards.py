from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.data import shards as shards_module
from weightdecay.data.reading import Document
from weightdecay.data.shards import HEADER_BYTES, EncodedBatch, ShardHeader, encode_documents, open_shard, write_shard
from weightdecay.data.tokenizer import ByteTokenizer, Tokenizer
from weightdecay.errors import DamagedError, DataError

TOKENIZER, CORPUS = "ab" * 32, "cd" * 32


def write(path: Path, *batches: list[int], vocab_size: int = 1000) -> ShardHeader:
    return write_shard(
        path,
        [EncodedBatch(tokens, 3 * len(tokens), 1) for tokens in batches],
        vocab_size=vocab_size,
        tokenizer_sha256=TOKENIZER,
        corpus_sha256=CORPUS,
    )


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "train.bin"
    write(path, list(range(500)), [7, 8, 9])
    return path


@given(
    batches=st.lists(st.lists(st.integers(0, 2**20), max_size=20), max_size=5),
    spare=st.sampled_from([1, 2, 70_000]),
)
def test_tokens_come_back_with_all_that_was_said_of_them(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], spare: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "tokens.bin"
    tokens = [token for batch in batches for token in batch]
    vocab_size = max(tokens, default=0) + spare
    written = write(path, *batches, vocab_size=vocab_size)
    opened = open_shard(path, tokenizer_sha256=TOKENIZER)
    assert opened.tokens.tolist() == tokens
    assert opened.header == written
    assert (opened.header.n_tokens, opened.header.n_bytes) == (len(tokens), 3 * len(tokens))
    assert (opened.header.n_documents, opened.header.vocab_size) == (len(batches), vocab_size)
    assert (opened.header.tokenizer_sha256, opened.header.corpus_sha256) == (TOKENIZER, CORPUS)
    assert opened.tokens.dtype == ("<u2" if vocab_size <= 65_536 else "<u4")
    assert path.stat().st_size == HEADER_BYTES + len(tokens) * opened.tokens.dtype.itemsize


def test_ids_up_to_65535_take_16_bits_and_beyond_32(tmp_path: Path) -> None:
    for vocab_size, itemsize in ((65_536, 2), (65_537, 4)):
        path = tmp_path / f"{vocab_size}.bin"
        write(path, [0, vocab_size - 1], vocab_size=vocab_size)
        opened = open_shard(path)
        assert opened.tokens.tolist() == [0, vocab_size - 1]
        assert opened.tokens.dtype.itemsize == itemsize


@pytest.mark.parametrize(("bad", "vocab_size"), [(1000, 1000), (65_536, 1000), (-1, 1000), (2**32 + 1, 70_000)])
def test_an_id_outside_the_vocabulary_is_caught_at_its_place_and_nothing_is_left(
    bad: int, vocab_size: int, tmp_path: Path
) -> None:
    path = tmp_path / "out" / "train.bin"
    with pytest.raises(DataError, match=f"token id {bad} at token 12 is not in a vocabulary of {vocab_size}"):
        write(path, [1] * 10, [1, 2, bad, 3, bad], vocab_size=vocab_size)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("verify", [True, False])
def test_a_flipped_bit_anywhere_in_the_header_is_noticed(verify: bool, shard: Path) -> None:
    whole = shard.read_bytes()
    for place in range(HEADER_BYTES):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        shard.write_bytes(damaged)
        with pytest.raises((DamagedError, DataError), match=str(shard)):
            open_shard(shard, verify=verify)


def test_a_flipped_bit_among_the_tokens_is_noticed(shard: Path) -> None:
    whole = shard.read_bytes()
    for place in (HEADER_BYTES, HEADER_BYTES + 501, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        shard.write_bytes(damaged)
        with pytest.raises(DamagedError, match="SHA-256 differs") as caught:
            open_shard(shard)
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("kept", [0, 4, 8, 100, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1001, -1, -2])
def test_a_truncated_shard_is_damaged(kept: int, shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(DamagedError, match=str(shard)):
        open_shard(shard, verify=False)


def test_a_longer_shard_is_damaged(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + b"\0\0")
    with pytest.raises(DamagedError, match="bytes long, not the"):
        open_shard(shard, verify=False)


def test_another_kind_of_file_is_no_shard(shard: Path) -> None:
    shard.write_bytes(b"\x93NUMPY" + shard.read_bytes()[6:])
    with pytest.raises(DamagedError, match="not a token shard"):
        open_shard(shard)


def test_a_shard_of_a_later_version_asks_for_an_update(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "VERSION", 2)
        write(shard, [1, 2, 3])
    with pytest.raises(DataError, match="version 2 is newer"):
        open_shard(shard)


def test_a_shard_of_another_tokenizer_is_refused(shard: Path) -> None:
    with pytest.raises(DataError, match="another tokenizer") as caught:
        open_shard(shard, tokenizer_sha256="00" * 32)
    assert caught.value.exit_code == 2


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.bin: cannot be read"):
        open_shard(tmp_path / "gone.bin")


def test_an_open_shard_cannot_be_changed(shard: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_shard(shard).tokens[0] = 1


def test_a_full_disk_is_one_line_and_leaves_what_was_there(shard: Path) -> None:
    """The limit on a file's size stands for the disk: the write that crosses it fails the same way."""
    before = shard.read_bytes()
    script = f"""
import resource, sys
from pathlib import Path
from weightdecay.data.shards import EncodedBatch, write_shard
from weightdecay.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_shard(Path(sys.argv[1]), (EncodedBatch([1] * 5_000, 1, 0) for _ in range(9)), vocab_size=10,
                tokenizer_sha256="{TOKENIZER}", corpus_sha256="{CORPUS}")
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    ended = subprocess.run([sys.executable, "-c", script, str(shard)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout == f"{shard}: cannot be written: File too large\n"
    assert list(shard.parent.iterdir()) == [shard]
    assert shard.read_bytes() == before


def stream(contents: list[str]) -> Iterator[Document]:
    return (Document.from_text(str(index), text) for index, text in enumerate(contents))


def test_an_end_of_text_follows_every_document_and_batches_change_nothing(
    bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = ["first\n", "second <|endoftext|>\n" * 3000, "λ", "", "last"]
    expected = [token for text in contents if text for token in [*bpe.encode(text), bpe.end_of_text_id]]
    for size in (1, 1000, 1 << 20):
        monkeypatch.setattr(shards_module, "BATCH_CHARACTERS", size)
        batches = list(encode_documents(stream(contents), bpe))
        assert [token for batch in batches for token in np.asarray(batch.tokens).tolist()] == expected
        assert sum(batch.n_documents for batch in batches) == 4
        assert sum(batch.n_bytes for batch in batches) == len("".join(contents).encode())
    assert list(encode_documents(iter([]), bpe)) == []


@given(contents=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=9), size=st.integers(1, 9))
def test_the_stream_of_bytes_is_the_documents_each_with_its_end(contents: list[str], size: int) -> None:
    tokenizer = ByteTokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "BATCH_CHARACTERS", size)
        batches = list(encode_documents(stream(contents), tokenizer))
    tokens = [token for batch in batches for token in np.asarray(batch.tokens).tolist()]
    assert tokens == [token for text in contents if text for token in [*text.encode(), 256]]


class ListeningTokenizer(ByteTokenizer):
    """Tells what it has begun with."""

    def __init__(self) -> None:
        self.begun: SimpleQueue[list[str]] = SimpleQueue()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        self.begun.put(list(texts))
        return super().encode_batch(texts)


def test_two_batches_are_encoded_while_one_is_used_and_no_more_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "BATCH_CHARACTERS", 1)
    read = 0

    def documents() -> Iterator[Document]:
        nonlocal read
        for document in stream([str(index) for index in range(50)]):
            read += 1
            yield document

    before = threading.active_count()
    tokenizer = ListeningTokenizer()
    batches = encode_documents(documents(), tokenizer)
    next(batches)
    begun = [tokenizer.begun.get(timeout=5) for _ in range(3)]
    assert sorted(begun) == [["0"], ["1"], ["2"]]
    assert read == 4  # the fourth was looked at to know that the third batch is full
    batches.close()  # type: ignore[attr-defined]
    assert tokenizer.begun.empty()
    assert threading.active_count() == before


def test_what_a_tokenizer_refuses_arrives_after_the_batches_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "BATCH_CHARACTERS", 1)
    batches = encode_documents(stream(["good", "\ud800", "good"]), ByteTokenizer())
    assert next(batches).n_documents == 1
    with pytest.raises(DataError, match="lone surrogate"):
        next(batches)
