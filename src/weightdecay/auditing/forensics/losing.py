"""Whether decay was lost: to bfloat16, which has no number between w and (1 − ηλ)·w, or to float32's 1 − ηλ = 1.

Round-to-nearest in bfloat16 loses all of it where ηλ ≤ 2⁻⁹, and part of it up to 2⁻⁸; float32 forms 1 − ηλ, which is 1
where ηλ ≤ 2⁻²⁵. Usual training (ηλ = 3e-5) is far below the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightdecay.auditing.forensics.answers import Answer, Asked, LossVerdict, Untold

BFLOAT16_FLOOR = 2.0**-9
FLOAT32_FLOOR = 2.0**-25
_LOST_SHARE = 0.5  # of what was asked for; less is another schedule, or rounding of a part


@dataclass(frozen=True)
class Untouched:
    """What the start says of the idle rows.

    Attributes:
        equal: every number is the start's to the last bit.
        unchanged: the share of their numbers that are.
        n: how many rows.
    """

    equal: bool
    unchanged: float
    n: int


def judged_loss(
    decay_sum: Answer, untouched: Untouched | None, asked: Asked, dtype: str, *, kept_in_bf16: bool
) -> LossVerdict:
    """The verdict, and what it rests on."""
    per_step, wanted = asked.decay_per_step, asked.decay_sum
    decay_was_asked = bool(asked.weight_decay) if asked.weight_decay is not None else None
    low_precision = dtype in ("bfloat16", "float16") or kept_in_bf16

    if decay_was_asked is False:
        return LossVerdict("not lost", f"λ = 0 was asked for ({asked.source}): there was nothing to lose")
    if untouched is not None and untouched.equal:
        return _equal_to_the_start(untouched, asked, _said(dtype, kept_in_bf16) if low_precision else "")

    if not isinstance(decay_sum, Untold) and wanted:
        seen = f"{decay_sum.value:.4g} ({decay_sum.low:.4g} to {decay_sum.high:.4g}) of the {wanted:.4g} asked for"
        if decay_sum.high < _LOST_SHARE * wanted:
            return LossVerdict("lost", f"the rows that never came show {seen} ({asked.source})")
        if decay_sum.low > _LOST_SHARE * wanted:
            return LossVerdict("not lost", f"the rows that never came show {seen} ({asked.source})")
    if untouched is not None:
        partly = f"; {untouched.unchanged:.0%} of their numbers are unchanged" if untouched.unchanged > 0.01 else ""
        return LossVerdict("not lost", f"{untouched.n} rows that never came have shrunk{partly}")

    if per_step is not None and 0 < per_step <= FLOAT32_FLOOR:
        said = f"ηλ = {per_step:.3g} at its peak ({asked.source}) is at most 2⁻²⁵"
        return LossVerdict("lost", f"{said}: so small a decay is 1 − ηλ = 1 in float32")
    if per_step is not None and low_precision and 0 < per_step <= BFLOAT16_FLOOR:
        said = f"ηλ = {per_step:.3g} at its peak ({asked.source}) is at most 2⁻⁹"
        why = (
            f"{said}, so weights that were updated in {_said(dtype, kept_in_bf16)} would not have decayed at all; "
            "whether there was a float32 copy of them, this file does not say"
        )
        return LossVerdict("cannot be told", why)
    if not isinstance(decay_sum, Untold) and decay_sum.low > 0:
        return LossVerdict("not lost", "rows that never came have shrunk")
    return LossVerdict(
        "cannot be told",
        "without rows that are known at the start, no decay and decay that was lost look alike"
        + (": the numbers are all ones of bfloat16" if kept_in_bf16 else ""),
    )


def _equal_to_the_start(untouched: Untouched, asked: Asked, low_precision: str) -> LossVerdict:
    same = f"{untouched.n} rows that never came are the start's to the last bit"
    per_step = asked.decay_per_step
    if not asked.weight_decay:
        return LossVerdict(
            "cannot be told",
            f"{same}: nothing decayed there; whether any decay was asked for, say with --weight-decay and --lr",
        )
    said = f"λ = {asked.weight_decay:g} was asked for ({asked.source})"
    if low_precision:
        floor = f", and ηλ = {per_step:.3g} is at most 2⁻⁹" if per_step and per_step <= BFLOAT16_FLOOR else ""
        return LossVerdict("lost", f"{same}, though {said}; the numbers are those of {low_precision}{floor}")
    if per_step and per_step <= FLOAT32_FLOOR:
        return LossVerdict("lost", f"{same}, though {said}: ηλ = {per_step:.3g} is at most 2⁻²⁵, where 1 − ηλ is 1")
    return LossVerdict(
        "cannot be told",
        f"{same}, though {said}, and float32 would have kept that decay: the embedding was exempt, or its optimizer "
        "passes over rows without a gradient",
    )


def _said(dtype: str, kept_in_bf16: bool) -> str:
    return dtype if dtype in ("bfloat16", "float16") or not kept_in_bf16 else "bfloat16"
