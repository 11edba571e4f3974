from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay import laws
from weightdecay.errors import ConfigError
from weightdecay.laws import (
    NANOCHAT_TOKENS,
    Rate,
    carried,
    nanochat_weight_decay,
    optimal_batch_tokens,
    optimal_timescale,
    optimal_weight_decay,
    outside_power_lines,
)
from weightdecay.recipes.schema import recipe

HERE = {"parametrization": "mup", "schedule": "linear-to-zero"}
rates = st.floats(1e-6, 1.0)
batches = st.floats(1e3, 1e8)


@pytest.mark.parametrize(
    ("parameters", "tokens", "batch", "lr", "steps", "expected"),
    [(10e6, 200e6, 65_536, 1e-3, 3052, 1.466), (3e6, 60e6, 16_384, 3e-3, 3662, 0.407)],
)
def test_the_law_gives_the_reference_values(
    parameters: float, tokens: float, batch: int, lr: float, steps: int, expected: float
) -> None:
    assert math.ceil(tokens / batch) in (steps, steps + 1)
    found = optimal_weight_decay(lr=lr, steps=steps, tokens_per_parameter=tokens / parameters)
    assert found == pytest.approx(expected, rel=1e-3)
    assert optimal_timescale(20) == pytest.approx(0.2236, rel=1e-3)


def test_the_law_stays_at_its_edge_outside_the_range_that_was_fitted() -> None:
    assert optimal_timescale(0.1) == optimal_timescale(20)
    assert optimal_timescale(1e6) == optimal_timescale(1_280)
    assert optimal_timescale(100) < optimal_timescale(20)
    assert optimal_timescale(5, held=False) == pytest.approx(1.084 * 5**-0.527)
    with pytest.raises(ConfigError, match="positive lr"):
        optimal_weight_decay(lr=0.0, steps=10, tokens_per_parameter=20)


def test_each_reason_why_the_law_does_not_hold_is_given_and_none_where_it_does() -> None:
    assert not list(outside_power_lines(tokens_per_parameter=20, **HERE))
    assert not list(outside_power_lines(tokens_per_parameter=1280, **HERE))
    said = list(
        outside_power_lines(
            tokens_per_parameter=5, parametrization="unknown", schedule="cosine-to-zero", optimizer="muon"
        )
    )
    assert [word for word, one in zip(("muon", "is unknown", "cosine-to-zero", "here are 5"), said, strict=True)
            if word in one] == ["muon", "is unknown", "cosine-to-zero", "here are 5"]  # fmt: skip


@pytest.mark.parametrize(("size", "ratio"), [("d12", 12.0), ("d24", 8.0)])
def test_nanochats_own_arithmetic_is_reproduced(size: str, ratio: float) -> None:
    """As scripts/base_train.py writes it at its commit, on the parameters of its blocks and head."""
    blocks_and_head = {"d12": 110_100_912, "d24": 729_810_624}[size]
    d_ref, target_tokens = ratio * 110_100_912, int(ratio * blocks_and_head)
    total_batch_size = 2 ** round(math.log2(2**19 * (target_tokens / d_ref) ** 0.383))
    scaled = 0.28 * math.sqrt(total_batch_size / 2**19) * (d_ref / target_tokens)
    found = nanochat_weight_decay(total_batch_size, target_tokens, reference_tokens=d_ref)
    assert found == pytest.approx(scaled, rel=1e-12, abs=1e-12)
    values = recipe(f"nanochat:{size}").values
    assert values["run.batch_tokens"].value == total_batch_size
    assert values["run.tokens"].value == pytest.approx(target_tokens, rel=1e-9)
    assert values["optimizer.weight_decay"].value == pytest.approx(scaled, rel=1e-5)  # as the recipe rounds it
    assert optimal_batch_tokens(NANOCHAT_TOKENS) == 2**19


@given(rates, batches, st.floats(1.5, 64.0), st.floats(1e9, 1e13))
def test_weight_decay_is_proportional_to_the_batch_at_fixed_rate_and_tokens(
    lr: float, batch: float, times: float, tokens: float
) -> None:
    """λ ∝ B: for the law, and for a λ that is carried by its timescale or by its memory."""
    small, large = Rate(lr, tokens / batch, batch), Rate(lr, tokens / (batch * times), batch * times)
    found = carried(0.1, small, large)
    assert found["same timescale"][1] == pytest.approx(0.1 * times)
    assert found["same memory"][1] == pytest.approx(0.1 * times)
    steps = 1000
    law = [
        optimal_weight_decay(lr=lr, steps=steps * factor, tokens_per_parameter=100) for factor in (1, 4)
    ]  # a fourth of the batch is four times the steps
    assert law[0] == pytest.approx(4 * law[1])


@given(rates, rates, batches, st.integers(64, 16_384))
def test_a_weight_decay_carried_to_the_same_run_is_itself_and_independent_decay_keeps_what_a_step_removes(
    lr: float, other: float, batch: float, width: int
) -> None:
    here = Rate(lr, 1000, batch, width)
    assert all(value == pytest.approx(0.1) for _, value in carried(0.1, here, here).values())
    moved = carried(0.1, here, Rate(other, 1000, batch, 4 * width))
    assert moved["independent"][1] * other == pytest.approx(0.1 * lr)
    assert moved["√width"][1] == pytest.approx(0.2)
    assert "√width" not in carried(0.1, here, Rate(other, 1000, batch))


def test_every_law_says_its_equation_its_source_and_how_it_was_read() -> None:
    found = [value for value in vars(laws).values() if isinstance(value, laws.Law)]
    assert len(found) == len({law.name for law in found}) >= 7
    for law in found:
        assert law.tag in laws.TAGS
        assert all((law.equation, law.source, law.holds))
