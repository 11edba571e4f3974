"""Everything that is known of each tensor at its place, brought together: asked, seen, its group's rule, its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from torch import Tensor

from weightdecay.amounts import number
from weightdecay.auditing.arguments import Told
from weightdecay.auditing.asking import Asked, Asking, same, steps_taken
from weightdecay.auditing.classes import is_sgd
from weightdecay.auditing.horizon import Horizon, horizon_of
from weightdecay.auditing.judging import Judgement, Seat
from weightdecay.auditing.keys import ignored_keys
from weightdecay.auditing.losing import LOW_PRECISION, Seen, is_lost, is_undecided, share_left
from weightdecay.auditing.placing import Placing, place_name, size_of
from weightdecay.auditing.probed import Probe, ProbedGroup, ProbedTensor
from weightdecay.auditing.scales import Scale, scales
from weightdecay.auditing.stepping import places_of
from weightdecay.rules import DECOUPLED

_ALIKE, _CLEAR = 0.1, 0.5  # of two shares of what was asked, and how well each must be known
_LITTLE = 0.5  # Σ a_t of a run in which a decay does next to nothing
_LOOKED_AT = 32  # steps of a run, of which it is told what rounding leaves


class Seating:
    """The seats of one audit.

    Args:
        told: the arguments.
        asking: what was asked of each tensor.
        placing: where tensors stand.
        probe: one step.
        more: several steps, where one does not tell what rounding takes away.

    Attributes:
        seats: one for each tensor that is stepped once.
        scales: the rule of each group, by (optimizer, group).
    """

    def __init__(self, told: Told, asking: Asking, placing: Placing, probe: Probe, more: Probe | None = None) -> None:
        self.told, self.asking, self.placing, self.probe = told, asking, placing, probe
        self.groups: dict[tuple[int, int], ProbedGroup] = {(g.optimizer, g.group): g for g in probe.groups}
        self.scales: dict[tuple[int, int], Scale] = {}
        self._horizons: list[Horizon] = [horizon_of(told, place) for place in range(len(told.optimizers))]
        self._weights: list[Tensor] = [p.tensor for one in told.optimizers for p in places_of(one)]
        self._names = self._named()
        self.seats = self._seated()
        self._judge_rounding(probe if more is None else more)

    def _named(self) -> list[str]:
        found = []
        for optimizer in self.told.optimizers:
            found += [
                self.placing.names.get(place.tensor) or place_name(place.group, place.index)
                for place in places_of(optimizer)
            ]
        return found

    def _seated(self) -> list[Seat]:
        ignored: dict[tuple[int, int], str] = {}
        for at, optimizer in enumerate(self.told.optimizers):
            own = [group for group in self.probe.groups if group.optimizer == at]
            for index, scale in enumerate(scales(own, optimizer.param_groups, self.told.rule)):
                self.scales[at, index] = scale
            for index, key in enumerate(ignored_keys(optimizer, own)):
                ignored[at, index] = key

        any_decay = any(group.weight_decay for group in self.probe.groups)
        seats = []
        for tensor, weights, name in zip(self.probe.tensors, self._weights, self._names, strict=True):
            place = (tensor.optimizer, tensor.group)
            seats.append(
                Seat(
                    name=name,
                    tensor=tensor,
                    group=self.groups[place],
                    optimizer=self.probe.optimizers[tensor.optimizer],
                    settings=self.told.optimizers[tensor.optimizer].param_groups[tensor.group],
                    scale=self.scales[place],
                    asked=self.asking.of(name, tensor.optimizer),
                    any_decay=any_decay,
                    policy_is_given=self.told.policy_is_given,
                    rule=self.told.rule,
                    ignored_key=ignored[place],
                    loaded_over=self.told.loaded_over.get(place),
                    weights=weights,
                )
            )
        kept = [seat for seat in seats if not self.placing.is_doubled(seat.weights) and seat.weights.requires_grad]
        usual: dict[int, float] = {}
        for seat in kept:
            of = seat.tensor.optimizer
            usual[of] = max(usual.get(of, 0.0), seat.tensor.realised or 0.0, seat.asks(seat.weight_decay) or 0.0)
        decaying = {seat.tensor.optimizer for seat in kept if seat.may_decay}
        together: dict[tuple[int, int], list[Seat]] = {}
        for seat in kept:
            together.setdefault((seat.tensor.optimizer, seat.tensor.group), []).append(seat)
        even = {place: _are_even(seats) for place, seats in together.items()}
        return [
            replace(
                seat,
                usual=usual[seat.tensor.optimizer],
                others_decay=seat.tensor.optimizer in decaying,
                is_even=even[seat.tensor.optimizer, seat.tensor.group],
            )
            for seat in kept
        ]

    # --- rounding

    def _judge_rounding(self, probe: Probe) -> None:
        """Find out whose decay is lost; in low precision over all tensors of an optimizer: single ones say little."""
        seen = dict(zip(map(id, self._weights), probe.tensors, strict=True))
        self._pools: dict[tuple[int, str], list[tuple[Seat, Seen]]] = {}
        for seat in self.seats:
            now = seen[id(seat.weights)]
            if (one := _seen(seat, now)) is not None:
                key = str(seat.tensor.dtype) if seat.tensor.dtype in LOW_PRECISION else seat.name
                self._pools.setdefault((seat.tensor.optimizer, key), []).append((seat, one))
        lost = {
            id(seat)
            for pool in self._pools.values()
            if is_lost([one for _, one in pool])
            for seat, one in pool
            if is_lost([one]) or one.share < 0.5 or one.error > 0.1
            if self._left(seat) < 0.5
        }
        middle = {
            id(seat): median(one.share for _, one in pool)
            for pool in self._pools.values()
            for seat, _ in pool
            if seat.tensor.dtype in LOW_PRECISION
        }
        self.seats = [replace(seat, is_lost=id(seat) in lost, usual_ratio=middle.get(id(seat))) for seat in self.seats]

    def is_undecided(self) -> bool:
        """Whether more steps would tell what is lost to rounding."""
        return any(is_undecided([one for _, one in pool]) for pool in self._pools.values())

    def _left(self, seat: Seat) -> float:
        """The share of its decay that rounding leaves over the run, or at the peak, where no run is known."""
        horizon, share = self._horizons[seat.tensor.optimizer], self._share_of_rate(seat)
        λ, peak = seat.weight_decay, seat.scale.peak or seat.group.lr
        decays = horizon.decays(seat.scale, λ, peak, share)
        decays = decays[:: max(len(decays) // _LOOKED_AT, 1)]
        total = sum(decays)
        if not total:
            return 1.0
        return sum(a * share_left(seat.weights, a) for a in decays) / total

    def _share_of_rate(self, seat: Seat) -> float:
        return number(seat.settings.get("lr_multiplier")) or 1.0

    # --- what is said of groups

    def foreign_rules(self) -> list[Judgement]:
        """A note on the tensors of groups whose λ means another decay than torch's, and that do not say so."""
        return [
            seat.found("wrong-scale", "note", about=f"foreign {seat.scale.rule.name}")
            for seat in self.seats
            if seat.weight_decay and not seat.scale.told and not seat.scale.astray
            if seat.scale.rule != DECOUPLED and seat.scale.off is not None
        ]

    def stale_rates(self) -> list[Judgement]:
        """The tensors of groups whose lr is not the one that was told for the coming step."""
        found = []
        for seat in self.seats:
            wanted, lr = self._wanted_rates(seat), seat.group.lr
            if not wanted or lr is None or min(wanted) <= lr <= max(wanted) or any(same(one, lr) for one in wanted):
                continue
            found.append(seat.stale("lr", lr, wanted[0], seat.at(wanted[0])))
        return found

    def _wanted_rates(self, seat: Seat) -> list[float]:
        """What the coming step should use, first; by a schedule a step more or less is the same: who counts differs."""
        rate = self.told.lr[seat.tensor.optimizer]
        share = self._declared_share(seat)
        if not callable(rate):
            return [] if rate is None else [rate * share]
        step = steps_taken(self.told.optimizers[seat.tensor.optimizer])
        return [] if step is None else [float(rate(at)) * share for at in (step, max(step - 1, 0), step + 1)]

    def _declared_share(self, seat: Seat) -> float:
        """The part of the run's lr that a group says to have: by a share, or by the lr that it began with."""
        if "lr_multiplier" in seat.settings:
            return self._share_of_rate(seat)
        begun = number(seat.settings.get("initial_lr"))
        default = number((getattr(self.told.optimizers[seat.tensor.optimizer], "defaults", None) or {}).get("lr"))
        return begun / default if begun and default else 1.0

    def nobody_asks(self) -> bool:
        """Whether no group has a λ, nothing decays, and nobody said that this is meant."""
        is_told = self.told.plan is not None or any(λ is not None for λ in self.told.weight_decay)
        decays = any(seat.weight_decay or seat.visibly_decays for seat in self.seats)
        return not is_told and not decays and bool(self.seats)

    # --- sums

    def over_run(self, judgements: Sequence[Judgement]) -> dict[tuple[str, str], tuple[float, float]]:
        """Σ a_t over the planned run and the part of a weight that it takes away, by code and tensor."""
        by_name = {(seat.name, seat.tensor.optimizer): seat for seat in self.seats}
        found: dict[tuple[str, str], tuple[float, float]] = {}
        for one in judgements:
            seat = by_name.get((one.name, one.optimizer))
            if seat is not None and (total := self._total(seat)) is not None:
                found[one.code, one.name] = total
        return found

    def _total(self, seat: Seat) -> tuple[float, float] | None:
        horizon = self._horizons[seat.tensor.optimizer]
        λ = seat.asked.weight_decay or seat.weight_decay
        return horizon.total(horizon.decays(seat.scale, λ, seat.group.lr, self._share_of_rate(seat)))

    def asked_by_name(self) -> dict[str, Asked]:
        return {seat.name: seat.asked for seat in self.seats}

    def sizes(self) -> dict[str, int]:
        """How many numbers each tensor has, of the model's and of the optimizers'."""
        known = {name: size_of(tensor) for tensor, name in self.placing.names.items()}
        return known | {name: size_of(w) for name, w in zip(self._names, self._weights, strict=True)}

    def remarks(self) -> list[str]:
        """What could not be judged, and why."""
        said = []
        if self.asking.unplanned:
            said.append(f"who should decay is not judged: {self.asking.unplanned}")
        resting = [g for g in self.probe.groups if g.weight_decay and g.lr == 0.0]
        if resting:
            said.append(
                f"lr is 0 in {len(resting)} group{'s' if len(resting) > 1 else ''} with a λ, so that this step removes "
                "nothing: amounts are judged from the first step on that has one"
            )
        for place, one in enumerate(self.probe.optimizers):
            if one.seen_on == "twin" and not one.opaque:
                said.append(f"{self.told.names[place]} was seen on a small copy: {one.why}")
        for place, rate in enumerate(self.told.lr):
            if callable(rate) and steps_taken(self.told.optimizers[place]) is None:
                said.append(
                    f"{self.told.names[place]} counts no steps, so that its lr is not compared with the schedule"
                )
        totals = [total for seat in self.seats if seat.weight_decay and (total := self._total(seat)) is not None]
        if totals and max(total for total, _ in totals) < _LITTLE:
            most = max(total for total, _ in totals)
            said.append(f"Σ lr·λ over the run is {most:.2g}: this decay does next to nothing in it")
        return said


def _are_even(seats: Sequence[Seat]) -> bool:
    """Whether as much of what was asked is taken from each of several tensors: no layer has a rate of its own."""
    ratios = []
    for seat in seats:
        ratio = seat.ratio(seat.weight_decay)
        if ratio is None or seat.tensor.weight_norm <= 0:
            continue
        if seat.tolerance(seat.weight_decay) > _CLEAR:
            return False
        ratios.append(ratio)
    return len(ratios) > 1 and max(ratios) - min(ratios) <= _ALIKE * max(map(abs, ratios)) + _ALIKE / 2


def _seen(seat: Seat, now: ProbedTensor) -> Seen | None:
    """What steps say of its rounding; None where they say nothing."""
    is_asked = seat.weight_decay and seat.asked.decays is not False and now.reads_weight_decay
    # Through the gradient of SGD comes lr·λ, too; of others it cannot be said how much.
    of_sgd = seat.asks(seat.weight_decay) if is_sgd(seat.optimizer.bases) else None
    requested = of_sgd if now.coupled else now.requested
    if not is_asked or not requested or now.from_weight_decay is None or now.weight_norm <= 0:
        return None
    if now.target != "zero" or seat.scale.rule.target != "zero":
        # Near what they are pulled to, units of weights are large beside the way to go.
        return None
    return Seen(now, requested)
