"""Twins of an optimizer: its groups and its step, with one small tensor for each kind of tensor in a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.probing.copying import Copier
from weightdecay.probing.isolation import OnlyOwnTensors, WritesOutsideError, isolated, untouched, with_storage
from weightdecay.probing.kinds import Sample, sample
from weightdecay.probing.small import away_from_zero

_SEED = 0

# Gradients that are 0: rows, as of words that do not occur, or all of them in some steps.
Zeros: TypeAlias = Literal["none", "some", "all at times"]


@dataclass(frozen=True)
class Manner:
    """How twins of an optimizer are made so that they step.

    Attributes:
        fresh: without state, rather than with what is cut from the optimizer's own.
        settings_only: without what groups hold beside the optimizer's settings, which is how far they have come.
        train: told to be in training, as optimizers are that evaluate at other weights.
        closure: given one that finds the gradients.
        sparse: given sparse gradients.
    """

    fresh: bool
    settings_only: bool = False
    train: bool = False
    closure: bool = False
    sparse: bool = False

    @property
    def keeps_phase(self) -> bool:
        """Whether the twin stands where the optimizer stands, say in every k-th step."""
        return not self.fresh


class Twin:
    """A small optimizer that shares nothing with the one that it was made of.

    Attributes:
        optimizer: the copy.
        params: for each group its small tensors.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        manner: Manner,
        of: Sample,
        *,
        dtype: torch.dtype | None = None,
        hooks: bool = False,
        whole: bool = False,
    ) -> None:
        self.manner, self._hooks, self._steps = manner, hooks, 0
        self._copier = Copier(
            of, dtype=dtype, fresh=manner.fresh, hooks=hooks, whole=whole,
            generator=torch.Generator().manual_seed(_SEED),
        )  # fmt: skip
        self._own: set[int] = set()
        with torch.no_grad(), with_storage():
            self.optimizer = self._made(optimizer, of)
        if manner.train:
            self.optimizer.train()  # type: ignore[attr-defined]
        self.params: list[list[Tensor]] = [list(group["params"]) for group in self.optimizer.param_groups]
        self._start = self.weights()

    def _made(self, optimizer: torch.optim.Optimizer, of: Sample) -> torch.optim.Optimizer:
        # First all small tensors, so that whatever hangs on the optimizer finds them.
        copier = self._copier
        made = []
        for group, indices in zip(of.groups, of.tensors, strict=True):
            small: dict[str, Any] = copier.remember(group, {})
            small["params"] = copier.remember(group["params"], [copier.of_param(group["params"][i]) for i in indices])
            made.append(small)
        copier.remember(optimizer.param_groups, made)

        for group, small, indices in zip(of.groups, made, of.tensors, strict=True):
            for key, value in group.items():
                if key == "param_names":
                    # Others put tensors into a group and leave its names as they were.
                    small[key] = [value[index] if index < len(value) else f"tensor {index}" for index in indices]
                elif key != "params" and (key in optimizer.defaults or not self.manner.settings_only):
                    small[key] = copier.copy(value)
            # It changes no value, and a leaf that wants a gradient cannot be stepped with it.
            if small.get("differentiable"):
                small["differentiable"] = False
        twin: torch.optim.Optimizer = copier.copy(optimizer)
        if isinstance(vars(twin).get("defaults"), dict) and twin.defaults.get("differentiable"):
            twin.defaults["differentiable"] = False
        return twin

    # --- settings

    def set(self, **values: float | Sequence[float]) -> None:
        """Settings of every group, or of each; what is a tensor stays one."""
        for index, group in enumerate(self.optimizer.param_groups):
            for key, value in values.items():
                set_number(group, key, value[index] if isinstance(value, Sequence) else value)

    # --- steps

    def weights(self) -> list[list[Tensor]]:
        """Copies of the small tensors as they are."""
        return [[p.detach().clone() for p in params] for params in self.params]

    @torch.no_grad()
    def set_gradients(self, scale: float = 1.0, added: Sequence[float] | None = None, zeros: Zeros = "none") -> None:
        """The gradients of the next step: the same for every twin at the same step.

        Args:
            scale: of random numbers; 0 for none.
            added: for each group λ, where λ·w is added.
            zeros: which are 0, before λ·w is added.
        """
        if zeros == "all at times" and self._steps % 3 == 1:
            scale = 0.0
        generator = torch.Generator().manual_seed(1_000 + self._steps)
        for index, params in enumerate(self.params):
            for p, start in zip(params, self._start[index], strict=True):
                # Gradients of normalised layers are orthogonal to the weights, and some (AdamP) treat such ones apart.
                numbers = (
                    away_from_zero(tuple(p.shape), generator, is_complex=p.is_complex())
                    if self._steps
                    else _orthogonal(start)
                )
                if zeros == "some":
                    numbers[zeroed(tuple(p.shape), self._steps)] = 0
                p.grad = self._gradient(p, scale * numbers, added[index] if added else 0.0)
        for p in self._copier.small.values():  # those that the optimizer itself remembers
            if p.grad is None and p.requires_grad:
                p.grad = torch.zeros_like(p)

    def _gradient(self, p: Tensor, numbers: Tensor, added: float) -> Tensor:
        gradient = numbers.to(p)
        if added:
            gradient = gradient.add(p.detach(), alpha=added)
        return gradient.to_sparse(min(p.ndim, 1)) if self.manner.sparse and p.ndim else gradient

    def step(self, *, guarded: bool, method: str = "step") -> None:
        """One step with the gradients that are set, as if nobody was there.

        Args:
            guarded: refuse writes to anything but the twin.
            method: by which it is made.
        """
        arguments = (self._closure(),) if self.manner.closure and method == "step" else ()
        with isolated(_SEED + self._steps), with_storage(), self._guard() if guarded else nullcontext():
            getattr(self.optimizer, method)(*arguments)
        self._steps += 1

    def _closure(self) -> Callable[[], Tensor]:
        """Finds the gradients that are set, again and again: a step may drop them between two calls, as SAM's does."""
        found = [(p, p.grad) for p in self._copier.small.values() if p.grad is not None]

        def closure() -> Tensor:
            for p, gradient in found:
                p.grad = gradient.clone()
            return torch.zeros((), device="cpu")

        return closure

    def _guard(self) -> Any:
        # What was made in one step is written to in the next, wherever it is kept.
        copies = [made for made in self._copier.memo.values() if isinstance(made, Tensor)]
        gradients = [p.grad for p in self._copier.small.values() if p.grad is not None]
        return OnlyOwnTensors([*copies, *gradients], self._own)


def _orthogonal(w: Tensor) -> Tensor:
    """Numbers as large as the weights and orthogonal to them, but for the last of an odd number."""
    flat = w.reshape(-1)
    pairs = flat[: flat.numel() // 2 * 2].view(-1, 2)
    turned = torch.stack([pairs[:, 1].conj(), -pairs[:, 0].conj()], dim=1).reshape(-1)
    return 0.7 * torch.cat([turned, flat[turned.numel() :]]).view(w.shape)


def zeroed(shape: tuple[int, ...], step: int) -> Tensor:
    """Where gradients are 0: the first row always, another row for a step, and single elements of the others.

    A tensor of one row has them in its columns. A number by itself is the gradient of a tensor, which is all or none.
    """
    where = torch.zeros(shape, dtype=torch.bool, device="cpu")
    rows = where
    while rows.ndim and rows.shape[0] == 1:
        rows = rows[0]
    if rows.ndim and len(rows) > 1:
        rows[0] = True
        if len(rows) > 2:
            rows[1 + step % (len(rows) - 2)] = True
        if rows.ndim > 1:
            rows[-1].view(-1)[:1] = True
    return where


def set_number(group: dict[str, Any], key: str, value: float) -> None:
    """A number of a group; what is a tensor stays one, another than it was."""
    present = group.get(key)
    group[key] = torch.full_like(present, value) if isinstance(present, Tensor) else value


class Twins:
    """Makes twins of one optimizer, all alike, in the first manner in which they step.

    Args:
        of: which groups and tensors are tried; one of each kind, if not given.

    Raises:
        OptimizerError: none steps; the message says why.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, hooks: bool = False, of: Sample | None = None) -> None:
        self.optimizer, self.hooks = optimizer, hooks
        self.of = sample(optimizer) if of is None else of
        with untouched(optimizer, hooks=hooks):
            self.manner = self._steppable()

    def make(self, dtype: torch.dtype | None = None) -> Twin:
        return Twin(self.optimizer, self.manner, self.of, dtype=dtype, hooks=self.hooks)

    def _steppable(self) -> Manner:
        first: Exception | None = None
        for manner in manners(self.optimizer):
            try:
                twin = Twin(self.optimizer, manner, self.of, hooks=self.hooks)
                twin.set_gradients()
                twin.step(guarded=True)
            except WritesOutsideError:
                raise
            except Exception as error:  # whatever others' code may raise on a tensor that it was not made for
                first = first or error
            else:
                return manner
        raise OptimizerError(
            f"its step could not be tried on a small tensor ({type(first).__name__}: {first})"
        ) from first


def manners(optimizer: torch.optim.Optimizer) -> Iterator[Manner]:
    """How to try it: where the optimizer stands, if it has begun; else from its start."""
    begun = any(bool(state) for state in optimizer.state.values())
    starts = [Manner(fresh=True), Manner(fresh=True, settings_only=True)]
    if begun:
        starts.insert(0, Manner(fresh=False))
    has_modes = callable(getattr(type(optimizer), "train", None))
    for start in starts:
        yield start
        if has_modes:
            yield Manner(start.fresh, start.settings_only, train=True)
    for closure, sparse in ((False, True), (True, False)):
        for start in starts:
            yield Manner(start.fresh, start.settings_only, closure=closure, sparse=sparse)
