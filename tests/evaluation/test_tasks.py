"""Tasks that a text poses: what is asked is true of the text, and what is counted is counted rightly."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from weightdecay import recipe
from weightdecay.cli import main
from weightdecay.data.fidelity import Fidelity
from weightdecay.data.tokenizer import ByteTokenizer
from weightdecay.errors import DataError
from weightdecay.evaluation.loss import Text
from weightdecay.evaluation.tasks import Item, solve, tasks_of, wilson
from weightdecay.evaluation.trained import Trained
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train

CODE = """\
def area(width, height):
    total = width * height
    squares = [total, {width: height}]
    for index in range(total):
        squares[index] = (index * total)
    return {name_of(squares): total}

def name_of(squares):
    first = squares[0]
    second = squares[1]
    other = first + second
    return (first, second, {other: squares[first]})

"""
SPEAKER = ByteTokenizer()
CONTEXT = 96


def text_of(words: str) -> Text:
    tokens = np.asarray([*SPEAKER.encode(words), SPEAKER.end_of_text_id] * 2)
    return Text("a text", "0" * 64, "held out", tokens, len(words), Fidelity(1, 0, 0, 0))


class Reader(nn.Module):
    """Has the text at hand, and gives every next token what it says there after the longest beginning that it knows."""

    def __init__(self, text: Text, certainty: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = recipe("gpt3:nano").config().model.replace(context=CONTEXT, vocab_size=SPEAKER.vocab_size)
        self.said = [int(token) for token in text.tokens]
        self.certainty = certainty

    def forward(self, tokens_BT: Tensor) -> Tensor:
        logits = torch.zeros(*tokens_BT.shape, SPEAKER.vocab_size)
        for b, row in enumerate(tokens_BT.tolist()):
            for t in range(len(row)):
                end = row[max(0, t - 30) : t + 1]
                for start in range(len(self.said) - len(end)):
                    if self.said[start : start + len(end)] == end:
                        logits[b, t, self.said[start + len(end)]] = self.certainty
                        break
        return logits


def told(item: Item) -> tuple[str, list[str]]:
    return SPEAKER.decode(item.context), [SPEAKER.decode(candidate) for candidate in item.candidates]


def test_the_true_candidate_is_how_the_text_goes_on_and_no_other_is() -> None:
    posed = tasks_of(text_of(CODE), SPEAKER, CONTEXT)

    assert {name: bool(items) for name, items in posed.items()} == {"bracket": True, "name": True, "continuation": True}
    for name, items in posed.items():
        for context, (true, *false) in map(told, items):
            assert context + true in CODE
            assert len({true, *false}) == 1 + len(false)
            if name != "name":  # another name may stand after the same words elsewhere
                assert all(context[-20:] + other not in CODE for other in false)


def test_a_name_was_defined_above_and_so_were_the_others() -> None:
    for context, candidates in map(told, tasks_of(text_of(CODE), SPEAKER, CONTEXT)["name"]):
        start = CODE.index(context) + len(context)
        assert len(candidates) == 4
        whole = CODE[:start].rsplit(maxsplit=1)[-1]  # what stands before may begin the name with one letter in common
        assert any(candidate in CODE[:start] or whole + candidate in CODE for candidate in candidates)


def test_brackets_are_drawn_in_equal_numbers_and_chance_is_the_most_frequent_ones_share() -> None:
    words = "(a) " * 300 + "[b] " * 30 + "{c} " * 30
    text = text_of(words)
    items = tasks_of(text, SPEAKER, CONTEXT, items=60)["bracket"]

    counts = Counter(SPEAKER.decode(item.candidates[0]) for item in items)
    assert counts == {")": 20, "]": 20, "}": 20}
    few = solve(Trained(Reader(text), SPEAKER, None), text_of("(a) " * 30 + "[b] " * 10), items=3)  # type: ignore[arg-type]
    assert few[0].chance == pytest.approx(1 / 2)  # one of each kind that there is


def test_who_knows_the_text_solves_all_and_who_denies_it_or_knows_nothing_solves_none() -> None:
    text = text_of(CODE)
    for certainty, share in ((20.0, 1.0), (-20.0, 0.0), (0.0, 0.0), (float("nan"), 0.0)):
        reader = Trained(Reader(text, certainty), SPEAKER, None)  # type: ignore[arg-type]
        assert [result.share for result in solve(reader, text, items=4)] == [share] * 3


def test_a_text_without_brackets_names_and_passages_poses_nothing() -> None:
    with pytest.raises(DataError, match="poses no task"):
        solve(Trained(Reader(text_of("no")), SPEAKER, None), text_of("no"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (100, 400), (400, 400)])
def test_the_interval_of_a_share_is_wilsons(right: int, n: int) -> None:
    from scipy.stats import binomtest  # a second of a processor, which only this test needs

    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_command_tells_the_tasks_of_a_real_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for part in range(3):
        (source / f"part{part}.py").write_text(CODE.replace("total", f"total{part}"), encoding="utf-8")
    values: dict[str, Any] = {
        "data.sources": [str(source)], "data.tokenizer": "byte", "run.steps": 2, "run.out": str(tmp_path / "run"),
        "model.vocab_size": 257, "model.n_layers": 1, "model.d_model": 32, "model.attention.n_heads": 2,
    }  # fmt: skip
    train(recipe("gpt3:nano").config(values), reporter=SilentReporter())
    capfd.readouterr()

    with pytest.raises(SystemExit) as left:
        main(["eval", str(tmp_path / "run"), "--data", str(source), "--tasks", "--json"])
    document = json.loads(capfd.readouterr().out)

    assert not left.value.code
    assert [task["name"] for task in document["tasks"]] == ["bracket", "name", "continuation"]
    for task in document["tasks"]:
        low, high = task["interval"]
        assert low <= task["share"] == task["right"] / task["items"] <= high
