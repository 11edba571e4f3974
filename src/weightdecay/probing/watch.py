"""Twins that step beside an optimizer's real steps, some steps ahead of it.

What an optimizer does in every k-th step only, no finite trial shows. So twins go on with the settings that the groups
have now: one decays as it is done to the real optimizer, the others say what is meant. Where they part, the real one
would part from what is meant some steps later; it is told before its next step.

Of a direction that reads no weights, what is meant is w ← (1 − a)·w − u with the updates u of a twin that never decays:
one that goes back to remembered weights, or follows the way that they went, has others. A direction that reads the
weights is meant as it reads them after its own decay.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.probing.isolation import untouched
from weightdecay.probing.kinds import options
from weightdecay.probing.probe import STEPS, STEPS_WITHOUT_PHASE, GroupReport
from weightdecay.probing.progress import is_same, progress_keys
from weightdecay.probing.twin import Twins, set_number
from weightdecay.probing.walks import Likeness, Walker, Weights, Where, fine_dtype

# How a group's decay is made: by another λ for its own; by a shrink before the step, at λ = 0; not at all.
Way: TypeAlias = Literal["handed_over", "outside", "left"]

SHRINK = 0.1
"""What the twins' weights lose in each step: as much as an update at lr 0.1 moves them."""

# Of a direction that reads weights and may make a rounding of float32 inside large; another decay would be off by 0.1.
_ROUGHLY = 1e-3

WATCHED = 300
"""Real steps; schedules of a Lookahead and the like come round within them."""


class Watch:
    """Twins of one optimizer, the decay of one as it is done and of the others as it is meant.

    Attributes:
        seen: up to which step of the optimizer, from when it was attached, all was exact.
        ended: why nothing more is seen; empty while it goes on.
        largest: the elements of its largest tensor; what an optimizer does to larger ones alone is not seen.

    Raises:
        OptimizerError: they part before the first real step; each group is named.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, ways: Sequence[Way], reports: Sequence[GroupReport]) -> None:
        self._optimizer, self._titles = optimizer, [report.title for report in reports]
        self.seen, self.ended, self.largest, self._steps = 0, "", 0, 0
        self._tensors = [list(group["params"]) for group in optimizer.param_groups]
        self._parted: set[int] = set()  # twins' groups in which what is done is not what is meant
        self.stood()
        if all(way == "left" for way in ways):
            self.ended = "there is nothing to watch"
            return
        with untouched(optimizer) as self._outside:
            self._progress = progress_keys(optimizer)
            twins = Twins(optimizer)
            # From here on of the twins' groups, each of which stands for all of its kind.
            self._places, self._stands_for = twins.of.places, twins.of.stands_for
            self._ways = [ways[place] for place in self._places]
            tried = [reports[place] for place in self._places]
            self._reading = [
                report.reads_weights and way == "handed_over" for report, way in zip(tried, self._ways, strict=True)
            ]
            self._walkers = self._make_walkers(twins, tried)
            self.largest = max((p.numel() for params in self._walkers[0].twin.params for p in params), default=0)
            self._likeness = [Likeness(SHRINK, _ROUGHLY if reading else 0.0) for reading in self._reading]
            self._shown: list[dict[str, Any]] = [{} for _ in self._ways]
            self._weights: list[Weights] = [walker.twin.weights() for walker in self._walkers]
            begun = any(bool(state) for state in optimizer.state.values())
            ahead = STEPS if twins.manner.keeps_phase or not begun else STEPS_WITHOUT_PHASE
            for _ in range(ahead):
                self._step()
        self.seen = ahead
        self._raise_if_parted()

    def _make_walkers(self, twins: Twins, reports: Sequence[GroupReport]) -> list[Walker]:
        """The decay as it is done, none at all, and where a direction reads weights as it is meant; all in as fine a
        precision as steps."""
        outside = [SHRINK if way == "outside" else 0.0 for way in self._ways]
        dtype = fine_dtype(twins)
        walkers = [Walker(twins.make(dtype), shrink=outside, where="before"), Walker(twins.make(dtype))]
        if any(self._reading):
            places: list[Where] = ["before" if report.order == "before" else "beside" for report in reports]
            shrink = [SHRINK if reading else 0.0 for reading in self._reading]
            walkers.append(Walker(twins.make(dtype), shrink=shrink, where=places))
        return walkers

    def step(self) -> None:
        """Go one step further, before a real one.

        Raises:
            OptimizerError: what is done is not what is meant any more; it is raised at every step from then on.
        """
        if not self.ended:
            with self._outside.kept():
                self._show()
                self._step()
            self._steps += 1
            if self._steps >= WATCHED:
                self.ended = f"{WATCHED} steps were watched, and what comes more seldom is not seen"
        self._raise_if_parted()
        if not self.ended:
            self.seen += 1

    def _raise_if_parted(self) -> None:
        """Groups that do not decay are as they are, whatever their direction reads."""
        groups = self._optimizer.param_groups
        titles = [
            self._titles[index]
            for index, place in enumerate(self._stands_for if self._parted else ())
            if place in self._parted
            if groups[index]["weight_decay"] or groups[index].get("decay_multiplier")
        ]
        if titles:
            raise OptimizerError(
                f"{', '.join(titles)} of {type(self._optimizer).__name__}: its update depends on the weights in some "
                "of its steps, as a small copy that is ahead shows, and decay beside them would not be exact"
            )

    def stood(self) -> None:
        """Know the state as it is after a real step."""
        self._known = self._states()

    def is_passed_over(self) -> bool:
        """Whether other state has been put in since: the optimizer stands at another step, and the twins do not."""
        return any(now is not known for now, known in zip(self._states(), self._known, strict=False))

    def has_other_tensors(self) -> bool:
        """Whether tensors have been put into groups since, or taken out, of which nothing was tried."""
        groups = self._optimizer.param_groups
        return any(
            len(group["params"]) != len(known) or not all(map(operator.is_, group["params"], known))
            for group, known in zip(groups, self._tensors, strict=False)
        )

    def is_outgrown(self) -> bool:
        """Whether groups of one kind, for which one group of the twins stands, have become different."""
        if self.ended or len(self._places) == len(self._stands_for):
            return False
        said = [options(group) for group in self._optimizer.param_groups[: len(self._stands_for)]]
        return any(said[self._places[place]] != own for own, place in zip(said, self._stands_for, strict=False))

    def _states(self) -> list[Any]:
        groups = self._optimizer.param_groups
        return [self._optimizer.state.get(p) for group in groups for p in group["params"][:1]]

    def _show(self) -> None:
        """Give the twins what has been changed in the groups since: lr by a scheduler, betas by hand."""
        groups = self._optimizer.param_groups
        for index, group in enumerate(groups[place] for place in self._places if place < len(groups)):
            for key, value in group.items():
                if key in ("params", "param_names", "weight_decay") or key in self._progress:
                    continue
                plain = value.detach().clone() if isinstance(value, Tensor) else value
                if key in self._shown[index] and is_same(self._shown[index][key], plain):
                    continue
                self._shown[index][key] = plain
                for walker in self._walkers:
                    small = walker.twin.optimizer.param_groups[index]
                    if isinstance(value, Tensor) and value.numel() == 1:
                        set_number(small, key, float(plain))
                    elif isinstance(value, bool | int | float | tuple) and key != "differentiable":
                        small[key] = plain

    def _step(self) -> None:
        """Step all twins, and compare what is done with what is meant."""
        for walker in self._walkers:
            walker.twin.set(weight_decay=[self._handed_over(index, walker) for index in range(len(self._ways))])
        amounts = [0.0 if way == "handed_over" and not self._lr(i) else SHRINK for i, way in enumerate(self._ways)]
        if len(self._walkers) > 2:
            self._walkers[2].shrink = [a if reads else 0.0 for a, reads in zip(amounts, self._reading, strict=True)]
        try:
            weights = [walker.step(guarded=False) for walker in self._walkers]
        except Exception as error:  # others' code
            self.ended = f"the small copy could go no further ({type(error).__name__}: {error})"
            return
        if not all(bool(torch.isfinite(w).all()) for group in weights[0] for w in group):
            self.ended = "the small copy's weights are not finite any more"
            return

        for index, way in enumerate(self._ways):
            was, done = self._weights[0][index], weights[0][index]
            if way == "left":
                continue
            plain: list[Tensor] = []
            if self._reading[index]:
                was, meant = self._weights[2][index], weights[2][index]
            else:
                # Never decaying, they stay large while the others shrink with lr, and so does their rounding.
                plain = self._weights[1][index]
                updates = [before - after for before, after in zip(plain, weights[1][index], strict=True)]
                meant = [(1 - amounts[index]) * w - u for w, u in zip(was, updates, strict=True)]
            if not self._likeness[index].holds(was, meant, done, plain):
                self._parted.add(index)
            if self._reading[index]:
                self._begin_alike(index, weights)
        self._weights = weights

    @torch.no_grad()
    def _begin_alike(self, index: int, weights: list[Weights]) -> None:
        """Both twins of a direction that reads weights make the next step from the same, for it may be chaotic.

        OrthoGrad multiplies a rounding of float64 by 1e10 within 150 steps.
        """
        for p, w in zip(self._walkers[2].twin.params[index], weights[0][index], strict=True):
            p.copy_(w)
        weights[2][index] = weights[0][index]

    def _handed_over(self, index: int, walker: Walker) -> float:
        """The λ of one group of a twin."""
        if self._ways[index] == "left":
            return float(self._optimizer.param_groups[self._places[index]]["weight_decay"])
        lr = self._lr(index)
        return SHRINK / lr if self._ways[index] == "handed_over" and walker is self._walkers[0] and lr else 0.0

    def _lr(self, index: int) -> float:
        return float(self._walkers[0].twin.optimizer.param_groups[index]["lr"])
