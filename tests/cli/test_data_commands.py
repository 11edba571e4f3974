"""What `train` and `data prepare` say of the text they were given, and what they refuse."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from tests.cli.conftest import Answer
from tests.commands import SMALL
from weightdecay.cli.status_line import status_line
from weightdecay.data import stdin as stdin_room

PLAIN = "A line of plain words, and another.\n" * 100
SMALLEST = [*SMALL[2:], "--steps", "2"]


@pytest.fixture(autouse=True)
def no_stdin_kept() -> None:
    stdin_room._kept.cache_clear()


@pytest.fixture
def wordpiece(tmp_path: Path) -> Path:
    pipeline = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pipeline.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=100, special_tokens=["[UNK]", "<|endoftext|>"])
    pipeline.train_from_iterator([PLAIN], trainer)
    pipeline.save(str(tmp_path / "wordpiece.json"))
    return tmp_path / "wordpiece.json"


def test_a_tokenizer_that_loses_text_is_told_and_earns_no_bits_per_byte(
    command: Callable[..., Answer], wordpiece: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "emoji.jsonl"
    rows.write_text("\n".join(json.dumps({"text": "書 📚 語 😀 の words " * 20}) for _ in range(40)))
    arguments = ("--data", rows, "--tokenizer", wordpiece, *SMALLEST, "--out", tmp_path / "run")
    code, said, told = command("train", "gpt3:nano", *arguments, "--json")
    assert code == 0, told
    summary = json.loads(said)["summary"]
    assert summary["val_bits_per_byte"] is None
    assert summary["val_loss"] > 0
    assert "the tokenizer loses text: " in told
    assert "% of the tokens are its unknown token" in told
    assert "no bits per byte" in told
    found = json.loads(command("eval", tmp_path / "run", "--json")[1])
    assert (found["bits_per_byte"], found["loss"]) == (None, summary["val_loss"])
    prepared = command("data", "prepare", rows, "--out", tmp_path / "P", "--tokenizer", wordpiece, "--json")
    assert json.loads(prepared[1])["fidelity"]["loses_text"] is True
    assert "the tokenizer loses text" in prepared[2]


@pytest.mark.parametrize("spec", ["OTHER", "bpe:300"])
@pytest.mark.parametrize("by", ["--tokenizer", "--set", "--config"])
def test_another_tokenizer_beside_prepared_data_is_refused_however_it_is_given(
    spec: str, by: str, command: Callable[..., Answer], wordpiece: Path, small_text: Path, tmp_path: Path
) -> None:
    assert command("data", "prepare", small_text, "--out", tmp_path / "P", "--tokenizer", "byte")[0] == 0
    spec = str(wordpiece) if spec == "OTHER" else spec
    (tmp_path / "some.toml").write_text(f'[data]\ntokenizer = "{spec}"\n')
    given = {"--tokenizer": spec, "--set": f"data.tokenizer={spec}", "--config": str(tmp_path / "some.toml")}[by]
    settings = ("train", "gpt3:nano", "--data", tmp_path / "P", *SMALLEST, "--dry-run")
    code, _, told = command(*settings, by, given)
    assert code == 2, told
    assert "was prepared with another tokenizer" in told
    assert "weightdecay data prepare SRC… --tokenizer" in told


@pytest.mark.parametrize("spec", ["", "byte", "OWN"])
def test_prepared_data_is_taken_with_its_own_tokenizer(
    spec: str, command: Callable[..., Answer], small_text: Path, tmp_path: Path
) -> None:
    assert command("data", "prepare", small_text, "--out", tmp_path / "P", "--tokenizer", "byte")[0] == 0
    own = str(tmp_path / "P" / "tokenizer.json")
    given = ["--tokenizer", own if spec == "OWN" else spec] if spec else []
    settings = ("train", "gpt3:nano", "--data", tmp_path / "P", *SMALLEST, "--dry-run", "--json")
    code, said, told = command(*settings, *given)
    assert code == 0, told
    assert json.loads(said)["config"]["data.tokenizer"] == own


@pytest.mark.parametrize("name", ["train", "prepare"])
def test_what_was_left_aside_is_said_by_both_commands(
    name: str, command: Callable[..., Answer], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "new.txt").write_text(PLAIN + "<|endoftext|>" + PLAIN)
    (folder / "x.csv").write_text("text\nno\n")
    (folder / "up.jsonl.GZ").write_bytes(gzip.compress(b'{"text": "one row"}\n'))
    ways: dict[str, list[str | Path]] = {
        "train": ["train", "gpt3:nano", "--dry-run", *SMALLEST, "--tokenizer", "byte", "--data", folder],
        "prepare": ["data", "prepare", folder, "--tokenizer", "byte", "--out"],
    }
    out = [tmp_path / "P"], [tmp_path / "Q"]
    code, said, told = command(*ways[name], *(out[0] if name == "prepare" else []))
    assert code == 0, told
    assert "1 files of other kinds left aside (1 .csv): name one to read it" in said + told
    assert "the text spells <|endoftext|> 1 times" in said + told
    separated = ("--separator", "<|endoftext|>")
    code, said, told = command(*ways[name], *(out[1] if name == "prepare" else []), *separated)
    assert code == 0, told
    assert "the text spells" not in said + told


def test_a_named_table_is_read_by_its_column_or_refused(command: Callable[..., Answer], tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"hello {n},{n}\n" for n in range(50)))
    arguments = ("data", "prepare", rows, "--tokenizer", "byte", "--json", "--out")
    document = json.loads(command(*arguments, tmp_path / "P")[1])
    assert document["summary"]["documents"] == 50
    assert "label" not in document["training"]["sample"]
    code, _, told = command(*arguments, tmp_path / "Q", "--text-key", "txt")
    assert (code, "did you mean 'text'" in told) == (2, True)


def test_stdin_is_prepared_and_trained_on(command: Callable[..., Answer], tmp_path: Path) -> None:
    arguments = ("data", "prepare", "-", "--tokenizer", "byte", "--json", "--out", tmp_path / "P")
    code, said, told = command(*arguments, stdin=PLAIN)
    assert code == 0, told
    assert json.loads(said)["summary"]["n_bytes"] == len(PLAIN)
    stdin_room._kept.cache_clear()
    train = ("train", "gpt3:nano", "--data", "-", "--tokenizer", "byte", *SMALLEST, "--out", tmp_path / "run", "--json")
    code, said, told = command(*train, stdin=PLAIN)
    assert code == 0, told
    assert json.loads(said)["summary"]["status"] == "finished"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--missing-text", "ignore"], "missing"),
        (["--encoding-errors", "ignore"], "encoding"),
        (["--tokenizer", "."], "a directory without tokenizer.json"),
    ],
)
@pytest.mark.parametrize("name", ["train", "prepare"])
def test_wrong_values_of_the_flags_of_data_are_named(
    name: str, more: list[str], words: str, command: Callable[..., Answer], small_text: Path, tmp_path: Path
) -> None:
    arguments: list[Any] = ["train", "gpt3:nano", "--data", small_text, "--dry-run"]
    if name == "prepare":
        arguments = ["data", "prepare", small_text, "--out", tmp_path / "P"]
    code, said, told = command(*arguments, *more)
    assert (code, said) == (2, "")
    assert words in told
    assert "Traceback" not in told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_long_work_has_a_line_on_a_terminal_that_goes_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with status_line(quiet=False) as progress:
        assert progress is not None
        progress("reading", 1_000_000, 4_000_000)
    written = sys.stderr.getvalue()  # type: ignore[union-attr]
    assert "reading: 1 of 4 MB of text, 0:00 left" in written
    assert written.endswith("\r\x1b[K")
    assert "\n" not in written


@pytest.mark.parametrize(("terminal", "quiet"), [(True, True), (False, False), (False, True)])
def test_nothing_is_shown_where_nobody_looks(terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    with status_line(quiet=quiet) as progress:
        assert progress is None
    assert sys.stderr.getvalue() == ""  # type: ignore[union-attr]
