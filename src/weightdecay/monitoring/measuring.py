"""One tensor in one step, as sums: chunk by chunk, without a second copy of anything but the weights before.

    d = w' − w              the step            z = m ⊙ (w − target)    what a decay of the rule takes a part of
    r = −d − η·u            what the step took beside its direction u, where the optimizer's state tells that

Sums add up over chunks and over ranks that hold shards; angles and shares are made of them at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from weightdecay.probing.isolation import on_one_thread
from weightdecay.rules import Rule

CHUNK = 1 << 15
"""Elements; a few such pieces lie in a processor's cache."""
_CHUNK_ELSEWHERE = 1 << 24

# Of a stretch (begin, end) of the tensor's elements.
Stretch = Callable[[int, int], Tensor]
# d + η·u, of d and the stretch that it is of.
Undone = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Sums:
    """Of one tensor's elements, or of those of them that were looked at.

    n      how many          ww = Σw²       wd = Σw·d      dd = Σd²
    zz = Σz²   zd = Σz·d     wz = Σw·z      zr = Σz·r      rr = Σr²     uu = Σ(η·u)²
    gg = Σg²   gw = Σg·w     ss = Σ√v̂ of a second moment          vv = Σw² after the step before
    """

    n: float = 0.0
    ww: float = 0.0
    wd: float = 0.0
    dd: float = 0.0
    zz: float = 0.0
    zd: float = 0.0
    wz: float = 0.0
    zr: float = 0.0
    rr: float = 0.0
    uu: float = 0.0
    gg: float = 0.0
    gw: float = 0.0
    ss: float = 0.0
    vv: float = math.nan

    @property
    def finite(self) -> bool:
        return math.isfinite(self.ww) and math.isfinite(self.dd)

    @property
    def rms(self) -> float:
        """Of the weights before the step."""
        return math.sqrt(self.ww / self.n) if self.n else 0.0

    @property
    def angle(self) -> float:
        """Radians between the weights before and after; from d, since 1 − cos of a small angle has no digits."""
        if self.ww <= 0:
            return 0.0
        across = max(self.dd - self.wd**2 / self.ww, 0.0)
        return math.atan2(math.sqrt(across * self.ww), self.ww + self.wd)

    def update(self, decay: float) -> tuple[float, float | None]:
        """(root mean square, cosine with the weights) of the update that is subtracted, without a decay of z."""
        square = max(self.dd + 2 * decay * self.zd + decay**2 * self.zz, 0.0)
        along = -(self.wd + decay * self.wz)
        both = math.sqrt(square * self.ww)
        return math.sqrt(square / self.n) if self.n else 0.0, along / both if both > 0 else None

    @property
    def taken(self) -> float:
        """⟨z, r⟩/‖z‖²: the part of z that the step took beside its direction."""
        return self.zr / self.zz if self.zz > 0 else 0.0

    @property
    def outside(self) -> float | None:
        """The part of w that somebody else has taken since the step before; None where nobody has looked."""
        if math.isnan(self.vv) or self.vv <= 0:
            return None
        return 1.0 - math.sqrt(self.ww / self.vv)

    @property
    def beside(self) -> float:
        """Σ of the squares of r across z: 0 where the direction is what was supposed, but for rounding."""
        return max(self.rr - self.zr**2 / self.zz, 0.0) if self.zz > 0 else self.rr

    def close(self, epsilon: float) -> bool:
        """Whether the step is the supposed direction and a decay of z, beyond what rounding of the weights feigns.

        Args:
            epsilon: half a unit in the last place of 1.
        """
        noise = epsilon**2 * self.ww
        return self.uu > _FINE * noise and self.beside <= _NEAR * self.uu + 4 * noise


NAMES = tuple(field.name for field in fields(Sums))
# Of ‖η·u‖²: of the same formula in another order of operations less than 1e-12 is left, of another one most.
_NEAR = 1e-4
# An update must stand above the rounding of the weights by so much, squared, to be told from another.
_FINE = 1e4


@torch.no_grad()
def sums(
    before: Tensor,
    after: Tensor,
    rule: Rule,
    *,
    initial: Tensor | None = None,
    direction: Undone | None = None,
    second: Stretch | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """`Sums` but for the last of them as a tensor, float64, in the order of `NAMES`.

    Args:
        before, after: flat weights, of one dtype.
        rule: whose mask and target say what z is.
        initial: the target of rules that pull to the initial weights.
        direction: gives what of the step its direction does not account for; None where nothing tells it.
        second: gives √v̂ of a stretch.
        gradient: flat.
    """
    wide = torch.promote_types(before.dtype, torch.float32)
    chunk = CHUNK if before.is_cpu else _CHUNK_ELSEWHERE
    rows = []
    with on_one_thread() if before.is_cpu else nullcontext():
        for begin in range(0, before.numel(), chunk):
            end = min(begin + chunk, before.numel())
            w = before[begin:end].to(wide)
            d = after[begin:end].to(wide) - w
            z = _decaying(w, d, rule, None if initial is None else initial[begin:end])
            whole = z is w
            ww, wd = w.dot(w), w.dot(d)
            nothing = torch.zeros_like(ww)
            row = [ww, wd, d.dot(d), ww if whole else z.dot(z), wd if whole else z.dot(d), ww if whole else w.dot(z)]
            if direction is None:
                row += [nothing] * 3
            else:
                left = direction(d, begin, end)  # −r, and η·u is the difference to d
                square_left = left.dot(left)
                row += [-z.dot(left), square_left, row[2] + square_left - 2 * d.dot(left)]
            if gradient is None:
                row += [nothing] * 2
            else:
                g = gradient[begin:end].to(wide)
                row += [g.dot(g), g.dot(w)]
            row.append(nothing if second is None else second(begin, end).sum().to(wide))
            rows.append(torch.stack(row))
    total = torch.stack(rows).double().sum(0) if rows else torch.zeros(len(NAMES) - 2, dtype=torch.float64)
    return torch.cat([torch.tensor([float(before.numel())], dtype=torch.float64, device=total.device), total])


@torch.no_grad()
def square(weights: Tensor) -> Tensor:
    """Σw² of flat weights, added up as `sums` does, so that weights nobody has touched have the same."""
    wide = torch.promote_types(weights.dtype, torch.float32)
    chunk = CHUNK if weights.is_cpu else _CHUNK_ELSEWHERE
    with on_one_thread() if weights.is_cpu else nullcontext():
        parts = [part.to(wide) for part in torch.split(weights, chunk)] if weights.numel() else []
        found = torch.stack([part.dot(part) for part in parts]).double().sum() if parts else None
    return torch.zeros((), dtype=torch.float64, device=weights.device) if found is None else found


def _decaying(w: Tensor, d: Tensor, rule: Rule, initial: Tensor | None) -> Tensor:
    """z: w itself where a rule is scalar.

    A mask shows in the step: where the update u agrees with w in sign, decay and update both shrink w, and where it
    does not, there is no decay and the step is −η·u. So w·d ≤ 0 where u·w ≥ 0, and nowhere else.
    """
    z = w
    if rule.target == "one":
        z = w - 1
    elif rule.target == "initial" and initial is not None:
        z = w - initial.to(w.dtype)
    if rule.mask == "agreeing":
        z = z * (w * d <= 0)
    elif rule.mask == "strictly_agreeing":
        z = z * (w * d < 0)
    return z
