"""λ from one convention to another, through the decay per step.

A convention's decay per step is λ times a shape: η_t^p/η^q, with the powers of its rule. Two conventions map exactly
where their shapes are proportional at every step. Elsewhere no single λ maps, and the closest one is given: that which
removes as much over the whole run, with the part of the decay that falls on other steps as its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weightdecay.amounts import amount, number, whole
from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.rules import CORRECTED, DECOUPLED, FIXED, INDEPENDENT, LR_SQUARED, RULES, Rule, as_rule
from weightdecay.schedules import Schedule, is_schedule

# Adam's coupled λ acts through √v: what it removes depends on the gradients, so no λ of another convention equals it.
_NO_NUMBER = "torch_adam"
_GRADIENTS_DECIDE = (
    "torch.optim.Adam puts λ·w into the gradient and divides it by √v: what it removes depends on the gradients, so no "
    "number maps (for gradients of standard deviation σ, AdamW with λ/σ keeps the same norms at equilibrium)"
)


@dataclass(frozen=True)
class Convention:
    """What a framework means by λ."""

    rule: Rule
    where: str
    scale: Callable[[int], float] = lambda _steps: 1.0  # λ that its rule sees, for a λ of 1
    needs_steps: bool = False


CONVENTIONS: dict[str, Convention] = {
    "torch": Convention(DECOUPLED, "torch.optim.AdamW"),
    "transformers": Convention(DECOUPLED, "transformers.Trainer, through torch.optim.AdamW"),
    "nanogpt": Convention(DECOUPLED, "karpathy/nanoGPT model.py, through torch.optim.AdamW"),
    "torch_sgd": Convention(DECOUPLED, "torch.optim.SGD without momentum, where l2 and decoupled decay are one"),
    "moonlight": Convention(DECOUPLED, "Moonlight's Muon, arXiv:2502.16982: the lr before its adjustment"),
    "composer": Convention(INDEPENDENT, "MosaicML composer.optim.DecoupledAdamW"),
    "loshchilov": Convention(INDEPENDENT, "Loshchilov & Hutter 2019, arXiv:1711.05101, and their code"),
    "optimi_decouple_lr": Convention(INDEPENDENT, "optimi with decouple_lr=True"),
    "loshchilov_normalized": Convention(
        INDEPENDENT, "Loshchilov & Hutter 2019, eq. 15: λ = λ_norm / √steps", lambda steps: steps**-0.5, True
    ),
    "pytorch_optimizer_fixed": Convention(FIXED, "pytorch_optimizer with fixed_decay=True"),
    "palm": Convention(LR_SQUARED, "PaLM, arXiv:2204.02311 §5, λ = 1; t5x adafactor.py"),
    "adamc": Convention(CORRECTED, "AdamC, Defazio 2025, arXiv:2506.02285"),
    **{name: Convention(rule, f"rule '{name}' of this package") for name, rule in RULES.items() if rule.is_scalar},
}


class Conversion(float):
    """The converted λ, a float that knows how good it is.

    Attributes:
        exact: whether every step decays as before.
        error: Σ|a'_t − a_t| / Σ a_t, the part of the decay that falls on other steps; 0 where exact.
        source_shrink, target_shrink: Π(1 − a_t) over the run, what is left of a weight without gradients; None
            without a run.
        note: the same for a reader.
    """

    exact: bool
    error: float
    source_shrink: float | None
    target_shrink: float | None
    note: str

    def __new__(cls, value: float, **facts: Any) -> Conversion:
        made = super().__new__(cls, value)
        made.__dict__.update(facts)
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, Any]]:
        return (float(self),), dict(self.__dict__)


def convert(
    weight_decay: float,
    *,
    source: str | Rule,
    target: str | Rule,
    lr: float,
    schedule: Schedule | None = None,
    steps: int | None = None,
) -> Conversion:
    """The λ that decays in the target's convention as `weight_decay` does in the source's.

        from weightdecay import convert

        convert(0.1, source="torch", target="composer", lr=6e-4)  # 6e-05

    Args:
        weight_decay: λ as the source means it.
        source, target: names of `CONVENTIONS`, frameworks, papers or rules; or a `Rule` of one's own.
        lr: peak learning rate η.
        schedule: η_t; constant at `lr` if not given.
        steps: length of the run T; needed where no single λ is exact, and for the shrink over the run.

    Raises:
        ConfigError: with every fault: unknown conventions, values out of range, a decay per step over 1, a schedule
            above `lr` or below 0; no schedule or no steps where the conversion depends on them; torch's Adam, whose λ
            has no counterpart.
    """
    faults = _faults(weight_decay, source, target, lr, steps)
    if schedule is not None and not is_schedule(schedule):
        faults.append(f"schedule must give lr for a step, such as Cosine(6e-4, 6e-5, steps=10_000), got {schedule!r}")
    if faults:
        raise ConfigError(faults)
    weight_decay, lr = number(weight_decay) or 0.0, number(lr) or 0.0
    there, here = convention(source), convention(target)
    source, target = (name.name if isinstance(name, Rule) else name for name in (source, target))
    into, out_of = there.scale(steps or 1), here.scale(steps or 1)
    value = weight_decay * there.rule.decay_per_step(lr, into, lr) / here.rule.decay_per_step(lr, out_of, lr)
    proportional = schedule is None or there.rule.lr_power == here.rule.lr_power
    if steps is None:
        if not proportional:
            raise ConfigError(
                f"'{source}' and '{target}' follow a changing lr differently, so no single weight_decay maps: give "
                "steps for the closest over the run"
            )
        return Conversion(value, exact=True, error=0.0, source_shrink=None, target_shrink=None, note=_EXACT)

    rates = _usable([lr if schedule is None else schedule(step) for step in range(steps)], lr)
    before = [there.rule.decay_per_step(rate, into * weight_decay, lr) for rate in rates]
    unit = [here.rule.decay_per_step(rate, out_of, lr) for rate in rates]
    _raise_if_over_one(before, source)
    if not proportional:
        value = _matching(unit, _log_shrink(before), f"'{target}'") if any(before) else 0.0
    after = [value * shape for shape in unit]
    _raise_if_over_one(after, target)
    total = math.fsum(before)
    moved = math.fsum(abs(a - b) for a, b in zip(after, before, strict=True))
    exact = proportional or moved <= 1e-12 * total
    error = 0.0 if exact else moved / total
    note = _EXACT if exact else _CLOSEST.format(part=error)
    left = [math.exp(_log_shrink(decays)) for decays in (before, after)]
    return Conversion(value, exact=exact, error=error, source_shrink=left[0], target_shrink=left[1], note=note)


_EXACT = "exact: every step decays as before"
_CLOSEST = "no single λ maps: this one removes as much over the run, with {part:.1%} of the decay at other steps"


def convention(name: str | Rule) -> Convention:
    """The convention of a name, of a rule's name, or of a rule itself."""
    if isinstance(name, str) and name in CONVENTIONS:
        return CONVENTIONS[name]
    rule = as_rule(name)
    return Convention(rule, f"rule '{rule.name}'")


def _log_shrink(decays: Sequence[float]) -> float:
    """ln Π(1 − a_t)"""
    return math.fsum(math.log1p(-a) if a < 1 else -math.inf for a in decays)


def _matching(unit: Sequence[float], log_shrink: float, name: str) -> float:
    """The λ ≥ 0 at which Σ ln(1 − λ·shape_t) is `log_shrink`, by Newton's method.

    The sum is concave and falls with λ: from a λ that decays too much the steps come down to the solution and never
    pass it. The first step may go beyond a decay of 1 and is then shortened.
    """
    largest = max(unit)
    if not largest or math.isinf(log_shrink):
        raise ConfigError(f"no weight_decay of {name} removes as much over this run")
    value = (1 - math.exp(log_shrink / len(unit))) / largest
    for _ in range(200):
        gap = _log_shrink([value * shape for shape in unit]) - log_shrink
        slope = -math.fsum(shape / (1 - value * shape) for shape in unit)
        following = value - gap / slope
        if following * largest >= 1:
            following = (value + 1 / largest) / 2
        if abs(following - value) <= 1e-15 * value:
            return following
        value = following
    return value


def convention_faults(name: str | Rule, steps: int | None) -> list[str]:
    """What is wrong with a convention's name, for a run of this length."""
    if not isinstance(name, str | Rule):
        return [f"{name!r} is no convention: give one's name, or a Rule"]
    if name == _NO_NUMBER:
        return [_GRADIENTS_DECIDE]
    if isinstance(name, Rule) or name in RULES:
        rule = as_rule(name)
        return [f"rule '{rule.name}' is coupled: {_GRADIENTS_DECIDE}"] if rule.coupled else []
    if name not in CONVENTIONS:
        return [f"unknown convention '{name}': {did_you_mean(str(name), [*CONVENTIONS, _NO_NUMBER])}"]
    if CONVENTIONS[name].needs_steps and not steps:
        return [f"'{name}' depends on the length of the run: give steps"]
    return []


def _faults(weight_decay: Any, source: str | Rule, target: str | Rule, lr: Any, steps: Any) -> list[str]:
    faults = [fault for name in (source, target) for fault in convention_faults(name, steps)]
    if not faults:
        there, here = convention(source).rule, convention(target).rule
        if (there.mask, there.target) != (here.mask, here.target):
            faults.append(
                f"'{there.name}' and '{here.name}' do not decay the same weights towards the same target (mask "
                f"{there.mask} and {here.mask}, target {there.target} and {here.target}), so no number maps"
            )
    if amount(weight_decay) is None:
        faults.append(f"weight_decay must be a finite number of at least 0, got {weight_decay!r}")
    if not amount(lr):
        faults.append(f"lr must be a finite number over 0, the peak of the schedule, got {lr!r}")
    if steps is not None and (whole(steps) or 0) < 1:
        faults.append(f"steps must be at least 1 and a whole number, got {steps!r}")
    return faults


def _usable(given: Sequence[Any], lr: float) -> list[float]:
    """What a schedule gives, as floats."""
    rates = []
    for step, rate in enumerate(map(amount, given)):
        if rate is None:
            raise ConfigError(
                f"the schedule gives lr {given[step]!r} at step {step}: it must be a finite number of at least 0"
            )
        rates.append(rate)
    if max(rates) > lr * (1 + 1e-9):
        raise ConfigError(f"the schedule goes up to {max(rates):g}, above the peak lr {lr:g}: give the highest as lr")
    return rates


def _raise_if_over_one(decays: Sequence[float], name: str) -> None:
    if max(decays) > 1:
        raise ConfigError(
            f"in the convention '{name}' a step would remove {max(decays):g} of a weight: at most 1 can be"
        )
