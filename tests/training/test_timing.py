from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.data.batches import BatchSizes
from weightdecay.errors import ConfigError
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.training.progress import SilentReporter
from weightdecay.training.timing import (
    batch_sizes,
    grad_clip_schedule,
    lr_schedule,
    momentum_schedule,
    weight_decay_schedule,
)
from weightdecay.training.trainer import train


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


def test_blooms_batch_climbs_by_16_sequences_at_the_samples_where_megatrons_does() -> None:
    """Megatron-LM: start + increment · ⌊samples / (ramp samples / increments)⌋, with 116 increments."""
    sizes = sizes_of(config_of("bloom:176b"))
    assert set(sizes.ramp) == set(range(192, 2048, 16))
    for step in (0, 1, len(sizes.ramp) // 2, len(sizes.ramp) - 1):
        seen = sizes.sequences_before(step)
        assert sizes.sequences_at(step) == 192 + 16 * (seen * 116 // 9_765_625)
    assert sizes.sequences_before(len(sizes.ramp) - 1) < 9_765_625 <= sizes.sequences_before(len(sizes.ramp))


def test_nanochats_momentum_rises_and_falls_as_its_script_has_it() -> None:
    """karpathy/nanochat@92d63d4, scripts/base_train.py, get_muon_momentum(), of 2,520 steps."""
    config = config_of("nanochat:d12", run__steps=2520, run__tokens=0)
    momentum, start, length = momentum_schedule(config), 2520 - 1638, 1638
    for step in (0, 1, 200, 399):
        assert momentum(step) == pytest.approx(0.85 + 0.12 * step / 400)
    for step in (400, 700, start):
        assert momentum(step) == pytest.approx(0.97)
    for step in (start + 1, 2000, 2519):
        assert momentum(step) == pytest.approx(0.97 - 0.07 * (step - start) / length)


@pytest.mark.parametrize("steps", [1, 300, 400, 401, 500])
def test_a_short_run_ends_before_the_momentum_falls_or_lets_it_fall_from_where_it_is(steps: int) -> None:
    momentum = momentum_schedule(config_of("nanochat:nano", run__steps=steps))
    values = [momentum(step) for step in range(steps)]
    assert values[0] == 0.85
    assert max(values) == values[min(steps - 1, 400)]
    assert all(abs(late - early) < 0.002 for early, late in pairwise(values))


def test_a_momentum_that_is_told_nothing_stays() -> None:
    momentum = momentum_schedule(config_of("moonlight:nano"))
    assert {momentum(step) for step in range(0, 1200, 7)} == {0.95}


@pytest.mark.parametrize("nproc", [2, 3, 7])
def test_how_the_batch_grows_does_not_depend_on_the_number_of_processes(nproc: int) -> None:
    config = config_of("gpt3:125m")
    assert sizes_of(config.replace(run__nproc=nproc)) == sizes_of(config)


def test_opts_clipping_is_lowered_at_the_first_step_that_has_the_tokens_behind_it() -> None:
    config = config_of("opt:175b")
    sizes, clip = sizes_of(config), grad_clip_schedule(config, sizes_of(config))
    change = sizes.steps_for(30e9)
    assert sizes.tokens_before(change - 1) < 30e9 <= sizes.tokens_before(change)
    assert [clip(step) for step in (0, change - 1, change, change + 1, 10**9)] == [1.0, 1.0, 0.3, 0.3, 0.3]
    assert grad_clip_schedule(config_of("opt:66b"), sizes)(change) == 1.0
    own = config_of("opt:175b", optimizer__grad_clip=0.5)
    assert grad_clip_schedule(own, sizes)(change) == 0.5


def test_of_two_changes_within_a_step_the_later_holds_and_zero_stops_the_clipping() -> None:
    config = config_of("gpt3:nano", schedule__grad_clip_changes=("2048:0.5", "2049:0.4", "4000:0.3", "1e4:0"))
    clip = grad_clip_schedule(config, BatchSizes(128, 16))
    assert [clip(step) for step in range(6)] == [1.0, 0.5, 0.3, 0.3, 0.3, 0.0]


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
        ({"run.batch_ramp": ("0:1000", "soon:2048")}, r"batch_ramp\[1\].tokens = 'soon': must be a number"),
        ({"run.batch_ramp": ("5:1000", "9:2048")}, "must begin at 0"),
        ({"run.batch_ramp": ("0:1000", "9:1500", "9:2048")}, "rising"),
        ({"run.batch_ramp": ("0:1000", "9:1024")}, "run.batch_tokens is 2048"),
        ({"run.batch_ramp": ("0:1000", "nan:2048")}, "must be a number of at least 0"),
        ({"schedule.grad_clip_changes": ("0:0.3",)}, "must come after the start"),
        ({"schedule.grad_clip_changes": ("9:0.3", "9:0.2")}, "rising"),
        ({"schedule.grad_clip_changes": ("9",)}, "must be a table with tokens, grad_clip"),
        ({"schedule.grad_clip_changes": ("9:-1",)}, "of at least 0"),
        ({"schedule.shape": "stages"}, "needs schedule.stages"),
        (
            {"schedule.shape": "stages", "schedule.stages": ("cosine to 0.1",)},
            "must be a table with shape, to, over_tokens",
        ),
        ({"schedule.shape": "stages", "schedule.stages": ("cosin to 0.1 over 5",)}, "did you mean 'cosine'"),
    ],
)
def test_ramps_and_stages_that_cannot_be_read_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sizes_of(recipe("gpt3:nano").config(values))


def test_all_that_is_wrong_with_what_moves_is_told_with_the_other_faults() -> None:
    values = {
        "run.batch_ramp": ("5:1", "x"), "schedule.grad_clip_changes": ("2:1", "1:1"), "optimizer.lr": "fast",
        "schedule.shape": "stages", "schedule.stages": ("cosine to 0.1 for 9", "linear to 0 over 4e6"),
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        recipe("gpt3:nano").config(values)
    assert len(caught.value.faults) == 4


def test_another_batch_has_no_ramp_unless_it_is_given_one() -> None:
    assert config_of("gpt3:125m").run.batch_ramp
    assert config_of("gpt3:125m", run__batch_tokens=4096).run.batch_ramp == ()


def test_a_linear_ramp_climbs_its_stairs_exactly_at_their_edges() -> None:
    ramp = {"run__batch_ramp": ("0:128", "1024:640"), "run__batch_ramp_shape": "linear", "run__batch_tokens": 640}
    stairs = sizes_of(config_of("gpt3:nano", **ramp, run__batch_ramp_increment=128))
    assert stairs.ramp == (1, 1, 2, 3, 4)  # after 0, 128, 256, 512, 896 tokens
    assert sizes_of(config_of("gpt3:nano", **ramp, run__batch_ramp_increment=256)).ramp == (1, 1, 1, 1, 3, 3)


def test_the_clipping_of_a_step_is_the_schedules(small_text: Path, tmp_path: Path) -> None:
    """Up to the change both runs are one; the first gradient that it shortens shows in the next step."""
    rows = []
    for name, changes in (("plain", ()), ("changed", ("128:0.01",))):
        config = recipe("gpt3:nano").config(
            {
                "data.sources": (str(small_text),), "data.tokenizer": "byte", "model.n_layers": 1, "model.d_model": 16,
                "model.n_heads": 2, "model.context": 16, "run.batch_tokens": 64, "run.steps": 5,
                "run.out": str(tmp_path / name), "schedule.grad_clip_changes": changes,
            }
        )  # fmt: skip
        rows.append([*train(config, reporter=SilentReporter()).rows("train")])
    plain, changed = rows
    assert [row["grad_clip"] for row in changed] == [1.0, 1.0, 0.01, 0.01, 0.01]
    assert [row["grad_norm"] for row in plain][:3] == [row["grad_norm"] for row in changed][:3]
    assert plain[3]["grad_norm"] != changed[3]["grad_norm"]
