"""transformers' Trainer, audited by our callback, and with groups by our plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import weightdecay
from tests.frameworks.small import Listed, Tokens, codes, llama, mamba
from weightdecay.planning.policies.overrides import Override

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate: make .venv-frameworks/.ready")

from weightdecay.integrations.transformers import AuditCallback, PlannedDecay  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
STEPS = 4


class PlannedTrainer(PlannedDecay, transformers.Trainer):  # type: ignore[misc]  # not read for types
    """As the page shows it."""


def trainer(
    folder: Path, model: Any, callback: Any = None, cls: Any = transformers.Trainer, optimizer: Any = None, **args: Any
) -> Any:
    settings = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "weight_decay": 0.1,
        "learning_rate": 1e-3, "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no",
        "logging_steps": 1, "gradient_accumulation_steps": 2, "seed": 0,
    }  # fmt: skip
    return cls(
        model=model,
        args=transformers.TrainingArguments(**{**settings, **args}),
        train_dataset=Tokens(),
        callbacks=[callback] if callback else [],
        **({"optimizers": (optimizer, None)} if optimizer else {}),
    )


def losses(trained: Any) -> list[float]:
    return [row["loss"] for row in trained.state.log_history if "loss" in row]


def test_a_healthy_training_is_silent_and_the_same_as_its_twin_that_nobody_audits(tmp_path: Path) -> None:
    callback = AuditCallback(at_steps=(1, STEPS))
    audited, alone = trainer(tmp_path, llama(), callback), trainer(tmp_path, llama())
    audited.train()
    alone.train()
    assert list(callback.audits) == [1, STEPS]
    assert all(audit.ok for audit in callback.audits.values()), callback.audits
    assert losses(audited) == losses(alone)
    assert len(losses(alone)) == STEPS
    for here, there in zip(audited.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(here, there)


def test_mambas_state_space_parameters_decay_in_the_trainer_and_not_under_a_plan(tmp_path: Path) -> None:
    callback, planned = AuditCallback(), AuditCallback()
    trainer(tmp_path, mamba(), callback).train()
    trainer(tmp_path, mamba(), planned, PlannedTrainer).train()
    (wrong,) = codes(callback.audits[1]).items()
    assert wrong[0] == "decays-exempt"
    assert {name.rpartition(".")[2] for name in wrong[1]} >= {"A_log", "D"}
    assert any(name.endswith("norm_f.weight") for name in wrong[1])
    assert planned.audits[1].ok, planned.audits[1]


def test_an_optimizer_that_couples_its_decay_is_found(tmp_path: Path) -> None:
    model, callback = llama(), AuditCallback()
    optimizer = torch.optim.Adam(weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3))
    trainer(tmp_path, model, callback, optimizer=optimizer).train()
    assert set(codes(callback.audits[1])) == {"coupled"}


def test_a_decay_that_the_arguments_ask_for_and_an_optimizer_does_not_have_is_found(tmp_path: Path) -> None:
    model, tracker = llama(), Listed()
    callback = AuditCallback(trackers=tracker)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    trainer(tmp_path, model, callback, optimizer=optimizer).train()
    assert not callback.audits[1].ok
    assert tracker.ends == ["start", "close"]
    first, *alarms = tracker.rows
    assert (first["kind"], first["step"], first["errors"]) == ("audit", 1, len(alarms))
    assert {row["severity"] for row in alarms} == {"error"}


def test_a_finding_ends_the_training_where_that_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(weightdecay.CheckFailedError, match="decays-exempt"):
        trainer(tmp_path, mamba(), AuditCallback(fail_on="warning")).train()


def test_a_plans_shares_of_lambda_reach_the_optimizer(tmp_path: Path) -> None:
    class Halved(PlannedTrainer):
        decay_overrides = (Override("embed_tokens", 0.5),)

    made = trainer(tmp_path, llama(), cls=Halved)
    made.train()
    shares = {
        name: group["weight_decay"]
        for group in made.optimizer.param_groups
        for name, parameter in made.model.named_parameters()
        if any(parameter is one for one in group["params"])
    }
    assert len(shares) == len(list(made.model.parameters()))
    assert shares["model.embed_tokens.weight"] == pytest.approx(0.05)
    assert shares["model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.1)
    assert shares["model.norm.weight"] == 0.0


def test_the_plans_names_are_those_of_a_wrapped_model(tmp_path: Path) -> None:
    made = trainer(tmp_path, mamba(), cls=PlannedTrainer)
    bare = made.get_decay_parameter_names(made.model)
    wrapped = made.get_decay_parameter_names(torch.nn.DataParallel(made.model))
    assert wrapped == [f"module.{name}" for name in bare]
    assert set(bare) < set(transformers.Trainer.get_decay_parameter_names(made, made.model))


def test_a_training_that_goes_on_counts_its_steps_from_the_beginning(tmp_path: Path) -> None:
    trainer(tmp_path, llama(), save_strategy="steps", save_steps=2, max_steps=2).train()
    callback = AuditCallback(at_steps=(1, 3))
    trainer(tmp_path, llama(), callback).train(resume_from_checkpoint=True)
    assert list(callback.audits) == [3]
    assert callback.audits[3].ok, callback.audits[3]
