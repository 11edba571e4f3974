"""Directions that take each element for itself, and so can mask the decay and step flat pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.compiled import ENOUGH, Direction, Loop, LoopKind, parts_of, usable_loop
from weightdecay.optim.decay import decay_all_, laid_out_like, local
from weightdecay.optim.grouping import Group, with_gradient
from weightdecay.optim.pieces import SMALL, Flat, StepKind, Update, flattened
from weightdecay.optim.roundings import LOW_PRECISION
from weightdecay.optim.work import Work


class ElementwiseOptimizer(DecayingOptimizer, ABC):
    """A direction that tells the sign of its coming update, for masks, and steps flat pieces, for low precision.

    Tensors that torch's own step cannot serve go in pieces, small ones of a kind together, or through one compiled loop
    where the direction has a form for it and there are weights enough to pay for its compilation.
    """

    pieces_equal_fused: ClassVar[bool] = False
    """Whether `_update_pieces` does bit for bit what the direction's fused kernel does."""
    direction: ClassVar[Direction | None] = None
    """The direction in terms that compile into one loop, if it has such a form."""

    _compiles = False  # in this step

    @abstractmethod
    def _next_direction(self, group: Group) -> tuple[str, tuple[float, float]]:
        """(key of the momentum, (x, y)): the coming descent has the sign of x·momentum + y·gradient."""

    @abstractmethod
    def _state_names(self, group: Group) -> tuple[str, ...]:
        """Names of the state that has a number for each weight."""

    @abstractmethod
    def _update_pieces(self, pieces: Sequence[Flat], group: Group, weight_decay: float) -> None:
        """The direction's step of flat pieces, in place, with the `weight_decay` that it is to apply."""

    # --- what base asks

    def state_shapes(self, group: Group, p: Tensor) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(self._state_names(group), p.shape)

    def _begin(self, p: Tensor, one: Work, position: int) -> None:
        if self.counts_steps and "step" not in self.state[p]:
            self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        super()._begin(p, one, position)

    def _refuse_unusable(self, work: list[Work]) -> None:
        super()._refuse_unusable(work)
        asked = self._workspace.compiled
        weights = sum(p.numel() for one in work for p in one.group["params"]) if asked is None else 0
        self._compiles = self.direction is not None and (weights >= ENOUGH if asked is None else asked)
        if self._compiles:  # now, while nothing has changed
            for one in work:
                for p in one.weights:
                    if self._goes_in_pieces(p, one):
                        self._loop(p, one)

    def _step_faults(self, one: Work) -> Iterator[str]:
        yield from super()._step_faults(one)
        here = [p for p in (one.weights if one.group.get("fused") else ()) if not one.rounding.acts_on(p.dtype)]
        strided = [p for p in here if not (p.is_contiguous() or hasattr(p, "to_local"))]
        if any(torch.empty_like(p, device="meta").stride() != p.stride() for p in strided):
            yield (
                "fused=True would write between weights that lie apart in memory (a part of a larger tensor): give "
                "fused=False, or make them a tensor of their own"
            )

    def _step_beside(self, one: Work) -> list[Any]:
        """Step by loop or in pieces what torch's step cannot serve; the rest is torch's, after its decay here."""
        rest, rule = one.group["params"], one.rule
        if one.rounding.acts_on(torch.bfloat16) or not (rule.is_scalar or rule.coupled):
            positions = {p: position for position, p in enumerate(rest) if p.grad is not None}
            beside = {p: position for p, position in positions.items() if self._goes_in_pieces(p, one)}
            if beside:
                self._step_pieces(beside, one)
            rest = [p for p in rest if p not in beside]

        if one.kernels is None and one.decay:
            self._decay_before([p for p in rest if p.grad is not None], one)
        return list(rest)

    def _direction_step(self) -> None:
        """torch's own; its fused kernels go by place in memory, so gradients and state are laid out as the weights."""
        lent = []
        for group in self.param_groups:
            for p in with_gradient(group) if group.get("fused") else ():
                if (p.ndim < 2 and p.grad.is_contiguous()) or hasattr(p, "to_local"):
                    continue
                state = self.state[p]
                for key in self._state_names(group):
                    if state.get(key) is not None:
                        state[key] = laid_out_like(p, state[key])
                gradient, p.grad = p.grad, laid_out_like(p, p.grad)
                if gradient is not p.grad:
                    lent.append((p, gradient))
        try:
            super()._direction_step()
        finally:
            for p, gradient in lent:
                # A GradScaler's scale is taken out of it by the kernel.
                p.grad = gradient if getattr(self, "grad_scale", None) is None else gradient.copy_(p.grad)

    # --- pieces

    def _goes_in_pieces(self, p: Any, one: Work) -> bool:
        """Whether a tensor is stepped here and not by torch."""
        if one.rounding.acts_on(p.dtype):
            return True
        if one.rule.is_scalar or one.rule.coupled or not self.pieces_equal_fused:
            return False
        if not (p.is_contiguous() and p.is_floating_point()) or hasattr(p, "to_local"):
            return False
        group = one.group
        free = group.get("fused") is None and group.get("foreach") is None  # to be stepped as is fastest
        return bool(group.get("fused")) or (free and self._loop(p, one) is not None)

    def _step_pieces(self, positions: Mapping[Any, int], one: Work) -> None:
        """Decay and step these tensors, each by a loop or with others of its kind."""
        for p, position in positions.items():
            self._begin(p, one, position)
        if self.counts_steps:
            torch._foreach_add_([self.state[p]["step"] for p in positions], 1)

        def update(pieces: Sequence[Flat]) -> None:
            self._update_pieces(pieces, one.group, 0.0 if one.kernels is None else float(one.kernels))

        tensors = ((p, p.grad, self.state[p]) for p in positions)
        with flattened(tensors, (*self._state_names(one.group), *self._kept_beside(one))) as flats:
            rest = []
            for p, flat in zip(positions, flats, strict=True):
                if self._compiles and (found := self._loop(p, one)) is not None:
                    self._workspace.run(*found, flat, self._numbers(p, one))
                else:
                    rest.append(flat)
            self._workspace.step(rest, self._kind(one, update))
        self._count_roundings(list(positions), one.rounding)

    def _kind(self, one: Work, update: Update | None) -> StepKind:
        """Decay, where the direction's own step does not make it, and update of flat pieces."""
        momentum, (x, y) = self._next_direction(one.group) if one.rule.is_masked else ("", (0.0, 1.0))
        mix = (x, -y) if one.group["maximize"] else (x, y)
        return StepKind(one.rule, one.decay if one.kernels is None else 0.0, one.rounding, update, momentum, mix)

    def _decay_before(self, weights: list[Any], one: Work) -> None:
        """The decay of tensors that torch steps afterwards."""
        if one.rule.is_scalar:
            decay_all_(weights, one.rule, one.decay)
            return
        kind = self._kind(one, None)
        if one.rule.target == "initial":  # before a tensor's first step it is there
            weights = [p for p in weights if "initial" in self.state[p]]
        with flattened(((p, p.grad, self.state[p]) for p in weights), (kind.momentum, "initial")) as flats:
            self._workspace.step(flats, kind)

    # --- loops

    def _loop(self, p: Any, one: Work) -> tuple[LoopKind, Loop] | None:
        """The compiled loop for a tensor, where it can go through one."""
        here, asked, group = local(p), bool(self._workspace.compiled), one.group
        if self.direction is None or not (self._compiles and here.is_contiguous() and here.numel() > 1):
            return None
        if not asked and (here.device.type != "cpu" or here.numel() <= SMALL):
            return None
        if here.dtype not in (torch.float32, *LOW_PRECISION) or group.get("differentiable") or group.get("capturable"):
            return None
        state = dict.fromkeys(self._state_names(group), torch.float32)
        if one.rule.target == "initial":
            state["initial"] = p.dtype
        if one.rounding.acts_on(p.dtype):
            state |= one.rounding.memory(p.dtype)
        kind = LoopKind(
            self.direction, one.rule, one.rounding, p.dtype, p.grad.dtype, tuple(state.items()), p.device.type,
            parts_of(here.numel(), one.rounding, p.dtype),
        )  # fmt: skip
        loop = usable_loop(kind, asked)
        return None if loop is None else (kind, loop)

    def _numbers(self, p: Tensor, one: Work) -> Tensor:
        assert self.direction is not None
        rate, own = self.direction.numbers(one.group, self.state[p])
        shrinks = float(one.group["weight_decay"]) if one.rule.coupled else one.decay
        sign = -1.0 if one.group["maximize"] else 1.0
        # Formed in float64 and rounded once, as torch's kernels do.
        return torch.tensor([sign, shrinks, 1 - shrinks, rate, *own], dtype=torch.float32, device=p.device)
