from __future__ import annotations

from pathlib import Path

import pytest
import torch

from weightdecay.errors import ConfigError, DamagedError
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.loading import load_weights
from weightdecay.recipes.layers import laid_over
from weightdecay.recipes.schema import recipe
from weightdecay.training.progress import SilentReporter
from weightdecay.training.resuming import agree_on_config, config_changes, with_recorded_choice
from weightdecay.training.trainer import train
from weightdecay.training.verification import verify

WHERE = Path("model.safetensors")
CONFIG = ModelConfig(vocab_size=5, context=4, n_layers=2, d_model=8, n_heads=2)


def test_every_name_shape_and_dtype_that_differs_is_listed_and_nothing_is_loaded() -> None:
    model = GPT(CONFIG)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    tensors = {name: tensor + 1 for name, tensor in before.items()}
    del tensors["norm.bias"]
    tensors["more.weight"] = torch.zeros(1)
    tensors["positions.weight"] = torch.zeros(8, 4)
    tensors["norm.weight"] = tensors["norm.weight"].bfloat16()
    with pytest.raises(DamagedError) as caught:
        load_weights(model, tensors, WHERE)
    assert str(caught.value).splitlines() == [
        "model.safetensors: no tensor 'norm.bias'",
        "model.safetensors: tensor 'more.weight' is not this model's",
        "model.safetensors: tensor 'norm.weight' is torch.bfloat16 [8], this model's torch.float32 [8]",
        "model.safetensors: tensor 'positions.weight' is torch.float32 [8, 4], this model's torch.float32 [4, 8]",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_weights_are_loaded_by_name_whatever_their_order() -> None:
    model = GPT(CONFIG)
    wanted = {name: torch.randn_like(tensor) for name, tensor in model.named_parameters()}
    load_weights(model, dict(reversed(wanted.items())), WHERE)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.named_parameters())


def test_a_part_that_one_of_two_models_lacks_is_told_and_can_be_kept() -> None:
    dense = recipe("llama2:nano").config()
    routed = dense.replace(model__n_experts=2, model__experts_per_token=1)
    for old, new in ((dense, routed), (routed, dense)):
        changes = config_changes(old, new)
        assert any("no such part" in words for words in changes.values())
        assert all(key.startswith("model.experts.") for key in changes)
        with pytest.raises(ConfigError, match=r"model\.experts\.n_experts: .*this cannot change on the way"):
            agree_on_config(old, new, "override", print)
        assert agree_on_config(old, new.replace(optimizer__lr=9.0), "keep", print) == old


def test_a_resume_keeps_the_weight_decay_that_auto_took_and_why() -> None:
    fresh = recipe("gpt3:nano").config()
    recorded = fresh.resolved(optimizer__weight_decay=0.37, optimizer__weight_decay_source="auto: a law of then")
    for asked in (fresh.resolved(optimizer__weight_decay="auto"), fresh.resolved(optimizer__weight_decay=0.37)):
        assert with_recorded_choice(recorded, asked) == recorded
        assert not config_changes(recorded, with_recorded_choice(recorded, asked))
    other = fresh.resolved(optimizer__weight_decay=0.2)
    assert with_recorded_choice(recorded, other) == other
    assert list(config_changes(recorded, other)) == ["optimizer.weight_decay"]
    auto = fresh.resolved(optimizer__weight_decay="auto")
    assert with_recorded_choice(fresh, auto) == auto  # the run's λ was given: auto is another


def test_a_weight_decay_given_anew_drops_the_reason_for_the_one_before() -> None:
    below = {"optimizer.weight_decay": 0.37, "optimizer.weight_decay_source": "auto: …", "optimizer.lr": 1e-3}
    assert laid_over(below, {"optimizer.weight_decay": 0.2}) == {"optimizer.weight_decay": 0.2, "optimizer.lr": 1e-3}


def test_a_resumed_run_goes_on_with_what_auto_recorded_though_it_would_take_another_now(
    small_text: Path, tmp_path: Path
) -> None:
    """As if an older database had taken 0.37; the run is made longer, which is all that may change."""
    config = recipe("gpt2:nano").config({
        "data.sources": (str(small_text),), "data.tokenizer": "byte", "model.n_layers": 1, "model.d_model": 16,
        "model.n_heads": 2, "model.context": 16, "run.batch_tokens": 64, "run.steps": 2,
        "optimizer.weight_decay": "auto", "run.out": str(tmp_path / "run"),
    })  # fmt: skip
    run = train(config, reporter=SilentReporter())
    taken = run.config().optimizer
    assert taken.weight_decay == 0.1
    assert taken.weight_decay_source.startswith("auto: median of the 7 nearest published runs (")
    recorded = (run.path / "run.toml").read_text(encoding="utf-8")
    (run.path / "run.toml").write_text(
        recorded.replace("weight_decay = 0.1\n", "weight_decay = 0.37\n"), encoding="utf-8"
    )

    train(config.replace(run__steps=4), on_change="override", reporter=SilentReporter())
    assert run.config().optimizer.weight_decay == 0.37
    assert run.config().optimizer.weight_decay_source == taken.weight_decay_source
    assert [row["weight_decay"] for row in run.rows("train")][-2:] == [0.37, 0.37]
    assert verify(run, {"optimizer.weight_decay": "auto"}).changes == []
