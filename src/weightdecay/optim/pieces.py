"""Elementwise steps beside torch's kernels: large tensors piece by piece, small ones of a kind together.

A mask, then Adam's kernel; or bfloat16 to float32, the whole step there, and one rounding back: over whole tensors each
of these operations would go through memory on its own, so a large tensor goes in pieces that stay in the cache. Of a
small tensor the call is what costs, so those are joined into a piece, stepped at once and put back.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from weightdecay.optim.compiled import Loop, LoopKind
from weightdecay.optim.decay import decay_, local, mixed
from weightdecay.optim.noise import noise_, noise_keys
from weightdecay.optim.precision import frames_to_the_user
from weightdecay.optim.roundings import COUNTS, ROUNDED, STREAM, Rounding, fresh
from weightdecay.rules import Rule

# On a processor small enough that scratch stays in the cache, large enough that a call's fork and join cost little
# beside it; chosen by benchmarks/optimizer_step.py on two threads, see docs/log.md. Elsewhere a call is what costs.
PIECE = 1 << 19
_PIECE_ELSEWHERE = 1 << 24

# Up to so many elements a tensor is joined with others of its kind.
SMALL = 1 << 15

_SAMPLE = 1 << 12  # weights that are compared with their masters where a compiled loop steps them


class MasterWarning(UserWarning):
    """Weights that somebody changed behind what a rounding remembers of them."""


class Flat(NamedTuple):
    """A tensor, or a stretch of one, flat, as an elementwise step meets it.

    Attributes:
        state: by name, flat where it has a number for each weight.
        shard: the part of a distributed tensor that lies here.
        begin: the first element's place in the tensor.
    """

    weights: Tensor
    gradient: Tensor
    state: Mapping[str, Tensor]
    shard: int = 0
    begin: int = 0


# The direction's step, in place.
Update: TypeAlias = Callable[[Sequence[Flat]], None]


class StepKind(NamedTuple):
    """What is done with each piece.

    Attributes:
        decay: a_t, where the decay is not the direction's own; 0 leaves it to `update`.
        update: the direction's step; None where torch makes it afterwards.
        momentum, mix: the coming update has the sign of x·state[momentum] + y·gradient, for masked rules.
    """

    rule: Rule
    decay: float
    rounding: Rounding
    update: Update | None
    momentum: str = ""
    mix: tuple[float, float] = (0.0, 1.0)


def piece_size(device: torch.device) -> int:
    """Elements of a piece there."""
    return PIECE if device.type == "cpu" else _PIECE_ELSEWHERE


def shard_number(tensor: Any) -> int:
    """The number of a distributed tensor's part that lies here; 0 of one that is whole, or the same on every rank."""
    number = 0
    for axis, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard():
            number = number * tensor.device_mesh.size(axis) + tensor.device_mesh.get_local_rank(axis)
    return number


def _pieces(flats: Sequence[Flat]) -> Iterator[list[Flat]]:
    """Large tensors in stretches, small ones together."""
    together: list[Flat] = []
    room = 0
    alone = torch.is_grad_enabled()  # a differentiable step passes its gradient on through each tensor itself
    for flat in flats:
        size, whole = flat.weights.numel(), piece_size(flat.weights.device)
        if size > SMALL or alone:
            yield from ([stretch] for stretch in _stretches(flat, whole))
            continue
        if size > room:
            if together:
                yield together
            together, room = [], whole
        together.append(flat)
        room -= size
    if together:
        yield together


def _stretches(flat: Flat, size: int) -> Iterator[Flat]:
    count = flat.weights.numel()
    for begin in range(0, count, size):
        end = begin + size
        state = {k: v if k in COUNTS else v[begin:end] for k, v in flat.state.items()}
        yield Flat(flat.weights[begin:end], flat.gradient[begin:end], state, flat.shard, begin)


class Workspace:
    """What an optimizer needs for such steps: scratch of a piece's size.

    Args:
        compiled: whether to step in compiled loops; None leaves it to the number of weights.
    """

    def __init__(self, compiled: bool | None = None) -> None:
        self.compiled = compiled
        self.checked: dict[int, tuple[Any, ...]] = {}  # place of a group -> its settings and weights, found right
        self.places: list[int | None] = []  # of the state then
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._warned = False

    def __reduce__(self) -> tuple[type[Workspace], tuple[bool | None]]:
        return Workspace, (self.compiled,)

    def scratch(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of `like`'s size, the same whenever the same name asks."""
        if torch.is_grad_enabled():  # a differentiable step keeps what it needs for its gradient
            return torch.empty_like(like, dtype=dtype)
        return self._buffer(name, like.numel(), dtype, like.device)

    def _buffer(self, name: str, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (name, dtype, device)
        if key not in self._buffers or self._buffers[key].numel() < count:
            self._buffers[key] = torch.empty(max(count, piece_size(device)), dtype=dtype, device=device)
        return self._buffers[key][:count]

    def step(self, flats: Sequence[Flat], kind: StepKind) -> None:
        """One elementwise step of tensors, those of one kind together; a distributed one's parts have their noise."""
        alike: dict[Any, list[Flat]] = defaultdict(list)
        for flat in flats:
            w, g = flat.weights, flat.gradient
            initial = flat.state["initial"].dtype if kind.rule.target == "initial" else None
            alike[w.dtype, g.dtype, w.device, flat.shard, kind.momentum in flat.state, initial].append(flat)
        for (dtype, *_), together in alike.items():
            step = self._step_widened if kind.rounding.acts_on(dtype) else self._step_as_is
            for piece in _pieces(together):
                step(piece, kind)

    def _step_as_is(self, piece: list[Flat], kind: StepKind) -> None:
        """Decay, and step, in the weights' own dtype."""
        weights = self._joined("weights", [flat.weights for flat in piece])
        masked = kind.rule.is_masked
        gradient = self._joined("gradient", [flat.gradient for flat in piece]) if masked else None
        self._decay(weights, gradient, piece, kind)
        if len(piece) > 1:
            _put_back(weights, [flat.weights for flat in piece])
        if kind.update is not None:
            kind.update(piece)

    def _step_widened(self, piece: list[Flat], kind: StepKind) -> None:
        """Decay and step in float32, and round once."""
        rounding = kind.rounding
        low = self._joined("weights", [flat.weights for flat in piece])
        names = rounding.memory(low.dtype)
        memory = {name: self._joined(name, [flat.state[name] for flat in piece]) for name in names}
        self.renew(rounding, low, memory)
        wide = rounding.widen(low, memory, self.scratch)

        given = self._joined("gradient", [flat.gradient for flat in piece])
        gradient = self.scratch("slope", low, torch.float32).copy_(given)
        self._decay(wide, gradient, piece, kind)
        if kind.update is not None:
            sizes = [flat.weights.numel() for flat in piece]
            parts = zip(*(torch.split_with_sizes(whole, sizes) for whole in (wide, gradient)), piece, strict=True)
            kind.update([Flat(w, g, flat.state) for w, g, flat in parts])

        rounding.write(wide, low, memory, self.scratch, self._noise(piece) if rounding.needs_noise else None)
        if len(piece) > 1:
            _put_back(low, [flat.weights for flat in piece])
            for name in names:
                _put_back(memory[name], [flat.state[name] for flat in piece])

    def _decay(self, weights: Tensor, gradient: Tensor | None, piece: list[Flat], kind: StepKind) -> None:
        if not kind.decay:
            return
        update = initial = None
        if kind.rule.is_masked:
            assert gradient is not None
            begun = kind.momentum in piece[0].state
            momenta = self._joined("momentum", [flat.state[kind.momentum] for flat in piece]) if begun else None
            wide = torch.promote_types(weights.dtype, gradient.dtype)  # or small updates would lose their sign
            out = None if torch.is_grad_enabled() else self.scratch("update", weights, wide)
            update = mixed(momenta, gradient, kind.mix, out)
        if kind.rule.target == "initial":
            initial = self._joined("initial", [flat.state["initial"] for flat in piece])
        decay_(weights, kind.rule, kind.decay, 1 - kind.decay, update, initial)

    def _joined(self, name: str, tensors: list[Tensor]) -> Tensor:
        """One after the other; a single one as it is."""
        if len(tensors) == 1:
            return tensors[0]
        size, first = sum(tensor.numel() for tensor in tensors), tensors[0]
        return torch.cat(tensors, out=self._buffer(f"joined {name}", size, first.dtype, first.device))

    def _noise(self, piece: list[Flat]) -> Tensor:
        like = piece[0].weights
        sizes = [flat.weights.numel() for flat in piece]
        streams, steps = (torch.stack([flat.state[key] for flat in piece]).tolist() for key in (STREAM, ROUNDED))
        keys = noise_keys(streams, steps, piece[0].shard, piece[0].begin).to(like.device)
        places = torch.arange(sum(sizes), dtype=torch.int32, device=like.device)
        if len(piece) == 1:
            return noise_(places, keys[0].unbind())
        counts = torch.tensor(sizes, device=like.device)
        starts = (counts.cumsum(0) - counts).to(torch.int32)
        places -= starts.repeat_interleave(counts, output_size=len(places))
        of_each = keys.repeat_interleave(counts, dim=0, output_size=len(places))
        return noise_(places, of_each.T.contiguous().unbind())

    def run(self, kind: LoopKind, loop: Loop, flat: Flat, numbers: Tensor) -> None:
        """A step in a compiled loop, which does all of it."""
        tensors = {"weights": flat.weights, "gradient": flat.gradient}
        tensors |= {name: flat.state[name] for name, _ in kind.state}
        # Equal parts, in tensors that know of no other: compiled code asks what a view is of.
        parts = [[part.data for part in torch.split(t, t.numel() // kind.parts)] for t in tensors.values()]
        if kind.rounding.acts_on(flat.weights.dtype):  # the loop itself takes anew what it must, and cannot say so
            every = max(flat.weights.numel() // _SAMPLE, 1)
            sampled = {name: flat.state[name][::every] for name in kind.rounding.memory(flat.weights.dtype)}
            self.renew(kind.rounding, flat.weights[::every], sampled)

        keys = None
        if kind.rounding.needs_noise:
            size, stream, step = parts[0][0].numel(), int(flat.state[STREAM]), int(flat.state[ROUNDED])
            of_parts = [noise_keys([stream], [step], flat.shard, part * size) for part in range(kind.parts)]
            keys = torch.cat(of_parts).to(flat.weights.device)
        loop([dict(zip(tensors, part, strict=True)) for part in zip(*parts, strict=True)], numbers, keys)

    def renew(self, rounding: Rounding, low: Tensor, memory: Mapping[str, Tensor]) -> None:
        """Take anew, and say so, what a rounding remembers of weights that somebody else has changed since."""
        if not low.is_meta and rounding.is_disturbed(
            local(low), {name: local(kept) for name, kept in memory.items()}, fresh
        ):
            rounding.renew_(low, memory)
            if not self._warned:
                kept = ", ".join(rounding.memory(low.dtype))
                warnings.warn(
                    f"low-precision weights are not those whose {kept} rounding='{rounding.name}' keeps: somebody "
                    "changed them since the last step (a loaded checkpoint, averaged weights, pruning). The weights "
                    f"hold, and their {kept} is taken anew from them",
                    MasterWarning,
                    stacklevel=frames_to_the_user(),
                )
            self._warned = True


@contextmanager
def flattened(tensors: Iterable[tuple[Any, Any, Mapping[str, Any]]], names: Sequence[str]) -> Iterator[list[Flat]]:
    """Tensors as a step meets them. Strided ones are copied, and written back when the step is done.

    Args:
        tensors: each with its gradient and its state by name.
        names: the state that has a number for each weight.
    """
    copies: list[tuple[Tensor, Tensor]] = []

    def flat(original: Tensor) -> Tensor:
        whole = local(original)
        if not whole.is_contiguous():
            copies.append((whole, whole.contiguous()))
            whole = copies[-1][1]
        return whole if whole.ndim == 1 else whole.view(-1)

    flats = []
    for tensor, gradient, state in tensors:
        slope = local(gradient).contiguous()
        here = {name: flat(state[name]) for name in names if name in state}
        here |= {name: state[name] for name in COUNTS if name in state}
        slope = slope if slope.ndim == 1 else slope.view(-1)
        flats.append(Flat(flat(tensor), slope, here, shard_number(tensor)))
    yield flats
    for original, copy in copies:
        original.copy_(copy)


def _put_back(flat: Tensor, tensors: list[Tensor]) -> None:
    torch.split_with_sizes_copy(flat, [tensor.numel() for tensor in tensors], out=tensors)
