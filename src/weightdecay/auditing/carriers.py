"""Where a tensor's weights really are: beside themselves, in float32 copies, and in what rounding has lost.

Seen, not read from names: another copy of the weights points where they point; with what a compensated sum keeps, a
decay goes along the weights far better than by the weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.auditing.measuring import Removed, difference, local, removed
from weightdecay.auditing.stepping import Bench, Place

Path: TypeAlias = tuple[Any, ...]

# ‖X − w‖² / ‖w‖² of a copy X: an average of weights is no further from them, and moments are of another size.
_NEAR, _NEAR_BESIDE = 0.5, 0.01
_FEW = 32  # elements; so few may be near each other by chance
LOW_PRECISION = (torch.bfloat16, torch.float16)
WEIGHTS: Path = ("weights",)


@dataclass(frozen=True)
class Carrier:
    """What beside the tensor itself is to be read for its weights.

    Attributes:
        path: where in the tensor's state, or in what a step wrote to beside it.
        added: it is what rounding has lost of the weights, rather than another copy of them.
    """

    path: Path
    added: bool = False


def tensors_beside(bench: Bench, place: Place, elsewhere: Mapping[Path, Tensor]) -> dict[Path, Tensor]:
    """Tensors as large as a parameter that may go with it, as they are now: in its state, or known to be elsewhere."""
    p, found = local(place.tensor), _in_state(bench, place)
    return {
        path: tensor.reshape(p.shape)
        for path, tensor in (found | dict(elsewhere)).items()
        if tensor.numel() == p.numel() and tensor.is_floating_point() and tensor.data_ptr() != p.data_ptr()
    }


def _in_state(bench: Bench, place: Place) -> dict[Path, Tensor]:
    state = getattr(bench.optimizer, "state", None)
    held = state.get(place.tensor) if isinstance(state, Mapping) else None
    return {path: local(tensor) for path, tensor in _walk(("state",), held)}


def written_beside(bench: Bench, weights: Sequence[Tensor]) -> list[dict[Path, Tensor]]:
    """For each tensor w what a step wrote to, in no state, and was as w before it: a master, or scratch."""
    known = {local(place.tensor).data_ptr() for place in bench.places}
    known |= {tensor.data_ptr() for place in bench.places for tensor in _in_state(bench, place).values()}
    loose: dict[int, list[tuple[Path, Tensor, Tensor]]] = {}
    for number, (tensor, copy) in enumerate(bench.written.originals):
        if tensor.layout == torch.strided and tensor.is_floating_point() and tensor.data_ptr() not in known:
            loose.setdefault(tensor.numel(), []).append((("written", number), tensor, copy))
    return [
        {
            path: tensor
            for path, tensor, copy in loose.get(w.numel(), ())
            if difference(copy.reshape(w.shape), w) < _NEAR_BESIDE
        }
        for w in weights
    ]


def is_copy(bench: Bench, path: Path, tensor: Tensor, w: Tensor) -> bool:
    """Whether it is another copy of the weights w, or an average of them."""
    of_its_own = path[0] == "state" and w.numel() >= _FEW
    return difference(bench.written.original(tensor), w) < (_NEAR if of_its_own else _NEAR_BESIDE)


def read(place: Place, carrier: Carrier | None, beside: Mapping[Path, Tensor]) -> Tensor:
    """The weights as they are now."""
    p = local(place.tensor)
    if carrier is None or carrier.path not in beside:
        return p
    return p.float() + beside[carrier.path].float() if carrier.added else beside[carrier.path]


def carrier_of(
    p: Tensor, w: Tensor, plain: Tensor, with_decay: Mapping[Path, Tensor], without: Mapping[Path, Tensor],
    copies: Sequence[Path],
) -> Carrier | None:  # fmt: skip
    """What a decay that no rounding hides shows to carry the weights; None for the tensor itself.

    Args:
        p, w: the tensor after the step with the decay, and before it.
        plain: moments of what was removed from the tensor itself.
        with_decay, without: the tensors beside it after the step with the decay and without it.
        copies: those of them that are copies.
    """
    seen = Removed.of(plain)
    best, most = None, 0.0
    for path in copies:
        slope = Removed.of(removed(w, with_decay[path], without[path])).fraction
        # An average moves less than what it averages; what the tensor itself is an average of moves more.
        is_wider = with_decay[path].dtype.itemsize > p.dtype.itemsize
        if slope > most and slope > (0.5 if is_wider else 1.5) * seen.fraction:
            best, most = Carrier(path), slope
    if best is not None or p.dtype not in LOW_PRECISION:
        return best

    for path, after in with_decay.items():
        if not _may_be_lost(without[path], w):
            continue
        whole, other = p.float() + after.float(), without[WEIGHTS].float() + without[path].float()
        if _residual(Removed.of(removed(w, whole, other))) * 2 < _residual(seen):
            return Carrier(path, added=True)
    return None


def _may_be_lost(x: Tensor, w: Tensor) -> bool:
    """Whether it is no larger than what rounding takes from each weight, half a unit of its last place."""
    fits = x.abs().double() <= torch.finfo(w.dtype).eps * w.abs().double()
    return bool(x.any()) and float(fits.double().mean()) > 0.95


def _residual(seen: Removed) -> float:
    """What of d does not go along w, in the elements that a mask does not spare."""
    return max(seen.dd - seen.wd**2 / seen.acted, 0.0) if seen.acted > 0 else 0.0


def _walk(path: Path, value: Any) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from _walk((*path, key), held)
    elif isinstance(value, list | tuple):
        for index, held in enumerate(value):
            yield from _walk((*path, index), held)
