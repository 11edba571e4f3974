"""Steps that go through a tensor piece by piece, so that all their operations meet it in the cache.

A mask, then Adam's kernel; or bfloat16 to float32, the whole step there, and one rounding back: over whole tensors
each of these operations would go through memory on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.optim.compiled import Loop, LoopKind
from weightdecay.optim.decay import local
from weightdecay.optim.rounding import noise_, noise_keys, round_stochastically_

# On a processor small enough that scratch stays in the cache, large enough that a call's fork and join cost little
# beside it; chosen by benchmarks/optimizer_step.py on two threads, see docs/log.md. Elsewhere a call is what costs.
PIECE = 1 << 19
_PIECE_ELSEWHERE = 1 << 24

COUNTS = ("step", "rounded_steps")  # state that is not one number for each weight

# (weights, gradient, state by name), all flat pieces: decays and updates the weights in place
Update: TypeAlias = Callable[[Tensor, Tensor, Mapping[str, Tensor]], None]


def pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Flat views of a contiguous tensor."""
    return torch.split(tensor.view(-1), piece_size(tensor.device))


def piece_size(device: torch.device) -> int:
    """Elements of a piece there."""
    return PIECE if device.type == "cpu" else _PIECE_ELSEWHERE


def _parts(tensor: Tensor, count: int) -> list[Tensor]:
    """Equal parts of this rank's part, flat, in tensors that know of no other: compiled code asks what a view is of."""
    flat = local(tensor).view(-1)
    return [part.data for part in torch.split(flat, flat.numel() // count)]


def _shard(tensor: Any) -> int:
    """The number of a distributed tensor's part that lies here; 0 of one that is whole, or the same on every rank."""
    number = 0
    for axis, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard():
            number = number * tensor.device_mesh.size(axis) + tensor.device_mesh.get_local_rank(axis)
    return number


class Workspace:
    """What an optimizer needs for such steps: scratch of a piece's size, and noise for stochastic rounding.

    Args:
        seed: of the noise.
        compiled: whether to step in compiled loops; None leaves it to the number of weights.
    """

    def __init__(self, seed: int = 0, compiled: bool | None = None) -> None:
        self.seed, self.compiled = seed, compiled
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def __reduce__(self) -> tuple[type[Workspace], tuple[int, bool | None]]:
        return Workspace, (self.seed, self.compiled)

    def buffer(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised scratch of `like`'s size, the same memory whenever the same name asks."""
        key = (name, dtype, like.device)
        if key not in self._buffers or self._buffers[key].numel() < like.numel():
            self._buffers[key] = torch.empty(
                max(like.numel(), piece_size(like.device)), dtype=dtype, device=like.device
            )
        return self._buffers[key][: like.numel()]

    def step(
        self, weights: Tensor, gradient: Tensor, state: dict[str, Any], rounding: str, update: Update, number: int
    ) -> None:
        """One elementwise step of a tensor; in float32 and rounded once, if a rounding is asked for.

        Args:
            weights: changed in place.
            gradient: of the same shape; left as it is.
            state: the tensor's, with what `start_rounding` put there.
            rounding: `nearest` steps in the weights' own dtype; the others are for bfloat16 and float16.
            number: the tensor's, so that each has its own noise.
        """
        whole = local(weights).contiguous()  # a copy only where the tensor is strided
        slopes = pieces(local(gradient).contiguous())
        counts = {key: value for key, value in state.items() if key in COUNTS}
        own = {key: value for key, value in state.items() if key not in COUNTS and value.shape == weights.shape}
        whole_state = {key: local(value).contiguous() for key, value in own.items()}
        kept = {key: pieces(value) for key, value in whole_state.items()}
        step = int(state.get("rounded_steps", 0))
        for piece, (low, slope) in enumerate(zip(pieces(whole), slopes, strict=True)):
            here = {**counts, **{key: views[piece] for key, views in kept.items()}}
            if rounding == "nearest":
                update(low, slope, here)
                continue
            # Few buffers, used again at once: what is scratch must stay in the cache.
            wide, spare = self._widened(low, here, rounding), self.buffer("spare", low, torch.float32)
            if rounding == "kahan":
                wide.add_(spare.copy_(here["compensation"]))
            update(wide, spare.copy_(slope), here)
            if rounding == "stochastic":
                keys = noise_keys(self.seed, step, number, _shard(weights), piece * piece_size(low.device)).to(
                    low.device
                )
                places = torch.arange(low.numel(), out=spare.view(torch.int32))
                round_stochastically_(low, wide, noise_(places, keys))
                continue
            low.copy_(wide)
            if rounding == "kahan":
                here["compensation"].copy_(wide.sub_(spare.copy_(low)))
        if rounding == "stochastic":
            state["rounded_steps"] += 1
        for strided, copy in ((weights, whole), *((own[key], whole_state[key]) for key in own)):
            if copy is not local(strided):
                local(strided).copy_(copy)

    def run(
        self, kind: LoopKind, loop: Loop, weights: Tensor, gradient: Tensor, state: dict[str, Any], numbers: Tensor,
        number: int,
    ) -> None:  # fmt: skip
        """`step`, in a compiled loop."""
        tensors = {"weights": weights, "gradient": local(gradient).contiguous()}
        tensors |= {name: state[name] for name, _ in kind.state}
        parts = [_parts(tensor, kind.parts) for tensor in tensors.values()]
        keys = None
        if kind.rounding == "stochastic":
            place, size = (self.seed, int(state["rounded_steps"]), number, _shard(weights)), parts[0][0].numel()
            keys = torch.stack([noise_keys(*place, part * size) for part in range(kind.parts)]).to(weights.device)
            state["rounded_steps"] += 1
        loop([dict(zip(tensors, part, strict=True)) for part in zip(*parts, strict=True)], numbers, keys)

    def _widened(self, low: Tensor, here: Mapping[str, Tensor], rounding: str) -> Tensor:
        """The float32 weights that a low-precision piece stands for."""
        if rounding == "master":
            return here["master"]
        return self.buffer("weights", low, torch.float32).copy_(low)
