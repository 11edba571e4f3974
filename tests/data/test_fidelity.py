"""A tokenizer that loses text is found out: by every token that is unknown, and by samples that come back changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from weightdecay.data.fidelity import Fidelity, is_tried, trials
from weightdecay.data.prepare import open_prepared, prepare_text, prepared_for
from weightdecay.data.reading import Document
from weightdecay.data.shards import encode_documents
from weightdecay.data.tokenizer import ByteTokenizer, load_tokenizer
from weightdecay.data.tokenizer_specs import make_tokenizer, refuse_another_tokenizer
from weightdecay.errors import DataError

PLAIN = "The book of plain words, line by line.\n" * 200
STRANGE = "書 📚 語 😀 の\n" * 200


def trained(kind: str, path: Path, normalizer: Any = None) -> Path:
    special = ["[UNK]", "<|endoftext|>"]
    trainer: Any
    if kind == "wordpiece":
        pipeline = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
        pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    elif kind == "unigram":
        pipeline = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="[UNK]")
        pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        pipeline = tokenizers.Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        pipeline.pre_tokenizer, pipeline.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
    if normalizer is not None:
        pipeline.normalizer = normalizer
    pipeline.train_from_iterator([PLAIN], trainer)
    pipeline.save(str(path))
    return path


def fidelity_of(tokenizer: Path, text: str, tmp_path: Path) -> Fidelity:
    (tmp_path / "text.txt").write_text(text, "utf-8")
    made = prepare_text([str(tmp_path / "text.txt")], tmp_path / "made", str(tokenizer))
    assert open_prepared(made.path).fidelity == made.fidelity
    return made.fidelity


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_unknown_tokens_are_counted_over_the_whole_corpus(kind: str, tmp_path: Path) -> None:
    path = trained(kind, tmp_path / "tokenizer.json")
    found = fidelity_of(path, PLAIN * 20 + STRANGE, tmp_path)
    tokenizer = load_tokenizer(path)
    prepared = open_prepared(tmp_path / "made")
    unknown = sum(int((shard.tokens == tokenizer.unknown_id).sum()) for shard in (prepared.training, prepared.held_out))
    assert found.unknown_tokens == unknown > 100
    assert found.n_tokens == prepared.n_tokens
    assert found.loses_text
    assert "of the tokens are its unknown token" in found.remark()
    assert any("loses text" in words for words in prepared.remarks())


@pytest.mark.parametrize("normalizer", [normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Strip()])
def test_a_normalizer_that_changes_text_is_found_without_any_unknown_token(normalizer: object, tmp_path: Path) -> None:
    found = fidelity_of(trained("bpe", tmp_path / "t.json", normalizer), "  Ünïted É\u0301 " + PLAIN, tmp_path)
    assert (found.unknown_tokens, found.loses_text) == (0, True)
    assert found.changed >= 1
    assert found.first_change[0] != found.first_change[1]


@pytest.mark.parametrize("spec", ["byte", "bpe:300", "tiktoken"])
def test_tokenizers_of_bytes_lose_nothing(spec: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(PLAIN + STRANGE + "<|endoftext|>", "utf-8")
    spec = str(trained("bpe", tmp_path / "t.json")) if spec == "tiktoken" else spec
    found = prepare_text([str(tmp_path / "text.txt")], tmp_path / "made", spec, cache_dir=tmp_path / "c").fidelity
    assert (found.unknown_tokens, found.changed, found.loses_text, found.remark()) == (0, 0, False, "")
    assert found.tried >= 1


def test_late_documents_are_tried_too_at_a_bounded_cost() -> None:
    documents = [Document.from_text(str(n), f"text {n}") for n in range(1500)]
    assert 256 + 128 + 64 <= sum(batch.trials.tried for batch in encode_documents(documents, ByteTokenizer())) < 600
    assert sum(is_tried(document, 0) for document in range(10**5)) < 600
    assert sum(is_tried(0, piece) for piece in range(10**4)) == 64


@pytest.mark.parametrize("before", [0, 1, 2, 3, 508, 509, 510, 511])
def test_tokens_that_are_cut_within_a_character_change_nothing(before: int) -> None:
    """512 tokens are turned back: of bytes, they end within one of these characters of four."""
    tokenizer, text = ByteTokenizer(), "a" * before + "😀" * 500
    assert trials(tokenizer, [(text, tokenizer.encode(text))]) == (1, 0, ())


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 2000])
def test_what_tokens_lack_is_found_wherever_they_begin_to(length: int) -> None:
    tokenizer, text = ByteTokenizer(), "".join(chr(97 + n % 26) for n in range(length)) + "!" + "z" * 1000
    kept = text.replace("!", "")
    found = trials(tokenizer, [(text, tokenizer.encode(kept))])
    assert found.changed == (length < 512)
    if found.changed:
        start = max(0, length - 8)
        assert found.first_change == (text[start:512][:24], kept[start:512][:24])
    assert trials(tokenizer, [(text, [])]).changed == 1


def test_prepared_data_of_an_older_version_is_judged_by_its_tokens(tmp_path: Path) -> None:
    path = trained("wordpiece", tmp_path / "t.json")
    fidelity_of(path, STRANGE, tmp_path)
    record = tmp_path / "made" / "corpus.json"
    older = json.loads(record.read_text())
    del older["fidelity"]
    record.write_text(json.dumps(older))
    found = open_prepared(tmp_path / "made").fidelity
    assert found.loses_text
    assert found.tried == 0


def test_a_cache_that_does_not_know_what_is_lost_is_made_anew(tmp_path: Path) -> None:
    tokenizer, text = trained("wordpiece", tmp_path / "t.json"), tmp_path / "text.txt"
    text.write_text(PLAIN)
    first = prepared_for([str(text)], str(tokenizer), cache_dir=tmp_path / "cache")
    shard = (first.path / "train.bin").read_bytes()
    older = json.loads((first.path / "corpus.json").read_text())
    del older["fidelity"]
    (first.path / "corpus.json").write_text(json.dumps(older))
    again = prepared_for([str(text)], str(tokenizer), cache_dir=tmp_path / "cache")
    assert again.fidelity == first.fidelity
    assert again.fidelity.tried > 0
    assert (again.path / "train.bin").read_bytes() == shard


def test_a_corpus_from_the_cache_is_called_as_it_was_asked_for(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(PLAIN)
    (tmp_path / "two" / "b.csv").write_text("")
    names = [str(tmp_path / "one"), str(tmp_path / "two")]
    found = [prepared_for([name], "byte", cache_dir=tmp_path / "cache") for name in names]
    assert [one.name for one in found] == names
    assert [one.summary.ignored_files for one in found] == [0, 1]
    assert found[0].path == found[1].path


@pytest.mark.parametrize(
    ("spec", "same"), [("byte", False), ("bpe:300", True), ("bpe:301", False), ("FILE", True), ("DIRECTORY", True)]
)
def test_another_tokenizer_beside_prepared_data_is_refused(spec: str, same: bool, tmp_path: Path) -> None:
    path = trained("bpe", tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size <= 300
    spec = {"FILE": str(path), "DIRECTORY": str(tmp_path), "bpe:300": f"bpe:{tokenizer.vocab_size}"}.get(spec, spec)
    if same:
        refuse_another_tokenizer(tmp_path / "P", tokenizer, spec)
        return
    with pytest.raises(DataError, match=rf"--tokenizer {spec}: .*prepare the text again"):
        refuse_another_tokenizer(tmp_path / "P", tokenizer, spec)


def test_a_directory_stands_for_the_tokenizer_in_it(tmp_path: Path) -> None:
    path = trained("bpe", tmp_path / "tokenizer.json")
    assert make_tokenizer(str(tmp_path)).sha256 == load_tokenizer(path).sha256
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"a directory without tokenizer\.json"):
        make_tokenizer(str(tmp_path / "empty"))


@pytest.mark.parametrize("model", [models.Unigram([("a", -1.0)]), models.WordLevel({"a": 0}, unk_token="[UNK]")])
def test_a_tokenizer_that_knows_neither_a_text_nor_the_unknown_is_told(model: Any, tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode("a") == [0]
    with pytest.raises(DataError, match="no tokens for some of the text"):
        loaded.encode("ü")
