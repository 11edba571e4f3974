from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.data.corpus import Corpus, open_corpus
from weightdecay.data.heldout import LARGEST_SHARE, LINE_SEARCH, choose_split, split_key
from weightdecay.data.reading import Block, Document

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


def split_of(contents: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Path to text of the training and of the held-out part, from a corpus read in blocks of seven characters."""

    def document(index: int, text: str) -> Document:
        return Document(f"{index}.txt", lambda: (Block(text[i : i + 7]) for i in range(0, len(text), 7)))

    documents = [document(index, text) for index, text in enumerate(contents)]
    sizes = [len(text.encode()) for text in contents]
    split = choose_split([split_key(d.path) for d in documents], sizes, [len(text) for text in contents])
    training = {d.path: d.text for d in split.training(iter(documents))}
    held_out = {d.path: d.text for d in split.held_out(iter(documents))}
    return training, held_out


@given(st.lists(texts, min_size=1, max_size=60))
def test_the_two_parts_are_the_whole_and_neither_is_empty_or_takes_too_much(contents: list[str]) -> None:
    training, held_out = split_of(contents)
    assert held_out
    assert all(training.values())
    assert all(held_out.values())
    for index, content in enumerate(contents):
        path = f"{index}.txt"
        assert training.get(path, "") + held_out.get(path, "") == content
    if training.keys().isdisjoint(held_out):  # whole documents, or characters that are all there is of one
        share = sum(len(text.encode()) for text in held_out.values()) / sum(len(text.encode()) for text in contents)
        assert share <= LARGEST_SHARE or all(len(text) == 1 for text in held_out.values())
    else:
        assert all(len(text) <= max(1, round(0.05 * len(contents[int(path[:-4])]))) for path, text in held_out.items())


def test_many_documents_are_held_out_whole_and_make_a_twentieth() -> None:
    generator = random.Random(0)
    contents = ["x" * round(generator.paretovariate(1.5) * 100) for _ in range(3000)]
    training, held_out = split_of(contents)
    assert training.keys().isdisjoint(held_out)
    assert 0.05 <= sum(map(len, held_out.values())) / sum(map(len, contents)) <= 0.06


def test_which_documents_are_held_out_does_not_depend_on_the_others_order() -> None:
    paths = [f"{n}.txt" for n in range(500)]
    keys = {path: split_key(path) for path in paths}
    sides = {}
    for order in (paths, paths[::-1]):
        split = choose_split([keys[p] for p in order], [100] * 500, [100] * 500)
        sides[order[0]] = dict(zip(order, split.sides, strict=True))
    assert sides["0.txt"] == sides["499.txt"]


def test_of_one_large_file_the_end_is_held_out_from_a_line_on(tmp_path: Path) -> None:
    lines = [f"{number}: λ decays a little at every step\n" for number in range(20_000)]
    (tmp_path / "book.txt").write_text("".join(lines), "utf-8")
    corpus = open_corpus([str(tmp_path / "book.txt")])
    (head,), (tail,) = (d.text for d in corpus.training()), (d.text for d in corpus.held_out())
    assert head + tail == "".join(lines)
    assert head.endswith("\n")
    assert corpus.summary.held_out_bytes == len(tail.encode())
    assert corpus.summary.held_out_share == pytest.approx(0.05, abs=1e-4)


def test_one_file_beside_which_all_others_are_small_gives_its_end_too(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_text("a line of it\n" * 10_000)
    for number in range(20):
        (tmp_path / f"small{number}.txt").write_text(f"{number}\n")
    corpus = open_corpus([str(tmp_path)])
    assert corpus.summary.held_out_share == pytest.approx(0.05, abs=0.002)
    assert corpus.summary.held_out_documents == 21


@pytest.mark.parametrize("text", ["x" * 3 * LINE_SEARCH, "x" * 100 + "\n", "\n", "ab", "a\n" * 50_000 + "b" * 5000])
def test_a_text_with_no_line_to_cut_at_is_cut_all_the_same(text: str, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(text)
    corpus = open_corpus([str(tmp_path / "one.txt")])
    head, tail = "".join(d.text for d in corpus.training()), "".join(d.text for d in corpus.held_out())
    assert head + tail == text
    assert 1 <= len(tail) <= max(1, 0.06 * len(text))


def test_a_line_that_was_added_since_the_corpus_was_opened_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(100)))
    corpus: Corpus = open_corpus([str(path)])
    with path.open("a") as file:
        file.write('{"text": "late"}\n')
    texts = [d.text for d in corpus.training()] + [d.text for d in corpus.held_out()]
    assert len(texts) == 100
    assert "late" not in texts
