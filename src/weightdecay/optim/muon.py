"""Muon: momentum made orthogonal, for matrices and stacks of matrices; AdamW for everything else.

    b ← μ·b + (1 − μ)·g          u ← (1 − μ)·g + μ·b  (Nesterov)
    O ← orthogonal(u) ≈ U·Vᵀ of u's singular value decomposition
    w ← (decay of w, with η_t itself) − η_t·s·O

s is 0.2·√max(rows, columns), which gives the update AdamW's usual RMS so that both share η and λ (Moonlight), or
√max(1, rows/columns) ("original").

With `equal_rows` the rows of u are first divided by their norms (MuonEq), and with `neuron_beta2` = β₂ (NorMuon) the
neurons of O, its rows, or its columns if these are more, come to one size over time, while the whole keeps the norm of
an orthogonal matrix:

    O ← √r·O/‖O‖,  r = min(rows, columns)          v ← β₂·v + (1 − β₂)·mean(O²) of each neuron
    Ô ← O/√v                                       O ← √r·Ô/‖Ô‖

Reference: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025 (Moonlight), arXiv:2502.16982, §2;
NorMuon, arXiv:2510.05491, whose neurons are always rows, and MuonEq, arXiv:2603.28254, both as in
karpathy/nanochat@92d63d4, nanochat/optim.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.grouping import Group, Params, Rules, is_matrix, muon_tensors, named_tensors, split_group
from weightdecay.optim.orthogonal import NEWTON_SCHULZ, Coefficients, on_whole_matrices, orthogonalised, update_scale
from weightdecay.optim.roundings import NEAREST, RoundingLike, dtype_name
from weightdecay.optim.work import Work
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.rules import DECOUPLED

# Settings of its groups alone, beside `ns_eps`, `ns_dtype` and `stacked`.
_OWN = (
    "momentum", "nesterov", "ns_coefficients", "ns_steps", "adjust_lr_fn", "orthogonalisation", "equal_rows",
    "neuron_beta2",
)  # fmt: skip

_FLOOR = 1e-10  # of norms and mean squares: what has no gradient stays where it is


class Muon(AdamW):
    """Muon for hidden matrices (2-D) and expert stacks (3-D, each expert a matrix), AdamW for the rest.

    A group goes where its `algorithm`, "muon" or "adamw", says. Without it a plan's roles decide (`muon_tensors`):
    linear weights, expert stacks, in-projections, recurrent matrices, LoRA and weight-norm directions are Muon's, and
    embeddings, heads, routers, convolutions and everything else AdamW's. Of plain parameters only the shape tells: two
    or three axes, the last two longer than 1, make a matrix.

    A group of tensors in which several matrices of one size lie one above the other, such as a fused projection of
    queries, keys and values, says how many with `stacked`: each is then made orthogonal for itself.

    Args:
        params, weight_decay, rule, peak_lr, rounding, maximize: as in `weightdecay.AdamW`.
        lr: η of both algorithms.
        momentum, nesterov, ns_coefficients, eps, ns_steps: of Muon, as in torch.
        adjust_lr_fn: "match_rms_adamw" or "original", the update's scale s.
        ns_dtype: dtype of the iteration.
        orthogonalisation: "newton_schulz" or "polar_express", which has coefficients of its own and gets nearer.
        equal_rows: whether rows are brought to one norm before it.
        neuron_beta2: β₂ of the mean squares by which neurons are brought to one size after it; 0 leaves them.
        adamw_betas, adamw_eps, fused, foreach: of the tensors that AdamW updates.

    Raises:
        OptimizerError: with every fault of every group; a "muon" group with tensors that are no matrices.
    """

    no_coupled_form: ClassVar[str] = DecayingOptimizer.no_coupled_form
    wide_state: ClassVar[frozenset[str]] = frozenset({"second_momentum_buffer"})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = NEWTON_SCHULZ,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        *,
        ns_dtype: torch.dtype = torch.bfloat16,
        orthogonalisation: str = "newton_schulz",
        equal_rows: bool = False,
        neuron_beta2: float = 0.0,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        rule: Rules = DECOUPLED,
        peak_lr: float | None = None,
        rounding: RoundingLike = NEAREST,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        given = locals()
        self._own: Group = {key: given[key] for key in _OWN}
        self._own |= {"ns_eps": eps, "ns_dtype": dtype_name(ns_dtype), "stacked": 1}  # a dtype as files can hold it
        super().__init__(
            params, lr, adamw_betas, adamw_eps, weight_decay, rule=rule, peak_lr=peak_lr, rounding=rounding,
            maximize=maximize, foreach=foreach, fused=fused,
        )  # fmt: skip

    def _complete(self, param_group: Any) -> None:
        """Matrices and the rest must not share a group, unless all of it is for AdamW."""
        if not isinstance(param_group, dict):
            return  # torch explains what is wrong
        shapes = [tuple(tensor.shape) for _, tensor in named_tensors(param_group) or ()]
        hidden = shapes and all(is_matrix(shape) for shape in shapes)
        param_group.setdefault("algorithm", "muon" if hidden else "adamw")
        if shapes and param_group["algorithm"] == "muon":
            for key, value in self._own.items():
                param_group.setdefault(key, value)
            if faults := list(_no_matrices(shapes, param_group["stacked"])):
                raise OptimizerError(faults)

    def groups_of_plan(self, plan: Params, groups: list[Group]) -> list[Group]:
        """Each group as one for Muon and one for AdamW, unless it says where it goes."""
        hidden = muon_tensors(plan) if isinstance(plan, DecayPlan) else None  # without a plan only shapes tell
        divided = []
        for group in super().groups_of_plan(plan, groups):
            named = named_tensors(group)
            if named is None or "algorithm" in group:
                divided.append(group)
                continue
            is_muons = [is_matrix(tensor.shape) if hidden is None else name in hidden for name, tensor in named]
            labels = ["muon" if its else "adamw" for its in is_muons]
            divided += [{**part, "algorithm": label} for label, part in split_group(group, labels)]
        return [{**self._own, **group} if group.get("algorithm") == "muon" else group for group in divided]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_own": self._own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = [kept for kept in state["state"].values() if isinstance(kept, dict)]
        for kept in own:  # torch's Muon counts no steps, and torch's Adam looks for the count
            kept.setdefault("step", torch.zeros((), dtype=torch.float32))
        super().__setstate__(state)

    def _going_on(self, own: Group, saved: Mapping[str, Any]) -> Group:
        if "ns_coefficients" in saved and "algorithm" not in saved:  # torch's Muon wrote it
            saved = {**saved, "ns_eps": saved["eps"], "eps": own["eps"]}
        return super()._going_on(own, saved)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["algorithm"] == "muon" else super()._state_names(group)

    def state_shapes(self, group: Group, p: Tensor) -> Mapping[str, tuple[int, ...]]:
        shapes = dict(super().state_shapes(group, p))
        if group["algorithm"] == "muon" and group["neuron_beta2"]:
            stacked = group["stacked"]
            rows, columns = p.shape[-2] // stacked, p.shape[-1]
            neurons = (rows, 1) if rows >= columns else (1, columns)
            shapes["second_momentum_buffer"] = (*p.shape[:-2], *((stacked,) if stacked > 1 else ()), *neurons)
        return shapes

    def needed_state(self, group: Group, p: Tensor) -> set[str]:
        # What evens neurons begins whenever it is asked for; torch's Muon counts no steps.
        return {"momentum_buffer"} if group["algorithm"] == "muon" else super().needed_state(group, p)

    def _known_keys(self, defaults: Mapping[str, Any]) -> set[str]:
        return {*defaults, *self._own, "algorithm"}

    def _settings_of(self, group: Group) -> set[str]:
        own = self._own if group.get("algorithm") == "muon" else ()
        return {*super()._settings_of(group), "algorithm", *own}

    def _step_faults(self, one: Work) -> Iterator[str]:
        yield from super()._step_faults(one)
        if one.group["algorithm"] == "muon":
            if any(p.is_complex() for p in one.weights):
                yield "Muon does not support complex parameters"
            yield from _no_matrices((p.shape for p in one.weights), one.group["stacked"])

    def _works_beside_kernel(self, one: Work) -> bool:
        return one.group["algorithm"] == "muon" or super()._works_beside_kernel(one)

    def _step_groups(self, work: list[Work]) -> None:
        rest = [one for one in work if one.group["algorithm"] != "muon"]
        for one in work:
            if one.group["algorithm"] == "muon":
                self._descend(one, self._orthogonal_update)
        if rest:
            super()._step_groups(rest)

    def _orthogonal_update(self, p: Tensor, one: Work) -> tuple[Tensor, float]:
        """O, and the scale with which it is subtracted."""
        assert p.grad is not None
        group, wide = one.group, torch.float32 if one.rounding.acts_on(p.dtype) else p.dtype
        gradient = (-p.grad if group["maximize"] else p.grad).to(wide)
        state = self.state[p]
        state["step"] += 1

        momentum, buffer = group["momentum"], state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        orthogonal = on_whole_matrices(lambda x: _orthogonal(x, group), update)
        if group["neuron_beta2"]:
            orthogonal = self._evened(orthogonal, group, state)
        scale = update_scale(p.shape[-2] // group["stacked"], p.shape[-1], group["adjust_lr_fn"])
        return orthogonal, float(group["lr"]) * scale

    def _evened(self, update: Tensor, group: Group, state: dict[str, Any]) -> Tensor:
        """The update with neurons that are of one size over time, and the norm of an orthogonal matrix."""
        matrices = _apart(update.to(torch.promote_types(update.dtype, torch.float32)), group["stacked"])
        rows, columns = matrices.shape[-2:]
        norm = math.sqrt(min(rows, columns))
        matrices = _with_norm(matrices, norm)
        square = matrices.square().mean(-1 if rows >= columns else -2, keepdim=True)
        buffer = state["second_momentum_buffer"]
        buffer.lerp_(square.to(buffer.dtype), 1 - group["neuron_beta2"])
        even = matrices * buffer.clamp(min=_FLOOR).rsqrt()
        return _with_norm(even, norm).reshape(update.shape)


def _orthogonal(whole: Tensor, group: Group) -> Tensor:
    """Each matrix made orthogonal as its group says."""
    matrices = _apart(whole, group["stacked"])
    matrices = matrices.flatten(0, -3) if matrices.ndim > 3 else matrices
    if group["equal_rows"]:
        matrices = matrices / torch.linalg.vector_norm(matrices, dim=-1, keepdim=True).clamp(min=group["ns_eps"])
    result = orthogonalised(
        matrices, group["ns_coefficients"], group["ns_steps"], group["ns_eps"], getattr(torch, group["ns_dtype"]),
        method=group["orthogonalisation"],
    )  # fmt: skip
    return result.reshape(whole.shape)


def _apart(tensor: Tensor, stacked: int) -> Tensor:
    """The matrices that lie one above the other in a tensor: [.., stacked, rows, columns]."""
    return tensor if stacked == 1 else tensor.reshape(*tensor.shape[:-2], stacked, -1, tensor.shape[-1])


def _with_norm(matrices: Tensor, norm: float) -> Tensor:
    """Each matrix at a Frobenius norm; 0 stays 0."""
    present: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    return matrices * (norm / present.clamp(min=_FLOOR))


def _no_matrices(shapes: Iterable[Sequence[int]], stacked: int) -> Iterator[str]:
    """Faults: tensors of a group of Muon's that are no matrices, or not so many."""
    for shape in map(tuple, shapes):
        if len(shape) not in (2, 3):
            yield (
                f"Muon only supports 2D parameters and 3D stacks of them, whereas one has size {shape}: put it into "
                "a group with algorithm='adamw'"
            )
        elif shape[-2] % stacked:
            yield (
                f"{shape[-2]} rows of a tensor of size {shape} are not {stacked} matrices of one size: give their "
                "number as stacked"
            )
