"""Twins that step beside an optimizer's real steps, some steps ahead of it.

What an optimizer does in every k-th step only, no finite trial shows. So two twins go on with the settings that the
groups have now: one decays as it is done to the real optimizer, the other as it is meant. Where they part, the real
one would part from what is meant some steps later; it is told before its next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.probing.isolation import untouched
from weightdecay.probing.probe import SHRINK, STEPS, STEPS_WITHOUT_PHASE, GroupReport
from weightdecay.probing.twin import Twins, progress_keys, set_number
from weightdecay.probing.walks import Likeness, Walker, Weights, Where, fine_dtype

# How a group's decay is made: by another λ for its own; by a shrink before the step, at λ = 0; not at all.
Way: TypeAlias = Literal["handed_over", "outside", "left"]

WATCHED = 300
"""Real steps; schedules of a Lookahead and the like come round within them."""


class Watch:
    """Two twins of one optimizer, the decay of one as it is done and of the other as it is meant.

    Attributes:
        seen: up to which step of the optimizer, from when it was attached, all was exact.
        ended: why nothing more is seen; empty while it goes on.

    Raises:
        OptimizerError: they part before the first real step; each group is named.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, ways: Sequence[Way], reports: Sequence[GroupReport]) -> None:
        self._optimizer, self._ways, self._titles = optimizer, ways, [report.title for report in reports]
        self.seen, self.ended, self._steps = 0, "", 0
        self._fault = ""
        self.stood()
        if all(way == "left" for way in ways):
            self.ended = "there is nothing to watch"
            return
        with untouched(optimizer):
            self._progress = progress_keys(optimizer)
            twins = Twins(optimizer)
            self._done, self._meant = self._pair(twins, reports)
            self._likeness = [Likeness(forgets=SHRINK) for _ in ways]
            self._shown: list[dict[str, Any]] = [{} for _ in ways]
            self._weights: Weights = self._meant.twin.weights()
            begun = any(bool(state) for state in optimizer.state.values())
            ahead = STEPS if twins.manner.keeps_phase or not begun else STEPS_WITHOUT_PHASE
            for _ in range(ahead):
                self._step()
        self.seen = ahead
        if self._fault:
            raise OptimizerError(self._fault)

    def _pair(self, twins: Twins, reports: Sequence[GroupReport]) -> tuple[Walker, Walker]:
        """The one as it is done, and the one as it is meant, in as fine a precision as steps."""
        # A direction that reads the weights of now is meant as it reads them after its own decay; any other is to be
        # the same beside the whole weights, and also in every k-th step.
        places: list[Where] = [
            "before" if way == "handed_over" and report.reads_weights and report.order == "before" else "beside"
            for way, report in zip(self._ways, reports, strict=True)
        ]
        shrink = [0.0 if way == "left" else SHRINK for way in self._ways]
        outside = [SHRINK if way == "outside" else 0.0 for way in self._ways]

        dtype = fine_dtype(twins)
        done = Walker(twins.make(dtype), shrink=outside, where="before")
        return done, Walker(twins.make(dtype), shrink=shrink, where=places)

    def step(self) -> None:
        """Go one step further, before a real one.

        Raises:
            OptimizerError: what is done is not what is meant any more; it is raised at every step from then on.
        """
        if not self._fault and not self.ended:
            self._show()
            if self._step():
                self.seen += 1
            self._steps += 1
            if self._steps >= WATCHED:
                self.ended = f"{WATCHED} steps were watched"
        if self._fault:
            raise OptimizerError(self._fault)

    def stood(self) -> None:
        """Know the state as it is after a real step."""
        self._known = self._states()

    def is_passed_over(self) -> bool:
        """Whether other state has been put in since: the optimizer stands at another step, and the twins do not."""
        return any(now is not known for now, known in zip(self._states(), self._known, strict=False))

    def _states(self) -> list[Any]:
        groups = self._optimizer.param_groups
        return [self._optimizer.state.get(p) for group in groups for p in group["params"][:1]]

    def _show(self) -> None:
        """Give the twins what has been changed in the groups since: lr by a scheduler, betas by hand."""
        for index, group in enumerate(self._optimizer.param_groups[: len(self._ways)]):
            for key, value in group.items():
                if key in ("params", "param_names", "weight_decay") or key in self._progress:
                    continue
                plain = value.detach().clone() if isinstance(value, Tensor) else value
                if key in self._shown[index] and not _is_another(self._shown[index][key], plain):
                    continue
                self._shown[index][key] = plain
                for walker in (self._done, self._meant):
                    small = walker.twin.optimizer.param_groups[index]
                    if isinstance(value, Tensor) and value.numel() == 1:
                        set_number(small, key, float(plain))
                    elif isinstance(value, bool | int | float | tuple) and key != "differentiable":
                        small[key] = plain

    def _step(self) -> bool:
        """Step both; whether they are still alike."""
        for walker in (self._done, self._meant):
            walker.twin.set(weight_decay=[self._handed_over(index, walker) for index in range(len(self._ways))])
        for index in range(len(self._ways)):
            if self._ways[index] == "handed_over" and not self._lr(index):
                self._meant.shrink[index] = 0.0
            elif self._ways[index] == "handed_over":
                self._meant.shrink[index] = SHRINK
        try:
            done, meant = self._done.step(guarded=False), self._meant.step(guarded=False)
        except Exception as error:  # others' code
            self.ended = f"the small copy could go no further ({type(error).__name__}: {error})"
            return False
        if not all(bool(torch.isfinite(w).all()) for weights in meant for w in weights):
            self.ended = "the small copy's weights are not finite any more"
            return False

        parted = [
            title
            for title, way, likeness, was, a, b in zip(
                self._titles, self._ways, self._likeness, self._weights, done, meant, strict=True
            )
            if way != "left" and not likeness.holds(was, b, a)
        ]
        self._weights = meant
        if parted:
            self._fault = (
                f"{', '.join(parted)} of {type(self._optimizer).__name__}: its update depends on the weights in some "
                "of its steps, as a small copy that is ahead shows, and decay beside them would not be exact"
            )
        return not parted

    def _handed_over(self, index: int, walker: Walker) -> float:
        """The λ of one group of a twin."""
        if self._ways[index] == "left":
            return float(self._optimizer.param_groups[index]["weight_decay"])
        lr = self._lr(index)
        return SHRINK / lr if self._ways[index] == "handed_over" and walker is self._done and lr else 0.0

    def _lr(self, index: int) -> float:
        return float(self._done.twin.optimizer.param_groups[index]["lr"])


def _is_another(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return not (isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other))
    return one is not other and bool(one != other)
