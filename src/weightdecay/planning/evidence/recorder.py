"""A forward, written down: every operation with the shapes of what it took and gave, as long as the budget lasts.

A dispatch mode sees every operation below autograd. What they mean is read afterwards (`following`); here they are only
run, paid for and noted. No tensor is held: each has a number instead.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from weightdecay.planning.evidence.budget import FORESEEN, LARGE, Budget, OverBudgetError, tensors_in
from weightdecay.planning.evidence.without_values import run_without_values

_FLOPS_AN_ELEMENT = 64  # floating-point operations of a matrix product that take as long as writing one element
_ALONG_AXES = frozenset(
    {"sum", "mean", "_softmax", "_safe_softmax", "transpose", "permute"}
)  # say which after the tensor
_OF_OTHER_PROCESSES = ("c10d", "_c10d_functional")


class Operand(NamedTuple):
    """A tensor that an operation takes or gives.

    Attributes:
        slot: the argument that takes it, in torch's own words.
        tensor: its number in this run.
        shape, form: its shape, and the same with 1 for the axes along which `expand` only repeats.
        memory: a key of the memory that it shares with its views; 0 as long as nothing was written in place.
    """

    slot: str
    tensor: int
    shape: tuple[int, ...]
    form: tuple[int, ...]
    memory: int


class Operation(NamedTuple):
    """One operation: torch's own name for it, what it took and gave, and the axes it was told, if it goes by any."""

    name: str
    operands: list[Operand]
    results: list[Operand]
    axes: Sequence[Any]
    in_place: bool

    def parts(self) -> tuple[Operation, ...]:
        """What is two operations in one, as `a + b · c` is, as these."""
        if self.name != "addcmul":
            return (self,)
        term, *factors = self.operands
        (result,) = self.results
        between = Operand("other", -result.tensor, result.shape, result.shape, 0)
        product = self._replace(name="mul", operands=factors, results=[between], in_place=False)
        return product, self._replace(name="add", operands=[term, between])


@dataclass
class Recording:
    """What was run.

    Attributes:
        parameters: the number of each tensor that is followed, by its names, and how many elements it has.
        inputs: the numbers of what was fed to the model.
        operations: in their order.
        is_whole: whether the forward came to its end.
    """

    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    is_whole: bool = False


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is run while it is active.

        cost of an operation = elements of its result + its flops / 64

    Args:
        parameters: names and tensors to follow.
        inputs: the tensors fed to the model.
        budget: what may be run; every operation is paid from it.
        without_values: whether the parameters stand on the meta device.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        inputs: Iterable[torch.Tensor],
        budget: Budget | None = None,
        *,
        without_values: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._budget = budget or Budget()
        self._without_values = without_values
        self._numbers: Any = WeakTensorKeyDictionary()  # of each tensor that is still alive
        self._fresh = itertools.count(1)
        self._written: list[object] = []  # a reference to it keeps a freed memory's key from being given out again

        self.recording = Recording(
            {name: (self._number(tensor), tensor.numel()) for name, tensor in parameters.items()},
            [self._number(tensor) for tensor in inputs],
        )

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        super().__exit__(kind, value, traceback)  # type: ignore[no-untyped-call]
        self.recording.is_whole = kind is None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's compiler is not there while this is active; to tell it so would import it, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, kind, budget = kwargs or {}, _kind(func), self._budget
        if kind.is_of_other_processes:
            raise OverBudgetError("it talks to other processes, which may not be there to answer")
        # asked at every operation, so it is spelt out here
        if (
            budget.operations <= budget.kept_operations
            or budget.elements <= budget.kept_elements
            or time.monotonic() > budget.ends
        ):
            budget.refuse()
        budget.operations -= 1

        taken, sizes = _taken(kind.slots, args, kwargs)
        is_in_memory = not self._without_values or not any(tensor.is_meta for _, tensor in taken)
        if is_in_memory and kind.allocates and _at_most(kind, taken, sizes) > FORESEEN:
            budget.foresee(func, args, kwargs)
        out = run_without_values(func, args, kwargs) if self._without_values else func(*args, **kwargs)
        given = [out] if isinstance(out, torch.Tensor) else tensors_in(out)
        if is_in_memory:
            self._pay(kind, args, kwargs, out, given)

        if kind.in_place:
            self._written += [_reference(tensor) for tensor in given]
        name = kind.name
        if name == "pow" and len(args) > 1 and isinstance(args[1], int | float) and args[1] < 0:
            name = "rsqrt"
        operands, results = self._operands(taken), self._operands(zip(itertools.repeat(""), given))
        axes = args[1:] if name in _ALONG_AXES else ()
        self.recording.operations.append(Operation(name, operands, results, axes, kind.in_place))
        return out

    def _pay(self, kind: _Kind, args: Sequence[Any], kwargs: Any, out: Any, given: Sequence[torch.Tensor]) -> None:
        cost, large = 0, []
        for tensor in given:
            cost += tensor.numel()
            if tensor.numel() > LARGE:
                large.append(tensor)
        if kind.flops is not None:
            cost += int(kind.flops(*args, **kwargs, out_val=out)) // _FLOPS_AN_ELEMENT
        self._budget.elements -= cost
        if large:
            self._budget.keep(large)

    def _operands(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[Operand]:
        operands = []
        for slot, tensor in tensors:
            shape = form = tuple(tensor.shape)
            is_strided, memory = tensor.layout is torch.strided, 0
            if is_strided and 0 in (strides := tensor.stride()):
                form = tuple([size if stride else 1 for size, stride in zip(shape, strides, strict=True)])
            if self._written:  # a sparse tensor has no storage, and no views
                memory = tensor.untyped_storage()._cdata if is_strided else id(tensor)
            number = self._numbers.get(tensor)
            operands.append(Operand(slot, number or self._number(tensor), shape, form, memory))
        return operands

    def _number(self, tensor: torch.Tensor) -> int:
        """One of its own, unless it has one."""
        number: int | None = self._numbers.get(tensor)
        if number is None:
            number = self._numbers[tensor] = next(self._fresh)
        return number


class _Kind(NamedTuple):
    """What is always so of one of torch's operations."""

    name: str
    slots: tuple[str, ...]
    in_place: bool
    allocates: bool
    known: Callable[[Sequence[torch.Tensor]], int] | None
    flops: Callable[..., int] | None
    is_of_other_processes: bool


@functools.cache
def _kind(func: Any) -> _Kind:
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    in_place = name.endswith("_") and not name.startswith("_")
    return _Kind(
        name=name.rstrip("_") if in_place else name,
        slots=tuple(argument.name for argument in schema.arguments),
        in_place=in_place,
        # what it returns is else a view, or was written in place
        allocates=all(returned.alias_info is None for returned in schema.returns),
        known=_KNOWN.get(name),
        flops=flop_registry.get(getattr(func, "overloadpacket", None)),
        is_of_other_processes=getattr(func, "namespace", "") in _OF_OTHER_PROCESSES,
    )


def _taken(
    slots: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[tuple[str, torch.Tensor]], int]:
    """The tensors that an operation takes, each with its slot, and the product of all numbers that it is told."""
    taken: list[tuple[str, torch.Tensor]] = []
    sizes = 1
    waiting = [*zip(slots, args, strict=False), *kwargs.items()]
    waiting.reverse()
    while waiting:
        slot, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            taken.append((slot, value))
        elif isinstance(value, list | tuple):
            waiting += zip(itertools.repeat(slot), reversed(value))
        elif isinstance(value, int) and value > 1:
            sizes *= value
    return taken, sizes


def _at_most(kind: _Kind, taken: Sequence[tuple[str, torch.Tensor]], sizes: int) -> int:
    """How many elements a new result can have, cheaply: what the arguments multiply up to where nothing is known."""
    most = sizes
    for _, tensor in taken:
        most *= tensor.numel() or 1
    if most <= FORESEEN:
        return most
    tensors = [tensor for _, tensor in taken]
    if kind.known is not None:
        return kind.known(tensors)
    try:
        shape: torch.Size = torch.broadcast_shapes(*[tensor.shape for tensor in tensors])  # type: ignore[no-untyped-call]
        return sizes * math.prod(shape)
    except RuntimeError:  # no operation element by element
        return most


def _product(tensors: Sequence[torch.Tensor]) -> int:
    left, right = tensors[-2:]
    return left.numel() // max(left.shape[-1], 1) * right.shape[-1]


def _as_the_first(tensors: Sequence[torch.Tensor]) -> int:
    return tensors[0].numel()


# the frequent ones whose results are known without a closer look
_KNOWN: dict[str, Callable[[Sequence[torch.Tensor]], int]] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _product),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm"), _as_the_first),
    **dict.fromkeys(("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_softmax"), _as_the_first),
    "_unsafe_view": _as_the_first,
    "embedding": lambda tensors: tensors[1].numel() * tensors[0].shape[-1],
    "cat": lambda tensors: sum(tensor.numel() for tensor in tensors),
}


def _reference(tensor: torch.Tensor) -> object:
    if tensor.layout is not torch.strided:
        return tensor
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
