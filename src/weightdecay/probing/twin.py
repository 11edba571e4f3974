"""Twins of an optimizer: its groups and its step, with one small tensor for each kind of tensor in a group.

A kind is the number of axes, which of them have length 1, and the dtype: what an optimizer may treat apart.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.probing.copying import Copier
from weightdecay.probing.isolation import OnlyOwnTensors, WritesOutsideError, isolated, untouched

_SEED = 0
_PROGRESS_STEPS = 8  # Prodigy's estimate of its step length first grows after some


@dataclass(frozen=True)
class Manner:
    """How twins of an optimizer are made so that they step.

    Attributes:
        fresh: without state, rather than with what is cut from the optimizer's own.
        settings_only: without what groups hold beside the optimizer's settings, which is how far they have come.
        train: told to be in training, as optimizers are that evaluate at other weights.
        closure: given one that finds the gradients there already.
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
        *,
        dtype: torch.dtype | None = None,
        hooks: bool = False,
        groups: Sequence[Mapping[str, Any]] | None = None,
        whole: bool = False,
    ) -> None:
        self.manner, self._hooks, self._steps = manner, hooks, 0
        self._copier = Copier(
            dtype=dtype, fresh=manner.fresh, hooks=hooks, whole=whole,
            generator=torch.Generator().manual_seed(_SEED),
        )  # fmt: skip
        self._own: set[int] = set()
        with torch.no_grad():
            self.optimizer = self._made(optimizer, optimizer.param_groups if groups is None else groups)
        if manner.train:
            self.optimizer.train()  # type: ignore[attr-defined]
        self.params: list[list[Tensor]] = [list(group["params"]) for group in self.optimizer.param_groups]

    def _made(self, optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
        copier, chosen = self._copier, [_representatives(group["params"]) for group in groups]
        for group in groups:
            for p in group["params"]:
                copier.expect(p)
        made = []
        for group, indices in zip(groups, chosen, strict=True):
            small: dict[str, Any] = copier.remember(group, {})
            small["params"] = copier.remember(group["params"], [copier.of_param(group["params"][i]) for i in indices])
            made.append(small)
        copier.remember(optimizer.param_groups, made)

        for group, small, indices in zip(groups, made, chosen, strict=True):
            for key, value in group.items():
                if key == "param_names":
                    small[key] = [value[index] for index in indices]
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
    def set_gradients(self, scale: float = 1.0, added: Sequence[float] | None = None) -> None:
        """The gradients of the next step: the same for every twin at the same step.

        Args:
            scale: of random numbers; 0 for none.
            added: for each group λ, where λ·w is added.
        """
        generator = torch.Generator().manual_seed(1_000 + self._steps)
        for index, params in enumerate(self.params):
            for p in params:
                p.grad = self._gradient(p, generator, scale, added[index] if added else 0.0)
        for p in self._copier.small.values():  # those that the optimizer itself remembers
            if p.grad is None and p.requires_grad:
                p.grad = torch.zeros_like(p)

    def _gradient(self, p: Tensor, generator: torch.Generator, scale: float, added: float) -> Tensor:
        dtype = torch.complex128 if p.is_complex() else torch.float64
        numbers = torch.randn(p.shape, generator=generator, dtype=dtype)
        gradient = (scale * numbers).to(p)
        if added:
            gradient = gradient.add(p.detach(), alpha=added)
        return gradient.to_sparse(min(p.ndim, 1)) if self.manner.sparse and p.ndim else gradient

    def step(self, *, guarded: bool) -> None:
        """One step with the gradients that are set, as if nobody was there.

        Args:
            guarded: refuse writes to anything but the twin.
        """
        arguments = (_no_loss,) if self.manner.closure else ()
        with isolated(_SEED + self._steps), self._guard() if guarded else nullcontext():
            self.optimizer.step(*arguments)
        self._steps += 1

    def _guard(self) -> Any:
        # What was made in one step is written to in the next, wherever it is kept.
        copies = [made for made in self._copier.memo.values() if isinstance(made, Tensor)]
        gradients = [p.grad for p in self._copier.small.values() if p.grad is not None]
        return OnlyOwnTensors([*copies, *gradients], self._own)


def _no_loss() -> Tensor:
    return torch.zeros(())


def set_number(group: dict[str, Any], key: str, value: float) -> None:
    """A number of a group; what is a tensor stays one, another than it was."""
    present = group.get(key)
    group[key] = torch.full_like(present, value) if isinstance(present, Tensor) else value


def _representatives(params: Sequence[Tensor]) -> list[int]:
    """The places of one tensor of each kind, the largest; which comes first in the group does not matter."""
    chosen: dict[Any, int] = {}
    for index, p in enumerate(params):
        kind = (p.dtype, tuple(n == 1 for n in p.shape))
        if kind not in chosen or params[chosen[kind]].numel() < p.numel():
            chosen[kind] = index
    return sorted(chosen.values())


class Twins:
    """Makes twins of one optimizer, all alike, in the first manner in which they step.

    Raises:
        OptimizerError: none steps; the message says why.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        hooks: bool = False,
        groups: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.optimizer, self.hooks, self.groups = optimizer, hooks, groups
        with untouched(optimizer):
            self.manner = self._steppable()

    def make(self, dtype: torch.dtype | None = None) -> Twin:
        return Twin(self.optimizer, self.manner, dtype=dtype, hooks=self.hooks, groups=self.groups)

    def _steppable(self) -> Manner:
        first: Exception | None = None
        for manner in _manners(self.optimizer):
            try:
                twin = Twin(self.optimizer, manner, hooks=self.hooks, groups=self.groups)
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


def _manners(optimizer: torch.optim.Optimizer) -> Iterator[Manner]:
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


# --- what steps leave


def stepped_state(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], shape: Sequence[int], dtype: torch.dtype
) -> dict[str, Any] | None:
    """The state that one step leaves for a tensor of this shape and dtype in a group; None where it makes no step.

    With a prime for each axis of `shape`, the axes of a state tell which of the tensor's they are.
    """
    # An optimizer's groups are its own, so a parameter of the shape stands in the twin's group, and its own in none.
    stand_in = torch.empty(tuple(shape), dtype=dtype, device="meta").requires_grad_(dtype.is_floating_point)
    alone = {**group, "params": [stand_in], **({"param_names": ["w"]} if "param_names" in group else {})}
    for manner in _manners(optimizer):
        if not manner.fresh:
            continue
        try:
            twin = Twin(optimizer, manner, groups=[alone], whole=True)
            twin.set_gradients()
            twin.step(guarded=True)
        except Exception:  # as in `Twins`
            continue
        state = twin.optimizer.state.get(twin.params[0][0], {})
        return {key: value for key, value in state.items() if value is not None}
    return None


def _of_shape(twin: Twin, shape: tuple[int, ...]) -> Tensor:
    """The twin's only tensor, with another shape than the small one."""
    (p,) = twin.params[0]
    generator = torch.Generator().manual_seed(_SEED)
    p.data = torch.randn(shape, generator=generator, dtype=torch.float64).to(p)
    return p


def progress_keys(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """The keys of groups that steps change: how far the optimizer has come, and no settings.

    Seen on a twin that makes some steps; none where it makes no step.
    """
    groups = _different(optimizer.param_groups)
    try:
        manner = Twins(optimizer, groups=groups).manner
        twin = Twin(optimizer, manner, groups=groups)
        fresh = Manner(manner.fresh, manner.settings_only)
        start = Twin(optimizer, fresh, groups=groups) if manner.train else twin
        before = [copy.deepcopy(_without_params(group)) for group in start.optimizer.param_groups]
        for _ in range(_PROGRESS_STEPS):
            twin.set_gradients()
            twin.step(guarded=True)
    except Exception:
        return frozenset()
    after = [_without_params(group) for group in twin.optimizer.param_groups]
    return frozenset(
        str(key)
        for was, now in zip(before, after, strict=True)
        for key in now
        if key not in was or not _same(was[key], now[key])
    )


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:
        return a is b


def _different(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One group of each kind, where there may be one for each tensor: those of a kind differ in numbers alone."""
    kinds: dict[Any, Mapping[str, Any]] = {}
    for group in groups:
        words = tuple(
            (key, value if value is None or isinstance(value, bool | str) else type(value))
            for key, value in group.items()
            if key not in ("params", "param_names", "name")
        )
        kinds.setdefault((words, frozenset((p.dtype, p.ndim) for p in group["params"])), group)
    return list(kinds.values())
