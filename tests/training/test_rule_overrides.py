"""Rules of some tensors, and a λ that falls as 1/t, from a configuration."""

from __future__ import annotations

import pytest

from weightdecay import recipe
from weightdecay.errors import ConfigError
from weightdecay.models.decoder import GPT
from weightdecay.training.optimizers import decay_plan, make_optimizer, rule_faults
from weightdecay.training.timing import weight_decay_schedule

GAINS = r"attention_norm\.weight$"


def settings(**more: object):  # type: ignore[no-untyped-def]
    given = {"optimizer.weight_decay_multipliers": [{"pattern": GAINS, "factor": 1.0}], "model.n_layers": 1}
    return recipe("gpt3:nano").config({**given, **more})


@pytest.mark.parametrize("name", ["adamw", "lion", "sgdw", "adafactor"])
def test_a_rule_of_some_tensors_reaches_their_group_and_leaves_the_others(name: str) -> None:
    config = settings(**{
        "optimizer.name": name, "optimizer.rule_overrides": [{"pattern": GAINS, "rule": "towards_one"}],
    })  # fmt: skip
    model = GPT(config.model)

    optimizer = make_optimizer(config.optimizer, decay_plan(model, config.optimizer))

    ruled = {name: group["rule"] for group in optimizer.param_groups for name in group["param_names"]}
    assert {name for name, rule in ruled.items() if rule == "towards_one"} == {"blocks.0.attention_norm.weight"}
    assert set(ruled.values()) == {"towards_one", "decoupled"}


def test_a_pattern_that_matches_no_tensor_is_a_fault() -> None:
    config = settings(**{"optimizer.rule_overrides": [{"pattern": "attention_nrom", "rule": "towards_one"}]})
    with pytest.raises(ConfigError, match="'attention_nrom' matches no tensor"):
        make_optimizer(config.optimizer, decay_plan(GPT(config.model), config.optimizer))


@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [("adamw", "towards_oen", "towards_one"), ("adamw", "l2", "through the gradient"), ("muon", "fixed", "adamw_rule")],
)
def test_a_rule_that_no_tensor_can_have_by_itself_is_a_fault(name: str, rule: str, words: str) -> None:
    config = settings(**{
        "optimizer.name": name, "optimizer.rule_overrides": [{"pattern": GAINS, "rule": rule}],
    })  # fmt: skip
    assert words in rule_faults(config.optimizer)[0]


def test_one_over_t_begins_at_lambda_and_is_half_of_it_after_its_half_steps() -> None:
    config = settings(**{
        "optimizer.weight_decay": 0.4, "schedule.weight_decay_shape": "one_over_t",
        "schedule.weight_decay_half_steps": 10,
    })  # fmt: skip
    decay = weight_decay_schedule(config)
    assert [decay(step) for step in (0, 10, 30)] == [0.4, 0.2, 0.1]
