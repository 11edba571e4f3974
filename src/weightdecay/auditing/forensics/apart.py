"""Rows that still are draws of one normal distribution, told from the others by the weights alone.

A row that nothing but decay has touched is the start's draw times one factor: in units of its scale s² the mean square
q of its d independent numbers follows a gamma distribution of mean 1 and shape d/(κ − 1) (κ the kurtosis of one number;
exact for a normal one, κ = 3). Rows that came have moved, which made nearly all of them longer. So q is a mixture

    p(q) = π·Γ(q; s²) + Σ_j π_j·Γ(q; m_j),      m_j ≥ s²·exp(w),   w = √((κ − 1)/d)

of the idle rows and, on a grid, of whatever the others are; s² is told by its likelihood. Rows that moved by less than
one width w of the idle ones cannot be told from them, so the range of s² is wide where the others come close.

The same is asked once more of the part of each row that lies outside the directions in which the others spread most, of
the rows that are short within those directions: rows that came are rarer there. The answer is the hull of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The mixture's range is that of a 99 % likelihood ratio (χ²₁/2), said as 95 %: how the others spread is not known.
_DROP = 3.32
_LEAST_ROWS = 8
# What part of the rows within its width the idle group must be, or something else stands there.
_LEAST_SHARE = 0.45
# Without rows that clearly moved there is nothing to tell idle rows from.
_LEAST_MOVED = 0.03
_NORMAL = 3.0
_KURTOSES = (1.7, 3.3)  # from uniform to normal with a margin
_MOST_DIRECTIONS = 64
_POWERS = 12  # of the power method that finds them; more do not change what lies beside
_SHORTEST, _LEAST_SHORTEST = 0.3, 16  # share and number of a group's rows that are looked at for common directions
_ISOTROPIC = 1.05
_FLOOR = 1e-6  # density of a row that no component explains, so that one odd row decides nothing


@dataclass(frozen=True)
class Group:
    """Rows that look untouched.

    Attributes:
        rows: indices of those within the group's width; a few are others.
        log_square, low, high: ln s², and its range.
        size: how many idle rows the mixture has.
        moved: how many rows stand above.
        kurtosis: of their numbers.
    """

    rows: Tensor
    log_square: float
    low: float
    high: float
    size: float
    moved: float
    kurtosis: float


def untouched_group(rows: Tensor) -> Group | str:
    """The lowest group of rows that look like draws of one distribution, or why there is none.

    Args:
        rows: [n, d], float64, none of them zero.
    """
    n, d = rows.shape
    square = rows.square().mean(1).double()
    found = _lowest(rows, square)
    if found is None:
        return (
            "no group of rows looks untouched: none has norms that spread as those of random draws do, and no "
            "directions in common, as gradients have them"
        )
    (log_square, low, high, size), kurtosis = found

    shape = d / (kurtosis - 1)
    first, last = (math.exp(log_square) * gamma_quantile(shape, p) for p in (0.002, 0.98))
    within = (square >= first) & (square <= last)
    moved = n - size - int((square < first).sum())
    if moved < _LEAST_MOVED * n:
        return (
            "all rows look alike, so rows that never came cannot be told from rows that have hardly moved: give the "
            "tokens of the training, or the start"
        )

    second = _beside_the_others(rows, square > last, log_square, kurtosis)
    if second is not None:
        low, high = min(low, second[1]), max(high, second[2])
    return Group(within.nonzero()[:, 0], log_square, low, high, size, moved, kurtosis)


def gamma_quantile(shape: float, p: float) -> float:
    """Of the gamma distribution of mean 1, by bisection."""
    low, high = 0.0, 1.0 + 40.0 / math.sqrt(shape) + 40.0 / shape
    a = torch.tensor(shape, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        below = float(torch.special.gammainc(a, a * middle)) < p
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def kurtosis_of(numbers: Tensor) -> float:
    """E x⁴ / (E x²)² about 0, within what initialisations have."""
    found = float(numbers.pow(4).mean() / numbers.square().mean().square())
    return min(max(found, _KURTOSES[0]), _KURTOSES[1])


_Fit = tuple[float, float, float, float]  # ln s², its range, and how many rows


def _lowest(rows: Tensor, square: Tensor) -> tuple[_Fit, float] | None:
    """The lowest candidate that is a group of its own, and the kurtosis of its numbers."""
    d, log_square = rows.shape[1], square.log()
    for near in _candidates(log_square, d / (_NORMAL - 1)):
        kurtosis, fit, inside = _NORMAL, None, 0
        for _ in range(2):  # the second time with the kurtosis of what the first one found
            shape = d / (kurtosis - 1)
            fit = _fitted(log_square, shape, near)
            if fit is None:
                break
            first, last = (math.exp(fit[0]) * gamma_quantile(shape, p) for p in (0.002, 0.98))
            within = (square >= first) & (square <= last)
            inside = int(within.sum())
            if inside < _LEAST_ROWS:
                break
            kurtosis = kurtosis_of(rows[within])
        if fit is None or inside < _LEAST_ROWS or fit[3] < max(_LEAST_ROWS, _LEAST_SHARE * inside):
            continue
        if _isotropic(_shortest(rows[within])):
            return fit, kurtosis
    return None


def _candidates(log_square: Tensor, shape: float) -> list[float]:
    """Where the mixture of everything, on a grid, has a peak of some rows; the lowest first."""
    width = 1 / math.sqrt(shape)
    at, count = _binned(log_square, width / 6)
    grid = torch.arange(float(at[0]) - width, float(at[-1]) + width, width / 3, dtype=torch.float64)
    weights, _ = _mixed(_density(at, grid, shape), count, 150)
    mass = torch.nn.functional.avg_pool1d(weights[None, None], 3, 1, 1)[0, 0] * 3 * count.sum()
    beside = torch.nn.functional.pad(mass, (1, 1))
    peaks = (mass >= 4) & (mass >= beside[:-2]) & (mass >= beside[2:])
    return [float(place) for place in grid[peaks]]


def _fitted(log_square: Tensor, shape: float, near: float) -> _Fit | None:
    """ln s² about a candidate: the highest peak of its profile likelihood within reach of the best, and its range.

    Below the idle rows' own scale the likelihood rises again, where the others' lowest component takes their place.
    """
    width = 1 / math.sqrt(shape)
    window = log_square[(log_square > near - 5 * width) & (log_square < near + 7 * width)]
    if len(window) < _LEAST_ROWS:
        return None
    at, count = _binned(window, width / 12)
    grid = torch.arange(near - 2 * width, near + 8 * width, width / 3, dtype=torch.float64)
    others = _density(at, grid, shape)

    places = torch.arange(near - 1.2 * width, near + 1.2 * width, width / 30, dtype=torch.float64).tolist()
    likelihood, share = [], []
    for place in places:
        idle = _density(at, torch.tensor([place], dtype=torch.float64), shape)
        density = torch.cat([idle, others[:, grid >= place + width]], 1)
        weights, reached = _mixed(density, count, 80)
        likelihood.append(reached)
        share.append(float(weights[0]) * len(window))

    best, end = max(likelihood), len(places) - 1
    peak = max(
        i
        for i, one in enumerate(likelihood)
        if one >= max(likelihood[max(0, i - 1)], likelihood[min(end, i + 1)]) and one > best - 6
    )
    if peak in (0, end):
        return None
    low = high = peak
    while low > 0 and likelihood[low - 1] > likelihood[peak] - _DROP:
        low -= 1
    while high < end and likelihood[high + 1] > likelihood[peak] - _DROP:
        high += 1
    return places[peak], places[low], places[high], share[peak]


def _beside_the_others(rows: Tensor, moved: Tensor, log_square: float, kurtosis: float) -> _Fit | None:
    """The same outside the directions of the rows that moved, of the rows that are short within these."""
    d, others = rows.shape[1], rows[moved]
    k = max(1, min(d // 8, len(others) // 4, _MOST_DIRECTIONS))
    if len(others) < 4 or k >= d:
        return None
    whole = rows.square().sum(1).double()
    inside = (rows @ _directions(others, k)).square().sum(1).double()
    along, beside = inside / k, (whole - inside) / (d - k)
    short = along <= math.exp(log_square) * gamma_quantile(k / (kurtosis - 1), 0.35)
    return _fitted(beside[short].log(), (d - k) / (kurtosis - 1), log_square)


def _shortest(rows: Tensor) -> Tensor:
    """Those of a group among which rows that moved are rarest."""
    n = max(min(len(rows), _LEAST_SHORTEST), round(_SHORTEST * len(rows)))
    return rows[rows.square().sum(1).argsort()[:n]]


def _isotropic(rows: Tensor) -> bool:
    """Whether rows point anywhere: the mean of cos² over all pairs is then 1/d, within 2/nd.

    Gradients have few directions, and rows that came share them.
    """
    n, d = rows.shape
    unit = rows / rows.norm(dim=1, keepdim=True)
    excess = float((unit.T @ unit).square().sum() - n) * d / max(n * (n - 1), 1)
    return excess < _ISOTROPIC + 6 / n


def _directions(rows: Tensor, k: int) -> Tensor:
    """An orthonormal basis of the k directions in which rows point most, whatever their lengths: [d, k]."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    drawn = torch.randn(rows.shape[1], k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn.to(rows.dtype))[0]
    for _ in range(_POWERS):
        basis = torch.linalg.qr(unit.T @ (unit @ basis))[0]
    return basis


def _density(at: Tensor, means: Tensor, shape: float) -> Tensor:
    """Of ln q under each mean, 1 at its peak: [places, means]."""
    z = at[:, None] - means[None]
    return (shape * (z - z.exp() + 1)).exp()


def _binned(values: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Means and counts of bins that are not empty."""
    index = ((values - values.min()) / step).long()
    n = int(index.max()) + 1
    count = torch.bincount(index, minlength=n).double()
    mean = torch.zeros(n, dtype=torch.float64).index_add_(0, index, values) / count.clamp_min(1)
    return mean[count > 0], count[count > 0]


def _mixed(density: Tensor, count: Tensor, iterations: int) -> tuple[Tensor, float]:
    """Weights of the mixture's components by expectation and maximisation, and the log likelihood."""
    n = density.shape[1]
    weights = torch.full((n,), 0.5 / max(n - 1, 1), dtype=torch.float64)
    weights[0] = 0.5
    for _ in range(iterations):
        weights = weights * (density.T @ (count / (density @ weights + _FLOOR)))
        weights = weights / weights.sum()
    return weights, float((count * (density @ weights + _FLOOR).log()).sum())
