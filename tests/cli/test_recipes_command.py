from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from tests.commands import Command
from weightdecay.cli import recipes as command
from weightdecay.errors import RecipeError
from weightdecay.recipes.schema import all_recipes, recipe

OWN = """
extends = "gpt3"
[sources]
sweep = "our own sweep"
[common.optimizer]
weight_decay = { value = 0.05, status = "assumed", source = "sweep" }
[sizes.tiny.model]
n_layers = { value = 2, status = "assumed", source = "sweep" }
d_model = { value = 64, status = "assumed", source = "sweep" }
n_heads = { value = 2, status = "assumed", source = "sweep" }
[sizes.tiny.optimizer]
lr = { value = 1e-3, status = "assumed", source = "sweep" }
[sizes.tiny.run]
batch_tokens = { value = 4096, status = "assumed", source = "sweep" }
"""


def printed(shown: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(shown)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off_on_a_narrow_terminal(width: int) -> None:
    overview = printed(command._overview(all_recipes()), width)
    for one in all_recipes():
        assert f"  {one.system}: nano mini" in overview
    longest = [recipe(name) for name in ("opt:175b", "deepseek-v3:671b", "palm:540b", "bloom:176b")]
    texts = [overview, *(printed(command._values(one), width) for one in longest)]
    texts += [printed(command._difference_table(longest[0], longest[1]), width)]
    for text in texts:
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
    squeezed = "".join(texts[1].split())
    for value in longest[0].values.values():
        assert all("".join(word.split()) in squeezed for word in value.source.split()), value.source


def test_a_size_of_ones_own_has_what_all_sizes_of_the_extended_recipe_share(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    own, shipped = recipe(f"{path}:tiny"), recipe("gpt3:175b")
    assert own.name == "mine:tiny"
    assert own.values["optimizer.beta2"] == shipped.values["optimizer.beta2"]
    assert own.config({"run.tokens": 1e6}).optimizer.weight_decay == 0.05
    assert "run.batch_ramp" not in own.values
    assert own.parameters == 0
    assert recipe(f"{path}:175b").parameters == shipped.parameters


def test_the_command_shows_and_compares_recipes_of_ones_own(tmp_path: Path, weightdecay: Command) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    shown = weightdecay("recipes", "show", f"{path}:tiny", "--json")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert document["sources"]["sweep"] == {"reference": "our own sweep", "read": "opened"}
    assert document["sources"]["paper"]["read"] == "text"
    compared = weightdecay("recipes", "diff", f"{path}:125m", "gpt3:125m", "--json")
    assert [row["key"] for row in json.loads(compared.stdout)] == ["optimizer.weight_decay"]
    wrong = weightdecay("recipes", "shwo", "gpt3")
    assert wrong.returncode == 2
    assert "must be `recipes`, `recipes show NAME` or `recipes diff A B`" in wrong.stderr


def test_faults_of_a_file_come_in_the_order_of_its_lines(tmp_path: Path, weightdecay: Command) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        OWN.replace("0.05", '"much"').replace('extends = "gpt3"', 'extends = "gtp3"\nbrief = 3') + "x = 1\n"
    )
    wrong = weightdecay("recipes", "show", path)
    assert wrong.returncode == 2
    lines = [int(line.removeprefix(f"error: {path}:").partition(":")[0]) for line in wrong.stderr.splitlines()]
    assert lines == sorted(lines) == [2, 3, 7, 16]


def test_both_names_of_a_comparison_are_told_if_neither_is_known(weightdecay: Command) -> None:
    wrong = weightdecay("recipes", "diff", "gtp2:124m", "llama2:7q")
    assert wrong.returncode == 2
    assert "no recipe 'gtp2'" in wrong.stderr
    assert "no size '7q' of llama2" in wrong.stderr


def test_a_value_out_of_range_is_told_once_and_with_its_line(tmp_path: Path) -> None:
    """A file that extends another has all its sizes, and each of them has the fault."""
    path = tmp_path / "mine.toml"
    path.write_text(
        OWN.replace("0.05", "-0.05")
        .replace("n_layers = { value = 2", "n_layers = { value = 0")
        .replace("1e-3", "-1e-3")
    )
    with pytest.raises(RecipeError) as caught:
        recipe(f"{path}:tiny")
    assert caught.value.faults == [
        f"{path}:6: common: optimizer.weight_decay = -0.05: must be a number of at least 0, or auto",
        f"{path}:8: sizes.tiny: model.n_layers = 0: must be a whole number of at least 1",
        f"{path}:12: sizes.tiny: optimizer.lr = -0.001: must be a number of at least 0",
    ]


def test_a_recipe_of_ones_own_is_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    assert recipe(f"{path}:tiny").values["optimizer.weight_decay"].value == 0.05
    path.write_text(OWN.replace("0.05", "0.06"))
    assert recipe(f"{path}:tiny").values["optimizer.weight_decay"].value == 0.06


def test_nan_is_no_weight_decay(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace("0.05", "nan"))
    with pytest.raises(RecipeError, match=r"mine\.toml:6: common: optimizer\.weight_decay = nan: must be a number"):
        recipe(f"{path}:tiny")
