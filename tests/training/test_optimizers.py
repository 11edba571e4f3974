from __future__ import annotations

import dataclasses
import math
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import tomli_w
import torch

import weightdecay
from weightdecay.declared.fields import choices
from weightdecay.errors import ConfigError
from weightdecay.models.decoder import GPT
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.muon import Muon
from weightdecay.planning.roles.roles import Role
from weightdecay.recipes.rows import RoleOf
from weightdecay.recipes.schema import Recipe, all_recipes, recipe, systems
from weightdecay.recipes.settings import TrainConfig, known_keys
from weightdecay.rules import group_decay_per_step
from weightdecay.runs import Run, read_json
from weightdecay.training.briefing import briefing, document
from weightdecay.training.needs import needs_of
from weightdecay.training.optimizers import decay_plan, make_optimizer
from weightdecay.training.progress import SilentReporter
from weightdecay.training.setup import set_up
from weightdecay.training.trainer import train


def test_palm_as_published_shrinks_a_weight_without_gradient_by_exactly_the_square_of_the_rate() -> None:
    torch.manual_seed(0)
    config = recipe("palm:nano").as_published().config()
    model = GPT(config.model.replace(vocab_size=64)).double()
    optimizer = make_optimizer(config.optimizer, decay_plan(model, config.optimizer))
    assert isinstance(optimizer, Adafactor)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
        decay = group_decay_per_step(group)
        assert decay is not None
        assert decay == (pytest.approx(9e-6, abs=1e-12) if group["weight_decay"] else 0.0)
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 - 9e-6 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-12, atol=0)
        # neither factored nor without momentum
        assert set(optimizer.state[parameter]) == {"step", "variance", "exp_avg"}


def test_the_rows_of_a_palm_run_as_published_have_a_decay_per_step_of_the_rate_squared(
    small_text: Path, tmp_path: Path
) -> None:
    config = recipe("palm:nano").as_published().config(
        {
            "data.sources": (str(small_text),), "data.tokenizer": "byte", "model.n_layers": 1, "model.d_model": 32,
            "model.n_heads": 2, "model.head_dim": 16, "model.d_ff": 64, "model.context": 16, "run.batch_tokens": 64,
            "run.steps": 30, "run.out": str(tmp_path / "run"),
        }
    )  # fmt: skip
    run = train(config, reporter=SilentReporter())
    rows = list(run.rows("train"))
    assert len(rows) == 30
    assert rows[0]["lr"] == 1e-2
    assert rows[-1]["lr"] < 5e-3
    for row in rows:
        assert row["decay_per_step"] == pytest.approx(row["lr"] ** 2, abs=1e-12)
    settings = Run.open(run.path).config().optimizer
    assert (settings.name, settings.rule, settings.weight_decay) == ("adafactor", "lr_squared", 1.0)


@pytest.mark.parametrize("name", ["olmo2:nano", "olmo3:nano"])
def test_olmo_decays_its_gains_and_spares_its_embedding(name: str) -> None:
    config = recipe(name).config()
    decided = decay_plan(GPT.blueprint(config.model), config.optimizer)
    assert decided["embedding.weight"].weight_decay == 0.0
    for name in ("head.weight", "norm.weight", "blocks.0.attention.query_norm.weight", "blocks.1.attention.out.weight"):
        assert decided[name].weight_decay == 0.1


@pytest.mark.parametrize("system", systems())
def test_the_policy_of_every_recipe_plans_its_own_model(system: str) -> None:
    config = recipe(f"{system}:nano").config()
    model = GPT.blueprint(config.model)
    decided = decay_plan(model, config.optimizer)
    decaying = sum(p.numel() for name, p in model.named_parameters() if decided[name].weight_decay > 0)
    assert decaying > 0.6 * model.n_parameters() or system in ("olmo2", "olmo3")


def test_opt_and_moonlight_decay_everything() -> None:
    for name in ("opt:nano", "moonlight:nano"):
        config = recipe(name).config()
        decided = decay_plan(GPT.blueprint(config.model), config.optimizer)
        names = [tensor for tensor, _ in GPT.blueprint(config.model).named_parameters()]
        assert {decided[tensor].weight_decay for tensor in names} == {0.1}, name


@pytest.mark.parametrize(
    ("name", "lr", "weight_decay", "rate"),
    [("nanochat:d12", 0.02, 0.28, 1.0), ("nanochat:d24", 0.02 * 2**0.5, 0.0597, 2**0.5)],
)
def test_nanochats_tensors_have_its_rates_and_decays(name: str, lr: float, weight_decay: float, rate: float) -> None:
    """karpathy/nanochat@92d63d4, setup_optimizer(): d24 doubles the batch, and the width divides some by √2 again."""
    config = recipe(name).config({"model.n_layers": 2, "model.vocab_size": 64, "model.context": 16})
    model = GPT(config.model)
    optimizer = make_optimizer(config.optimizer, decay_plan(model, config.optimizer))
    assert isinstance(optimizer, Muon)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    for tensor, its_lr, decay, betas in (
        ("embedding.weight", 0.3, 0.001, (0.8, 0.995)),
        ("head.weight", 0.008, 0.01, (0.8, 0.96)),
        ("value_embeddings.1.weight", 0.15, 0.01, (0.8, 0.995)),
        ("residual_scales.residual_scale", 0.005 * rate, 0.05, (0.8, 0.95)),
        ("residual_scales.input_scale", 0.5 * rate, 0.0, (0.96, 0.95)),
        ("smear.amount.weight", 0.2, 0.0, (0.8, 0.95)),
        ("smear.scale", 0.2, 0.0, (0.8, 0.95)),
        ("backout_scale", 0.2, 0.0, (0.8, 0.95)),
    ):
        group = seen.pop(tensor)
        assert (group["algorithm"], group["rule"], group["betas"], group["eps"]) == ("adamw", "decoupled", betas, 1e-10)
        assert group["lr"] == pytest.approx(its_lr, rel=1e-3), tensor
        assert group["weight_decay"] == pytest.approx(decay, rel=2e-3), tensor
    kinds = [tensor.partition(".")[2].partition(".")[2] for tensor in seen]
    assert sorted(kinds) == sorted([*2 * MATRICES, "attention.value_gate.weight"])
    for tensor, group in seen.items():
        assert (group["algorithm"], group["rule"], group["lr"]) == ("muon", "cautious", pytest.approx(lr, rel=1e-6))
        assert (group["orthogonalisation"], group["ns_steps"], group["nesterov"]) == ("polar_express", 5, True)
        assert (group["equal_rows"], group["neuron_beta2"], group["adjust_lr_fn"]) == (True, 0.9, "original")
        assert group["stacked"] == (3 if "qkv" in tensor else 1), tensor
        twice = 2 if "feedforward.up" in tensor else 1  # the scaled rate of a matrix four times as high as wide
        assert group["weight_decay"] == pytest.approx(twice * weight_decay, rel=2e-3), tensor


def test_moonlights_gates_and_values_are_matrices_of_their_own_in_every_expert() -> None:
    config = recipe("moonlight:nano").config()
    model = GPT.blueprint(config.model)
    optimizer = make_optimizer(config.optimizer, decay_plan(model, config.optimizer))
    stacked = {
        name: group["stacked"]
        for group in optimizer.param_groups
        if group["algorithm"] == "muon"
        for name in group["param_names"]
    }
    doubled = {name for name, number in stacked.items() if number == 2}
    assert doubled == {
        "blocks.0.feedforward.up.weight",
        *(f"blocks.{layer}.feedforward.{kind}" for layer in (1, 2) for kind in ("expert_up", "shared.up.weight")),
    }
    assert set(stacked.values()) == {1, 2}


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(one, id=f"{one.system}:{one.size}", marks=() if one.size == "nano" else pytest.mark.long)
        for one in all_recipes()
    ],
)
def test_the_trainer_and_the_library_split_every_recipe_alike(one: Recipe) -> None:
    config = one.config(OF_TWO_LAYERS if one.config().model.n_layers > 4 else {})
    settings = dataclasses.replace(config.optimizer, name="muon", rule="decoupled", weight_decay=0.1)
    decided = decay_plan(GPT.blueprint(config.model), settings)
    ours, library = make_optimizer(settings, decided), weightdecay.Muon(decided, lr=settings.lr)
    assert algorithms(ours) == algorithms(library)
    assert set(algorithms(ours).values()) == {"muon", "adamw"}
    for optimizer in (ours, library):
        shares = {
            name: (group["decay_multiplier"], group["lr_multiplier"])
            for group in optimizer.param_groups
            for name in group["param_names"]
        }
        assert shares == {t.name: (t.multiplier, t.lr_multiplier) for t in decided if t.name in shares}


# Large systems have layers of two kinds at most, and a few more numbers that hold for as many layers.
OF_TWO_LAYERS = {"model.n_layers": 4, "model.vocab_size": 256}


def algorithms(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    return {name: group["algorithm"] for group in optimizer.param_groups for name in group["param_names"]}


def test_moonlights_routers_are_muons_as_published_and_its_plan_says_so() -> None:
    config = recipe("moonlight:nano").config()
    decided = decay_plan(GPT.blueprint(config.model), config.optimizer)
    router = "blocks.1.feedforward.router.weight"
    assert algorithms(make_optimizer(config.optimizer, decided))[router] == "muon"
    assert decided[router].reason == "linear weight: override 'router'"
    by_role = decay_plan(GPT(config.model), dataclasses.replace(config.optimizer, role_overrides=()))
    assert algorithms(make_optimizer(config.optimizer, by_role))[router] == "adamw"


def test_a_role_that_is_none_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe("moonlight:nano").config({"optimizer.role_overrides": ("router=linear wieght", "=bias", "gate")})
    assert len(caught.value.faults) == 3
    assert "did you mean 'linear weight'" in str(caught.value)


def test_a_run_of_experts_that_muon_trained_before_roles_decided_goes_on_as_it_was(
    small_text: Path, tmp_path: Path
) -> None:
    values = {"run.steps": 2, "run.checkpoint_every": 1, "model.n_layers": 2}
    run = train(tiny("moonlight:nano", small_text, tmp_path, values), reporter=SilentReporter())
    path = run.path / "run.toml"
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    del document["schema_version"], document["optimizer"]["role_overrides"]
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    assert Run.open(run.path).config().optimizer.role_overrides == (RoleOf(pattern="router", role=Role.LINEAR),)
    longer = tiny("moonlight:nano", small_text, tmp_path, values | {"run.steps": 3})
    resumed = train(longer, on_change="override", resume="must", reporter=SilentReporter())
    assert [row["step"] for row in resumed.rows("train")] == [1, 2, 3]


MATRICES = ["attention.qkv.weight", "attention.out.weight", "feedforward.up.weight", "feedforward.down.weight"]


def test_nanochats_lambda_falls_for_its_matrices_alone_and_its_momentum_moves(small_text: Path, tmp_path: Path) -> None:
    values = {"run.steps": 4, "schedule.momentum_rise_steps": 2, "schedule.decay_fraction": 0.5}
    run = train(tiny("nanochat:nano", small_text, tmp_path, values), reporter=SilentReporter())
    state = read_json(run.checkpoints / "step-00000004" / "state.json")
    groups = {name: group for group in state["optimizer"]["groups"] for name in group["params"]}
    left = 0.5 * (1 + math.cos(math.pi * 3 / 4))
    assert groups["head.weight"]["weight_decay"] == pytest.approx(0.01, rel=1e-3)
    assert groups["blocks.0.attention.qkv.weight"]["weight_decay"] == pytest.approx(0.28 * left)
    assert groups["blocks.0.feedforward.up.weight"]["weight_decay"] == pytest.approx(0.56 * left)
    assert groups["blocks.0.attention.qkv.weight"]["momentum"] == pytest.approx((0.97 + 0.9) / 2)
    rows = list(run.rows("train"))
    assert [row["weight_decay"] for row in rows] == [
        pytest.approx(0.14 * (1 + math.cos(math.pi * step / 4))) for step in range(4)
    ]
    assert all(row["decay_per_step"] == pytest.approx(row["lr"] * row["weight_decay"]) for row in rows)


def test_multipliers_that_cannot_be_read_or_match_nothing_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe("gpt3:nano").config(
            {"optimizer.lr_multipliers": ("^embedding",), "optimizer.weight_decay_multipliers": ("x=much",)}
        )
    assert len(caught.value.faults) == 2
    stray = recipe("gpt3:nano").config({"optimizer.lr_multipliers": [{"pattern": "^embeding", "factor": 2}]})
    model = GPT.blueprint(stray.model)
    with pytest.raises(ConfigError, match="matches no tensor"):
        decay_plan(model, stray.optimizer)


def test_settings_of_muon_by_pattern_that_match_nothing_are_refused_together() -> None:
    config = recipe("nanochat:nano").config(
        {
            "optimizer.muon_stacked": [{"pattern": "attention.kqv", "matrices": 3}],
            "optimizer.beta1_overrides": [{"pattern": "(", "beta": 0.9}],
        }
    )
    model = GPT.blueprint(config.model)
    with pytest.raises(ConfigError) as caught:
        decay_plan(model, config.optimizer)
    for words in ("'attention.kqv' matches no tensor", "is no regular expression"):
        assert sum(words in fault for fault in caught.value.faults) == 1, words


def tiny(name: str, text: Path, folder: Path, values: Mapping[str, object]) -> TrainConfig:
    shape = {
        "data.sources": (str(text),), "data.tokenizer": "byte", "model.n_layers": 1, "model.d_model": 32,
        "model.n_heads": 2, "model.context": 16, "run.batch_tokens": 128, "run.out": str(folder / "whole"),
    }  # fmt: skip
    return recipe(name).config(shape | dict(values))


@pytest.mark.parametrize("name", [*choices(known_keys()["optimizer.name"].hint), "nanochat"])
def test_every_optimizer_by_name_trains_and_resumes_bit_for_bit(name: str, small_text: Path, tmp_path: Path) -> None:
    values: dict[str, object] = {"run.steps": 8, "run.checkpoint_every": 4, "run.batch_ramp": ("0:32", "100:128")}
    if name == "nanochat":
        values |= {"schedule.momentum_rise_steps": 3}
    else:
        rule = "l2" if name == "adam_l2" else "decoupled"
        values |= {"optimizer.name": name, "optimizer.lr": 1e-3, "optimizer.rule": rule}
    whole = tiny("nanochat:nano" if name == "nanochat" else "gpt3:nano", small_text, tmp_path, values)
    train(whole, reporter=SilentReporter())
    part = whole.replace(run__out=str(tmp_path / "parts"))
    left = shutil.ignore_patterns("step-00000008", "summary.json")  # as if it had been killed before its last save
    shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=left)
    settings = tmp_path / "parts" / "run.toml"
    settings.write_text(settings.read_text().replace(str(tmp_path / "whole"), str(tmp_path / "parts")))
    train(part, reporter=SilentReporter())
    weights = [
        (tmp_path / kind / "checkpoints" / "step-00000008" / "model.safetensors").read_bytes()
        for kind in ("whole", "parts")
    ]
    assert weights[0] == weights[1]
    tokens = [row["tokens"] for row in Run(tmp_path / "whole").rows("train")]
    assert tokens[0] == 32
    assert tokens[-1] - tokens[-2] == 128


def small(text: Path, folder: Path, **settings: object) -> TrainConfig:
    values = {
        "data.sources": (str(text),), "data.tokenizer": "byte", "model.n_layers": 1, "model.d_model": 32,
        "model.n_heads": 2, "model.context": 16, "run.batch_tokens": 64, "run.steps": 6, "run.out": str(folder / "run"),
        **{f"optimizer.{key}": value for key, value in settings.items()},
    }  # fmt: skip
    return recipe("gpt3:nano").config(values)


@pytest.mark.parametrize("name", ["adam_l2", "sgdw"])
def test_a_coupled_run_says_that_it_has_no_decay_per_step(name: str, small_text: Path, tmp_path: Path) -> None:
    config = small(small_text, tmp_path, name=name, rule="l2")
    setup = set_up(config)
    words = "".join(str(part) for part in briefing(setup, needs_of(setup)).renderables)
    assert "(l2), through the gradient" in words
    assert "Σ of the decay per step" not in words
    assert set(document(setup, needs_of(setup))["decay"].values()) == {None}
    run = train(config, reporter=SilentReporter())
    rows = list(run.rows("train"))
    assert len(rows) == 6
    assert all(row["decay_per_step"] is None and row["weight_decay"] == 0.1 for row in rows)
    assert read_json(run.path / "summary.json")["decay_total"] is None


def test_a_run_of_adam_l2_makes_the_steps_of_torchs_adam() -> None:
    """One coupled step against torch's own, on the tensors that the plan decays and on the others."""
    torch.manual_seed(0)
    config = recipe("gpt3:nano").config({"optimizer.name": "adam_l2", "optimizer.rule": "l2"})
    ours, theirs = (GPT(config.model.replace(vocab_size=64, n_layers=1)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = config.optimizer
    optimizer = make_optimizer(settings, decay_plan(ours, settings))
    decayed = {name for group in optimizer.param_groups if group["weight_decay"] for name in group["param_names"]}
    groups = [
        {"params": [p], "weight_decay": settings.weight_decay if name in decayed else 0.0}
        for name, p in theirs.named_parameters()
    ]
    reference = torch.optim.Adam(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [("adam_l2", "decoupled", "its only one is --rule l2"), ("adamw", "l2", "--set optimizer.name=adam_l2")],
)
def test_a_rule_that_an_optimizer_does_not_have_is_refused_with_the_way_out(
    name: str, rule: str, words: str, small_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        set_up(small(small_text, tmp_path, name=name, rule=rule))
