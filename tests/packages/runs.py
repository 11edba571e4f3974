"""Runs of one optimizer over gradients that are fixed beforehand: what each step subtracts, with decay and without.

The gradients do not depend on the weights, so two runs of one class can be compared step by step, whatever their
weights are. Nothing here uses the library's own experiments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from optimizer_classes import LR, Kind
from torch import Tensor, nn

STEPS = 300
Shape = tuple[int, ...]
Call = Literal["plain", "closure", "graph", "sparse"]

_CALLS: tuple[Call, ...] = ("plain", "closure", "graph", "sparse")

# Matrix first and bias first; one of 4,096 numbers, from which on some keep their state in 8 bits.
_SHAPES: tuple[tuple[Shape, ...], ...] = (
    ((6, 8), (8,), ()),
    ((8,), (6, 8), (2, 3, 4)),
    ((64, 64), (8,)),
    ((8,), (2, 3, 2, 2), (6, 8)),
    ((2, 3, 4), (6, 8), (8,)),
    ((8,), (6, 8)),
    ((6, 8), (8,)),
)

# Many classes take fewer shapes: the first of these sets that they step is theirs.
_TAKEN: tuple[Callable[[Shape], bool], ...] = (
    lambda shape: True,  # noqa: ARG005
    lambda shape: len(shape) > 0,
    lambda shape: len(shape) in (1, 2),
    lambda shape: len(shape) == 2,
)


@dataclass(frozen=True)
class Layout:
    """What a class is tried on: shapes of each group, how a step is called, and the weights' dtype."""

    shapes: tuple[tuple[Shape, ...], ...]
    call: Call
    dtype: torch.dtype

    @property
    def flat(self) -> list[Shape]:
        return [shape for group in self.shapes for shape in group]

    @property
    def short(self) -> Layout:
        """Matrices first, biases first and a third group, for one rule."""
        return replace(self, shapes=self.shapes[:3])


class NotRunError(Exception):
    """The class cannot make a step here: it wants a GPU, another package, or a call of its own."""


def lr_at(step: int) -> float:
    """A warm-up over 20 steps, then a straight fall that ends at 0."""
    return LR * (step + 1) / 20 if step < 20 else LR * (STEPS - 1 - step) / (STEPS - 21)


class Run:
    """One optimizer with its parameters, stepped over the fixed gradients."""

    def __init__(self, kind: Kind, layout: Layout, groups: Sequence[Mapping[str, Any]]) -> None:
        generator = torch.Generator().manual_seed(1)
        self.layout = layout
        self.groups = [
            [nn.Parameter(torch.randn(shape, generator=generator).to(layout.dtype)) for shape in shapes]
            for shapes in layout.shapes
        ]
        self.params = [p for group in self.groups for p in group]
        self.start = self.weights()
        self._grads: list[Tensor] = []
        given = [{"params": params, **keys} for params, keys in zip(self.groups, groups, strict=True)]
        seed(0)
        self.optimizer = kind.make(given)
        # Those that are made from a model make their groups themselves.
        self.set_decay([keys["weight_decay"] for keys in groups])

    def step(self, number: int, *, zero: bool = False) -> None:
        self.prepare(number, zero=zero)
        self.make()

    def prepare(self, number: int, *, zero: bool = False) -> None:
        """Set lr, gradients and generators as this step is to find them."""
        for group in self.optimizer.param_groups:
            set_lr(group, lr_at(number))
        self._grads = (
            [torch.zeros(p.shape, dtype=p.dtype) for p in self.params] if zero else gradients(self.layout, number)
        )
        for p, grad in zip(self.params, self._grads, strict=True):
            self._give(p, grad)
        seed(number)

    def make(self) -> None:
        if self.layout.call == "closure":
            self.optimizer.step(lambda: self._closure(self._grads))
        else:
            self.optimizer.step()

    def param_groups(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The optimizer's groups, which may be others than were given, each with the place of the one that was."""
        place_of = {id(p): index for index, group in enumerate(self.groups) for p in group}
        for group in self.optimizer.param_groups:
            yield group, place_of[id(group["params"][0])] if group["params"] else len(self.groups) - 1

    def set_decay(self, decays: Sequence[float]) -> None:
        for group, index in self.param_groups():
            if "weight_decay" in group:
                group["weight_decay"] = decays[index]

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]

    def put(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for p, w in zip(self.params, weights, strict=True):
                p.copy_(w)

    def _closure(self, grads: list[Tensor]) -> Tensor:
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad.clone()
        return torch.tensor(1.0)

    def _give(self, p: nn.Parameter, grad: Tensor) -> None:
        if self.layout.call == "graph":
            # The value of `grad`, with a second derivative of 1, for methods that ask for one.
            p.grad = grad + (p - p.detach())
        elif self.layout.call == "sparse":
            p.grad = grad.to_sparse(1)
        else:
            p.grad = grad.clone()


def set_lr(group: dict[str, Any], lr: float) -> None:
    """As a scheduler does: a tensor keeps its place."""
    if isinstance(group.get("lr"), Tensor):
        group["lr"].fill_(lr)
    elif "lr" in group:
        group["lr"] = lr


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


@cache
def _noise(number: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1_000 + number))


def gradients(layout: Layout, number: int) -> list[Tensor]:
    sizes = [int(np.prod(shape)) for shape in layout.flat]
    parts = torch.split(_noise(number, sum(sizes)), sizes)
    return [part.view(shape).to(layout.dtype) for part, shape in zip(parts, layout.flat, strict=True)]


def layouts(dtype: torch.dtype, *, reverse: bool) -> Iterator[Layout]:
    for shapes in (*(tuple(tuple(s for s in group if taken(s)) for group in _SHAPES) for taken in _TAKEN), _SHAPES[:1]):
        if reverse:
            shapes = tuple(group[::-1] for group in shapes)
        for call in _CALLS:
            yield Layout(shapes, call, dtype)

    # LBFGS takes one group only.
    everything = tuple(shape for group in _SHAPES for shape in group)
    yield from (Layout((everything,), call, dtype) for call in _CALLS)


@lru_cache(maxsize=16)
def layout_of(kind: Kind, dtype: torch.dtype, *, reverse: bool) -> Layout:
    """The shapes and the call that the class takes.

    Raises:
        NotRunError: it takes none, with the error of the plainest call.
    """
    first: Exception | None = None
    for layout in layouts(dtype, reverse=reverse):
        try:
            run = Run(kind, layout, [{"weight_decay": 0.0}] * len(layout.shapes))
            for number in range(3):
                run.step(number)
        except Exception as error:  # whatever others' code raises on what it was not made for
            first = first or error
        else:
            return layout
    raise NotRunError(f"{type(first).__name__}: {first}")


def try_without_gradients(kind: Kind, layout: Layout) -> None:
    """Make a step on gradients that are all 0, as a user's own loop would.

    Raises:
        NotRunError: the class itself refuses them.
    """
    try:
        Run(kind, layout, [{"weight_decay": 0.0}] * len(layout.shapes)).step(0, zero=True)
    except Exception as error:  # HeavyBall's PSGD scales its preconditioner by the first gradient
        raise NotRunError(f"without gradients: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Reference:
    """What the class subtracts without decay, at each step from each tensor.

    Attributes:
        updates: u_t = W_t − W_{t+1}, in float64.
        sizes: |W_t|, which bounds the rounding of `updates`.
        reads_from: the first step whose updates are others when the weights are; None if there is none.
        branches: whether they are others when λ is 1e-12 instead of 0, as LARS's are.
    """

    updates: list[list[Tensor]]
    sizes: list[list[Tensor]]
    reads_from: int | None
    branches: bool

    @property
    def reads_weights(self) -> bool:
        return self.reads_from is not None


@lru_cache(maxsize=8)
def reference(kind: Kind, layout: Layout, *, zero: bool = False) -> Reference:
    plain = _updates(kind, layout, STEPS, zero=zero)
    if zero:  # where a λ of 1e-12 may be all the gradient that there is
        seen = reference(kind, layout)
        return Reference(*plain, seen.reads_from, seen.branches)
    disturbed = _updates(kind, layout, STEPS, disturbed=True)
    vanishing = _updates(kind, layout, 20, weight_decay=1e-12)
    reads_from, branches_from = (_differ_from(plain, other, layout.dtype) for other in (disturbed, vanishing))
    if reads_from is None and layout.dtype is torch.bfloat16:
        # In weights of bfloat16 a change of the update's size, as of torch's Adafactor, is lost in their rounding.
        reads_from = reference(kind, replace(layout, dtype=torch.float32)).reads_from
    return Reference(*plain, reads_from, branches_from is not None)


Updates = tuple[list[list[Tensor]], list[list[Tensor]]]


def _updates(
    kind: Kind, layout: Layout, steps: int, *, zero: bool = False, disturbed: bool = False, weight_decay: float = 0.0
) -> Updates:
    """The updates of a run and the weights before each; if disturbed, all weights are drawn anew before each step.

    They end before a step that the class itself cannot make: some divide by lr, which ends at 0, and some diverge.
    """
    run = Run(kind, layout, [{"weight_decay": weight_decay}] * len(layout.shapes))
    generator = torch.Generator().manual_seed(2)
    updates, sizes = [], []
    for number in range(steps):
        if disturbed:
            with torch.no_grad():
                for p in run.params:
                    p.copy_(torch.randn(p.shape, generator=generator))
        before = [w.double() for w in run.weights()]
        try:
            run.step(number, zero=zero)
        except ArithmeticError:
            break
        after = [w - p.detach().double() for w, p in zip(before, run.params, strict=True)]
        if not all(bool(u.isfinite().all()) for u in after):
            break
        updates.append(after)
        sizes.append([w.abs() for w in before])
    return updates, sizes


def _differ_from(one: Updates, other: Updates, dtype: torch.dtype) -> int | None:
    """The first step in which two runs subtract what differs by more than rounding.

    What is rounded off a weight goes by the largest of its tensor so far: a Kahan sum hands it to later steps, when the
    weights may be smaller, and a sum of several momenta is rounded where it is largest and not where it ends.
    """
    largest: dict[int, float] = {}
    for number, (us, ws, vs, xs) in enumerate(zip(*one, *other, strict=False)):
        for index, tensors in enumerate(zip(us, ws, vs, xs, strict=True)):
            u, v = tensors[0], tensors[2]
            here = sum(float(t.abs().max()) for t in tensors if t.numel())
            largest[index] = max(largest.get(index, 0.0), here)
            if bool(((u - v).abs() > 1e-3 * u.abs() + rounding(dtype) * largest[index]).any()):
                return number
    return None


def rounding(dtype: torch.dtype) -> float:
    """What one step may differ by, as a fraction of the weights: some roundings of float32, two of bfloat16."""
    return 2.5 * 2**-8 if dtype is torch.bfloat16 else 8 * 2**-24
