"""What a corpus says of how it was read: what could not be, what was left aside, what looks like something else."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.data import stdin as stdin_room
from weightdecay.data.corpus import Corpus, open_corpus
from weightdecay.data.finding import Found
from weightdecay.data.reading import Document, Separated
from weightdecay.data.separators import KNOWN_SEPARATORS, KnownSeparators
from weightdecay.errors import DamagedError, DataError

TEXT = "A line of text, λ and 文.\nAnother line.\n" * 3


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


AS_NOBODY = """
import os, sys
from weightdecay.data.corpus import open_corpus
from weightdecay.errors import DataError
for known in (sys.argv[2], sys.argv[2] + "/*.txt"):
    open_corpus([known])  # what Python imports on the way, nobody could read later
os.setgid(65534); os.setuid(65534)
try:
    print(open_corpus([sys.argv[1]]).summary.documents)
except DataError as error:
    print(*error.faults, sep="\\n")
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become nobody")
@pytest.mark.parametrize(("mode", "locked"), [(0o000, "locked"), (0o644, "locked/b.txt"), (0o311, "locked")])
@pytest.mark.parametrize("asked", ["", "/**/*.txt"])
def test_a_folder_that_may_not_be_read_is_named_and_never_left_out(
    mode: int, locked: str, asked: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and parent.is_relative_to("/tmp/pytest-of-root"):
            parent.chmod(0o755)
    (folder / "locked").mkdir()
    for path in (folder / "a.txt", folder / "locked" / "b.txt"):
        path.write_text(TEXT)
    (folder / "locked").chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, f"{folder}{asked}", str(folder)], capture_output=True, text=True
    )
    assert f"{folder}/{locked if not asked else 'locked'}: cannot be read: Permission denied" in done.stdout, done


def test_what_a_folder_holds_beside_text_is_counted_by_kind(books: Path) -> None:
    for name in ("a.csv", "b.CSV", "c.png", "LICENSE", "up.jsonl.GZ"):
        (books / name).write_bytes(b"")
    summary = open_corpus([str(books)]).summary
    assert summary.ignored_files == 4  # up.jsonl.GZ is of a kind that is read
    assert summary.ignored == {".csv": 2, ".png": 1, "no suffix": 1}
    assert "4 files of other kinds left aside (2 .csv, 1 .png, 1 no suffix): name one to read it" in summary.remarks()


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", ["text.txt{}", "TEXT.TXT{}", "text.txt"])
@pytest.mark.parametrize("upper", [False, True])
def test_packed_files_are_told_by_what_they_hold(packed: str, name: str, upper: bool, tmp_path: Path) -> None:
    path = tmp_path / name.format(packed.upper() if upper else packed)
    path.write_bytes(PACKERS[packed](TEXT.encode()))
    assert texts(open_corpus([str(path)])) == texts(open_corpus([str(tmp_path)])) == [TEXT]


@pytest.mark.parametrize("packed", PACKERS)
def test_a_damaged_packed_file_is_named_with_its_packing(packed: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(PACKERS[packed](os.urandom(50_000).hex().encode())[:-2_000])
    with pytest.raises(DamagedError, match=r"text\.txt: damaged (gzip|bzip2|xz) file"):
        open_corpus([str(path)])


@pytest.mark.parametrize(
    ("head", "words"),
    [(b"PK\x03\x04", "zip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"%PDF-1.7", "PDF"), (b"PAR1", "parquet")],
)
def test_what_is_no_text_is_refused_by_its_own_name_whatever_is_asked_for(
    head: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(head + b"\x00\xff" * 50)
    with pytest.raises(DataError, match=words):
        open_corpus([str(path)], encoding_errors="replace")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "json"])
def test_utf_16_and_32_are_told_by_their_mark_in_every_kind(encoding: str, kind: str, tmp_path: Path) -> None:
    content = {
        "txt": TEXT,
        "jsonl": json.dumps({"text": TEXT}, ensure_ascii=False) + "\n",
        "json": json.dumps([{"text": TEXT}], ensure_ascii=False),
        "csv": f'text,label\n"{TEXT}",1\n',
    }[kind]
    path = tmp_path / f"a.{kind}"
    path.write_bytes((content if encoding in ("utf-16", "utf-32") else "\ufeff" + content).encode(encoding))
    assert texts(open_corpus([str(path)])) == [TEXT]


def test_half_a_character_of_utf_16_is_replaced_and_counted_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffab".encode("utf-16-le") + b"\x00\xd8" + "c\ufffd".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8"):
        open_corpus([str(path)])
    corpus = open_corpus([str(path)], encoding_errors="replace")
    assert (texts(corpus), corpus.summary.replaced) == (["ab\ufffdc\ufffd"], 1)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32-le", "UTF-32LE"), ("utf-32-be", "UTF-32BE")],
)
def test_utf_16_without_a_mark_is_no_text_with_zeros_in_it(encoding: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain English, to be read by anyone".decode().encode(encoding))
    with pytest.raises(DataError, match=f"iconv -f {name} -t UTF-8"):
        open_corpus([str(path)])


def _gzipped(content: bytes) -> bytes:
    """Without the time of day, which would be in the names of tests, and another one in each worker."""
    return gzip.compress(content, mtime=0)


def _tar(content: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo("inside.txt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


PROSE = ("plain English, to be read by anyone\n" * 40).encode()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tar", _tar(PROSE), "a tar archive"),
        ("a.tar.gz", _gzipped(_tar(PROSE)), "a tar archive"),
        ("a.txt.gz", _gzipped(_gzipped(PROSE)), "compressed more than once, inside with gzip"),
        ("a.gz", b"\x28\xb5\x2f\xfd" + PROSE, "zstandard"),
        ("a.txt", "Привет, мир. ".encode("utf-16-le") * 40, "control characters"),
        ("a.txt", "Привет, мир. ".encode("utf-16-be") * 40, "control characters"),
        ("a.txt", b"SQLite format 3\0\x10\0\x01\x01\0" + bytes(500), "control characters"),
        ("a.txt", bytes(5000), "control characters"),
        ("a.txt", b"one\0two\0four\0" * 50, "control characters"),
    ],
)
def test_what_happens_to_be_utf_8_and_is_no_text_is_refused_all_the_same(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for errors in ("strict", "replace"):
        with pytest.raises(DataError, match=words):
            open_corpus([str(path)], encoding_errors=errors)


def test_a_tail_of_zeros_is_read_and_said_and_colours_and_new_pages_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PROSE * 4 + bytes(70))
    summary = open_corpus([str(tmp_path / "a.txt")]).summary
    assert summary.control_characters == 70
    assert any("70 control characters" in remark for remark in summary.remarks())
    (tmp_path / "b.txt").write_text("\x1b[31mred\x1b[0m\tand a\x0cpage\x0b\r\n" * 9)
    assert open_corpus([str(tmp_path / "b.txt")]).summary.remarks() == []


ROWS = ["one, two", 'with "quotes"', "two\nlines λ", "x" * 200_000]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "lines.json", "jsonl", "csv.gz", "nested.json"])
def test_tables_that_are_named_are_read_by_their_column(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    quoted = ['"{}"'.format(row.replace('"', '""')) for row in ROWS]
    content = {
        "csv": "n,body\n" + "".join(f"1,{row}\n" for row in quoted),
        "tsv": "body\tn\n" + "".join(f"{row}\t1\n" for row in quoted),
        "json": json.dumps([{"body": row} for row in ROWS], indent=1),
        "jsonl": "\n".join(json.dumps({"body": row}) for row in ROWS),
        "nested.json": json.dumps({"version": 1, "rows": [{"body": row} for row in ROWS]}),
    }
    content |= {"csv.gz": content["csv"], "lines.json": content["jsonl"]}
    raw = content[kind].encode()
    path.write_bytes(gzip.compress(raw) if kind == "csv.gz" else raw)
    key = "rows.body" if kind == "nested.json" else "body"
    assert texts(open_corpus([str(path)], text_key=key)) == ROWS
    with pytest.raises(DataError, match=r"no key '(rows\.)?bdoy'; did you mean '(rows\.)?body'|no key 'bdoy'"):
        open_corpus([str(path)], text_key=key.replace("body", "bdoy"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,label\nunquoted, with a comma,1\n", "row 1: 3 fields, and the first line names 2 columns"),
        ("a.csv", b"text\nbad \xff byte\n", "not UTF-8 after row 0"),
        ("a.csv", 'text,label\n"a quote without an end,1\nnext,2\n', "row 1: cannot be read as a table"),
        ("a.tsv", 'text\tlabel\n"Yes", she said\t1\n', "row 1: cannot be read as a table"),
        ("a.csv", "text,label,text\na,b,c\n", "2 columns are named 'text'"),
        ("a.csv", "body;label\na;b\n", "no key 'text'; known are: body, label"),
        ("a.json", "{", "not JSON"),
        ("a.json", '["a", "b"]', "item 1: expected an object"),
        ("a.json", '{"settings": 1}', "no key 'text'"),
    ],
)
def test_a_table_that_cannot_be_read_whole_is_refused(
    name: str, content: str | bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        open_corpus([str(path)])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_is_read_by_what_stands_between_the_columns_of_its_first_line(
    delimiter: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text(delimiter.join(["n", "text"]) + "\n" + delimiter.join(["1", '"one, two; three"']) + "\n")
    assert texts(open_corpus([str(path)])) == ["one, two; three"]


def test_a_column_whose_name_holds_a_semicolon_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;raw\none; two\n")
    assert texts(open_corpus([str(tmp_path / "a.csv")], text_key="text;raw")) == ["one; two"]


def test_a_key_with_dots_looks_into_objects_unless_it_is_there_by_that_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"meta": {"text": "inside"}}\n{"meta.text": "by name", "meta": {"text": "inside"}}\n')
    assert texts(open_corpus([str(path)], text_key="meta.text")) == ["inside", "by name"]
    with pytest.raises(DataError, match=r"no key 'meta\.txt'; did you mean 'meta\.text'"):
        open_corpus([str(path)], text_key="meta.txt")


def test_a_nested_column_of_parquet_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    rows = [{"text": "one", "n": 1}, {"text": "two", "n": 2}]
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"meta": rows}), path)
    assert texts(open_corpus([str(path)], text_key="meta.text")) == ["one", "two"]


@pytest.mark.parametrize("row", ['{"text": null}', '{"other": 1}', "{}"])
def test_rows_without_text_are_refused_or_left_out_and_counted(row: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n' + row + '\n{"text": ""}\n{"text": "two"}\n')
    with pytest.raises(DataError, match=r"line 2: .*--missing-text skip"):
        open_corpus([str(path)])
    corpus = open_corpus([str(path)], missing_text="skip")
    assert texts(corpus) == ["one", "two"]
    assert (corpus.summary.rows_without_text, corpus.summary.empty) == (1, 1)
    assert "1 rows without text left out" in corpus.summary.remarks()
    path.write_text(row + "\n")
    with pytest.raises(DataError, match=r"no text in .*1 rows have no text"):
        open_corpus([str(path)], missing_text="skip")


def test_a_row_whose_text_is_no_text_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(DataError, match="must be a string, found int"):
        open_corpus([str(tmp_path)], missing_text="skip")


@given(st.lists(st.sampled_from([*KNOWN_SEPARATORS, "a", "<", "|>", "</", "\n"]), max_size=30), st.integers(1, 9))
def test_separators_are_counted_however_a_text_comes_in_stretches(parts: list[str], size: int) -> None:
    text, counter = "".join(parts), KnownSeparators()
    for start in range(0, len(text), size):
        counter.look_in(text[start : start + size])
    assert counter.counts == {name: count for name in KNOWN_SEPARATORS if (count := text.count(name))}


@given(st.lists(st.text("ab\n<|>", max_size=6), max_size=8), st.sampled_from(["<|>", "\n\n", "b"]), st.integers(1, 5))
def test_a_separator_cuts_as_a_split_does_however_the_text_comes(parts: list[str], separator: str, size: int) -> None:
    from weightdecay.data.reading import Block

    text = separator.join(parts)

    class Source:
        def documents(self):  # type: ignore[no-untyped-def]
            yield Document("d", lambda: (Block(text[i : i + size]) for i in range(0, len(text), size)))

        def size(self) -> None:
            return None

    cut = [document.text for document in Separated(Source(), separator).documents()]
    assert cut == [part for piece in text.split(separator) if (part := piece.strip("\n"))]


def test_literal_separators_are_named_and_split_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "all.txt"
    path.write_text("<|endoftext|>".join(f"document {number}\n" for number in range(400)))
    whole = open_corpus([str(path)])
    assert (whole.summary.documents, whole.summary.separators) == (1, {"<|endoftext|>": 399})
    assert any(
        "spells <|endoftext|> 399 times" in words and "--separator" in words for words in whole.summary.remarks()
    )
    cut = open_corpus([str(path)], separator="<|endoftext|>")
    assert (cut.summary.documents, cut.summary.separators) == (400, {})
    assert texts(cut)[7] == "document 7"
    assert {document.path for document in cut.held_out()} < {document.path for document in cut.documents()}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (TEXT.encode(), [TEXT]),
        (b'{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (b'{"text": "' + b"a" * 200_000 + b'"}\n{"text": "b"}\n', ["a" * 200_000, "b"]),
        (b"\xef\xbb\xbfn,text\n1,a\n2,b\n", ["a", "b"]),
        (b"text;n\na;1\nb;2\n", ["a", "b"]),
        (b"text\nof one column is a text\n", ["text\nof one column is a text\n"]),
        (b"Some text, a comma\n", ["Some text, a comma\n"]),
        (b"5", ["5"]),
    ],
)
def test_stdin_is_a_text_or_its_rows_and_is_read_as_often_as_needed(
    raw: bytes, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin_room._kept.cache_clear()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert texts(open_corpus(["-"])) == texts(open_corpus(["-"])) == expected
    stdin_room._kept.cache_clear()


def test_one_of_several_processes_does_not_read_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin_room._kept.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="weightdecay data prepare - --out DIR"):
        open_corpus(["-"])


def test_a_pipe_that_is_named_is_no_missing_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        open_corpus([str(tmp_path / "pipe")])


def test_a_home_within_quotes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text(TEXT)
    assert texts(open_corpus(["~/a.txt"])) == [TEXT]


def test_reading_is_told_with_what_there_is_of_it(books: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    corpus = open_corpus([str(books)], progress=lambda *each: told.append(each))
    assert told[-1] == ("reading", corpus.summary.n_bytes, corpus.summary.n_bytes)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_nothing_is_found_in_nothing() -> None:
    Found().raise_if_unreadable()
    assert Found().sources() == ()
