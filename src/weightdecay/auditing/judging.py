"""Tensor by tensor, what a step does beside what was asked of it.

One tensor has one cause: rounding before a key that nobody reads, before a λ that goes through the gradient, before a
wrong scale, before too much or too little, before the order. Whether the numbers in the groups are the right ones is
another question, and is answered first: where they ask for nothing, nothing of the step is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from weightdecay.amounts import number
from weightdecay.auditing.asking import Asked, same
from weightdecay.auditing.classes import is_linear, is_named_coupled, is_sgd, says_it_decouples
from weightdecay.auditing.findings import Code, Severity
from weightdecay.auditing.keys import is_other_name
from weightdecay.auditing.probed import ProbedGroup, ProbedOptimizer, ProbedTensor
from weightdecay.auditing.scales import Scale, per_step
from weightdecay.rules import Rule

_TOLERANCE = 0.02
_SIGMAS = 4.0
# Half a unit in the last place of 1: what a step of this dtype cannot tell from nothing.
_RESOLUTION = {"float32": 2.0**-24, "float64": 2.0**-53}
_TOO_MUCH, _TOO_LITTLE = 1.5, 0.5
_SMALL, _SOME = 0.01, 0.25
_HALF = 0.5  # of the weights, that a mask spares where nothing tells how many it does


@dataclass(frozen=True)
class Judgement:
    """What is wrong with one tensor.

    Attributes:
        asked, realised: decay per step.
        about: what makes it another finding than one with the same code: told in its title.
        numbers: of a group that is stale, what stands there and what was told.
    """

    code: Code
    severity: Severity
    name: str
    elements: int
    optimizer: int
    group: int
    asked: float | None = None
    realised: float | None = None
    about: str = ""
    numbers: tuple[float, float] | None = None


@dataclass(frozen=True)
class Seat:
    """One tensor at its place, with all that is known of it.

    Attributes:
        name: of the tensor; of its place where no module owns it.
        settings: its group itself.
        any_decay: some group of all optimizers has a λ above 0.
        rule: the one that the caller wants.
        ignored_key: a scale in its group that nobody applies.
        usual: the largest decay per step of its optimizer's tensors.
        others_decay: some tensor of its optimizer seems to decay.
        is_even: as much is taken from all tensors of its group, of which there are several.
        loaded_over: λ of its group before a load put the present one in its place; None if none was seen to.
        is_lost: its decay is lost to rounding, over the run or at the peak.
        usual_ratio: in low precision what λ removes beside what it asks for, of the middle one of such tensors.
    """

    name: str
    tensor: ProbedTensor
    group: ProbedGroup
    optimizer: ProbedOptimizer
    settings: Mapping[str, Any]
    scale: Scale
    asked: Asked
    any_decay: bool
    policy_is_given: bool
    rule: Rule | None
    weights: Tensor
    ignored_key: str = ""
    usual: float = 0.0
    others_decay: bool = False
    is_even: bool = False
    loaded_over: float | None = None
    is_lost: bool = False
    usual_ratio: float | None = None

    @property
    def weight_decay(self) -> float:
        """λ as it stands in the group."""
        return self.group.weight_decay or 0.0

    def asks(self, weight_decay: float) -> float | None:
        """The decay per step of a λ, under this tensor's rule, of the elements that decay."""
        a = per_step(self.scale.rule, weight_decay, self.group.lr, self.scale.peak)
        if a is None:
            return self.tensor.requested if weight_decay == self.weight_decay else None
        return a * self._share

    @property
    def _share(self) -> float:
        """The part of it that a decay reaches; what goes through the gradient reaches all."""
        if not (self.tensor.coupled or self.scale.rule.coupled):
            return self.tensor.share
        if self.scale.rule.is_masked:
            return _HALF
        # Nesterov's momentum takes its own share of what is in the gradient, in the same step.
        momentum = number(self.settings.get("momentum")) if self.settings.get("nesterov") is True else None
        return 1.0 + momentum * (1.0 - (number(self.settings.get("dampening")) or 0.0)) if momentum else 1.0

    @property
    def has_own_rule(self) -> bool:
        """Whether its group says by which rule it decays."""
        return self.scale.told and self.rule is None

    def ratio(self, weight_decay: float) -> float | None:
        """Realised over asked; None where the one or the other cannot be told."""
        asked, realised = self.asks(weight_decay), self.tensor.realised
        return None if not asked or realised is None else realised / asked

    def tolerance(self, weight_decay: float) -> float:
        """How far a ratio may be off without meaning anything."""
        asked = self.asks(weight_decay) or 1.0
        coarse = _RESOLUTION.get(self.tensor.dtype, 0.0)
        return _TOLERANCE + (coarse + _SIGMAS * self.tensor.uncertainty) / abs(asked)

    def at(self, lr: float) -> float | None:
        """The decay per step that its λ asks for at another lr."""
        a = per_step(self.scale.rule, self.asked.weight_decay or self.weight_decay, lr, self.scale.peak)
        return None if a is None else a * self._share

    @property
    def may_decay(self) -> bool:
        """Whether there is reason to think that a step takes something away."""
        return self.visibly_decays or (self.ratio(self.weight_decay) or 0.0) > _SOME

    @property
    def visibly_decays(self) -> bool:
        """Whether a step takes something away, beyond what rounding may feign."""
        realised = self.tensor.realised or 0.0
        # The noise of few bits has long tails, and a model has many tensors.
        sigmas = _SIGMAS if self.tensor.dtype in _RESOLUTION else 2 * _SIGMAS
        floor = max(_RESOLUTION.get(self.tensor.dtype, 0.0), sigmas * self.tensor.uncertainty)
        return self.tensor.weight_norm > 0 and realised > floor

    def stale(self, what: str, own: float, told: float, asked: float | None) -> Judgement:
        """A number of its group that is not the told one."""
        return replace(self.found("stale", "error", asked, what), numbers=(own, told))

    def found(self, code: Code, severity: Severity, asked: float | None = None, about: str = "") -> Judgement:
        return Judgement(
            code,
            severity,
            self.name,
            self.tensor.elements,
            self.tensor.optimizer,
            self.tensor.group,
            self.asks(self.weight_decay) if asked is None else asked,
            # Through the gradient each step removes something else: the numbers themselves are stale.
            self.asks(self.weight_decay) if code == "stale" and self.tensor.coupled else self.tensor.realised,
            about,
        )


def judged(seat: Seat) -> list[Judgement]:
    """What is wrong with one tensor: its numbers, and what a step makes of them."""
    if seat.tensor.opaque:
        return [seat.found("opaque", "warning", about=seat.tensor.opaque)]
    if is_other_name(seat.ignored_key) and seat.asked.decays is not False:
        return [seat.found("ignored-key", "error", about=seat.ignored_key)]
    if _is_as_told(seat):
        return [*_coupling(seat), *_idle(seat)]
    numbers, is_settled = _numbers(seat)
    found = numbers if is_settled else [*numbers, *_step(seat)]
    return [*found, *_idle(seat)]


def _is_as_told(seat: Seat) -> bool:
    """Whether a step removes what somebody told, whoever does it and whatever the group says."""
    told = seat.asked.weight_decay
    ratio = seat.ratio(told) if told and not seat.tensor.coupled and not seat.ignored_key else None
    is_alike = ratio is not None and abs(ratio - 1.0) <= min(seat.tolerance(told or 0.0), 0.2)
    return is_alike and not (told and same(told, seat.weight_decay))


# --- whether the group's numbers are those that were asked for


def _numbers(seat: Seat) -> tuple[list[Judgement], bool]:
    """What is wrong with them, and whether there is nothing else to be said."""
    asked, own = seat.asked, seat.weight_decay
    if seat.loaded_over is not None and asked.weight_decay is None and not same(seat.loaded_over, own):
        return [seat.stale("λ", own, seat.loaded_over, seat.asks(seat.loaded_over))], True
    if asked.none_wanted and own:
        return [seat.stale("λ", own, 0.0, 0.0)], True
    if asked.decays is False:
        decays = bool(own and seat.tensor.reads_weight_decay) or seat.visibly_decays
        # An optimizer may have a small decay of its own, beside the one that it is asked for.
        is_small = not own and (seat.tensor.realised or 0.0) < _SMALL * seat.usual
        severity = "note" if is_small else _by_policy(seat)
        return ([seat.found("decays-exempt", severity, 0.0)] if decays else []), True
    if own:
        return _told_otherwise(seat), False
    return _without_decay(seat)


def _told_otherwise(seat: Seat) -> list[Judgement]:
    told, own = seat.asked.weight_decay, seat.weight_decay
    if "decay_step" in seat.settings and "decay_multiplier" in seat.settings and seat.policy_is_given:
        # λ follows a schedule that counts its steps in the group; its share is what a plan says.
        share = float(seat.settings["decay_multiplier"])
        told, own = (None if told is None else seat.asked.share), share
    elif told and not seat.policy_is_given:
        told *= number(seat.settings.get("decay_multiplier")) or 1.0  # the share that a group says to have
    if not told or same(told, own):
        return []
    return [seat.stale("λ", own, told, seat.asks(told))]


def _without_decay(seat: Seat) -> tuple[list[Judgement], bool]:
    """A group without λ, of a tensor that is to decay."""
    told = seat.asked.weight_decay
    if seat.visibly_decays and (told is None or (seat.ratio(told) or 1.0) >= _TOO_LITTLE):
        return [], told is None  # a wrapper or a hook does it; how much is judged where somebody told
    if seat.asked.decays is None:
        return [], True
    if seat.any_decay:
        return [seat.found("exempt-matrix", _by_policy(seat), None if told is None else seat.asks(told))], True
    if told:
        return [seat.stale("λ", 0.0, told, seat.asks(told))], True
    return [], True


def _by_policy(seat: Seat) -> Severity:
    if seat.policy_is_given or seat.asked.none_wanted:
        return "error"
    return "note" if seat.asked.disputed else "warning"


# --- what a step makes of them


def _step(seat: Seat) -> list[Judgement]:
    λ = seat.weight_decay or seat.asked.weight_decay or 0.0
    if not λ or not seat.asks(λ) or seat.tensor.weight_norm <= 0:
        return _coupling(seat) if seat.tensor.coupled else []  # which can be told where no amount can
    if seat.is_lost:
        lost = seat.found("lost-to-rounding", "error", seat.asks(λ), seat.tensor.dtype)
        return [replace(lost, realised=seat.tensor.from_weight_decay)]

    ratio, tolerance = seat.ratio(λ), seat.tolerance(λ)
    is_little = ratio is not None and ratio < _TOO_LITTLE and 1.0 - ratio > tolerance
    if is_little and "weight_decay" in seat.group.unread_keys:
        if seat.tensor.reads_weight_decay:  # in other steps than this one, in which nothing moves at all
            return []
        return [seat.found("ignored-key", "error", seat.asks(λ), "weight_decay")]
    if seat.ignored_key:
        return [seat.found("ignored-key", "error", seat.asks(λ), seat.ignored_key)]
    if seat.tensor.coupled and (amount := _amount_beside_gradient(seat, λ, is_little)):
        return amount
    if (seat.tensor.coupled and not seat.has_own_rule) or _is_named_wrongly(seat):
        return _coupling(seat)
    if seat.scale.astray and not seat.optimizer.normalises:
        return [seat.found("wrong-scale", "error", seat.asks(λ), f"{seat.scale.rule.name}")]
    return _amount(seat, λ, ratio, tolerance, is_little)


def _amount_beside_gradient(seat: Seat, weight_decay: float, is_little: bool) -> list[Judgement]:
    """What can be told of an amount where λ goes through the gradient: that something else decays beside it.

    SGD's own decay is lr·λ, or with Nesterov's momentum up to twice as much, from the first step on.
    """
    asked, elsewhere = seat.asks(weight_decay) or 0.0, seat.tensor.from_elsewhere or 0.0
    is_seen = elsewhere > _TOO_LITTLE * asked and elsewhere > _SIGMAS * seat.tensor.uncertainty
    if is_seen or seat.tensor.beside:
        return [seat.found("decays-twice", "error", asked)]
    if not is_sgd(seat.optimizer.bases) or seat.tensor.dtype not in _RESOLUTION:
        return []
    ratio = seat.ratio(weight_decay) or 0.0
    # With dampening a gradient enters the first step alone whole.
    entering = 1.0 - (number(seat.settings.get("dampening")) or 0.0 if number(seat.settings.get("momentum")) else 0.0)
    if is_little and ratio < _TOO_LITTLE * entering:
        return [seat.found("not-decaying", "error", asked)]
    is_much = ratio >= _TOO_MUCH and ratio - 1.0 > seat.tolerance(weight_decay)
    return [seat.found("decays-twice", "error", asked)] if is_much else []


def _amount(seat: Seat, weight_decay: float, ratio: float | None, tolerance: float, is_little: bool) -> list[Judgement]:
    if ratio is None or seat.scale.explained or seat.scale.rule.coupled:
        return []
    if seat.group.factor is None and seat.tensor.reads_weight_decay and not seat.is_even:
        # Each layer has a rate of its own: what can be told is whether any of them decays.
        is_little = is_little and not seat.others_decay
        ratio = min(ratio, 1.0 + (seat.tensor.from_elsewhere or 0.0) / (seat.asks(weight_decay) or 1.0))
    # Few bits in one step are noise; whether they are lost has been judged over all such tensors.
    if (is_little and seat.tensor.dtype in _RESOLUTION) or not seat.tensor.reads_weight_decay:
        if seat.optimizer.normalises:
            return [seat.found("by-design", "note", seat.asks(weight_decay), "normalised")]
        if is_little:
            return [
                seat.found("not-decaying", "error", seat.asks(weight_decay), "growing" if ratio < -tolerance else "")
            ]
    if seat.usual_ratio is not None:
        # Weights of few bits sit on ties, which one step turns over together: what several tensors show counts.
        ratio = min(ratio, seat.usual_ratio + (seat.tensor.from_elsewhere or 0.0) / (seat.asks(weight_decay) or 1.0))
    if ratio >= _TOO_MUCH and ratio - 1.0 > tolerance:
        return [seat.found("decays-twice", "error", seat.asks(weight_decay))]
    return []


def _is_named_wrongly(seat: Seat) -> bool:
    """Whether the step decouples where L2 is wanted, or where its class says L2."""
    if seat.tensor.coupled or is_linear(seat.optimizer.bases):
        return False
    if seat.rule is not None:
        return seat.rule.coupled
    if seat.scale.told:
        return seat.scale.rule.coupled
    return is_named_coupled(seat.optimizer.bases) and not says_it_decouples(seat.settings)


def _coupling(seat: Seat) -> list[Judgement]:
    if not seat.weight_decay or not seat.tensor.reads_weight_decay:
        return []
    wants_l2 = seat.scale.told and seat.scale.rule.coupled
    if not seat.tensor.coupled:
        return [seat.found("decoupled", "warning")] if _is_named_wrongly(seat) else []
    if wants_l2:
        return []
    if is_linear(seat.optimizer.bases):  # where both differ by the momentum alone
        return [seat.found("coupled", "note")] if seat.rule is not None else []
    return [seat.found("coupled", "warning")]


def _idle(seat: Seat) -> list[Judgement]:
    if not seat.weight_decay or not seat.tensor.idle_rows:
        return []
    rows, whole = seat.tensor.idle_rows, seat.tensor.shape[0] if seat.tensor.shape else 1
    return [seat.found("idle-decay", "note", about="whole" if rows >= whole else "rows")]


def orders(seats: Sequence[Seat]) -> list[Judgement]:
    """The tensors of one optimizer that decay after the update; single ones are told wrongly where steps are small."""
    said = [seat for seat in seats if seat.weight_decay and seat.tensor.order in ("before", "after")]
    after = [seat for seat in said if seat.tensor.order == "after"]
    if len(after) * 10 < len(said) * 9 or not after:
        return []
    return [seat.found("wrong-order", "note") for seat in seats if seat.weight_decay and seat.tensor.order != "before"]
