"""What was seen, as the values that a probe returns."""

from __future__ import annotations

import math
from typing import Any

from weightdecay.auditing.forms import Form, does_something, is_beside, order_of
from weightdecay.auditing.measuring import FINE, Removed
from weightdecay.auditing.probed import ProbedGroup, ProbedTensor, SeenOn
from weightdecay.auditing.sighting import Sight
from weightdecay.auditing.stepping import Place
from weightdecay.probing.report import GroupReport

# Of ‖w‖²: less than that in elements that do not decay is rounding.
_WHOLE = 0.999
# The unit in the last place of float32; beside it decays are large.
_FINE = 1e-6
# A unit in the last place of a weight, beside `eps` times the weight: between 1/2 and 1, by its mantissa.
_UNIT = 0.7
# Variance of the squared weights, over their squared mean; of normal numbers it is 2.
_SPREAD = 0.1
# Units that are to turn over in a tensor, so that their number tells something.
_ENOUGH = 100
_MOST_STEPS = 64


def blank(place: Place, optimizer: int, name: str) -> ProbedTensor:
    """What is known of a tensor before anything was seen."""
    p = place.tensor
    return ProbedTensor(
        name=name,
        optimizer=optimizer,
        group=place.group,
        shape=tuple(p.shape),
        dtype=str(p.dtype).removeprefix("torch."),
        elements=p.numel(),
        requested=None,
        from_weight_decay=None,
        from_elsewhere=None,
        reads_weight_decay=False,
        has_gradient=False,
    )


def seen_on_step(sight: Sight, form: Form, steps: int, seen_on: SeenOn) -> dict[str, Any]:
    """What the steps of a real tensor say, by the names of `ProbedTensor`."""
    own, large, mirrored = (Removed.of(moments) for moments in (sight.own, sight.large, sight.mirrored))
    reads = large.dd > 0 or form.late or (large.ww == 0 and form.reads_weight_decay)
    share = large.share if 0 < large.share < _WHOLE else 1.0
    requested = form.removes()
    elsewhere = mirrored.fraction / steps
    error = mirrored.error / steps + _alike(mirrored, sight)
    is_decay = abs(elsewhere) > 4 * error and mirrored.along > 0.5 and not keeps_norm(sight)
    return {
        "requested": None if requested is None else requested * share,
        "from_weight_decay": own.fraction / sight.steps,
        "from_elsewhere": elsewhere if is_decay else 0.0,
        "uncertainty": _uncertainty(sight, own, requested) + (error if is_decay else 0.0),
        "reads_weight_decay": reads,
        "beside": reads and form.beside,
        "coupled": reads and (form.coupled or (does_something(large) and is_beside(large))),
        "order": form.order or order_of(large, sight.place) if reads and not form.coupled else None,
        "weight_norm": math.sqrt(large.ww if form.large else mirrored.ww),
        "has_gradient": sight.has_gradient,
        "idle_rows": sight.idle,
        "seen_on": seen_on,
        "share": share,
        "target": sight.target,
    }


def keeps_norm(sight: Sight) -> bool:
    """Whether the weights are as long after the step as before, though it moves them: a norm is set, or kept."""
    seen = Removed.of(sight.large)
    noise = seen.ww * (1e-10 if sight.place.tensor.numel() <= FINE else 1e-6)
    return seen.update > 100 * noise and abs(seen.vv - seen.ww) < 0.01 * seen.update


def _uncertainty(sight: Sight, own: Removed, requested: float | None) -> float:
    """The standard error of what the group's λ removes.

    Units of the last place turn over one by one, each with the probability that makes the mean right, and in a few
    elements by chance none may. Far from 0 and near the target, such a unit is large beside the way to go.
    """
    if own.ww <= 0:
        return 0.0
    turning = 0.0
    if sight.rounding > _FINE:
        turning = math.sqrt(abs(requested or 0.0) * _UNIT * sight.rounding * own.w4 / sight.steps) / own.ww
    coarse = 0.0
    if sight.target != "zero":
        coarse = 0.5 * sight.rounding * math.sqrt(Removed.of(sight.mirrored).ww / own.ww)
    return math.hypot(own.error / sight.steps, turning, coarse, _alike(own, sight) if own.dd > 0 else 0.0)


def steps_wanted(sight: Sight, form: Form) -> int:
    """In how many steps enough units of the last place turn over, by what is asked for; 1 where that is no matter."""
    # By what all processes that hold a part of the tensor know alike, for they make the same steps.
    requested, elements = form.removes(), sight.place.tensor.numel()
    if not requested or sight.rounding <= _FINE or not elements:
        return 1
    turning = elements * abs(requested) / (_UNIT * sight.rounding)
    return min(max(math.ceil(_ENOUGH / turning), 1), _MOST_STEPS)


def _alike(seen: Removed, sight: Sight) -> float:
    """Half a unit of the last place, as far as elements are all alike, such as gains of 1, and all rounded alike."""
    n = sight.place.tensor.numel()
    if seen.ww <= 0 or n == 0:
        return 0.0
    spread = max(n * seen.w4 / seen.ww**2 - 1, 0.0)
    return 0.5 * sight.rounding * max(1 - spread / _SPREAD, 0.0)


def group_seen(form: Form, title: str, optimizer: int, index: int, unread: tuple[str, ...]) -> ProbedGroup:
    """How a group's decay follows its numbers."""
    return ProbedGroup(
        optimizer=optimizer,
        group=index,
        title=title,
        lr=form.lr,
        weight_decay=form.weight_decay,
        peak_lr=form.peak_lr,
        peak_key=form.peak_key,
        factor=form.factor,
        lr_power=form.lr_power,
        reads_weight_decay=form.reads_weight_decay,
        reads_lr=form.reads_lr,
        coupled=form.coupled,
        unread_keys=unread,
    )


def seen_on_twin(report: GroupReport, form: Form) -> dict[str, Any]:
    """What a twin's group says of each of its tensors."""
    if report.opaque:
        return {"opaque": report.opaque}
    if report.decays_apart:
        return {"opaque": f"{report.title} loses more of some of its tensors than of others, and a copy has not all"}
    if report.idle_steps:
        return {"opaque": f"weight_decay does nothing to {report.title} in its next {report.idle_steps} steps"}
    if report.heeds_zeros:
        return {"opaque": f"what λ does to {report.title} depends on which gradients are 0"}
    requested = None
    if report.own_decay_is_lr_times_lambda and form.lr is not None and form.weight_decay is not None:
        requested = form.lr * form.weight_decay
    return {
        "requested": requested,
        "from_weight_decay": report.decay_per_step - report.hidden_decay,
        "from_elsewhere": report.hidden_decay,
        "uncertainty": 0.0,
        "reads_weight_decay": report.reads_weight_decay,
        "coupled": report.form == "coupled",
        "order": report.order,
        "seen_on": "twin",
    }
