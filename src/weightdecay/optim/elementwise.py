"""Directions that take each element for itself, and so can mask the decay and step a tensor piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.optim.base import DecayingOptimizer, Work, with_gradient
from weightdecay.optim.compiled import ENOUGH, Direction, Loop, LoopKind, loop_numbers, parts_of, usable_loop
from weightdecay.optim.decay import decay_, local, mixed, shrink_where_agreeing_
from weightdecay.optim.grouping import Group
from weightdecay.optim.pieces import Update
from weightdecay.optim.rounding import LOW_PRECISION, start_rounding
from weightdecay.optim.rules import rule


class ElementwiseOptimizer(DecayingOptimizer, ABC):
    """A direction that tells the sign of its coming update, for masks, and steps a flat piece, for low precision.

    Tensors that torch's own step cannot serve go piece by piece, or through one compiled loop where the direction has
    a form for it and there are weights enough to pay for its compilation.
    """

    pieces_equal_fused: ClassVar[bool] = False
    """Whether `_update_piece` does bit for bit what the direction's fused kernel does."""
    direction: ClassVar[Direction | None] = None
    """The direction in terms that compile into one loop, if it has such a form."""

    _compiles = False  # in this step

    @abstractmethod
    def _next_direction(self, group: Group) -> tuple[str, tuple[float, float]]:
        """(key of the momentum, (x, y)): the coming update has the sign of x·momentum + y·gradient."""

    @abstractmethod
    def _begin_pieces(self, p: Tensor, group: Group, dtype: torch.dtype) -> None:
        """Count the step of a tensor that goes in pieces; put its state, of this dtype, where it is not there yet."""

    @abstractmethod
    def _update_piece(
        self, weights: Tensor, gradient: Tensor, state: Mapping[str, Tensor], group: Group, weight_decay: float
    ) -> None:
        """The direction's step of one flat piece, in place, with the `weight_decay` that it is to apply."""

    def _state_in_loop(self, group: Group) -> tuple[str, ...]:  # noqa: ARG002
        """Names of the state that `direction` moves."""
        return ()

    def _numbers_in_loop(self, group: Group, state: Mapping[str, Any]) -> tuple[float, Sequence[float]]:  # noqa: ARG002
        """(rate, own numbers) of `direction` in this step of a tensor."""
        return float(group["lr"]), ()

    # --- what base asks

    def _refuse_unusable(self, work: Work) -> None:
        super()._refuse_unusable(work)
        asked = self._workspace.compiled
        weights = sum(p.numel() for group, _ in work for p in group["params"]) if asked is None else 0
        self._compiles = self.direction is not None and (weights >= ENOUGH if asked is None else asked)
        if self._compiles:  # now, while nothing has changed
            for group, _ in work:
                for p in with_gradient(group):
                    if self._goes_in_pieces(p, group):
                        self._loop(p, group)

    def _decay_before(self, group: Group, decay: float | None) -> float | Tensor:
        if rule(group["rule"]).reach != "agreeing" or not decay:
            return super()._decay_before(group, decay)
        momentum, mix = self._next_direction(group)
        for p in with_gradient(group):
            begun = self.state[p].get(momentum)
            direction = mixed(None if begun is None else local(begun), local(p.grad), mix)
            shrink_where_agreeing_(local(p), direction, decay)
        return 0.0

    def _step_beside(self, group: Group, decay: float | None, index: int) -> list[Tensor]:
        """Step by loop or in pieces what torch's step cannot serve; the rest is torch's."""
        params: list[Tensor] = group["params"]
        in_pieces = {p for p in with_gradient(group) if self._goes_in_pieces(p, group)}
        update = self._update_of_pieces(group, decay) if in_pieces else None
        for position, p in enumerate(params):
            if update is None or p.grad is None or p not in in_pieces:
                continue
            rounding, state, number = _rounding(p, group), self.state[p], (index << 32) + position
            self._begin_pieces(p, group, torch.float32 if rounding != "nearest" else p.dtype)
            start_rounding(p, rounding, state)
            if rule(group["rule"]).reach == "towards_initial" and "initial" not in state:
                state["initial"] = p.clone(memory_format=torch.contiguous_format)
            if (found := self._loop(p, group)) is None:
                self._workspace.step(p, p.grad, state, rounding, update, number)
            else:
                self._workspace.run(*found, p, p.grad, state, self._numbers(p, group, decay), number)
        return [p for p in params if p not in in_pieces]

    # --- pieces

    def _goes_in_pieces(self, p: Any, group: Group) -> bool:
        if p.dtype in LOW_PRECISION and group["rounding"] != "nearest":
            return True
        whole = p.is_contiguous() and not hasattr(p, "to_local")
        if not (whole and p.is_floating_point() and self.pieces_equal_fused):
            return False
        if rule(group["rule"]).reach in ("weights", "gradient"):
            return False
        free = group.get("fused") is None and group.get("foreach") is None  # to be stepped as is fastest
        return bool(group.get("fused")) or (free and self._loop(p, group) is not None)

    def _update_of_pieces(self, group: Group, decay: float | None) -> Update:
        """Decay and update of one flat piece, in place."""
        reach, lr = rule(group["rule"]).reach, float(group["lr"])
        through_kernel = reach == "gradient" or (reach == "weights" and self.kernel_decays and lr > 0.0)
        kernel = float(group["weight_decay"]) if reach == "gradient" else (decay or 0.0) / (lr or 1.0)
        momentum, mix = self._next_direction(group) if reach == "agreeing" else ("", (0.0, 0.0))

        def update(weights: Tensor, gradient: Tensor, here: Mapping[str, Tensor]) -> None:
            if through_kernel:
                self._update_piece(weights, gradient, here, group, kernel)
                return
            direction = None
            if reach == "agreeing":
                out = self._workspace.buffer("direction", weights, weights.dtype)
                direction = mixed(here.get(momentum), gradient, mix, out)
            decay_(weights, reach, decay, direction, here.get("initial"))
            self._update_piece(weights, gradient, here, group, 0.0)

        return update

    # --- loops

    def _loop(self, p: Any, group: Group) -> tuple[LoopKind, Loop] | None:
        """The compiled loop for a tensor, where it can go through one."""
        here, asked = local(p), bool(self._workspace.compiled)
        plain = here.is_contiguous() and here.numel() > 1 and (asked or here.device.type == "cpu")
        if self.direction is None or not (self._compiles and plain):
            return None
        if here.dtype not in (torch.float32, *LOW_PRECISION) or group.get("differentiable") or group.get("capturable"):
            return None
        reach, rounding = rule(group["rule"]).reach, _rounding(p, group)
        state = [(name, torch.float32) for name in self._state_in_loop(group)]
        state += [("initial", p.dtype)] * (reach == "towards_initial")
        state += {"kahan": [("compensation", p.dtype)], "master": [("master", torch.float32)]}.get(rounding, [])
        parts = parts_of(here.numel(), rounding)
        kind = LoopKind(
            self.direction, reach, rounding, p.dtype, p.grad.dtype, tuple(state), p.device.type, parts
        )  # fmt: skip
        loop = usable_loop(kind, asked)
        return None if loop is None else (kind, loop)

    def _numbers(self, p: Tensor, group: Group, decay: float | None) -> Tensor:
        rate, own = self._numbers_in_loop(group, self.state[p])
        coupled = rule(group["rule"]).reach == "gradient"
        shrinks = float(group["weight_decay"]) if coupled else decay or 0.0
        sign = -1.0 if group["maximize"] else 1.0
        return loop_numbers(sign, shrinks, rate, own, p.device)


def _rounding(p: Tensor, group: Group) -> str:
    return str(group["rounding"]) if p.dtype in LOW_PRECISION else "nearest"
