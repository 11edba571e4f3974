"""What a tensor comes to under the optimizer in use, where theory says so, and how far it is from there.

    adam   decoupled: `adamw_equilibrium`; coupled: `adam_l2_equilibrium`, σ = mean √v̂
    lion   decoupled: `lion_equilibrium`
    sgd    of a weight whose length its output does not feel: coupled `sgd_equilibrium`; decoupled, where the decay
           does not pass through the momentum, that of an AdamW with β₁ = μ and lr η·g/(1 − μ), where g = g̃/rms
    muon   no equilibrium, and a bound on the spectral norm

Everything else, and every rule with a mask or another target than 0, has no theory here, and that is said.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

from weightdecay.equilibrium import (
    Equilibrium,
    adam_l2_equilibrium,
    adamw_equilibrium,
    lion_correlation,
    lion_equilibrium,
    sgd_equilibrium,
)
from weightdecay.monitoring.courses import Noise
from weightdecay.monitoring.decaying import GroupDecay, amount
from weightdecay.monitoring.directions import Kind
from weightdecay.monitoring.measuring import Sums
from weightdecay.optim.grouping import Group
from weightdecay.optim.orthogonal import NEWTON_SCHULZ, POLAR_EXPRESS, Coefficients, update_scale

Theory = Literal["adamw", "adam_l2", "lion", "sgd", "muon", ""]

CLOSE = 0.1
"""A norm this near to the equilibrium, as a part of it, is there."""
# A gradient at more of a right angle than that is of a weight whose length matters.
_ALONG = 0.1


@dataclass(frozen=True)
class Prediction:
    """What theory says of one tensor.

    Attributes:
        why: why there is no theory; empty where there is.
        rate: the part of the weights' memory that a step forgets; a, or what stands for it.
    """

    theory: Theory = ""
    why: str = ""
    equilibrium: Equilibrium | None = None
    rate: float | None = None

    def distance(self, rms: float) -> float | None:
        """rms/equilibrium − 1."""
        return None if self.equilibrium is None else rms / self.equilibrium.rms - 1.0

    def steps_from(self, rms: float) -> float | None:
        """Steps until the norm is near its equilibrium, at the present η and decay: ‖w‖² relaxes with e^(−2at)."""
        if self.equilibrium is None or not self.rate:
            return None
        gap, near = abs((rms / self.equilibrium.rms) ** 2 - 1.0), (1.0 + CLOSE) ** 2 - 1.0
        return 0.0 if gap <= near else math.log(gap / near) / (2.0 * self.rate)


def is_muon(group: Group) -> bool:
    """Whether a group's updates are made orthogonal."""
    return group.get("algorithm") == "muon" or ("ns_steps" in group and "algorithm" not in group)


def noise_of(kind: Kind | None, group: Group) -> Noise | None:
    """What updates are on white noise, of the directions whose size does not depend on the gradients'."""
    if kind == "adam":
        beta1 = float(group["betas"][0])
        return Noise((1 - beta1) / (1 + beta1), beta1, beta1)
    if kind == "lion":
        beta1, beta2 = float(group["betas"][0]), float(group["betas"][1])
        return Noise(1.0, 2 / math.pi * math.asin(min(lion_correlation(beta1, beta2), 1.0)), beta2)
    return None


def has_course(decay: GroupDecay) -> bool:
    """Whether a step shrinks the weights as a whole, towards 0, by a part that is known."""
    return decay.rule.is_scalar and decay.requested is not None


def predicted(kind: Kind | None, group: Group, decay: GroupDecay, sums: Sums) -> Prediction:
    """What one tensor comes to, at the present numbers."""
    lr, λ, rule = amount(group, "lr"), amount(group, "weight_decay"), decay.rule
    if is_muon(group):
        if not has_course(decay):
            return Prediction(why=f"under rule '{rule.name}' not even a bound is known of Muon's matrices")
        return Prediction("muon", "of Muon's norms a bound is known, and no equilibrium", rate=decay.requested)
    if kind is None:
        return Prediction(why="no theory here: this optimizer's updates are none that it is known of")
    if rule.is_masked or rule.target != "zero":
        return Prediction(why=f"no theory here of rule '{rule.name}', which does not pull the whole matrix to 0")
    if not rule.coupled and decay.requested is None:
        return Prediction(why=f"no theory here: {decay.why}")
    if lr <= 0 or (λ <= 0 if rule.coupled else not 0 < (decay.requested or 0.0) < 1):
        return Prediction(why="nothing decays, and without decay no norm is an equilibrium")
    if kind == "adam":
        return _adam(group, decay, sums, lr, λ)
    if kind == "lion":
        if rule.coupled:
            return Prediction(why="no theory here of Lion with λ in its gradient")
        beta1, beta2 = group["betas"]
        return Prediction(
            "lion", equilibrium=lion_equilibrium(lr, decay.requested or 0.0, beta1, beta2), rate=decay.requested
        )
    return _sgd(group, decay, sums, lr, λ)


def _adam(group: Group, decay: GroupDecay, sums: Sums, lr: float, λ: float) -> Prediction:
    beta1 = float(group["betas"][0])
    if not decay.rule.coupled:
        a = decay.requested or 0.0
        return Prediction("adamw", equilibrium=adamw_equilibrium(lr, a, beta1), rate=a)
    σ = sums.ss / sums.n if sums.n else 0.0
    if not σ > 0:
        return Prediction(why="no theory here: the gradients' size, which decides under L2, is not known")
    return Prediction("adam_l2", equilibrium=adam_l2_equilibrium(lr, λ, beta1, σ), rate=min(lr * λ / σ, 1.0))


def _sgd(group: Group, decay: GroupDecay, sums: Sums, lr: float, λ: float) -> Prediction:
    μ = float(group["momentum"])
    if group.get("nesterov") or group.get("dampening"):
        return Prediction(why="no theory here of SGD with nesterov or dampening")
    if not (sums.gg > 0 and sums.ww > 0):
        return Prediction(why="no theory here: the gradients' size, which decides under SGD, is not known")
    cosine = abs(sums.gw) / math.sqrt(sums.gg * sums.ww)
    if cosine > _ALONG:
        return Prediction(
            why=f"no theory here: the output feels this weight's length, for its gradient lies along it (cosine "
            f"{cosine:.2f})"
        )
    gradient_rms = math.sqrt(sums.gg / sums.n)
    if decay.rule.coupled:
        return Prediction(
            "sgd", equilibrium=sgd_equilibrium(lr, λ, μ, gradient_rms, sums.rms), rate=min(lr * λ / (1 - μ), 1.0)
        )
    a = decay.requested or 0.0
    unit = adamw_equilibrium(1.0, a, μ)  # of a momentum that is 1 − μ times this one, of gradients of size 1
    rms = math.sqrt(lr * gradient_rms * sums.rms / (1 - μ) * unit.rms)
    return Prediction("sgd", equilibrium=Equilibrium(rms, unit.angle, unit.cosine), rate=a)


def reach(group: Group, shape: tuple[int, ...]) -> float | None:
    """s: the largest singular value that one update of Muon's can have, with its scale and without η."""
    if len(shape) < 2:
        return None
    stacked = int(group.get("stacked", 1))
    rows, columns = shape[-2] // stacked, shape[-1]
    scale = update_scale(rows, columns, group.get("adjust_lr_fn")) * math.sqrt(stacked)
    if group.get("neuron_beta2"):  # neurons that are evened out leave the Frobenius norm alone as it was
        return scale * math.sqrt(min(rows, columns))
    method = group.get("orthogonalisation", "newton_schulz")
    table = POLAR_EXPRESS if method == "polar_express" else (tuple(group.get("ns_coefficients", NEWTON_SCHULZ)),)
    return scale * _largest_left(table, int(group.get("ns_steps", 5)))


@functools.lru_cache(maxsize=64)
def _largest_left(table: tuple[Coefficients, ...], steps: int) -> float:
    """What the polynomials can make of a singular value between 0 and 1, seen at many of them; and rounding's share."""
    values = [place / _PLACES for place in range(1, _PLACES + 1)]
    for step in range(steps):
        a, b, c = table[min(step, len(table) - 1)]
        values = [a * x + b * x**3 + c * x**5 for x in values]
    return _ROUNDED * max(map(abs, values))


_PLACES = 2_000
_ROUNDED = 1.02  # bfloat16 throughout
