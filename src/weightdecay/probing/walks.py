"""Twins that are led, the weights along their way, and when two ways are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from weightdecay.probing.small import away_from_zero
from weightdecay.probing.twin import Twin, Twins, Zeros

_OTHER_SEED = 7

Where: TypeAlias = Literal["before", "after", "beside"]
Weights: TypeAlias = list[list[Tensor]]


@dataclass(frozen=True)
class Walk:
    """The small weights of each group along a way.

    Attributes:
        places: before the first step and after each.
        starts: before each step; where they are drawn anew, that is not the place after the one before.
    """

    places: list[Weights]
    starts: list[Weights]

    def of_group(self, index: int) -> list[list[Tensor]]:
        return [weights[index] for weights in self.places]

    def first(self, steps: int) -> Walk:
        return Walk(self.places[: steps + 1], self.starts[:steps])


class Walker:
    """A twin that is led: with other settings, and with weights that shrink beside the step.

    Args:
        shrink: for each group a; 0 for none.
        where: `before` the step, `after` it, or `beside` it, a·w of the whole weights; one word, or one for each group.
        into_gradient: for each group λ, where λ·w is added to the gradient.
        gradient: the scale of random gradients; 0 for none.
        zeros: which of the gradients are 0.
        mirrored: start at the weights' opposite.
        drawn_anew: start each step at other random weights.
    """

    def __init__(
        self,
        twin: Twin,
        *,
        shrink: Sequence[float] | None = None,
        where: Where | Sequence[Where] = "before",
        into_gradient: Sequence[float] | None = None,
        gradient: float = 1.0,
        zeros: Zeros = "none",
        mirrored: bool = False,
        drawn_anew: bool = False,
    ) -> None:
        count = len(twin.params)
        if mirrored:
            for p in (p for params in twin.params for p in params):
                p.data.neg_()
        self.twin, self.shrink = twin, list(shrink or [0.0] * count)
        self.where: list[Where] = [where] * count if isinstance(where, str) else list(where)
        self.into_gradient, self.gradient, self.zeros = into_gradient, gradient, zeros
        self.drawn_anew = torch.Generator().manual_seed(_OTHER_SEED) if drawn_anew else None
        self.started: Weights = []

    def step(self, *, guarded: bool) -> Weights:
        """Make one step; the weights after it."""
        if self.drawn_anew:
            self._draw(self.drawn_anew)
            self.started = self.twin.weights()
        self.twin.set_gradients(self.gradient, self.into_gradient, self.zeros)
        whole = self.twin.weights() if "beside" in self.where else self.twin.params
        self._shrink("before")
        self.twin.step(guarded=guarded)
        self._shrink("after")
        for index, (params, before, a) in enumerate(zip(self.twin.params, whole, self.shrink, strict=True)):
            if a and self.where[index] == "beside":
                for p, w in zip(params, before, strict=True):
                    p.data.sub_(w, alpha=a)
        return self.twin.weights()

    def _shrink(self, where: Where) -> None:
        for index, (params, a) in enumerate(zip(self.twin.params, self.shrink, strict=True)):
            if a and self.where[index] == where:
                for p in params:
                    p.data.mul_(1 - a)

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        for p in (p for params in self.twin.params for p in params):
            p.copy_(away_from_zero(tuple(p.shape), generator, is_complex=p.is_complex()))

    def walk(self, steps: int, *, guarded: int = 0) -> Walk:
        """Make some steps.

        Args:
            guarded: how many of them, from the first on, may write to nothing but the twin.
        """
        places, starts = [self.twin.weights()], []
        for number in range(steps):
            place = self.step(guarded=number < guarded)
            starts.append(self.started if self.drawn_anew else places[-1])
            places.append(place)
        return Walk(places, starts)


class Likeness:
    """Whether two walks of a group stay the same but for rounding.

    A difference is compared with the longest step, and with what the dtype rounds off the weights.

    Args:
        forgets: the part of a length that is forgotten at each step, as weights that shrink lose the differences, too.
        relative: the part of a step that it may be off by at least.
    """

    def __init__(self, forgets: float = 0.0, relative: float = 0.0) -> None:
        self._forgets, self._relative = forgets, relative
        self._moved: dict[int, float] = {}
        self._largest: dict[int, float] = {}

    def holds(
        self, was: Sequence[Tensor], one: Sequence[Tensor], other: Sequence[Tensor], beside: Sequence[Tensor] = ()
    ) -> bool:
        """Whether the two are alike after a step from `was`; `beside` are weights whose rounding is in them, too."""
        tensors = zip(was, one, other, beside or was, strict=True)
        return all(self._holds(index, *of_one) for index, of_one in enumerate(tensors))

    def _holds(self, index: int, w: Tensor, x: Tensor, y: Tensor, beside: Tensor) -> bool:
        kept = 1 - self._forgets
        moved = self._moved[index] = max(kept * self._moved.get(index, 0.0), longest(x - w))
        largest = self._largest[index] = max(kept * self._largest.get(index, 0.0), longest(x), longest(w))
        relative, floor = _tolerance(x.dtype)
        # Which is never so of nan.
        return longest(x - y) <= max(relative, self._relative) * moved + floor * max(largest, longest(beside))


def is_alike(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    """Whether two walks of a group are the same but for rounding."""
    likeness = Likeness()
    return all(likeness.holds(was, a, b) for was, a, b in zip(one, one[1:], other[1:], strict=False))


def has_same_updates(plain: Walk, other: Walk, index: int) -> bool:
    """Whether the steps of two walks of a group subtract the same, wherever they start."""
    likeness = Likeness()
    ways = zip(plain.starts, plain.places[1:], other.starts, other.places[1:], strict=True)
    for w, after, x, place in ((part[index] for part in step) for step in ways):
        meant = [start - (was - now) for start, was, now in zip(x, w, after, strict=True)]
        if not likeness.holds(x, meant, place):
            return False
    return True


def longest(x: Tensor) -> float:
    """The largest absolute value; 0 of an empty tensor."""
    return float(x.abs().max()) if x.numel() else 0.0


def _tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """Of a step, and of the weights.

    Found over the optimizers of docs/optimizers.md: in float64 rounding stays far below 1e-5 of a step, and true
    dependence on the weights far above. In the weights' own dtype the rounding of 16 steps adds up, and only what is
    coarse is asked of it.
    """
    if dtype in (torch.float64, torch.complex128):
        return 1e-5, 1e-13
    finfo = torch.finfo(dtype)
    return 1e-3 if finfo.bits == 32 else 0.1, 16 * finfo.eps


def fine_dtype(twins: Twins) -> torch.dtype | None:
    """The finest dtype in which twins really step; None where that is none but the optimizer's own.

    Kernels that take float64 weights and work in float32 leave weights that float32 could hold.
    """
    for dtype, coarser in ((torch.float64, torch.float32), (torch.float32, torch.bfloat16)):
        try:
            walker = Walker(twins.make(dtype))
            weights = [w for _ in range(2) for group in walker.step(guarded=True) for w in group]
        except Exception:  # others' code
            continue
        if all(w.dtype == dtype or w.is_complex() for w in weights) and not all(
            torch.equal(w, w.to(coarser).to(dtype)) for w in weights if not w.is_complex() and w.numel()
        ):
            return dtype
    return None
