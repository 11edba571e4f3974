"""Norm gains by where the norm stands: policies address them; where opinion is divided, comparisons give both sides."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

import weightdecay
from weightdecay import PlanError
from weightdecay.models.decoder import GPT
from weightdecay.planning.lockfile import read_lock, write_lock
from weightdecay.planning.policies.opinions import BY_NORM, BY_ROLE, opinion
from weightdecay.planning.policies.policy_file import read_policy
from weightdecay.planning.policies.role_policies import ROLE_POLICIES
from weightdecay.planning.render import comparison, comparison_document
from weightdecay.planning.roles.roles import NormPlace, Role
from weightdecay.recipes.schema import recipe


def decoder(placement: str) -> nn.Module:
    config = recipe("olmo2:nano").model.replace(norm_placement=placement)
    return GPT.blueprint(config)


def gains(plan: weightdecay.DecayPlan) -> dict[str, NormPlace | None]:
    return {tensor.name: tensor.norm for tensor in plan if tensor.role is Role.NORM_GAIN}


def test_each_gain_of_a_decoder_stands_where_it_stands() -> None:
    before, after = gains(weightdecay.plan(decoder("pre"))), gains(weightdecay.plan(decoder("output")))
    assert before["blocks.0.attention_norm.weight"] is NormPlace.INPUT
    assert after["blocks.0.attention_norm.weight"] is NormPlace.OUTPUT
    for found in (before, after):
        assert found["blocks.1.attention.key_norm.weight"] is NormPlace.QUERY_KEY
        assert found["norm.weight"] is NormPlace.FINAL


def test_qwen3_next_decays_the_gains_of_queries_and_keys_and_else_does_as_default() -> None:
    plan, default = (weightdecay.plan(decoder("pre"), policy=policy) for policy in ("qwen3-next", "default"))
    changed = {difference.name for difference in plan.diff(default)}
    assert changed == {name for name, norm in gains(plan).items() if norm is NormPlace.QUERY_KEY}
    assert len(changed) == 2 * 3
    assert all(plan[name].decays and not default[name].decays for name in changed)


@pytest.mark.parametrize("policy", ["default", "all", "none", "matrices", "no-embeddings", "olmo2"])
def test_other_policies_make_no_difference_by_place(policy: str) -> None:
    assert ROLE_POLICIES[policy].norms == {}


@pytest.mark.parametrize("place", NormPlace)
def test_a_policy_file_addresses_each_place(place: NormPlace, tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(f'[norms]\n"{place}" = 0.25\n', encoding="utf-8")
    plan = weightdecay.plan(decoder("pre"), 0.2, policy=path)
    for name, norm in gains(plan).items():
        assert plan[name].multiplier == (0.25 if norm is place else 0.0), name


def test_what_a_file_says_of_all_gains_goes_before_what_its_base_says_of_some(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text('base = "qwen3-next"\n[roles]\n"norm gain" = 0.0\n', encoding="utf-8")
    assert read_policy(path)[0].norms == {}
    path.write_text('base = "qwen3-next"\n[norms]\n"final norm" = 0.5\n', encoding="utf-8")
    assert read_policy(path)[0].norms == {NormPlace.QUERY_KEY: 1.0, NormPlace.FINAL: 0.5}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[norms]\n"query norm" = 1', "unknown key 'norms.query norm': did you mean 'query/key norm'"),
        ('[norms]\n"final norm" = -1', "norms.final norm = -1: must be a number of at least 0"),
        ("norms = 3", "norms = 3: must be a table, each value a number of at least 0"),
        ("roles = []", "roles = []: must be a table, each value a number of at least 0"),
    ],
)
def test_a_place_that_is_none_is_named_with_the_nearest(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        read_policy(path)
    assert says in str(caught.value)


def test_the_place_is_shown_and_kept(tmp_path: Path) -> None:
    plan = weightdecay.plan(decoder("pre"))
    text = str(plan)
    for shown in ("norm gain (q/k)", "norm gain (input)", "norm gain (final)"):
        assert shown in text
    write_lock(plan, tmp_path / "plan.json")
    assert gains(read_lock(tmp_path / "plan.json")) == gains(plan)
    lines = {line["name"]: line for line in json.loads(plan.to_json())["tensors"]}
    assert lines["norm.weight"]["norm"] == "final norm"
    assert "norm" not in lines["head.weight"]
    moved = plan.diff(weightdecay.plan(decoder("output")))
    assert "norm input norm → output norm" in str(moved)


# --- opinions


def shown(what: object) -> str:
    console = Console(file=io.StringIO(), width=1000, color_system=None)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("placement", "about", "sources"),
    [
        ("pre", "norm gain (input)", ["2605.26895", "nanoGPT"]),
        ("output", "norm gain (output)", ["2605.26895", "OLMo"]),
        ("pre", "norm gain (q/k)", ["PR #2753", "nanoGPT"]),
        ("pre", "embedding", ["OLMo-core@fa6c501", "nanoGPT"]),
    ],
)
def test_where_opinions_differ_both_sides_are_given_with_their_sources(
    placement: str, about: str, sources: list[str]
) -> None:
    plan = weightdecay.plan(decoder(placement))
    other = plan.under("olmo2")
    (line,) = [line for line in shown(comparison(plan, other)).splitlines() if line.startswith(f"{about}: ")]
    assert line.startswith(f"{about}: opinions differ. Decay: ")
    assert " No decay: " in line
    assert all(source in line for source in sources)
    told = {one["about"]: one for one in comparison_document(plan, other)["opinions"]}
    assert set(told[about]) == {"about", "decay", "no_decay"}


def test_where_practice_agrees_the_consequence_is_told_and_no_opinion() -> None:
    plan = weightdecay.plan(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    text = shown(comparison(plan, plan.under("torch")))
    assert "bias: a bias has no scale" in text
    assert "opinions differ" not in text
    assert comparison_document(plan, plan.under("torch"))["opinions"] == []


def test_every_opinion_has_two_sides_and_the_disputed_roles_have_one() -> None:
    for one in [*BY_ROLE.values(), *BY_NORM.values()]:
        assert one.decays
        assert one.exempts
    for role in (Role.LEARNED_TOKEN, Role.RELATIVE_POSITION, Role.EMBEDDING):
        assert opinion(role, None) is not None
    assert opinion(Role.LINEAR, None) is None
    assert opinion(Role.BIAS, NormPlace.INPUT) is None
