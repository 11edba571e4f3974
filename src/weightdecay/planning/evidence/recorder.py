"""What a forward pass does with each tensor: the strongest evidence of its job.

A dispatch mode sees every operation below autograd. It follows each parameter through views, casts and arithmetic with
constants (`1 + w`, `-exp(A_log)`) up to the operation in which it meets something that depends on the input, and notes
that meeting: which operation, in which argument, what was done to the parameter before, and what it met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from weightdecay.planning.evidence.budget import Budget

# change the form of a tensor, not what it says
_FORM = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "t", "transpose", "permute", "movedim",
    "expand", "expand_copy", "unsqueeze", "squeeze", "select", "slice", "split", "split_copy", "split_with_sizes",
    "chunk", "unbind", "narrow", "diagonal", "unfold", "as_strided", "detach", "alias", "clone", "contiguous",
    "_to_copy", "lift_fresh", "lift_fresh_copy", "view_as_real", "view_as_complex", "repeat", "repeat_interleave",
    "stack", "flip", "roll", "constant_pad_nd", "native_dropout", "upsample_nearest2d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
})  # fmt: skip
# where `F.linear`, `x @ w` and convolutions put the weight
WEIGHT_SLOTS = frozenset({"mat2", "batch2", "weight"})
PRODUCTS = frozenset(
    {"mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "addbmm", "_grouped_mm", "linear", "matmul"}
)
NORMALISING = frozenset({
    "native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update", "_fused_rms_norm",
    "rms_norm",
})  # fmt: skip
LOOKUPS = frozenset({"embedding", "index_select", "gather", "index", "_embedding_bag", "take"})
_SPREADS = frozenset({"sqrt", "std", "linalg_vector_norm", "norm", "frobenius_norm"})
_KEEPS_SPREAD = frozenset({"add", "clamp", "clamp_min", "maximum", "mul", "sub"})
_LONGEST_PATH = 6


class Use(NamedTuple):
    """One meeting of a parameter with the input's data.

    `operation.slot` is torch's own name of operation and argument; `through` what was done to the parameter before;
    `partner` what it met; `geometry` how it lies in the result (see `_geometry`), in a product how it takes part:
    whole as one "matrix", or as one of a "stack".
    """

    operation: str
    slot: str
    partner: str
    geometry: str
    through: tuple[str, ...]

    def __str__(self) -> str:
        path = "".join(f"{step}>" for step in self.through)
        return f"{path}{self.operation}.{self.slot}/{self.partner}:{self.geometry}"

    @classmethod
    def parse(cls, text: str) -> Use:
        """The inverse of `str`."""
        *through, rest = text.split(">")
        call, _, meeting = rest.partition("/")
        operation, _, slot = call.partition(".")
        partner, _, geometry = meeting.partition(":")
        return cls(operation, slot, partner, geometry, tuple(through))


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: parameters (with the path from each), and whether the input had a part in it.

    Both at once is a parameter that the input has modulated, as hypernetworks do: still a weight, if used as one.
    """

    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    live: bool = False
    trait: str = ""
    scaled_by: frozenset[str] = frozenset()


_CONSTANT = _Origin()


class UsageRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the uses of named parameters while active.

    Args:
        parameters: names and tensors to follow.
        inputs: the tensors fed to the model: what depends on them is live.
        budget: what runs the operations, and stops where they become too many.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        inputs: Iterable[torch.Tensor],
        budget: Budget | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: dict[str, set[Use]] = {}
        self._origins: Any = WeakTensorKeyDictionary()  # _Origin of each tensor that is still alive
        self._budget = budget or Budget()
        self._live_storages: dict[int, torch.Tensor] = {}  # held, so that no storage of that address can follow it
        self._sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        for name, tensor in parameters.items():
            known = dict(self._origin(tensor).parameters)
            self._set(tensor, _Origin({**known, name: ()}))
        for tensor in inputs:
            self._set(tensor, _Origin(live=True, trait="input"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = self._budget.run(func, args, kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        in_place = name.endswith("_") and not name.startswith("_")
        if name == "pow" and len(args) > 1 and isinstance(args[1], int | float) and args[1] < 0:
            name = "rsqrt"
        arguments = self._tensor_arguments(func, args, kwargs or {})
        origin = self._operation(name.rstrip("_") if in_place else name, arguments, out)
        for tensor in _tensors(out):
            self._set(tensor, origin)
            if in_place and origin.live:
                self._live_storages[tensor.untyped_storage()._cdata] = tensor
        return out

    def _set(self, tensor: torch.Tensor, origin: _Origin) -> None:
        self._origins[tensor] = origin

    def _origin(self, tensor: torch.Tensor) -> _Origin:
        origin: _Origin = self._origins.get(tensor, _CONSTANT)
        if origin is _CONSTANT and self._live_storages and tensor.untyped_storage()._cdata in self._live_storages:
            return _Origin(live=True, trait="activation")
        return origin

    def _tensor_arguments(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[tuple[str, torch.Tensor, _Origin]]:
        slots = [argument.name for argument in func._schema.arguments]
        named = [*zip(slots, args, strict=False), *kwargs.items()]
        return [(slot, tensor, self._origin(tensor)) for slot, value in named for tensor in _tensors(value)]

    def _operation(self, name: str, arguments: list[tuple[str, torch.Tensor, _Origin]], out: Any) -> _Origin:
        """Note what happens here and say where the result comes from."""
        live = [origin for _, _, origin in arguments if origin.live]
        carriers = [entry for entry in arguments if entry[2].parameters]
        shape = next((tuple(tensor.shape) for tensor in _tensors(out)), ())
        if carriers and (live or name in LOOKUPS | PRODUCTS or len(carriers) > 1):
            for slot, tensor, origin in carriers:
                if origin.live and slot not in WEIGHT_SLOTS:
                    continue
                partner = self._partner(slot, origin, arguments)
                other = next((tuple(t.shape) for _, t, o in arguments if o is not origin), shape)
                for parameter, through in origin.parameters.items():
                    geometry = self._place(parameter, tensor) if name in PRODUCTS else ""
                    geometry = geometry or _geometry(_distinct(tensor), shape, other)
                    self.uses.setdefault(parameter, set()).add(Use(name, slot, partner, geometry, through))
        if live and not (name in LOOKUPS and name != "embedding" and arguments[0][2].parameters):
            return self._live_result(name, arguments, live)
        if not carriers:
            return _CONSTANT
        step = () if name in _FORM else (name,)
        merged: dict[str, tuple[str, ...]] = {}
        for _, _, origin in carriers:
            for parameter, through in origin.parameters.items():
                merged.setdefault(parameter, (through + step)[:_LONGEST_PATH])
        return _Origin(merged)

    def _place(self, parameter: str, tensor: torch.Tensor) -> str:
        """Whether a product takes a parameter whole as one matrix, or as a stack of them, or one out of a stack."""
        own = _distinct(tensor)
        is_stack = (len(own) > 2 and own[0] > 1) or tensor.numel() < self._sizes[parameter]
        return "stack" if is_stack else "matrix"

    def _partner(self, slot: str, own: _Origin, arguments: list[tuple[str, torch.Tensor, _Origin]]) -> str:
        others = [origin for other, _, origin in arguments if other != slot or origin is not own]
        live = [origin.trait or "activation" for origin in others if origin.live]
        if live:
            return live[0]
        if any(origin.parameters for origin in others):
            return "parameter"
        return "constant"

    def _live_result(
        self, name: str, arguments: list[tuple[str, torch.Tensor, _Origin]], live: list[_Origin]
    ) -> _Origin:
        """What an operation on live tensors yields: the trait tells a later partner what it met."""
        traits = {origin.trait for origin in live}
        carriers = frozenset(name for _, _, origin in arguments if not origin.live for name in origin.parameters)
        if (name in _FORM or name in ("mul", "div")) and len(live) == 1 and not carriers:
            return live[0]
        modulated = _modulated(arguments) if name in _FORM or name in ("mul", "div", "add") else {}
        if (name == "mul" and "inverse-spread" in traits) or (name == "div" and live[-1].trait == "spread"):
            for parameter in live[0].scaled_by:
                self._settle(parameter)
            return _Origin(modulated, live=True, trait="normalised")
        if name == "mul" and carriers:
            return _Origin(modulated, live=True, trait="activation", scaled_by=live[0].scaled_by | carriers)
        return _Origin(modulated, live=True, trait=_trait(name, traits, arguments))

    def _settle(self, parameter: str) -> None:
        """`w * x * rsqrt(…)` multiplies by the gain first: what it met is known only now."""
        uses = self.uses[parameter]
        self.uses[parameter] = {use._replace(partner="normalised") if use.operation == "mul" else use for use in uses}


def _modulated(arguments: list[tuple[str, torch.Tensor, _Origin]]) -> dict[str, tuple[str, ...]]:
    """The parameters that are no smaller than what they met: the input modulates them, and not they the input."""
    met = max((tensor.numel() for _, tensor, origin in arguments if not origin.parameters), default=0)
    return {
        parameter: (*through, "modulation")[:_LONGEST_PATH] if not origin.live else through
        for _, tensor, origin in arguments
        for parameter, through in origin.parameters.items()
        if tensor.numel() >= met
    }


def _trait(name: str, traits: set[str], arguments: list[tuple[str, torch.Tensor, _Origin]]) -> str:
    if name in PRODUCTS:
        factors = [origin for slot, _, origin in arguments if slot != "offs" and (slot != "self" or "add" not in name)]
        return "scores" if sum(origin.live for origin in factors) > 1 else "projection"
    if name in NORMALISING:
        return "normalised"
    if name in ("rsqrt", "reciprocal"):
        return "inverse-spread"
    if name in _SPREADS or (name in _KEEPS_SPREAD and traits == {"spread"}):
        return "spread"
    if name in ("add", "sub") and "scores" in traits:
        return "scores"
    return "looked-up" if name == "embedding" else "activation"


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _distinct(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape, with 1 for the axes along which `expand` only repeats."""
    if tensor.layout != torch.strided:
        return tuple(tensor.shape)
    return tuple(size if stride else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _geometry(own: tuple[int, ...], result: tuple[int, ...], partner: tuple[int, ...]) -> str:
    """How a tensor lies in a result that it was broadcast to.

    number and vector: it varies over no axis, or one. Of those that vary over more, outer: its partner is itself
    repeated along one of them; patch: it is repeated within; repeated: it fills the last axes and is repeated over at
    least two before them; grid: the rest.
    """
    mine, whole, other = own[::-1], result[::-1], partner[::-1]
    varies = [axis for axis, size in enumerate(mine) if size > 1]
    if len(varies) < 2:
        return ("number", "vector")[len(varies)]
    if any(axis >= len(other) or other[axis] == 1 for axis in varies) and len(whole) == max(len(mine), len(other)):
        return "outer"
    last = varies[-1]
    if any(mine[axis] == 1 and whole[axis] > 1 for axis in range(min(last, len(whole)))):
        return "patch"
    return "repeated" if sum(size > 1 for size in whole[last + 1 :]) > 1 else "grid"
