"""Directions that take each element for itself, and so can mask the decay and step a tensor piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from weightdecay.optim.base import DecayingOptimizer, with_gradient
from weightdecay.optim.decay import decay_, local, mixed, shrink_where_agreeing_
from weightdecay.optim.grouping import Group
from weightdecay.optim.rounding import LOW_PRECISION, start_rounding
from weightdecay.optim.rules import rule


class ElementwiseOptimizer(DecayingOptimizer, ABC):
    """A direction that tells the sign of its coming update, for masks, and steps a flat piece, for low precision."""

    pieces_equal_fused: ClassVar[bool] = False
    """Whether `_update_piece` does bit for bit what the direction's fused kernel does."""

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
        """Step in pieces what is to be rounded once, or masked while it is in the cache; the rest is torch's."""
        params: list[Tensor] = group["params"]
        in_pieces = {p for p in with_gradient(group) if self._goes_in_pieces(p, group)}
        if not in_pieces:
            return params
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

        for position, p in enumerate(params):
            if p.grad is None or p not in in_pieces:
                continue
            rounding = group["rounding"] if p.dtype in LOW_PRECISION else "nearest"
            self._begin_pieces(p, group, torch.float32 if rounding != "nearest" else p.dtype)
            start_rounding(p, rounding, self.state[p])
            if reach == "towards_initial" and "initial" not in self.state[p]:
                self.state[p]["initial"] = p.clone(memory_format=torch.contiguous_format)
            self._workspace.step(p, p.grad, self.state[p], rounding, update, (index << 32) + position)
        return [p for p in params if p not in in_pieces]

    def _goes_in_pieces(self, p: Tensor, group: Group) -> bool:
        if p.dtype in LOW_PRECISION and group["rounding"] != "nearest":
            return True
        beside = rule(group["rule"]).reach not in ("weights", "gradient")
        whole = p.is_contiguous() and not hasattr(p, "to_local")
        return beside and self.pieces_equal_fused and bool(group.get("fused")) and p.is_floating_point() and whole
