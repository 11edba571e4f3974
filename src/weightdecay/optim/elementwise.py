"""Directions that take each element for itself, and so can mask the decay and step flat pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.optim.base import DecayingOptimizer, Work
from weightdecay.optim.compiled import ENOUGH, Direction, Loop, LoopKind, loop_numbers, parts_of, usable_loop
from weightdecay.optim.decay import local
from weightdecay.optim.grouping import Group
from weightdecay.optim.pieces import SMALL, Flat, StepKind, Update, flat_of, put_back
from weightdecay.optim.roundings import LOW_PRECISION


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
        """(key of the momentum, (x, y)): the coming update has the sign of x·momentum + y·gradient."""

    @abstractmethod
    def _state_names(self, group: Group) -> tuple[str, ...]:
        """Names of the state that has a number for each weight."""

    @abstractmethod
    def _begin_pieces(self, p: Tensor, group: Group, dtype: torch.dtype) -> None:
        """Put the state of a tensor that goes in pieces, of this dtype, where it is not there yet."""

    def _count_steps(self, params: list[Any]) -> None:
        """Count a step of tensors that go in pieces."""

    @abstractmethod
    def _update_pieces(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        states: list[Mapping[str, Tensor]],
        group: Group,
        weight_decay: float,
    ) -> None:
        """The direction's step of flat pieces, in place, with the `weight_decay` that it is to apply."""

    def _numbers_in_loop(self, group: Group, state: Mapping[str, Any]) -> tuple[float, Sequence[float]]:  # noqa: ARG002
        """(rate, own numbers) of `direction` in this step of a tensor."""
        return float(group["lr"]), ()

    # --- what base asks

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

    def _step_beside(self, one: Work) -> tuple[float | Tensor, list[Tensor]]:
        """Step by loop or in pieces what torch's step cannot serve; the rest is torch's, after its decay here."""
        params = one.group["params"]
        beside, outside = {}, {}
        for position, p in enumerate(params):
            if p.grad is not None:
                if self._goes_in_pieces(p, one):
                    beside[p] = position
                elif one.rule.is_masked and one.decay:
                    outside[p] = position

        if beside:
            self._step_pieces(beside, one)
            params = [p for p in params if p not in beside]
        if outside:
            self._decay_pieces(outside, one)
            return 0.0, params
        return self._decay_before(one._replace(group={**one.group, "params": params})), params

    def _decay_outside(self, one: Work) -> None:
        if not one.rule.is_masked:  # masks have been applied where the momentum was at hand
            super()._decay_outside(one)

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
        names = (*self._state_names(one.group), *self._kept_beside(one))
        widened = one.rounding.acts_on(torch.bfloat16)
        kinds: dict[Any, list[Flat]] = defaultdict(list)
        copies: list[tuple[Tensor, Tensor]] = []
        for p in positions:
            dtype = p.dtype
            self._begin_pieces(p, one.group, torch.float32 if widened and dtype in LOW_PRECISION else dtype)
            self._begin_rounding(p, one.rounding)
            if one.rule.target == "initial" and "initial" not in self.state[p]:
                self.state[p]["initial"] = p.clone(memory_format=torch.contiguous_format)
        self._count_steps(list(positions))

        for p, position in positions.items():
            flat = flat_of(p, p.grad, self.state[p], names, one.number(position), copies)
            if self._compiles and (found := self._loop(p, one)) is not None:
                self._workspace.run(*found, flat, self._numbers(p, one))
            else:
                kinds[_kind(p), p.grad.dtype].append(flat)

        kind = self._step_kind(one)
        for flats in kinds.values():
            acts = one.rounding.acts_on(flats[0].weights.dtype)
            self._workspace.step(flats, kind if acts else kind.without_rounding())
        put_back(copies)
        self._count_roundings([p for p in positions if one.rounding.acts_on(p.dtype)], one.rounding)

    def _step_kind(self, one: Work) -> StepKind:
        """Decay and update of flat pieces, in place."""
        group, rule = one.group, one.rule
        own = group["weight_decay"] if rule.coupled else self._handed_over(one)
        kernel = float(own or 0.0)

        def update(weights: list[Tensor], gradients: list[Tensor], states: list[Mapping[str, Tensor]]) -> None:
            self._update_pieces(weights, gradients, states, group, kernel)

        return self._outside_kind(one, 0.0 if own is not None else one.decay or 0.0, update)

    def _outside_kind(self, one: Work, decay: float, update: Update | None) -> StepKind:
        momentum, mix = self._next_direction(one.group) if one.rule.is_masked else ("", (0.0, 1.0))
        return StepKind(one.rule, decay, one.rounding, momentum, mix, update)

    def _decay_pieces(self, positions: Mapping[Any, int], one: Work) -> None:
        """The masked decay of tensors that torch steps afterwards."""
        kind = self._outside_kind(one, one.decay or 0.0, None).without_rounding()
        names = (kind.momentum, *self._kept_beside(one))
        kinds: dict[Any, list[Flat]] = defaultdict(list)
        copies: list[tuple[Tensor, Tensor]] = []
        for p, position in positions.items():
            state = self.state[p]
            if one.rule.target == "initial" and "initial" not in state:
                continue  # before its first step it is there
            flat = flat_of(p, p.grad, state, names, one.number(position), copies)
            kinds[_kind(p), p.grad.dtype, kind.momentum in flat.state].append(flat)
        for flats in kinds.values():
            self._workspace.step(flats, kind)
        put_back(copies)

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
        rate, own = self._numbers_in_loop(one.group, self.state[p])
        shrinks = float(one.group["weight_decay"]) if one.rule.coupled else one.decay or 0.0
        sign = -1.0 if one.group["maximize"] else 1.0
        return loop_numbers(sign, shrinks, rate, own, p.device)


def _kind(p: Any) -> tuple[Any, ...]:
    """What tensors must share to be stepped together: a distributed one's parts have noise of their own."""
    if not hasattr(p, "placements"):
        return p.dtype, p.device
    return p.dtype, p.device, p.placements, p.device_mesh
