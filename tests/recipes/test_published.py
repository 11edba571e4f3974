"""The database of public runs: what recipes hold is theirs, nothing is from memory, and neighbours are neighbours."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.errors import RecipeError
from weightdecay.models.decoder import GPT
from weightdecay.recipes.published import runs as reader
from weightdecay.recipes.published.nearest import SYSTEMS, Planned, distance, neighbours
from weightdecay.recipes.published.runs import FILE, NEEDED, PublishedRun, published_runs, read_runs_file
from weightdecay.recipes.schema import Recipe, all_recipes, recipe
from weightdecay.rules import RULES

RUNS = published_runs()
parameters = st.floats(1e5, 1e12)
tokens = st.floats(1e6, 1e14)
rates = st.floats(1e-6, 1.0)


def qualifies(one: Recipe) -> bool:
    """A published size whose λ, η, batch and tokens were all read in a primary source."""
    values = one.as_published().values
    return not one.scaling and all(key in values and values[key].status == "confirmed" for key in NEEDED)


def test_there_are_at_least_25_runs_of_many_systems() -> None:
    assert len(RUNS) >= 25
    assert len({run.system for run in RUNS}) >= 25
    assert len({run.name for run in RUNS}) == len(RUNS)
    assert {run.optimizer for run in RUNS} >= {"adamw", "muon", "adafactor"}


def test_every_size_of_a_recipe_whose_decay_is_known_is_in_it_and_no_other() -> None:
    assert {run.name for run in RUNS if run.from_recipe} == {one.name for one in all_recipes() if qualifies(one)}


@pytest.mark.parametrize("run", [run for run in RUNS if run.from_recipe], ids=lambda run: run.name)
def test_a_run_that_a_recipe_holds_has_the_recipes_values(run: PublishedRun) -> None:
    values = {key: sourced.value for key, sourced in recipe(run.name).as_published().values.items()}
    assert (run.weight_decay, run.lr, run.rule, run.optimizer) == tuple(
        values[f"optimizer.{key}"] for key in ("weight_decay", "lr", "rule", "name")
    )
    assert (run.tokens, run.batch_tokens) == (values["run.tokens"], values["run.batch_tokens"])
    assert run.steps == values["run.tokens"] / values["run.batch_tokens"]


def _as_parameters() -> list[Any]:
    """The largest take seconds to build, even without weights."""
    return [
        pytest.param(run, id=run.name, marks=[pytest.mark.long] if run.used > 2e9 and run.system != "moonlight" else [])
        for run in RUNS
        if run.from_recipe
    ]


@pytest.mark.parametrize("run", _as_parameters())
def test_the_parameters_of_a_recipes_run_are_those_of_its_model(run: PublishedRun) -> None:
    shape = recipe(run.name).model
    model = GPT.blueprint(shape)
    assert run.parameters == model.n_parameters()
    assert run.embeddings == sum(table.weight.numel() for table in model.tables())
    idle = 0.0
    if shape.experts is not None:
        unused = 1 - shape.experts.per_token / shape.experts.n_experts
        stacks = [tensor for name, tensor in model.named_parameters() if name.endswith(("expert_up", "expert_down"))]
        idle = sum(unused * stack.numel() for stack in stacks)
    assert run.active == pytest.approx(run.parameters - run.embeddings - idle, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("dclm:411m", 411_616_256),
        ("dclm:1b", 1_439_795_200),
        ("dclm:3b", 2_795_932_160),
        ("dclm:7b-1x", 6_889_410_560),
        ("stablelm:3b-4e1t", 2_795_443_200),
        ("stablelm:3b-alpha-v2", 2_796_431_360),
        ("stablelm:7b-alpha-v2", 6_890_209_280),
    ],
)
def test_parameters_counted_from_a_shape_are_the_published_ones(name: str, published: int) -> None:
    """As dclm's configurations and StableLM's README give them; a smaller vocabulary and no norms make the rest."""
    (run,) = (run for run in RUNS if run.name == name)
    assert run.parameters == pytest.approx(published, rel=1e-3)


def test_every_run_says_where_it_was_read_and_none_is_from_memory() -> None:
    for run in RUNS:
        assert run.tag in ("R", "V"), run.name
        assert "memory" not in run.source + run.note, run.name
        assert "@" in run.source or "arXiv" in run.source or " 20" in run.source, run.name  # a commit or a paper
        assert run.exempt, run.name
        assert run.schedule, run.name


def test_what_a_step_removes_is_what_the_rule_says() -> None:
    for run in RUNS:
        assert run.decay_per_step == pytest.approx(RULES[run.rule].decay_per_step(run.lr, run.weight_decay, run.lr))
        assert run.timescale == pytest.approx(1 / (run.lr * run.decoupled * run.steps))


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8").replace('source = "amber"', 'source = "amberr"', 1)
    text = text.replace("lr = 0.0006", 'lr = "fast"', 1).replace("steps = 9037", "stepz = 9037", 1)
    path = tmp_path / "runs.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_runs_file(path)
    told = "\n".join(caught.value.faults)
    assert all(word in told for word in ("lr", "stepz", "steps")), told
    path.write_text(FILE.read_text(encoding="utf-8").replace('source = "amber"', 'source = "amberr"', 1))
    with pytest.raises(RecipeError, match="no source 'amberr'") as caught:
        read_runs_file(path)
    assert "source 'amber' is nobody's" in str(caught.value)
    path.write_text(text[:100])
    with pytest.raises(RecipeError, match=r"runs\.toml"):
        read_runs_file(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_runs_file(tmp_path / "none.toml")
    assert reader.FILE == FILE


@given(parameters, tokens, rates, st.sampled_from(["adamw", "muon"]))
def test_neighbours_are_one_of_each_system_nearest_first_and_never_a_single_number(
    n: float, d: float, lr: float, optimizer: str
) -> None:
    planned = Planned(n, d, lr, optimizer)
    near = neighbours(planned)
    distances = [distance(run, planned) for run in near.runs]
    assert distances == sorted(distances)
    assert len({run.system for run in near.runs}) == len(near.runs) >= min(SYSTEMS, 4)
    assert {run.optimizer for run in near.runs} == {optimizer}
    assert near.low < near.high
    assert near.low <= near.median <= near.high
    assert near.median in {run.decoupled for run in near.runs}
    assert all(distances[0] <= distance(run, planned) for run in RUNS if run.optimizer == optimizer)


def test_a_run_of_the_database_is_its_own_nearest() -> None:
    for run in RUNS:
        if run.optimizer in ("adamw", "muon"):
            near = neighbours(Planned(run.used, run.tokens, run.lr, run.optimizer))
            assert distance(near.runs[0], Planned(run.used, run.tokens, run.lr)) == pytest.approx(0)
            assert not near.is_far


def test_a_plan_far_from_every_run_is_told_as_far() -> None:
    near = neighbours(Planned(1e6, 1e6, 1e-3))
    assert near.is_far
    assert near.far == pytest.approx(max(near.runs[0].used / 1e6, near.runs[0].tokens / 1e6))
    some = [replace(run, weight_decay=0.3) for run in RUNS if run.optimizer == "adamw"]
    alike = neighbours(Planned(1e9, 1e11, 3e-4), some)
    assert math.isclose(alike.low, alike.high)  # where all agree no neighbour can widen the range
    assert len(alike.runs) == len({run.system for run in some})
