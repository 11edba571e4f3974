"""η/λ from where matrices stand: at AdamW's equilibrium their RMS is √(η/2λ), so η/λ = 2·RMS².

What is left of the start by then is exp(−2Σηλ) of its square. Under a schedule it is the mean of η_t/λ, of which each
step counts 2a_t·exp(−2·Σ_{later} a): mostly the last 1/(2ηλ) steps, less where the rate fell to 0.

Reference: Kosson et al. 2023, arXiv:2305.17212, table 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightdecay.auditing.forensics.answers import Answer, Told, Untold

# Of ‖w‖² at the start: with more left than that, matrices have not come to their equilibrium.
_LEFT_OF_START = 0.1
_LEAST_MATRICES = 3
# A factor between matrices beyond which no one balance holds them all.
_WIDEST = 2.0
# What gradients that are not mostly noise put beside the formula: seen in short trainings, docs/forensics.md.
_BESIDE_THEORY = 1.5
_T_95 = {2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23}


def balanced(rms: Sequence[float], decay_sum: Answer) -> Answer:
    """η/λ, from the RMS of every hidden matrix; the interval is where one matrix in twenty would lie outside."""
    at_rest = _if_at_rest(rms)
    if isinstance(at_rest, Untold):
        return at_rest
    told = f"{at_rest.value:.3g} ({at_rest.low:.3g} to {at_rest.high:.3g})"
    if isinstance(decay_sum, Untold):
        return Untold(
            "whether the matrices are at their equilibrium follows from Σηλ, which is not told; if they are, it is "
            f"{told}"
        )
    left = math.exp(-2 * decay_sum.low)
    if left > _LEFT_OF_START:
        return Untold(
            f"Σηλ = {decay_sum.value:.3g} leaves {left:.0%} of what the start put into ‖w‖²: the matrices are not at "
            f"their equilibrium yet, which takes Σηλ of {-math.log(_LEFT_OF_START) / 2:.2f} or more"
        )
    return at_rest


def _if_at_rest(rms: Sequence[float]) -> Answer:
    """What it is if the matrices have come to their equilibrium."""
    logs = [math.log(2 * one * one) for one in rms if one > 0]
    if len(logs) < _LEAST_MATRICES:
        return Untold(f"there are {len(logs)} hidden matrices, too few to see how far they differ")
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((one - mean) ** 2 for one in logs) / (len(logs) - 1))
    if spread > math.log(_WIDEST):
        return Untold(
            f"2·RMS² differs between the {len(logs)} hidden matrices by a factor of {math.exp(spread):.2g} (one "
            "standard deviation): not one balance of one η and λ holds them"
        )
    between = _T_95.get(len(logs) - 1, 2.0) * spread * math.sqrt(1 + 1 / len(logs))
    margin = math.hypot(between, math.log(_BESIDE_THEORY))
    return Told(
        math.exp(mean),
        math.exp(mean - margin),
        math.exp(mean + margin),
        f"2·RMS² of {len(logs)} hidden matrices, if AdamW trained them with the embedding's λ; of late steps' η, which "
        "an anneal lowers",
    )
