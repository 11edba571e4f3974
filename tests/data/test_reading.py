from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.data import reading
from weightdecay.data.corpus import open_corpus
from weightdecay.data.opening import EncodingErrors
from weightdecay.data.reading import TextFile
from weightdecay.data.rows import HubDataset
from weightdecay.errors import DamagedError, DataError

# What begins like this is another kind of file, by its content.
OTHER_KINDS = (
    b"PK\x03\x04",
    b"\x28\xb5\x2f\xfd",
    b"%PDF-",
    b"PAR1",
    b"\x1f\x8b\x08",
    b"\xfd7zXZ\x00",
    b"BZh",
    b"\xff\xfe",
    b"\xfe\xff",
)


def text_of(path: Path, errors: EncodingErrors = "strict") -> tuple[str, int]:
    (document,) = TextFile(path, path.name, errors).documents()
    blocks = list(document.read())
    assert "".join(block.text for block in blocks) == document.text
    return document.text, sum(block.replaced for block in blocks)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading") / "text.txt"


texts = st.lists(st.sampled_from(["\r\n", "\r", "\n", "\ufeff", "a", "λ", "ก", "😀"])).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"])
)
fragments = [
    b"a",
    b"\r",
    b"\n",
    b"\xff",
    b"\xe2",
    b"\xe2\x82",
    b"\x80",
    "\ufeff".encode(),
    "\ufffd".encode(),
    "😀".encode(),
]
raws = st.lists(st.sampled_from(fragments)).map(b"".join) | st.binary(max_size=60)


@given(text=texts, size=st.integers(1, 9))
def test_a_file_read_in_blocks_of_any_size_is_the_text_with_its_newlines_as_one(
    scratch: Path, text: str, size: int
) -> None:
    scratch.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        assert text_of(scratch)[0] == text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@given(raw=raws.filter(lambda raw: not raw.startswith(OTHER_KINDS)), size=st.integers(1, 9))
def test_bad_bytes_are_named_at_their_offset_or_replaced_and_counted_whatever_the_blocks(
    scratch: Path, raw: bytes, size: int
) -> None:
    scratch.write_bytes(raw)
    expected = raw.decode(errors="replace").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", size)
        text, replaced = text_of(scratch, "replace")
        assert text == expected
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            assert replaced == text.count("\ufffd") - raw.count("\ufffd".encode()) > 0
            with pytest.raises(DataError, match=re.escape(f"{scratch}: not UTF-8 at byte {error.start} ")):
                text_of(scratch)
        else:
            assert replaced == 0
            assert text_of(scratch) == (expected, 0)


def test_a_bad_byte_deep_in_a_large_file_is_found_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    good = "Δw = −ηλw\n".encode() * 60_000
    path.write_bytes(good + b"\xff" + good)
    with pytest.raises(DataError, match=f"not UTF-8 at byte {len(good)} .*--encoding-errors replace"):
        open_corpus([str(path)])
    corpus = open_corpus([str(path)], encoding_errors="replace")
    assert corpus.summary.replaced == 1


def test_gzipped_files_are_read_like_plain_ones(books: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    for path in books.rglob("*.txt"):
        target = packed / path.relative_to(books)
        target.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(f"{target}.gz", "wb") as file:
            file.write(path.read_bytes())
    plain, zipped = open_corpus([str(books)]), open_corpus([str(packed)])
    assert [d.text for d in plain.documents()] == [d.text for d in zipped.documents()]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not gzip"])
def test_a_damaged_gzip_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt.gz"
    raw = bytearray(gzip.compress(b"a text of some length, so that there is something to lose\n" * 100))
    if damage == "truncated":
        raw = raw[:-20]
    elif damage == "flipped":
        raw[len(raw) // 2] ^= 0x55
    else:
        raw = bytearray(b"plain")
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        open_corpus([str(path)])


def test_each_line_of_json_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = ["one\r\ntwo", "", "λ\u2028still the same line", "last"]
    path.write_text("\n".join(json.dumps({"body": row, "other": 1}) for row in rows) + "\n\n", "utf-8")
    documents = [(d.path, d.text) for d in open_corpus([str(path)], text_key="body").documents()]
    assert documents == [("rows.jsonl:1", "one\ntwo"), ("rows.jsonl:3", rows[2]), ("rows.jsonl:4", "last")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut off', "line 2: not JSON"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b'["text"]', "line 2: expected an object .* found list"),
        (b'{"txet": "x", "b": 1}', "line 2: no key 'text'; did you mean 'txet'.*--text-key"),
        (b'{"text": 5}', "line 2: 'text' must be a string, found int"),
        (b'{"text": "a\\ud800"}', r"line 2: 'text' holds a lone surrogate \(\\ud800\) at character 1"),
        (b'{"text": "\xff"}', "line 2: not UTF-8 at byte 26 "),
    ],
)
def test_a_bad_line_of_json_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text":"good"}\n' + line + b'\n{"text":"good"}\n')
    with pytest.raises(DataError, match=re.escape(str(path)) + ", " + message):
        open_corpus([str(path)])


def test_bad_characters_in_json_are_replaced_and_counted_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "\xff\xfe and \\udfff"}\n')
    corpus = open_corpus([str(path)], encoding_errors="replace")
    assert [d.text for d in corpus.documents()] == ["\ufffd\ufffd and \ufffd"]
    assert corpus.summary.replaced == 3


def test_rows_of_parquet_are_documents_from_the_file_and_through_datasets(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    texts = [f"row {number}\n" for number in range(600)]
    parquet.write_table(arrow.table({"text": texts, "id": list(range(600))}), path)
    corpus = open_corpus([str(path)])
    assert [d.text for d in corpus.documents()] == texts
    assert next(corpus.documents()).path == "rows.parquet:1"
    with pytest.raises(DataError, match=r"no key 'txt'; did you mean 'text'"):
        open_corpus([str(path)], text_key="txt")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(DamagedError, match=r"rows\.parquet: cannot be read as parquet"):
        open_corpus([str(path)])


def test_a_dataset_is_streamed_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    arrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    texts = [f"row {number}\n" for number in range(50)]
    folder = tmp_path / "dataset"
    folder.mkdir()
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"body": texts}), folder / "train.parquet")
    corpus = open_corpus([f"hf:{folder}"], text_key="body")
    assert [d.text for d in corpus.documents()] == texts
    with pytest.raises(DataError, match=r"hf:.*gone.* cannot be read"):
        list(HubDataset(str(tmp_path / "gone")).documents())


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.txt"
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read: No such file"):
        text_of(path)


@pytest.mark.parametrize("text", ["BZh", "BZh9 is what bzip2 begins with", "BZhang wrote this", "7zXZ", "\x1f"])
def test_a_text_that_begins_like_an_archive_is_a_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    assert text_of(path) == (text, 0)
