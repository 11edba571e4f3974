"""The norm of the gradients, and a clipped step in one pass over them.

    scale = min(1, max_norm / (‖g‖ + 1e-6)),    g ← scale · g,    step

torch's float32 norm of a large matrix loses digits (2.7e-3 over a 50304×768 matrix); the norm of the rows' norms keeps
them at the same speed. The clipping then needs no pass of its own: a fused kernel takes `grad_scale` along.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor
from torch.optim import optimizer as torchs  # its tables of global hooks have no public name

from weightdecay.amounts import amount, number
from weightdecay.errors import OptimizerError, TrainingError, did_you_mean
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.decay import local
from weightdecay.optim.grouping import groups_in, with_gradient
from weightdecay.probing.outermost import is_of_this_package, step_is_replaced

OnNonfinite = Literal["stop", "skip"]
_WITH_FUSED_KERNEL = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
_ROW = 1024  # elements that are summed in float32; their norms are then summed in float64
_SMALL = 4 * _ROW  # tensors of no more are joined
_SMALLEST_SCALE = 1e-30  # of what kernels divide and multiply by in float32, which ends at 1e-38
_PIECE = 1 << 20  # elements that are widened to float64 at once


class NonfiniteGradientError(TrainingError):
    """A gradient holds NaN or infinity; weights and optimizer state are as they were before the step."""


@dataclass(frozen=True)
class ClippedStep:
    """What a clipped step saw and did.

    Args:
        grad_norm: ‖g‖ before clipping, over all ranks.
        scale: what the gradients were multiplied with; 1 where clipping did not act.
        skipped: whether the step was left out because a gradient was not finite.
    """

    grad_norm: float
    scale: float
    skipped: bool


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """‖x‖₂ over all tensors as a float64 scalar; distributed tensors count with all their shards.

    Raises:
        OptimizerError: a distributed tensor is a partial sum, whose norm is not the sum of its parts'.
    """
    parts: dict[Any, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        placements = getattr(tensor, "placements", None)
        sharding = None if placements is None else (getattr(tensor, "device_mesh", None), tuple(placements))
        here = local(tensor).detach()
        parts[sharding, tensor.device].append(torch.view_as_real(here) if here.is_complex() else here)
    squares = []
    for (sharding, _), together in parts.items():
        square = _square(_norms_on_cuda(together) if together[0].is_cuda else _norms(together))
        if not square.isfinite():  # a square of float32 may be over its range where the norm is not
            pieces = (piece for x in together for piece in torch.split(x.reshape(-1), _PIECE))
            square = _square([torch.linalg.vector_norm(piece, dtype=torch.float64).view(1) for piece in pieces])
        if sharding is not None:
            _sum_over_shards(square, *sharding)
        squares.append(square.cpu())
    return torch.stack(squares or [torch.zeros((), dtype=torch.float64)]).sum().sqrt()


def _square(norms: list[Tensor]) -> Tensor:
    square: Tensor = torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64).square()
    return square


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Norms, [n] each, of rows short enough for sums in float32, and of what is left of them.

    Small tensors are joined first: a call for each would cost more than to copy them.
    """
    flats: list[Tensor] = []
    small: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        (flats if tensor.numel() > _SMALL else small[tensor.dtype]).append(tensor.reshape(-1))
    flats += [torch.cat(together) for together in small.values()]

    norms = []
    for flat in flats:
        wide, left = torch.promote_types(flat.dtype, torch.float32), flat.numel() % _ROW
        rows = flat[: flat.numel() - left] if left else flat
        norms.append(torch.linalg.vector_norm(rows.view(-1, _ROW), dim=1, dtype=wide))
        if left:
            norms.append(torch.linalg.vector_norm(flat[-left:], dim=0, keepdim=True, dtype=wide))
    return norms


def _norms_on_cuda(tensors: list[Tensor]) -> list[Tensor]:
    """Norms, [n] each, by torch's kernels for many tensors at once, whose sums in float32 are short enough."""
    alike: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        alike[tensor.dtype].append(tensor)
    return [
        torch.stack(torch._foreach_norm(together, dtype=torch.promote_types(dtype, torch.float32)))
        for dtype, together in alike.items()
    ]


def _sum_over_shards(square: Tensor, mesh: Any, placements: tuple[Any, ...]) -> None:
    for dimension, placement in enumerate(placements):
        if placement.is_partial():
            raise OptimizerError("a gradient is a partial sum over ranks: reduce it before taking its norm")
        if placement.is_shard():
            torch.distributed.all_reduce(square, group=mesh.get_group(dimension))


def clipped_step(
    optimizer: torch.optim.Optimizer,
    max_norm: float | None = 1.0,
    *,
    on_nonfinite: OnNonfinite = "stop",
    process_group: torch.distributed.ProcessGroup | None = None,
    norm_of: Callable[[Iterable[Tensor]], Tensor] = total_norm,
) -> ClippedStep:
    """Clip the gradients' norm and step, for any torch optimizer.

    torch's and our fused optimizers take the scale into their kernel (`grad_scale`, removed again afterwards), which
    differs from clip-then-step by rounding only; any other, and any that is wrapped or has hooks of others before its
    step, has its gradients scaled first. A gradient that is not finite changes nothing, neither weights nor state.

    Args:
        optimizer: with gradients in place.
        max_norm: the largest ‖g‖ let through; None clips nothing.
        on_nonfinite: `stop` raises, `skip` leaves the step out and says so.
        process_group: ranks whose gradients are not reduced to the same values, and yet must decide alike whether
            to step. Not needed under DDP or FSDP, where the norm is the same everywhere.
        norm_of: takes the norm of all gradients together.

    Raises:
        NonfiniteGradientError: a gradient is not finite and `on_nonfinite` is `stop`.
        OptimizerError: `max_norm` is not positive, `on_nonfinite` is unknown, a gradient is sparse, or this is no
            optimizer that steps without a closure.
    """
    grads = [p.grad for group in groups_in(optimizer) for p in with_gradient(group)]
    _raise_if_unusable(optimizer, max_norm, on_nonfinite)
    if any(grad.is_sparse for grad in grads):
        raise OptimizerError("a sparse gradient cannot be clipped here: use a dense embedding (sparse=False)")
    norm = float(norm_of(grads))
    if not _finite_everywhere(norm, process_group):
        if on_nonfinite == "stop":
            raise NonfiniteGradientError(
                f"the gradients' norm is {norm}: weights and optimizer state are unchanged; lower the lr, look for bad "
                "data, or go on with on_nonfinite='skip'"
            )
        return ClippedStep(norm, 1.0, skipped=True)
    scale = 1.0 if max_norm is None else min(1.0, (number(max_norm) or 0.0) / (norm + 1e-6))
    if scale == 1.0:
        optimizer.step()
    elif _takes_scale(optimizer) and _is_held(scale, grads):
        scaled: Any = optimizer  # which divides by it, as if a GradScaler had set it
        scaled.grad_scale = torch.tensor(1.0 / scale, dtype=torch.float32, device=grads[0].device)
        try:
            optimizer.step()
        finally:
            del scaled.grad_scale
    else:
        _own_memory(optimizer)
        _multiply([local(p.grad) for group in groups_in(optimizer) for p in with_gradient(group)], scale)
        optimizer.step()
    return ClippedStep(norm, scale, skipped=False)


def _is_held(scale: float, grads: Iterable[Tensor]) -> bool:
    """Whether kernels can multiply these gradients by it, in float32 or in float16, and divide by its inverse."""
    is_half = any(grad.dtype == torch.float16 for grad in grads)
    return scale >= (torch.finfo(torch.float16).smallest_normal if is_half else _SMALLEST_SCALE)


def _own_memory(optimizer: torch.optim.Optimizer) -> None:
    """Give each element of an expanded gradient, as that of a sum is, a place of its own to be scaled in."""
    for p in (p for group in groups_in(optimizer) for p in with_gradient(group)):
        if any(step == 0 and n > 1 for step, n in zip(local(p.grad).stride(), local(p.grad).shape, strict=True)):
            p.grad = p.grad.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def _multiply(grads: list[Tensor], scale: float) -> None:
    """Each gradient times a number that its dtype, and the float32 of torch's products, need not hold."""
    if _is_held(scale, grads):
        torch._foreach_mul_(grads, scale)
        return
    scaled = [(grad.to(torch.promote_types(grad.dtype, torch.float64)) * scale).to(grad.dtype) for grad in grads]
    if not any(bool(grad.any()) for grad in scaled):
        raise OptimizerError(
            f"gradients times {scale:.3g} are 0 in their dtype, so that a clipped step would be none: raise max_norm"
        )
    for grad, product in zip(grads, scaled, strict=True):
        grad.copy_(product)


def _takes_scale(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's own step is known to divide the gradients by `grad_scale`.

    A `fused` in its groups tells nothing: a wrapper shows the groups of what it wraps, which never sees the attribute,
    and others' kernels may not read it. Nor does the class, where others' code stands before its step.
    """
    step: Any = type(optimizer).step
    ours = isinstance(optimizer, DecayingOptimizer) and inspect.unwrap(step) is inspect.unwrap(DecayingOptimizer.step)
    known = (ours or type(optimizer) in _WITH_FUSED_KERNEL) and not _is_preceded(optimizer)
    return known and all(group.get("fused") is True for group in optimizer.param_groups)


def _is_preceded(optimizer: torch.optim.Optimizer) -> bool:
    """Whether others' code runs before the optimizer's own step, and is to find the gradients clipped."""
    hooks = [*torchs._global_optimizer_pre_hooks.values(), *optimizer._optimizer_step_pre_hooks.values()]
    return step_is_replaced(optimizer) or not all(map(is_of_this_package, hooks))


def _finite_everywhere(norm: float, process_group: torch.distributed.ProcessGroup | None) -> bool:
    if process_group is None:
        return math.isfinite(norm)
    bad = torch.tensor(0.0 if math.isfinite(norm) else 1.0)
    torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX, group=process_group)
    return float(bad) == 0.0


def _needs_closure(step: Callable[..., Any]) -> bool:
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


# To look at a signature costs as much as the norm. One optimizer's own step is not kept: it would keep the optimizer.
_class_needs_closure = functools.lru_cache(maxsize=64)(_needs_closure)


def _raise_if_unusable(optimizer: Any, max_norm: Any, on_nonfinite: Any) -> None:
    faults = []
    step = optimizer.step
    of_class = getattr(step, "__func__", None) is getattr(type(optimizer), "step", step)
    if _class_needs_closure(type(optimizer).step) if of_class else _needs_closure(step):
        faults.append(f"{type(optimizer).__name__} steps with a closure, which has the gradients: clip them in there")
    if max_norm is not None and not amount(max_norm):
        faults.append(f"max_norm must be a finite number over 0, got {max_norm!r}: give None to clip nothing")
    if on_nonfinite not in ("stop", "skip"):
        faults.append(f"unknown on_nonfinite '{on_nonfinite}': {did_you_mean(str(on_nonfinite), ('stop', 'skip'))}")
    if faults:
        raise OptimizerError(faults)
