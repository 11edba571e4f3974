"""The decay that each tensor really gets, from any optimizer, on the real tensors and state."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from weightdecay.auditing.forms import FormFinding, form_of
from weightdecay.auditing.measuring import Removed
from weightdecay.auditing.probed import Probe, ProbedGroup, ProbedOptimizer, ProbedTensor, SeenOn
from weightdecay.auditing.python_state import PythonState
from weightdecay.auditing.separating import Ways, units, ways_of
from weightdecay.auditing.sharding import added_over_shards
from weightdecay.auditing.sighting import Known, Sight, Sighting, is_along
from weightdecay.auditing.stepping import Bench, places_of, surely
from weightdecay.naming import names_by_parameter

_LOCK = threading.RLock()
# Of ‖w‖²: less than that in elements that do not decay is rounding.
_WHOLE = 0.999
_FINE = 1e-6  # the unit in the last place of float32, beside which decays are large


def probe(
    model: nn.Module | None, optimizer: Any = None, *, optimizers: Sequence[Any] | None = None, steps: int | None = None
) -> Probe:
    """See what the next step of each optimizer would take from each tensor, and leave everything as it was.

    Args:
        model: whose tensors they are; None if they belong to none.
        optimizer: anything with `param_groups` and `step()`, or several of them.
        optimizers: the same.
        steps: how many steps are compared; 1 unless given.
    """
    started = time.perf_counter()
    names = {} if model is None else dict(names_by_parameter(model))
    every = [*_listed(optimizer), *_listed(optimizers)]
    with _LOCK:
        probed = [_Probing(one, place, names, steps or 1).probed() for place, one in enumerate(every)]
    return Probe(
        tuple(tensor for tensors, _, _ in probed for tensor in tensors),
        tuple(group for _, groups, _ in probed for group in groups),
        tuple(one for _, _, one in probed),
        elapsed_s=time.perf_counter() - started,
    )


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


class _Probing:
    """One optimizer, as it is probed."""

    def __init__(self, optimizer: Any, place: int, names: dict[Tensor, str], steps: int) -> None:
        self.optimizer, self.place, self.names, self.steps = optimizer, place, names, steps
        self.places = places_of(optimizer)
        self.known = Known()
        self.forms = [form_of(optimizer, group) for group in optimizer.param_groups]

    def probed(self) -> tuple[list[ProbedTensor], list[ProbedGroup], ProbedOptimizer]:
        started = time.perf_counter()
        everything = PythonState([self.optimizer])
        try:
            ways = ways_of(self.optimizer, self.places)
            on_bench = ways.sample if ways.apart else units(self.places, apart=False)[0]
            with Bench(self.optimizer, on_bench, saves=ways.saves, gradients="drawn") as bench:
                FormFinding(bench, self.forms, ways.sample, self.known).find()
            sights = self._sights(ways)
        finally:
            surely(everything.put_back)

        for sight in sights:
            for moments in (sight.own, sight.large, sight.mirrored):
                moments.copy_(added_over_shards(moments, sight.place.tensor))
        seen_on: SeenOn = "step" if ways.apart else "whole step"
        tensors = [self._tensor(sight, seen_on) for sight in sights]
        one = ProbedOptimizer(
            kind=f"{type(self.optimizer).__module__}.{type(self.optimizer).__qualname__}",
            bases=tuple(base.__name__ for base in type(self.optimizer).__mro__),
            seen_on=seen_on,
            why=ways.why,
            steps=self.steps,
            copied_bytes=max((sight.copied for sight in sights), default=0),
            elapsed_s=time.perf_counter() - started,
        )
        return tensors, [self._group(index) for index in range(len(self.forms))], one

    def _sights(self, ways: Ways) -> list[Sight]:
        large = {index: form.large for index, form in enumerate(self.forms) if form.weight_decay is not None}
        seen: list[Sight] = []
        for unit in units(self.places, apart=ways.apart):
            with Bench(self.optimizer, unit, saves=ways.saves) as bench:
                seen += Sighting(bench, large, steps=self.steps, known=self.known).seen()
        order = {(place.group, place.index): number for number, place in enumerate(self.places)}
        return sorted(seen, key=lambda sight: order[sight.place.group, sight.place.index])

    # --- values

    def _tensor(self, sight: Sight, seen_on: SeenOn) -> ProbedTensor:
        place, form = sight.place, self.forms[sight.place.group]
        own, large, mirrored = (Removed.of(moments) for moments in (sight.own, sight.large, sight.mirrored))
        reads = large.dd > 0 or form.late or (large.ww == 0 and form.reads_weight_decay)
        share = large.share if 0 < large.share < _WHOLE else 1.0
        requested = form.removes()
        from_own, elsewhere = own.fraction / self.steps, mirrored.fraction / self.steps
        is_seen = abs(elsewhere) > 4 * mirrored.error / self.steps + 1e-8
        return ProbedTensor(
            name=self.names.get(place.tensor, ""),
            optimizer=self.place,
            group=place.group,
            shape=tuple(place.tensor.shape),
            dtype=str(place.tensor.dtype).removeprefix("torch."),
            elements=place.tensor.numel(),
            requested=None if requested is None else requested * share,
            from_weight_decay=from_own,
            from_elsewhere=elsewhere if is_seen else 0.0,
            uncertainty=self._uncertainty(sight, own, requested) + (mirrored.error / self.steps if is_seen else 0.0),
            reads_weight_decay=reads,
            coupled=form.coupled or (reads and not is_along(large)),
            order=_order(large) if reads else None,
            weight_norm=(large.ww if form.large else mirrored.ww) ** 0.5,
            has_gradient=sight.has_gradient,
            idle_rows=sight.idle,
            seen_on=seen_on,
            share=share,
            target=sight.target,
        )

    def _uncertainty(self, sight: Sight, own: Removed, requested: float | None) -> float:
        """The standard error of what the group's λ removes.

        Where units of the last place turn over one by one, each with the probability that makes the mean right, a
        few elements may by chance show none of them.
        """
        if own.ww <= 0:
            return 0.0
        turning = math.sqrt(abs(requested or 0.0) * sight.rounding * own.w4) / own.ww
        # Far from 0 and near the target, the unit in the last place is large beside the way to go.
        coarse = (
            0.5 * sight.rounding * math.sqrt(Removed.of(sight.mirrored).ww / own.ww) if sight.target != "zero" else 0.0
        )
        return math.hypot(own.error / self.steps, turning if sight.rounding > _FINE else 0.0, coarse)

    def _group(self, index: int) -> ProbedGroup:
        group, form = self.optimizer.param_groups[index], self.forms[index]
        return ProbedGroup(
            optimizer=self.place,
            group=index,
            title=f"group {index}" + (f" ('{group['name']}')" if "name" in group else ""),
            lr=form.lr,
            weight_decay=form.weight_decay,
            peak_lr=form.peak_lr,
            peak_key=form.peak_key,
            factor=form.factor,
            lr_power=form.lr_power,
            reads_weight_decay=form.reads_weight_decay,
            reads_lr=form.reads_lr,
            coupled=form.coupled,
        )


def _order(large: Removed) -> Any:
    before, after = 1 - large.along_before, 1 - large.along_after
    if after * 16 < before:
        return "after"
    return "before" if before * 16 < after else None
