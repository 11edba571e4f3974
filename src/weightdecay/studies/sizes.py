"""How large the runs of a study are: `quick` for a look, `full` for an hour on two cores, `large` for real machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightdecay.studies.design import SizeName
from weightdecay.studies.texts import MAIN, TextPlan

RECIPE = "gpt3:nano"

# A decoder of half a million weights: enough to overfit, small enough for dozens of runs.
SMALL_MODEL: Mapping[str, Any] = {"model.n_layers": 2, "model.d_model": 128, "model.attention.n_heads": 4}

_LARGE_MODEL: Mapping[str, Any] = {
    "model.n_layers": 7, "model.d_model": 384, "model.attention.n_heads": 6, "model.context": 256,
    "model.attention.window": 128,
}  # fmt: skip

_STEPS: Mapping[SizeName, int] = {"quick": 600, "full": 1_000, "large": 4_000}
_BATCH_TOKENS: Mapping[SizeName, int] = {"quick": 512, "full": 2_048, "large": 16_384}
_LR: Mapping[SizeName, float] = {"quick": 8e-3, "full": 4e-3, "large": 2e-3}
_MODELS: Mapping[SizeName, Mapping[str, Any]] = {"quick": SMALL_MODEL, "full": {}, "large": _LARGE_MODEL}
_TEXTS: Mapping[SizeName, TextPlan] = {
    "quick": TextPlan(100_000, tokenizer="bpe:512"),
    "full": TextPlan(500_000, tokenizer="bpe:1024"),
    "large": TextPlan(6_000_000, tokenizer="bpe:8192"),
}


def settings(size: SizeName, **more: Any) -> dict[str, Any]:
    """A size's settings over the recipe; `section__key` values go over them."""
    given = {key.replace("__", ".", 1): value for key, value in more.items()}
    chosen: dict[str, Any] = {
        **_MODELS[size],
        "optimizer.lr": _LR[size],
        "run.steps": _STEPS[size],
        "run.batch_tokens": _BATCH_TOKENS[size],
        **given,
    }
    steps = chosen["run.steps"]
    evaluations = {"run.eval_every": max(1, steps // 20), "run.log_every": max(1, steps // 200)}
    kept = {"run.monitor": False}  # only studies that ask about rotation and norms pay for it
    return {**evaluations, **kept, "run.checkpoint_every": steps, "run.keep": 1, **chosen}


def small(size: SizeName, **more: Any) -> dict[str, Any]:
    """The same with the small model, for studies of many arms; at the large size there is no need to save."""
    return settings(size, **({} if size == "large" else SMALL_MODEL), **more)


def text(size: SizeName) -> dict[str, TextPlan]:
    """The main text alone."""
    return {MAIN: _TEXTS[size]}


def tokens_of_run(size: SizeName, steps: int | None = None) -> int:
    """How many tokens a run of this size sees."""
    return (steps or _STEPS[size]) * _BATCH_TOKENS[size]
