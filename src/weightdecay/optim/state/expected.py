"""The state that an optimizer keeps, seen on a small twin, and what of a saved state does not fit it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightdecay.optim.roundings import COUNTS
from weightdecay.optim.state.settings import Change
from weightdecay.probing.progress import stepped_state

State = Mapping[str, Any]

# A small tensor has a prime for each axis: as no two are equal, the axes of a state tell which of the tensor's they
# are, and so what they are for the real tensor.
_PRIMES = (2, 3, 5, 7, 11, 13, 17)


def is_known(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step is torch's or ours, whose state depends on nothing but the tensor's shape, dtype and group."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return False  # the state of all its tensors lies with the first

    step = inspect.unwrap(type(optimizer).step)  # torch wraps it, for hooks
    return step.__module__.partition(".")[0] in ("torch", "weightdecay")


def expected_states(optimizer: torch.optim.Optimizer) -> dict[Tensor, State | None]:
    """For each parameter the state that one step of the optimizer leaves for a small tensor of its kind.

    None where it cannot be known: of optimizers that are neither torch's nor ours, and of those that make no step.
    """
    known = is_known(optimizer)
    expected: dict[Tensor, State | None] = {}
    of_kind: dict[Any, State | None] = {}
    for group in optimizer.param_groups:
        options = _options(group)
        for p in group["params"]:
            shape = _small_shape(group, p)
            kind = (options, shape, p.dtype, p.device)
            if kind not in of_kind:
                seen = known and len(shape) == p.ndim
                of_kind[kind] = stepped_state(optimizer, group, shape, p.dtype, p.device) if seen else None
            expected[p] = of_kind[kind]
    return expected


def _options(group: Mapping[str, Any]) -> str:
    """What of a group decides which state its tensors have; of λ and lr only whether there is any."""
    rates = {"lr", "weight_decay", "peak_lr", "initial_lr", "lr_multiplier", "decay_multiplier"}
    options = {key: bool(value) if key in rates else value for key, value in group.items()}
    return repr({key: value for key, value in options.items() if key not in ("params", "param_names", "name")})


def fitting_faults(
    optimizer: str, group: Mapping[str, Any], p: Tensor, name: str, state: State, expected: State | None
) -> list[str]:
    """Keys and shapes that are not the optimizer's."""
    present = {key for key, value in state.items() if value is not None}
    if not present or expected is None:
        return []
    faults = [
        f"{name}/{key}: {optimizer} has no such state; it is another optimizer's" for key in present - {*expected}
    ]
    faults += [f"{name}/{key}: {optimizer} needs it and it is missing" for key in expected.keys() - present]
    for key in present & expected.keys():
        shape, wanted = tuple(getattr(state[key], "shape", ())), _scaled_shape(expected[key], group, p)
        if wanted is not None and shape != wanted:
            faults.append(f"{name}/{key}: saved with shape {shape}, this model needs {wanted}")
    return sorted(faults)


def dtype_changes(name: str, state: State, expected: State | None) -> tuple[list[Change], list[str]]:
    """State that was saved in another dtype than the optimizer keeps, and what cannot be had in its dtype at all.

    Counts are no matter of choice: they are converted where no digit is lost.
    """
    found, faults = [], []
    for key, kept in (expected or {}).items():
        value = state.get(key)
        if not isinstance(value, Tensor) or not isinstance(kept, Tensor) or value.dtype == kept.dtype:
            continue
        if key not in COUNTS and _is_number_of_reals(value) and _is_number_of_reals(kept):
            found.append(Change(name, f"dtype of {key}", _spelt(value), _spelt(kept)))
        elif value.ndim > 0 or not bool(((back := value.to(kept.dtype).to(value.dtype)) == value) | (back != back)):
            faults.append(f"{name}/{key}: saved as {_spelt(value)}, which {_spelt(kept)} cannot hold")
    return found, faults


def _is_number_of_reals(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _spelt(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _small_shape(group: Mapping[str, Any], p: Tensor) -> tuple[int, ...]:
    """A small shape of p's kind, with a prime for each axis: as wide or tall as p, and of as many stacked matrices."""
    stacked = group.get("stacked", 1)
    shape = [prime for prime in _PRIMES if prime > stacked][: p.ndim]
    if p.ndim > 1 and p.shape[-2] >= stacked * p.shape[-1]:
        shape[-2:] = shape[:-3:-1]
    if stacked > 1:
        shape[-2] *= stacked
    return tuple(shape)


def _scaled_shape(expected: Any, group: Mapping[str, Any], p: Tensor) -> tuple[int, ...] | None:
    """The small shape with p's sizes in the place of the primes; None where an axis is neither p's nor 1."""
    stacked, small = group.get("stacked", 1), _small_shape(group, p)
    sizes = {1: 1, stacked: stacked, **dict(zip(small, p.shape, strict=False))}
    if stacked > 1:
        sizes[small[-2] // stacked] = p.shape[-2] // stacked
    shape = tuple(getattr(expected, "shape", ()))
    return tuple(sizes[n] for n in shape) if all(n in sizes for n in shape) else None
