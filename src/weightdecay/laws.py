"""Laws of the λ that a run wants: each with its formula, its source, how it was read, and where it holds.

The constants of a law stand here beside the formula. Two published fits and four ways to carry a λ from one run to
another; T is the number of steps, D the tokens, B the tokens of a step, N the parameters without embeddings:

    power lines      τ_opt = 1.084·(D/N)^−0.527,  λ = 1/(η·T·τ_opt)
    nanochat         λ = 0.28·√(B/2¹⁹)·D_ref/D
    same timescale   λ = λ₀·η₀T₀/(ηT)             same memory   λ = λ₀·(η₀/η)·(B/B₀)
    independent      λ = λ₀·η₀/η                  √width        λ = λ₀·√(d/d₀)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weightdecay.errors import ConfigError

TAGS: Mapping[str, str] = {
    "V": "read in the paper, or a copy of its text, or its code",
    "V2": "read in a summary or a port, not in the paper",
    "R": "read in the repository at the commit",
    "A": "the abstract was read",
    "S": "second hand",
    "C": "computed here",
    "D": "derived here",
}
"""How well something is known."""


@dataclass(frozen=True)
class Law:
    """A formula, and what is known of it.

    Attributes:
        name: as advice calls it.
        equation: in the field's letters.
        source: paper or repository.
        tag: one of `TAGS`.
        holds: where.
    """

    name: str
    equation: str
    source: str
    tag: str
    holds: str


POWER_LINES = Law(
    "power lines",
    "λ = 1/(η·T·τ_opt), τ_opt = 1.084·(D/N)^−0.527",
    "Bergsma et al. 2025, arXiv:2505.13738",
    "V2",
    "AdamW, µP, a linear descent to zero, 20 to 1,280 tokens per parameter",
)
NANOCHAT = Law(
    "nanochat",
    "λ = 0.28·√(B/2¹⁹)·D_ref/D, D_ref = 1.32e9 tokens",
    "karpathy/nanochat@92d63d4, scripts/base_train.py",
    "R",
    "its own Muon at lr 0.02·√(B/2¹⁹), a cautious decay that falls to zero",
)
BATCH = Law(
    "batch",
    "B_opt = 2¹⁹·(D/D_ref)^0.383, D_ref = 1.32e9 tokens",
    "karpathy/nanochat@92d63d4, with the exponent of arXiv:2505.13738",
    "R",
    "the exponent is fitted, the size at D_ref was measured on nanochat's 12 layers; other models differ",
)
SAME_TIMESCALE = Law(
    "same timescale",
    "λ = λ₀·η₀T₀/(ηT)",
    "Wang & Aitchison 2024, arXiv:2405.13698: the best timescale in epochs is kept, so λ ∝ B at fixed η and D",
    "V",
    "AdamW; that a fixed part of the run is right at every length is contested by arXiv:2505.13738",
)
SAME_MEMORY = Law(
    "same memory",
    "λ = λ₀·(η₀/η)·(B/B₀)",
    "derived from AdamW's recursion: an update's half-life, ln2·B/(ηλ) tokens, is kept",
    "D",
    "a change of batch or accumulation within one run",
)
INDEPENDENT = Law(
    "independent",
    "λ = λ₀·η₀/η",
    "Kosson et al. 2025, arXiv:2510.19093",
    "A",
    "a change of η, with width too; the decay per step is kept",
)
SQRT_WIDTH = Law(
    "√width",
    "λ = λ₀·√(d/d₀)",
    "arXiv:2510.15262: σ_max ≈ √(η/λ)·d^0.75 is kept",
    "A",
    "a change of width alone, under layer-wise rates; contested",
)

# Bergsma et al. 2025: scale and exponent of τ_opt, and the tokens per parameter that they were fitted on.
_TIMESCALE = (1.084, -0.527)
FITTED_TOKENS_PER_PARAMETER = (20.0, 1_280.0)

# nanochat, scripts/base_train.py: λ, batch and exponent at its 12 layers, whose blocks and head have 110,100,912
# parameters and are trained on 12 tokens each.
_NANOCHAT_WEIGHT_DECAY = 0.28
_NANOCHAT_BATCH = 2**19
_BATCH_EXPONENT = 0.383
NANOCHAT_TOKENS = 12 * 110_100_912

# Below so much decay in a whole run, Σ a_t, λ might as well be 0.
NEGLIGIBLE_TOTAL = 0.5
# From here on a text is seen so often that it is another kind of training (Kim et al. 2025, arXiv:2509.14786).
MANY_EPOCHS = 4


def optimal_timescale(tokens_per_parameter: float, *, held: bool = True) -> float:
    """τ_opt = 1.084·TPP^−0.527, as a fraction of the run.

    Args:
        held: outside the range that was fitted, at its edge; otherwise the line is continued.

    Reference: Bergsma et al. 2025, arXiv:2505.13738.
    """
    low, high = FITTED_TOKENS_PER_PARAMETER
    scale, exponent = _TIMESCALE
    inside = min(max(tokens_per_parameter, low), high) if held else tokens_per_parameter
    return float(scale * inside**exponent)


def optimal_weight_decay(*, lr: float, steps: int, tokens_per_parameter: float, held: bool = True) -> float:
    """λ = 1/(η·T·τ_opt), the λ whose memory lasts the fraction τ_opt of the run.

    Args:
        lr: peak learning rate η.
        steps: optimizer steps T.
        tokens_per_parameter: D/N; which parameters N counts is not settled in the literature.
        held: see `optimal_timescale`.

    Raises:
        ConfigError: the learning rate or the number of steps is not positive.
    """
    if lr <= 0 or steps < 1:
        raise ConfigError(f"λ = 1/(η·T·τ) needs a positive lr and at least 1 step, got lr {lr:g} and {steps} steps")
    return 1.0 / (lr * steps * optimal_timescale(tokens_per_parameter, held=held))


def outside_power_lines(
    *, tokens_per_parameter: float, parametrization: str, schedule: str, optimizer: str = "adamw"
) -> Iterator[str]:
    """Each reason, in words, why the law says nothing of a run; none where it holds.

    Args:
        parametrization: `mup`, `standard` or `unknown`.
        schedule: `linear-to-zero`, another, or `unknown`.
        optimizer: `adamw` or another.
    """
    low, high = FITTED_TOKENS_PER_PARAMETER
    if optimizer != "adamw":
        yield f"it was fitted on AdamW, not on {optimizer}"
    if parametrization != "mup":
        yield f"it was fitted under µP, and the parametrization is {parametrization}"
    if schedule != "linear-to-zero":
        yield f"it was fitted with a linear descent to zero, and the schedule is {schedule}"
    if not low <= tokens_per_parameter <= high:
        yield f"it was fitted on {low:g} to {high:,g} tokens per parameter, and here are {tokens_per_parameter:,.3g}"


def nanochat_weight_decay(batch_tokens: float, tokens: float, *, reference_tokens: float = NANOCHAT_TOKENS) -> float:
    """λ = 0.28·√(B/2¹⁹)·D_ref/D, as nanochat scales it.

    Args:
        batch_tokens: B.
        tokens: D, those that the run is planned for, before they are rounded to whole steps.
        reference_tokens: D_ref, of nanochat's 12 layers at the same tokens per parameter as the run.

    Reference: karpathy/nanochat@92d63d4, scripts/base_train.py.
    """
    return _NANOCHAT_WEIGHT_DECAY * math.sqrt(batch_tokens / _NANOCHAT_BATCH) * (reference_tokens / tokens)


def optimal_batch_tokens(tokens: float) -> float:
    """B_opt = 2¹⁹·(D/D_ref)^0.383, before nanochat rounds it to a power of 2."""
    return float(_NANOCHAT_BATCH * (tokens / NANOCHAT_TOKENS) ** _BATCH_EXPONENT)


@dataclass(frozen=True)
class Rate:
    """What of a run a λ is carried along with.

    Attributes:
        lr: peak η.
        steps: T.
        batch_tokens: B.
        width: d_model; 0 where it is not known.
    """

    lr: float
    steps: float
    batch_tokens: float
    width: int = 0


def carried(weight_decay: float, there: Rate, here: Rate) -> dict[str, tuple[Law, float]]:
    """The λ of one run at another, by each law that can say it; by name.

    Args:
        weight_decay: λ₀, decoupled.
        there, here: the run that it is of, and the one that it is wanted for.
    """
    found = [
        (SAME_TIMESCALE, there.lr * there.steps / (here.lr * here.steps)),
        (SAME_MEMORY, there.lr / here.lr * here.batch_tokens / there.batch_tokens),
        (INDEPENDENT, there.lr / here.lr),
    ]
    if there.width and here.width:
        found.append((SQRT_WIDTH, math.sqrt(here.width / there.width)))
    return {law.name: (law, weight_decay * factor) for law, factor in found}
