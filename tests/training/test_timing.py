from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.data.batches import BatchSizes
from weightdecay.errors import ConfigError
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.training.timing import batch_sizes, lr_schedule, weight_decay_schedule


def config_of(name: str, **values: Any) -> TrainConfig:
    return recipe(name).config({key.replace("__", "."): value for key, value in values.items()})


def sizes_of(config: TrainConfig) -> BatchSizes:
    return batch_sizes(config.run, config.model.context)


@given(
    ramp=st.lists(st.integers(1, 50), max_size=20), full=st.integers(1, 60), context=st.integers(1, 8),
    step=st.integers(0, 60),
)  # fmt: skip
def test_the_tokens_before_a_step_are_those_of_the_steps_before_it(
    ramp: list[int], full: int, context: int, step: int
) -> None:
    sizes = BatchSizes(context, full, tuple(ramp))
    before = sum(sizes.tokens_at(earlier) for earlier in range(step))
    assert sizes.tokens_before(step) == before
    assert sizes.steps_for(before) == (step if step else 0)
    assert sizes.steps_for(before + 1) == step + 1


def test_gpt3s_batch_grows_in_a_straight_line_over_the_tokens_that_are_published() -> None:
    config = config_of("gpt3:175b")
    sizes = sizes_of(config)
    assert sizes.tokens_at(0) == 16 * 2048  # 32k
    assert sizes.full == 1562  # 3.2M
    end = len(sizes.ramp)
    assert sizes.tokens_before(end) == pytest.approx(12e9, rel=1e-3)
    middle = sizes.steps_for(6e9)
    assert sizes.tokens_at(middle) == pytest.approx((32e3 + 3.2e6) / 2, rel=5e-3)
    assert all(later >= earlier for earlier, later in zip(sizes.ramp, sizes.ramp[1:], strict=False))


def test_palms_batch_doubles_at_the_steps_that_are_published() -> None:
    sizes = sizes_of(config_of("palm:540b"))
    assert [sizes.sequences_at(step) for step in (0, 49_999, 50_000, 114_999, 115_000, 200_000)] == [
        512, 512, 1024, 1024, 2048, 2048,
    ]  # fmt: skip


def test_palm_as_published_holds_its_rate_and_then_falls_with_the_root_of_the_step() -> None:
    config = recipe("palm:540b").as_published().config()
    lr = lr_schedule(config, sizes_of(config))
    assert lr(0) == lr(9_999) == 1e-2
    assert lr(40_000) == pytest.approx(1e-2 / 2)
    assert sum(lr(step) ** 2 for step in range(255_000)) == pytest.approx(4.24, abs=0.01)


def test_deepseeks_stages_end_where_its_report_says() -> None:
    config = config_of("deepseek-v3:671b", schedule__warmup_steps=0)
    sizes = sizes_of(config)
    lr = lr_schedule(config, sizes)
    for tokens, expected in ((1e12, 2.2e-4), (9.99e12, 2.2e-4), (14.31e12, 2.2e-5), (14.7e12, 7.3e-6)):
        assert lr(sizes.steps_for(tokens)) == pytest.approx(expected, rel=2e-3)


def test_llama3s_rate_falls_to_a_hundredth_and_then_to_zero_within_40m_tokens() -> None:
    config = config_of("llama3:405b")
    sizes = sizes_of(config)
    lr = lr_schedule(config, sizes)
    end = sizes.steps_for(15.6e12) + 8_000
    assert lr(end) == pytest.approx(8e-7, rel=1e-6)
    assert lr(end + 3) == 0.0


def test_olmo2s_cosine_is_cut_short() -> None:
    config = config_of("olmo2:7b")
    sizes = sizes_of(config)
    lr = lr_schedule(config, sizes)
    assert lr(sizes.steps_for(4.05e12)) > 0.1 * 3e-4 * 1.5
    assert lr(sizes.steps_for(5e12)) == pytest.approx(0.1 * 3e-4)


def test_nanochats_decay_falls_to_zero_along_a_cosine() -> None:
    config = config_of("nanochat:d12", run__steps=1_000)
    decay = weight_decay_schedule(config)
    assert decay(0) == pytest.approx(0.28)
    assert decay(500) == pytest.approx(0.14)
    assert decay(1_000) == 0.0
    constant = weight_decay_schedule(config_of("gpt3:nano"))
    assert constant(0) == constant(900) == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run.batch_ramp": ("0:1000", "soon:2048")}, "must be TOKENS:BATCH_TOKENS"),
        ({"run.batch_ramp": ("5:1000", "9:2048")}, "must begin at 0"),
        ({"run.batch_ramp": ("0:1000", "9:1500", "9:2048")}, "rising"),
        ({"run.batch_ramp": ("0:1000", "9:1024")}, "run.batch_tokens is 2048"),
        ({"schedule.shape": "stages"}, "needs schedule.stages"),
        ({"schedule.shape": "stages", "schedule.stages": ("cosine to 0.1",)}, "must be like"),
        ({"schedule.shape": "stages", "schedule.stages": ("cosin to 0.1 over 5",)}, "did you mean 'cosine'"),
    ],
)
def test_ramps_and_stages_that_cannot_be_read_are_refused(values: dict[str, Any], message: str) -> None:
    config = recipe("gpt3:nano").config(values)
    with pytest.raises(ConfigError, match=message):
        lr_schedule(config, sizes_of(config))


def test_another_batch_has_no_ramp_unless_it_is_given_one() -> None:
    assert config_of("gpt3:125m").run.batch_ramp
    assert config_of("gpt3:125m", run__batch_tokens=4096).run.batch_ramp == ()
