"""Whether `control` on a class is exact, or refuses and leaves all as it was: judged without the library's probe.

    u_t      = W_t − W_{t+1}                   of a run without control and without decay, over the same gradients
    w_{t+1}  = (1 − a_t·mask)·w_t − u_t        what the controlled run must do, at every step

That is the measure wherever u_t is the same whatever the weights are, and whether there is a λ or not. A class whose
updates read the weights, or branch on λ, may only be given another λ, and then its own decay must be (1 − a_t)·w, which
is tried by shrinking the weights by hand.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from optimizer_classes import LR, Kind
from torch import Tensor

import weightdecay
from tests.packages.runs import STEPS, Layout, Reference, Run, lr_at, reference, rounding
from weightdecay.errors import OptimizerError
from weightdecay.rules import Rule

MINE = Rule("mine", lr_power=2, mask="agreeing")


@dataclass(frozen=True)
class Asked:
    """A rule as it is asked for, with a λ under which a step at the peak removes about a hundredth."""

    rule: Any
    weight_decay: float
    decay_at: Callable[[float], float]
    masked: bool = False

    @property
    def name(self) -> str:
        return self.rule if isinstance(self.rule, str) else str(self.rule.name)


# Written out here once more, so that a fault in the library's own arithmetic is seen, too.
ASKED: tuple[Asked, ...] = (
    Asked("decoupled", 0.5, lambda lr: lr * 0.5),
    Asked("independent", 0.01, lambda lr: lr / LR * 0.01),
    Asked("fixed", 0.01, lambda lr: 0.01),  # noqa: ARG005
    Asked("lr_squared", 25.0, lambda lr: lr**2 * 25.0),
    Asked("corrected", 0.5, lambda lr: lr**2 / LR * 0.5),
    Asked(MINE, 25.0, lambda lr: lr**2 * 25.0, masked=True),
)
SCALAR = tuple(one for one in ASKED if not one.masked)
MASKED = tuple(one for one in ASKED if one.masked)
NONE = Asked("decoupled", 0.0, lambda lr: 0.0)  # noqa: ARG005

# Less of a weight than half of bfloat16's last place is rounded away altogether.
_SEEN_IN_BFLOAT16 = 2**-6

Outcome = Literal["exact", "refused", "stopped", "inexact", "crashed", "changed"]


@dataclass(frozen=True)
class Verdict:
    """What became of one control.

    Attributes:
        outcome: `stopped` before a step, after exact ones; `changed`: refused, but something is not as it was.
        why: the error, or by how much it is off.
        steps: how many were made.
    """

    outcome: Outcome
    why: str = ""
    steps: int = 0

    @property
    def holds(self) -> bool:
        return self.outcome in ("exact", "refused", "stopped")


def judge(kind: Kind, asked: Sequence[Asked], layout: Layout, *, zero: bool = False) -> Verdict:
    """Control one instance whose groups follow the rules in turn, the last without decay, and step it 300 times.

    Args:
        zero: without gradients, 60 times.
    """
    steps = 60 if zero else STEPS
    # bfloat16 loses what is under half of its last place, so there a step removes ten times as much.
    scale = 10.0 if layout.dtype is torch.bfloat16 else 1.0
    of_group = [asked[index % len(asked)] for index in range(len(layout.shapes))]
    if len(of_group) > 1:
        of_group[-1] = NONE
    run = _controlled(kind, layout, of_group, scale)
    if isinstance(run, Verdict):
        return run

    expected = reference(kind, layout, zero=zero)
    steps = min(steps, len(expected.updates))
    if not (expected.reads_weights or expected.branches):
        return _as_the_reference(run, of_group, scale, expected, steps, zero=zero)
    if any(one.masked for one in of_group) and not expected.branches:
        return _stopped_in_time(run, of_group, scale, expected, steps, zero=zero)
    verdict = _as_its_own(kind, run, of_group, scale, steps, zero=zero)
    if verdict.outcome == "inexact" and expected.reads_from and not expected.branches:
        # Not given another λ, then; beside the step it may have decayed until the first that reads the weights.
        again = _controlled(kind, layout, of_group, scale)
        assert isinstance(again, Run)
        return _stopped_in_time(again, of_group, scale, expected, steps, zero=zero)
    still = zero and not any(bool(u.any()) for us in expected.updates[:steps] for u in us)
    return _as_the_product(run, of_group, scale, verdict) if still and verdict.outcome == "exact" else verdict


def _controlled(kind: Kind, layout: Layout, of_group: Sequence[Asked], scale: float) -> Run | Verdict:
    """A run under control, or what became of the attempt."""
    run = Run(kind, layout, [{"weight_decay": one.weight_decay * scale} for one in of_group])
    for group, index in run.param_groups():
        group["rule"] = of_group[index].rule

    before = snapshot(run.optimizer)
    try:
        weightdecay.control(run.optimizer, peak_lr=LR)
    except OptimizerError as error:
        changed = difference(before, snapshot(run.optimizer))
        return Verdict("changed", f"{changed} after: {error}") if changed else Verdict("refused", str(error))
    except Exception as error:  # any other error is a fault of ours
        return Verdict("crashed", f"{type(error).__name__}: {error}")
    return run


def _as_the_reference(
    run: Run, of_group: Sequence[Asked], scale: float, expected: Reference, steps: int, *, zero: bool
) -> Verdict:
    per_tensor = [one for one, group in zip(of_group, run.groups, strict=True) for _ in group]
    removed = [0.0] * len(of_group)
    asked_for = [0.0] * len(of_group)
    for number in range(steps):
        before = [w.double() for w in run.weights()]
        if (stopped := _step(run, number, zero=zero)) is not None:
            return stopped

        for index, (one, w, p, u, size) in enumerate(
            zip(per_tensor, before, run.params, expected.updates[number], expected.sizes[number], strict=True)
        ):
            a = one.decay_at(lr_at(number)) * scale
            decayed = w * (u * w >= 0) if one.masked else w
            off = (p.detach().double() - (w - a * decayed - u)).abs()
            # A step that is added in several parts is rounded where their sum is largest, not where it ends.
            largest = float(u.abs().max()) if u.numel() else 0.0
            room = rounding(run.layout.dtype) * (w.abs() + size + largest)
            if one.masked:
                # At the boundary of the mask rounding decides, and either is right.
                off = torch.where((u * w).abs() <= room * w.abs(), torch.zeros_like(off), off)
            if bool((off > room).any()):
                share = float((off.sum() / (a * w.abs().sum() + 1e-30)).item())
                return Verdict(
                    "inexact",
                    f"rule {one.name}, tensor of shape {tuple(p.shape)}: off by {share:.2g} of a·w (a = {a:.2g})",
                    number,
                )
            # Where a mask looks at the rounded u_t, the sum is off by the rounding that it selects.
            if a >= _SEEN_IN_BFLOAT16 and not one.masked:
                group = _group_of(run, index)
                removed[group] += float(((w - u - p.detach().double()) * decayed).sum())
                asked_for[group] += a * float((decayed * decayed).sum())

    # Roundings of bfloat16 are as large as a·w in one step, and nothing beside it in the sum over all.
    for one, got, wanted in zip(of_group, removed, asked_for, strict=True):
        if wanted and abs(got / wanted - 1) > 0.05:
            return Verdict("inexact", f"rule {one.name}: removed {got / wanted:.3f} of what was asked for", steps)
    return Verdict("exact", steps=steps)


def _stopped_in_time(
    run: Run, of_group: Sequence[Asked], scale: float, expected: Reference, steps: int, *, zero: bool
) -> Verdict:
    """What decays beside the step is exact until updates read the weights, and must have stopped before that."""
    first = expected.reads_from or 0
    verdict = _as_the_reference(run, of_group, scale, expected, min(steps, first + 1), zero=zero)
    if verdict.outcome == "exact" and first < steps:
        return Verdict("inexact", f"it goes on beside a step whose update reads weights, at step {first}", first)
    return verdict


def _as_its_own(kind: Kind, run: Run, of_group: Sequence[Asked], scale: float, steps: int, *, zero: bool) -> Verdict:
    """Against its own run at the λ that is the rule's, whose decay must be the one that shrinks weights by hand.

    By hand each step begins at the weights of its own run: where updates read the weights, roundings may grow.
    """
    if any(one.masked for one in of_group):
        return Verdict("inexact", "a mask was accepted where λ decides what the update is")
    own, *by_hand = (Run(kind, run.layout, [{"weight_decay": 0.0}] * len(of_group)) for _ in range(3))
    where = ["before", "beside"]
    for number in range(min(steps, STEPS - 1)):  # the last is at lr 0, where no λ makes (1 − lr·λ) the rule's
        if (stopped := _step(run, number, zero=zero)) is not None:
            return stopped

        decays = [one.decay_at(lr_at(number)) * scale for one in of_group]
        own.set_decay([a / lr_at(number) for a in decays])
        own.step(number, zero=zero)
        if why := _apart(run, own, number):
            return Verdict("inexact", f"{why} off its own run at the rule's λ", number)

        # Which of the two is the class's own affair (torch's Adafactor reads the weights' size before it decays them),
        # but it must be one of them throughout.
        for other, place in zip(by_hand, where, strict=True):
            _shrink_and_step(other, decays, number, place=place, zero=zero)
        fitting = [index for index, other in enumerate(by_hand) if not _apart(own, other, 0)]
        tried = by_hand
        by_hand, where = [by_hand[index] for index in fitting], [where[index] for index in fitting]
        if not by_hand:
            why = "; ".join(_apart(own, other, 0) for other in tried)
            return Verdict(
                "inexact", f"reads weights or λ, and its own decay is another: {why} off one by hand", number
            )
        for other in by_hand:
            other.put(own.weights())
    return Verdict("exact", steps=min(steps, STEPS - 1))


def _as_the_product(run: Run, of_group: Sequence[Asked], scale: float, verdict: Verdict) -> Verdict:
    """What is left of weights that nothing else moves: one that goes back to older weights leaves more."""
    per_tensor = [one for one, group in zip(of_group, run.groups, strict=True) for _ in group]
    for one, p, w in zip(per_tensor, run.params, run.start, strict=True):
        left = float(np.prod([1 - one.decay_at(lr_at(number)) * scale for number in range(verdict.steps)]))
        off = float((p.detach().double() - left * w.double()).norm())
        if off > rounding(run.layout.dtype) * verdict.steps * float(w.double().norm()):
            return Verdict("inexact", f"rule {one.name}: {left:.4g} of a weight should be left", verdict.steps)
    return verdict


def _shrink_and_step(run: Run, decays: Sequence[float], number: int, *, place: str, zero: bool) -> None:
    """A step of an optimizer without decay, with (1 − a)·w before it, or a·w of the weights before subtracted after."""
    whole = run.weights()
    per_tensor = [a for a, group in zip(decays, run.groups, strict=True) for _ in group]
    if place == "beside":
        run.step(number, zero=zero)
    with torch.no_grad():
        for p, w, a in zip(run.params, whole, per_tensor, strict=True):
            # Rounded as optimizers do it: an update that is formed in bfloat16 jumps with a weight's last place.
            p.mul_(1 - a) if place == "before" else p.sub_(w, alpha=a)
    if place == "before":
        run.step(number, zero=zero)


def _apart(run: Run, other: Run, number: int) -> str:
    """Which tensors of two runs are apart by more than roundings, which add up; nothing where none is."""
    room = max(1e-5, 4 * rounding(run.layout.dtype)) * (number + 1) ** 0.5
    for p, q, w in zip(run.params, other.params, other.start, strict=True):
        off = float((p.detach().double() - q.detach().double()).norm())
        size = float(q.detach().double().norm()) + float(w.double().norm())
        if off > room * size:
            return f"a tensor of shape {tuple(p.shape)} is {off / size:.2g}"
    return ""


def _step(run: Run, number: int, *, zero: bool) -> Verdict | None:
    """One step; a verdict where it was not made."""
    run.prepare(number, zero=zero)
    before = snapshot(run.optimizer)
    try:
        run.make()
    except OptimizerError as error:
        if changed := difference(before, snapshot(run.optimizer), but=("gradients",)):
            return Verdict("changed", f"{changed} in a step that raised: {error}", number)
        return Verdict("stopped", str(error), number)
    except Exception as error:
        return Verdict("crashed", f"{type(error).__name__}: {error}", number)
    return None


def without_decay(kind: Kind, layout: Layout) -> Verdict:
    """Control with λ = 0 everywhere changes no bit of a run."""
    plain, controlled = (Run(kind, layout, [{"weight_decay": 0.0}] * len(layout.shapes)) for _ in range(2))
    try:
        weightdecay.control(controlled.optimizer)
    except OptimizerError as error:
        # Refused: from here on it must be as if nobody had asked.
        refusal: Verdict | None = Verdict("refused", str(error))
    except Exception as error:
        return Verdict("crashed", f"{type(error).__name__}: {error}")
    else:
        refusal = None

    for number in range(60):
        plain.step(number)
        if (stopped := _step(controlled, number, zero=False)) is not None:
            return stopped
        for p, q in zip(plain.params, controlled.params, strict=True):
            if not torch.equal(p.detach().nan_to_num(), q.detach().nan_to_num()):
                off = float((p.detach() - q.detach()).abs().max())
                return Verdict("inexact", f"λ = 0 moved a tensor of shape {tuple(p.shape)} by {off:.2g}", number)
    return refusal or Verdict("exact", steps=60)


def snapshot(optimizer: Any) -> dict[str, Any]:
    """Everything of an optimizer that a refused control could have touched, and the generators."""
    return {
        "attributes": sorted(vars(optimizer)),
        "hooks": [len(v) for key, v in sorted(vars(optimizer).items()) if "hook" in key and isinstance(v, Mapping)],
        "class": type(optimizer).step,
        "groups": [
            {key: _frozen(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ],
        "tensor options": [
            {key: id(value) for key, value in group.items() if isinstance(value, Tensor)}
            for group in optimizer.param_groups
        ],
        "weights": [_frozen(p) for group in optimizer.param_groups for p in group["params"]],
        "gradients": [_frozen(p.grad) for group in optimizer.param_groups for p in group["params"]],
        "state": [_frozen(optimizer.state.get(p)) for group in optimizer.param_groups for p in group["params"]],
        "torch's generator": torch.get_rng_state(),
        "random's generator": random.getstate(),
        "numpy's generator": np.random.get_state(legacy=False)["state"]["key"].tobytes(),
    }


def difference(before: Mapping[str, Any], after: Mapping[str, Any], but: Sequence[str] = ()) -> str:
    """What differs, by name; nothing where all is as it was."""
    return ", ".join(key for key in before if key not in but and not _same(before[key], after[key]))


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        plain = value.dequantize() if type(value) not in (Tensor, torch.nn.Parameter) else value
        return plain.detach().to_dense().clone() if plain.is_sparse else plain.detach().clone()
    if isinstance(value, Mapping):
        return {key: _frozen(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_frozen(one) for one in value]
    try:
        return copy.copy(value)
    except Exception:
        return repr(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, int | float | str | bytes | bool | None):
        return bool(a == b) or (a != a and b != b)
    return type(a) is type(b)


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _group_of(run: Run, index: int) -> int:
    for number, group in enumerate(run.groups):
        if index < len(group):
            return number
        index -= len(group)
    raise IndexError(index)
