"""What people read: a row per pattern, as wide as there is room."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from torch import nn

import weightdecay
from tests.planning.test_plan import TiedDecoder
from weightdecay.planning.patterns import pattern_of
from weightdecay.planning.render import comparison, story, table_text


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_layers = nn.ModuleList(
            nn.ModuleDict({"self_attention_output_projection": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
            for _ in range(12)
        )


@pytest.mark.parametrize(("width", "with_reasons"), [(80, False), (100, False), (120, True), (200, True)])
def test_a_narrow_screen_gets_no_reasons_and_no_line_is_too_long(width: int, with_reasons: bool) -> None:
    lines = table_text(weightdecay.plan(Deep()), width).splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.rstrip().endswith("why") for line in lines) == with_reasons
    assert sum("bias" in line.split()[0] for line in lines if line.strip()) == 2  # a name breaks between its parts


def test_indices_are_ranges_and_many_gaps_are_left_out() -> None:
    assert pattern_of(["a.0.w"]) == "a.0.w"
    assert pattern_of([f"a.{n}.b.{n % 2}.w" for n in range(8)]) == "a.{0-7}.b.{0-1}.w"
    assert pattern_of([f"a.{n}.w" for n in (0, 1, 2, 5, 7, 8, 9)]) == "a.{0-2,5,7-9}.w"
    assert pattern_of([f"a.{n}.w" for n in range(3, 48, 4)]) == "a.{3,7,…,47}.w"
    assert pattern_of([f"conv2d.{n}" for n in (0, 1)]) == "conv2d.{0-1}"


def shown(what: object) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_what_differs_is_told_with_its_meaning_once_per_role() -> None:
    plan = weightdecay.plan(Deep())
    text = shown(comparison(plan, weightdecay.plan(Deep(), policy="torch")))
    assert text.count("norm gain: decay pulls a gain to 0") == 1
    assert text.count("bias: a bias has no scale") == 1
    assert "nanogpt does with every tensor what default does" in shown(
        comparison(plan, weightdecay.plan(Deep(), policy="nanogpt"))
    )


def test_a_story_says_nothing_twice() -> None:
    plan = weightdecay.plan(TiedDecoder())
    assert story(plan["norm.weight"]).count("multiplies a normalised activation") == 1
    assert story(plan["norm.weight"]).endswith("λ = 0: norm gain, which does not decay")
    assert "head.weight" in story(plan["embed.weight"])
