"""Muon: momentum made orthogonal, for matrices and stacks of matrices; AdamW for everything else.

    b ← μ·b + (1 − μ)·g          u ← (1 − μ)·g + μ·b  (Nesterov)
    O ← NewtonSchulz(u) ≈ U·Vᵀ of u's singular value decomposition
    w ← (decay of w, with η_t itself) − η_t·s·O

s is 0.2·√max(rows, columns), which gives the update AdamW's usual RMS so that both share η and λ (Moonlight), or
√max(1, rows/columns) ("original").

Reference: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025 (Moonlight), arXiv:2502.16982, §2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.base import UnsupportedTensorError, Work
from weightdecay.optim.grouping import (
    Group,
    Params,
    Rules,
    listed_groups,
    named_tensors,
    rule_for_the_rest,
    split_group,
    tables_and_heads,
    with_rules,
)
from weightdecay.optim.lion import NO_COUPLED_FORM
from weightdecay.optim.rounding import LOW_PRECISION, Rounding

ADJUSTMENTS = ("match_rms_adamw", "original")


class Muon(AdamW):
    """Muon for hidden matrices (2-D) and expert stacks (3-D, each expert a matrix), AdamW for the rest.

    A group goes where its `algorithm`, "muon" or "adamw", says. Without it, a plan sends its embeddings, positions
    and output heads to AdamW; plain parameters are told apart by their number of axes alone.

    Args:
        params: a decay plan, parameters, (name, parameter) pairs, or groups.
        lr: η of both algorithms.
        weight_decay: λ of groups that do not bring their own.
        momentum, nesterov, ns_coefficients, eps, ns_steps: of Muon, as in torch.
        adjust_lr_fn: "match_rms_adamw" or "original", the update's scale s.
        ns_dtype: dtype of the iteration.
        adamw_betas, adamw_eps, fused, foreach: of the tensors that AdamW updates.
        rule, peak_lr, rounding: as in `weightdecay.AdamW`.
        maximize: ascend instead of descending.

    Raises:
        OptimizerError: with every fault of every group; a "muon" group with tensors that are no matrices.
    """

    refused: ClassVar[Mapping[str, str]] = {"l2": NO_COUPLED_FORM}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        *,
        ns_dtype: torch.dtype = torch.bfloat16,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        rule: Rules = "decoupled",
        peak_lr: float | None = None,
        rounding: Rounding = "nearest",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        if adjust_lr_fn not in (None, *ADJUSTMENTS):
            raise OptimizerError(
                f"Adjust learning rate function {adjust_lr_fn} is not supported: "
                f"{did_you_mean(str(adjust_lr_fn), ADJUSTMENTS)}"
            )
        self._own: Group = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "ns_eps": eps,
            "ns_steps": ns_steps,
            "ns_dtype": str(ns_dtype).removeprefix("torch."),  # a state_dict is to hold plain values
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(
            _split(params, lr, rule, self._own), lr, adamw_betas, adamw_eps, weight_decay,
            rule=rule_for_the_rest(rule), peak_lr=peak_lr, rounding=rounding,
            maximize=maximize, foreach=foreach, fused=fused,
        )  # fmt: skip

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; matrices and the rest must not share one, unless all of it is for AdamW."""
        if isinstance(param_group, dict):
            named = named_tensors(param_group)
            if named is None:
                return super().add_param_group(param_group)  # torch explains what is wrong
            tensors = [tensor for _, tensor in named]
            hidden = all(t.ndim in (2, 3) for t in tensors)
            param_group.setdefault("algorithm", "muon" if hidden else "adamw")
            if param_group["algorithm"] == "muon":
                _raise_unless_matrices(tensors)
                for key, value in self._own.items():
                    param_group.setdefault(key, value)
        return super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_own": self._own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for kept in state["state"].values():  # torch's Muon counts no steps, and torch's Adam looks for the count
            kept.setdefault("step", torch.tensor(0.0))
        super().__setstate__(state)
        for group in self.param_groups:
            if "algorithm" not in group:  # torch's Muon wrote it
                group.update({**self.defaults, **self._own, **group, "algorithm": "muon", "ns_eps": group["eps"]})

    def _works_beside_kernel(self, group: Group) -> bool:
        return group["algorithm"] == "muon" or super()._works_beside_kernel(group)

    def _step_groups(self, work: Work) -> None:
        hidden = [(group, decay) for group, decay in work if group["algorithm"] == "muon"]
        rest = [(group, decay) for group, decay in work if group["algorithm"] != "muon"]
        for index, (group, decay) in enumerate(hidden):
            for position, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                rows, columns = p.shape[-2:]
                original = math.sqrt(max(1.0, rows / columns))
                match = group["adjust_lr_fn"] == "match_rms_adamw"  # torch writes None for the original
                scale = 0.2 * math.sqrt(max(rows, columns)) if match else original
                update = self._orthogonal_update(p, group)
                self._descend(p, update, float(group["lr"]) * scale, group, decay, (index << 32) + position)
        if rest:
            super()._step_groups(rest)

    def _orthogonal_update(self, p: Tensor, group: Group) -> Tensor:
        if p.is_complex() or p.grad is None:
            raise UnsupportedTensorError("Muon does not support complex parameters")
        wide = torch.float32 if group["rounding"] != "nearest" and p.dtype in LOW_PRECISION else p.dtype
        gradient = (-p.grad if group["maximize"] else p.grad).to(wide)
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["step"] = torch.tensor(0.0)
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["step"] += 1
        momentum, buffer = group["momentum"], state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        dtype = getattr(torch, group["ns_dtype"])
        return on_whole_matrices(
            lambda x: orthogonalised(x, group["ns_coefficients"], group["ns_steps"], group["ns_eps"], dtype), update
        )


def orthogonalised(
    matrices: Tensor, coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315), steps: int = 5,
    eps: float = 1e-7, dtype: torch.dtype = torch.bfloat16,
) -> Tensor:  # fmt: skip
    """About U·Vᵀ of each matrix X = U·S·Vᵀ: all singular values near 1.

        X ← X/‖X‖,   then `steps` times   A = XXᵀ,  X ← aX + (bA + cA²)X

    Args:
        matrices: [rows, columns] or [n, rows, columns].
        coefficients: a, b, c; the default is steep at 0 and ends between about 0.7 and 1.2.
        dtype: of the iteration; bfloat16 is enough, because the iteration corrects itself.

    Reference: Jordan et al. 2024; Bernstein & Newhouse 2024, arXiv:2409.20325.
    """
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype, copy=True)
    x = x.mT if tall else x
    x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps))
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def on_whole_matrices(function: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """The function of matrices whose rows or columns may lie on several ranks: those are gathered first.

    Every rank then computes the same, so that the result is that of one process; a stack that is sharded by matrices
    stays where it is.
    """
    if not hasattr(matrices, "to_local"):
        return function(matrices)
    from torch.distributed.tensor import DTensor, Replicate

    sharded: Any = matrices
    last = {sharded.ndim - 2, sharded.ndim - 1}
    cut = [p.is_partial() or (p.is_shard() and p.dim in last) for p in sharded.placements]
    placements = [Replicate() if here else p for here, p in zip(cut, sharded.placements, strict=True)]
    whole = sharded.redistribute(placements=placements)
    result = function(whole.to_local()).contiguous()
    return DTensor.from_local(result, whole.device_mesh, placements, shape=whole.shape, stride=whole.stride())


def _split(params: Params, lr: float | Tensor, rule: Rules, own: Group) -> Any:
    """Each group as one for Muon and one for AdamW, unless it says where it goes.

    Args:
        own: what a group for Muon has besides, where it does not bring its own.
    """
    groups, elsewhere = listed_groups(params, lr), tables_and_heads(params)
    if groups is None:
        return params
    split: list[Group] = []
    for group in with_rules(groups, rule, elsewhere):
        named = named_tensors(group)
        if named is None or "algorithm" in group:
            split.append({**own, **group} if group.get("algorithm") == "muon" else group)
            continue
        labels = ["muon" if t.ndim in (2, 3) and name not in elsewhere else "adamw" for name, t in named]
        for label, part in split_group(group, labels):
            split.append({**(own if label == "muon" else {}), **part, "algorithm": label})
    return split


def _raise_unless_matrices(tensors: list[Tensor]) -> None:
    faults = [
        f"Muon only supports 2D parameters and 3D stacks of them, whereas one has size {tuple(t.shape)}: put it into "
        "a group with algorithm='adamw'"
        for t in tensors
        if t.ndim not in (2, 3)
    ]
    if faults:
        raise OptimizerError(faults)
