from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightdecay.data.corpus import Corpus, open_corpus
from weightdecay.data.prepare import Prepared, inspect, open_prepared, prepare, prepare_text, prepared_for
from weightdecay.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from weightdecay.errors import DamagedError, DataError
from weightdecay.evaluation.loss import text_of
from weightdecay.recipes.settings import DataSettings


@pytest.fixture
def directory(books: Path, tmp_path: Path) -> Path:
    return prepare_text([str(books)], tmp_path / "prepared", "bpe:300", cache_dir=tmp_path / "cache").path


def test_the_standard_library_is_prepared_as_its_two_parts(prepared: Prepared, stdlib: Corpus) -> None:
    assert prepared.summary == stdlib.summary
    assert prepared.corpus_sha256 == stdlib.sha256
    end = prepared.tokenizer.end_of_text_id
    for shard, documents in ((prepared.training, stdlib.training()), (prepared.held_out, stdlib.held_out())):
        texts = [document.text for document in documents]
        assert shard.header.n_documents == len(texts) == int((shard.tokens == end).sum())
        assert shard.header.n_bytes == sum(len(text.encode()) for text in texts)
        assert shard.tokens[-1] == end
        decoded = prepared.tokenizer.decode(shard.tokens[: shard.header.n_tokens - 1].tolist())
        assert decoded == "<|endoftext|>".join(texts)
    assert prepared.n_tokens == len(prepared.training.tokens) + len(prepared.held_out.tokens)


def test_the_bytes_of_any_number_of_held_out_tokens_are_exact(prepared: Prepared) -> None:
    tokens, tokenizer = prepared.held_out.tokens, prepared.tokenizer
    assert prepared.held_out_bytes() == prepared.held_out_bytes(10**9) == prepared.held_out.header.n_bytes
    for count in (0, 1, 100, 5000):
        text = tokenizer.decode(tokens[:count].tolist())
        ends = int((tokens[:count] == tokenizer.end_of_text_id).sum())
        assert "\ufffd" not in text
        assert prepared.held_out_bytes(count) == len(text.encode()) - ends * len("<|endoftext|>")


def test_where_tokens_have_no_fixed_bytes_the_share_of_tokens_stands_in(books: Path, tmp_path: Path) -> None:
    corpus = open_corpus([str(books)])
    pipeline = json.loads(prepare_text([str(books)], tmp_path / "a", "bpe:300", cache_dir=tmp_path).tokenizer.to_json())
    folded = HuggingFaceTokenizer(json.dumps({**pipeline, "normalizer": {"type": "NFC"}}))
    header = (there := prepare(corpus, folded, tmp_path / "b")).held_out.header
    assert there.held_out_bytes(header.n_tokens // 2) == pytest.approx(header.n_bytes / 2, rel=0.02)


def test_prepared_data_opens_as_it_was_made(directory: Path, books: Path) -> None:
    opened = open_prepared(directory)
    corpus = open_corpus([str(books)])
    assert opened.summary == corpus.summary
    assert opened.corpus_sha256 == corpus.sha256
    assert opened.sources == (str(books),)
    held_out = opened.tokenizer.decode(opened.held_out.tokens.tolist()).split("<|endoftext|>")
    assert held_out == [*(document.text for document in corpus.held_out()), ""]
    assert sorted(path.name for path in directory.iterdir()) == [
        "corpus.json",
        "heldout.bin",
        "tokenizer.json",
        "train.bin",
    ]


def test_preparing_twice_gives_the_same_bytes(directory: Path, books: Path, tmp_path: Path) -> None:
    again = prepare_text([str(books)], tmp_path / "again", "bpe:300", cache_dir=tmp_path / "other cache").path
    for path in directory.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_the_cache_is_used_for_the_same_text_and_tokenizer_alone(books: Path, tmp_path: Path) -> None:
    def path_for(spec: str = "byte") -> Path:
        return prepared_for([str(books)], spec, cache_dir=tmp_path / "cache").path

    first = path_for()
    written = (first / "train.bin").stat().st_mtime_ns
    assert path_for() == first
    assert (first / "train.bin").stat().st_mtime_ns == written
    assert path_for("bpe:300") != first
    (books / "more.txt").write_text("more\n")
    assert path_for() != first


def test_a_damaged_cache_is_made_anew(books: Path, tmp_path: Path) -> None:
    path = prepared_for([str(books)], "byte", cache_dir=tmp_path / "cache").path
    whole = {part: part.read_bytes() for part in path.iterdir()}
    for part, content in whole.items():
        part.write_bytes(content[:-1] + b"?")
        prepared_for([str(books)], "byte", cache_dir=tmp_path / "cache")
        assert {part: part.read_bytes() for part in path.iterdir()} == whole


def test_a_prepared_directory_is_taken_as_it_is_with_its_tokenizer(directory: Path, tmp_path: Path) -> None:
    opened = prepared_for([str(directory)], "byte", cache_dir=tmp_path / "unused")
    assert opened.path == directory
    assert opened.tokenizer.vocab_size == 300
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("part", ["train.bin", "heldout.bin"])
def test_prepared_data_with_a_flipped_byte_is_refused_by_the_files_name(part: str, directory: Path) -> None:
    raw = bytearray((directory / part).read_bytes())
    raw[-3] ^= 0x40
    (directory / part).write_bytes(raw)
    for read in (open_prepared, inspect):
        with pytest.raises(DamagedError, match=re.escape(part)) as caught:
            read(directory)
        assert caught.value.exit_code == 4


def test_parts_that_do_not_belong_together_are_refused(directory: Path, books: Path, tmp_path: Path) -> None:
    other_tokenizer = prepare_text([str(books)], tmp_path / "bytes", "byte").path
    (books / "more.txt").write_text("more\n")
    other_corpus = prepare_text([str(books)], tmp_path / "more", str(directory / "tokenizer.json")).path
    for source, part, message in (
        (other_tokenizer, "tokenizer.json", "another tokenizer"),
        (other_tokenizer, "heldout.bin", "another tokenizer"),
        (other_corpus, "heldout.bin", "another corpus"),
        (other_corpus, "corpus.json", "another corpus"),
    ):
        mixed = tmp_path / "mixed"
        shutil.copytree(directory, mixed)
        shutil.copy(source / part, mixed / part)
        with pytest.raises(DataError, match=message):
            open_prepared(mixed)
        shutil.rmtree(mixed)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"summary": {"documents": 1}}', '{"summary": 5}'])
def test_a_damaged_record_of_the_corpus_is_named(record: str, directory: Path) -> None:
    (directory / "corpus.json").write_text(record)
    with pytest.raises(DamagedError, match=r"corpus\.json: damaged"):
        open_prepared(directory)


def test_a_directory_without_prepared_data_says_how_to_make_some(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DataError, match="weightdecay data prepare"):
            open_prepared(path)


def test_a_directory_that_is_there_is_not_touched_before_anything_is_read(books: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("the only copy")
    with pytest.raises(DataError, match="is there already"):
        prepare_text([str(tmp_path / "gone")], taken)
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="unknown tokenizer"):
        prepare_text([str(tmp_path / "gone")], tmp_path / "free", "bytes")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert prepare_text([str(books)], empty, "byte").path == empty


def test_a_source_that_changes_while_it_is_read_is_noticed(books: Path, tmp_path: Path) -> None:
    corpus = open_corpus([str(books)])
    with (books / "shelf 1" / "book-01.txt").open("a") as file:
        file.write("one more line\n")
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(corpus, ByteTokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_progress_tells_every_byte(books: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    prepared = prepare_text(
        [str(books)],
        tmp_path / "out",
        "bpe:300",
        cache_dir=tmp_path / "cache",
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    stages = ["reading", "training the tokenizer", "writing tokens"]
    assert list(dict.fromkeys(what for what, _, _ in seen)) == stages
    for stage in stages:
        told = [(done, total) for what, done, total in seen if what == stage]
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1][0] == told[-1][1] != 0
    assert seen[-1] == ("writing tokens", prepared.summary.n_bytes, prepared.summary.n_bytes)


def test_inspection_shows_what_is_in_the_headers_and_the_first_text(directory: Path, books: Path) -> None:
    found = inspect(directory, sample_tokens=20)
    corpus = open_corpus([str(books)])
    assert found.training.n_documents == len(list(corpus.training()))
    assert found.training.vocab_size == found.held_out.vocab_size == 300
    assert found.tokenizer_sha256 == found.training.tokenizer_sha256
    assert len(found.training_sample) > 10
    assert next(corpus.training()).text.startswith(found.training_sample)
    assert next(corpus.held_out()).text.startswith(found.held_out_sample)


def test_a_killed_preparation_leaves_nothing_that_passes_for_prepared(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("a line of text, again and again\n" * 200_000)
    script = (
        "import sys; from pathlib import Path; from weightdecay.data.prepare import prepare_text; "
        "prepare_text([sys.argv[1]], Path(sys.argv[2]), 'byte', "
        "progress=lambda what, *n: what == 'writing tokens' and print(n, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(text), str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert np.array_equal(
        prepare_text([str(text)], out, "byte").training.tokens[:10], np.frombuffer(b"a line of ", np.uint8)
    )
    assert not out.with_name("out.partial").exists()


def test_two_processes_that_prepare_the_same_at_once_both_end_well(books: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from weightdecay.data.prepare import prepared_for; "
        "print(prepared_for([sys.argv[1]], 'bpe:300', cache_dir=Path(sys.argv[2])).training.header.sha256)"
    )
    command = [sys.executable, "-c", script, str(books), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(3)]
    hashes = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(hashes) == 1
    assert len(list((tmp_path / "cache" / "prepared").iterdir())) == 1


def test_a_full_disk_while_preparing_is_one_line_and_leaves_nothing(books: Path, tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from weightdecay.data.prepare import prepare_text
from weightdecay.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
try:
    prepare_text([sys.argv[1]], Path(sys.argv[2]), "byte")
except StorageError as error:
    sys.exit(f"{error}")
"""
    out = tmp_path / "out"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(books), str(out)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert re.fullmatch(r".*out.*: cannot be written: File too large\n", ended.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["books"]


@pytest.mark.parametrize(
    "asked",
    [{"text_key": "body"}, {"separator": "<|endoftext|>"}, {"missing_text": "skip"}, {"encoding_errors": "replace"}],
)
def test_ways_of_reading_text_are_refused_beside_data_whose_text_was_read_long_ago(
    asked: dict[str, Any], directory: Path, tmp_path: Path
) -> None:
    (name,) = asked
    with pytest.raises(DataError, match=f"^--{name.replace('_', '-')} .* is prepared already"):
        prepared_for([str(directory)], cache_dir=tmp_path, **asked)
    with pytest.raises(DataError, match="is prepared already"):
        text_of(DataSettings(sources=(str(directory),), **asked), open_prepared(directory).tokenizer)


def test_prepared_data_among_other_sources_is_refused_and_not_passed_over(directory: Path, books: Path) -> None:
    for sources in ([str(directory), str(books)], [str(books), str(directory)], [str(directory)]):
        with pytest.raises(DataError, match="is prepared already: train on it by itself"):
            open_corpus(sources)
