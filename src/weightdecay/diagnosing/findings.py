"""What rows, plan and configuration show of a whole run, beside what the monitor tells as it goes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from weightdecay.errors import WeightDecayError
from weightdecay.laws import NEGLIGIBLE_TOTAL
from weightdecay.monitoring.alarms import Alarm, Judge, too_small
from weightdecay.monitoring.rows import WITHIN, Row, angle_by_theory, share_within
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.recipes.settings import TrainConfig
from weightdecay.rules import as_rule
from weightdecay.training.timing import batch_sizes, lr_schedule, weight_decay_schedule

# Of the last quarter's hidden matrices so many are to turn as theory expects, or it is worth a word.
_ENOUGH = 0.8
_LAST = 0.75
# Between the fastest and the slowest matrix under L2.
_SPREAD = 2.0
# Nats that a loss has risen over its best, over a tenth of the rows, before it is said.
_RISEN = 0.5
_FEW = 20  # rows, of which one by chance tells nothing


def by_the_monitor(tensors: Sequence[Row], alarms: Sequence[Row]) -> list[Alarm]:
    """What the rows show now, and what the monitor told then that they do not show: a resume forgets some history."""
    judge, found = Judge(), []
    together: dict[int, list[Row]] = defaultdict(list)
    for row in tensors:
        together[row["step"]].append(row)
    for step in sorted(together):
        found += judge.read(together[step])
    told = {(alarm.code, name) for alarm in found for name in alarm.tensors}
    for row in alarms:
        alarm = Alarm.of_row(row)
        if alarm.tensors and not any((alarm.code, name) in told for name in alarm.tensors):
            found.append(alarm)
    return found


def of_the_loss(training: Sequence[Row]) -> Iterator[Alarm]:
    """Whether it went out of hand."""
    if not training:
        return
    last = training[-1]
    if lost := next((row for row in training if row["loss"] is None or row["grad_norm"] is None), None):
        yield Alarm(
            lost["step"], "diverged", "error", (), 0,
            f"the loss or the gradient stopped being finite at step {lost['step']}",
            "lower lr, lengthen the warm-up, or look at the data of that step; `--resume auto` goes on before it",
        )  # fmt: skip
    losses = [row["loss"] for row in training if row["loss"] is not None]
    window = max(len(losses) // 10, 1)
    means = [sum(losses[at : at + window]) / window for at in range(0, len(losses) - window + 1, window)]
    if len(losses) >= _FEW and means[-1] > min(means) + _RISEN:
        yield Alarm(
            last["step"], "diverged", "warning", (), 0,
            f"the loss has risen from {min(means):.3g} to {means[-1]:.3g} nats",
            "lower lr, or lengthen the warm-up",
        )  # fmt: skip


def of_the_length(config: TrainConfig) -> Iterator[Alarm]:
    """Whether the whole run's decay comes to anything; exact, from the schedules."""
    total = decay_total(config)
    if total is not None and 0 < total < NEGLIGIBLE_TOTAL:
        yield too_small(config.run.steps, total, config.run.steps)


def decay_total(config: TrainConfig) -> float | None:
    """Σ of the decay per step of a tensor that takes all of λ; None where the gradients decide."""
    optimizer, rule = config.optimizer, as_rule(config.optimizer.rule)
    if rule.coupled or optimizer.weight_decay == "auto":
        return None
    lr, λ = lr_schedule(config, batch_sizes(config.run, config.model.context)), weight_decay_schedule(config)
    steps = range(config.run.steps)
    return math.fsum(rule.decay_per_step(lr(step), λ(step), optimizer.lr) for step in steps)


def of_the_theory(tensors: Sequence[Row], step: int) -> Iterator[Alarm]:
    """Whether hidden matrices turn as theory expects, over the last quarter of what was seen."""
    last = [row for row in tensors if row["hidden"] and row["angle"] is not None and row["step"] > _LAST * step]
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in last:
        by_name[row["name"]].append(row)
    means = {name: _ratio(rows) for name, rows in by_name.items()}
    told = {name: ratio for name, ratio in means.items() if ratio is not None}
    off = {name: ratio for name, ratio in told.items() if abs(ratio - 1) > WITHIN}
    if told and len(off) > (1 - _ENOUGH) * len(told):
        ratios = sorted(off.values())
        yield Alarm(
            step, "off-theory", "note", tuple(off), sum(by_name[name][0]["elements"] for name in off),
            f"{len(off)} of {len(told)} hidden matrices do not turn as theory expects",
            f"{ratios[0]:.2g} to {ratios[-1]:.2g} times the angle, over the last quarter. The theory is of gradients "
            "that are mostly noise: early in a run, and of few or much repeated data, they are not",
        )  # fmt: skip
    coupled = [row["angle"] for row in _latest(last) if row["theory"] == "adam_l2" and row["angle"]]
    if len(coupled) > 1 and max(coupled) > _SPREAD * min(coupled):
        yield Alarm(
            step, "coupled", "note", tuple(row["name"] for row in _latest(last) if row["theory"] == "adam_l2"), 0,
            f"λ goes through the gradient: hidden matrices turn {max(coupled) / min(coupled):.2g} times apart",
            "decoupled, all of them turn alike (Kosson et al. 2023, arXiv:2305.17212): optimizer.name = adamw",
        )  # fmt: skip


def of_the_plan(path: Path, tensors: Sequence[Row], remarks: list[str]) -> Iterator[Alarm]:
    """Whether what a step was asked to decay is what the plan decays.

    Args:
        remarks: told why that cannot be looked at.
    """
    if not path.is_file():
        remarks.append(f"{path.name} is not there, and so nothing is compared with the plan")
        return
    try:
        plan = DecayPlan.read(path)
    except WeightDecayError as error:
        remarks.append("; ".join(error.faults))
        return
    latest = [(row, plan.get(row["name"])) for row in _latest(tensors) if row["decay_requested"] is not None]
    decaying = [row for row, planned in latest if planned and not planned.decays and row["weight_decay"] > 0]
    idle = [row for row, planned in latest if planned and planned.weight_decay > 0 and row["weight_decay"] == 0.0]
    for rows, code, words in (
        (decaying, "decays-exempt", "decay, and the plan exempts them"),
        (idle, "exempt-matrix", "do not decay, and by the plan they do"),
    ):
        if rows:
            yield Alarm(
                max(row["step"] for row in rows), code, "error", tuple(row["name"] for row in rows),  # type: ignore[arg-type]
                sum(row["elements"] for row in rows), f"{len(rows)} tensors {words}",
                "plan.json and the optimizer's groups differ: was one of them changed on the way?",
            )  # fmt: skip


def _ratio(rows: Sequence[Row]) -> float | None:
    """The angle seen over the angle expected, over several rows; single ones are noise."""
    known = [(row["angle"], angle_by_theory(row)) for row in rows]
    told = [(angle, theory) for angle, theory in known if theory]
    expected = math.fsum(theory for _, theory in told)
    return math.fsum(angle for angle, _ in told) / expected if expected else None


def _latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each tensor."""
    return list({row["name"]: row for row in rows}.values())


def within_theory(tensors: Sequence[Row], step: int) -> float | None:
    """The part of hidden matrices whose rows of the last quarter turn as expected; None where nothing is expected."""
    return share_within(row for row in tensors if row["hidden"] and row["step"] > _LAST * step)
