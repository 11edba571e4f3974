"""What steps of an optimizer leave: state for each tensor, and progress in its groups. Seen on twins."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightdecay.probing.kinds import sample
from weightdecay.probing.outside import Outside
from weightdecay.probing.twin import Manner, Twin, Twins, manners

_PROGRESS_STEPS = 8  # Prodigy's estimate of its step length first grows after some


def stepped_state(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any] | None:
    """The state that one step leaves for such a tensor in a group, and where; None where it makes no step.

    With a prime for each axis of `shape`, the axes of a state tell which of the tensor's they are. A count may stay on
    the processor or go with the weights, which only a step on their own device tells.
    """
    # An optimizer's groups are its own, so a parameter of the shape stands in the twin's group, and its own in none.
    stand_in = torch.empty(tuple(shape), dtype=dtype, device=device).requires_grad_(dtype.is_floating_point)
    alone = {**group, "params": [stand_in], **({"param_names": ["w"]} if "param_names" in group else {})}
    for manner in manners(optimizer):
        if not manner.fresh:
            continue
        try:
            twin = Twin(optimizer, manner, sample(optimizer, [alone]), whole=True)
            with Outside(optimizer).kept():
                twin.set_gradients()
                twin.step(guarded=True)
        except Exception:  # as in `Twins`
            continue
        state = twin.optimizer.state.get(twin.params[0][0], {})
        return {key: value for key, value in state.items() if value is not None}
    return None


def progress_keys(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """The keys of groups that steps change: how far the optimizer has come, and no settings.

    Seen on a twin that makes some steps; none where it makes no step.
    """
    try:
        # There may be a group for each tensor, and which keys move does not depend on numbers.
        of = sample(optimizer, numbers_apart=False)
        manner = Twins(optimizer, of=of).manner
        twin = Twin(optimizer, manner, of)
        start = Twin(optimizer, Manner(manner.fresh, manner.settings_only), of) if manner.train else twin
        before = [copy.deepcopy(_without_params(group)) for group in start.optimizer.param_groups]
        with Outside(optimizer).kept():
            for _ in range(_PROGRESS_STEPS):
                twin.set_gradients()
                twin.step(guarded=True)
    except Exception:
        return frozenset()
    after = [_without_params(group) for group in twin.optimizer.param_groups]
    return frozenset(
        str(key)
        for was, now in zip(before, after, strict=True)
        for key in now
        if key not in was or not is_same(was[key], now[key])
    )


def counting_keys(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """The keys under which groups or the state of tensors count steps: each step of a twin adds 1.

    `step` alone where a twin makes no step.
    """
    try:
        twin = Twins(optimizer, of=sample(optimizer, numbers_apart=False)).make()
        seen = []
        with Outside(optimizer).kept():
            for _ in range(_PROGRESS_STEPS):
                twin.set_gradients()
                twin.step(guarded=True)
                seen.append(_counts(twin))
    except Exception:  # as in `Twins`
        return frozenset({"step"})
    first = seen[0]
    return frozenset({"step"}) | {
        key
        for (place, key), start in first.items()
        if all(at.get((place, key)) == start + i for i, at in enumerate(seen))
    }


def steps_taken(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], counting: Collection[str], *, before: bool = False
) -> int:
    """Steps that the group has made: our own count, or what the optimizer says of the time before it.

    Args:
        counting: the keys under which it counts its steps, in the state of tensors or in the group.
        before: the optimizer has just made a step that our count does not hold yet.
    """
    if "decay_step" in group:
        return int(group["decay_step"])
    holders = [group, *(optimizer.state.get(p, {}) for p in group["params"])]
    counts = [
        int(holder[key])
        for holder in holders
        if isinstance(holder, Mapping)
        for key in counting
        if key in holder and is_count(holder[key])
    ]
    return max(max(counts, default=0) - (1 if before else 0), 0)


def _counts(twin: Twin) -> dict[tuple[int, str], int]:
    """The whole numbers in groups and in the state of tensors, by place and key."""
    params = [p for of_group in twin.params for p in of_group]
    holders = [*twin.optimizer.param_groups, *(twin.optimizer.state.get(p, {}) for p in params)]
    return {
        (place, str(key)): int(value)
        for place, holder in enumerate(holders)
        if isinstance(holder, Mapping)
        for key, value in holder.items()
        if is_count(value)
    }


def is_count(value: Any) -> bool:
    """Whether it may be a number of steps."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and float(value).is_integer()
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def is_same(a: Any, b: Any) -> bool:
    """Whether two values of a group's key are one, whatever they are."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b, strict=True))
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:
        return a is b
