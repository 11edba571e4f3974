"""How much work a plan may do: counted in operations and elements, so that it ends alike on every machine.

A clock would cut a plan short on a busy machine and not on an idle one, and their locks would differ. So work is
counted; the clock is a safety stop alone, and a plan that it cut says so.
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils.flop_counter import flop_registry

MOST_OPERATIONS = 100_000
MOST_ELEMENTS = 4_000_000_000  # a few seconds of one core
MOST_IN_MEMORY = 1 << 28  # elements that may be alive at once: 1 GiB of float32
_LARGE = 1 << 20  # elements of a result below which memory is not looked at
_FLOPS_AN_ELEMENT = 64  # floating-point operations of a matrix product that take as long as writing one element


class OverBudgetError(BaseException):
    """A forward that was run did more than a look at its operations is worth.

    No `Exception`: a forward that goes on whatever happens must not go on after this.
    """


class TooLargeError(OverBudgetError):
    """It is its tensors that are too large: without values it may still run."""


class DeadlineError(OverBudgetError):
    """The clock stopped it."""


class Runner(Protocol):
    """What carries out the operations of a forward that is looked at."""

    def run(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operation's result."""


class Budget:
    """What may still be done; every operation of a forward that is run asks it.

        cost of an operation = elements of its result + its flops / 64

    Args:
        operations: how many operations may be run.
        elements: what they may cost together.
        deadline: seconds from now after which nothing more is run.
    """

    def __init__(
        self, operations: int = MOST_OPERATIONS, elements: int = MOST_ELEMENTS, deadline: float = math.inf
    ) -> None:
        self.operations = operations
        self.elements = elements
        self.deadline = deadline
        self._ends = time.monotonic() + deadline
        self.cut = False
        self._kept_operations = 0
        self._kept_elements = 0
        self._large: list[weakref.ref[torch.Tensor]] = []

    @property
    def left(self) -> bool:
        """Whether anything may still be run."""
        self.cut = self.cut or time.monotonic() > self._ends
        return not self.cut and self.operations > self._kept_operations and self.elements > self._kept_elements

    @contextlib.contextmanager
    def one_run(self) -> Iterator[None]:
        """Inside, half of what is left may be spent, so that a forward without end leaves the other half."""
        kept = self._kept_operations, self._kept_elements
        self._kept_operations += (self.operations - kept[0]) // 2
        self._kept_elements += (self.elements - kept[1]) // 2
        try:
            yield
        finally:
            self._kept_operations, self._kept_elements = kept

    def spend(self, operations: int = 0, elements: int = 0) -> None:
        """Pay for work.

        Raises:
            OverBudgetError: nothing is left for it.
        """
        if not self.left:
            if self.cut:
                raise DeadlineError("the deadline has passed")
            kind = OverBudgetError if self.operations <= self._kept_operations else TooLargeError
            raise kind("it runs for longer than a look at its operations is worth")
        self.operations -= operations
        self.elements -= elements

    def run(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operation's result, paid for.

        Raises:
            OverBudgetError: no work is left for it, or its result, where it is large and shapes foretell it, would take
                too much memory. What grows by values (`repeat_interleave` by a tensor) is seen only once it is there,
                and what a forward allocates without torch is not seen.
        """
        self.spend(operations=1)
        if getattr(operation, "namespace", "") in ("c10d", "_c10d_functional"):
            raise OverBudgetError("it talks to other processes, which may not be there to answer")
        in_memory = not any(tensor.is_meta for tensor in tensors_in([*args, *kwargs.values()]))
        if in_memory and _at_most(operation, args, kwargs) > MOST_IN_MEMORY // 4:
            self._allow(_foreseen(operation, args, kwargs))

        result = operation(*args, **kwargs)

        if in_memory:
            tensors = tensors_in(result)
            self.elements -= sum(tensor.numel() for tensor in tensors) + _flops(operation, args, kwargs, result)
            large = [weakref.ref(tensor) for tensor in tensors if tensor.numel() > _LARGE]
            if large:
                self._large += large
                self._allow(0)
        return result

    def _allow(self, elements: int) -> None:
        """Let so many more be alive, or refuse."""
        alive = [(reference, tensor) for reference in self._large if (tensor := reference()) is not None]
        self._large = [reference for reference, _ in alive]
        storages = {memory_of(tensor): tensor.numel() for _, tensor in alive}
        if elements + sum(storages.values()) > MOST_IN_MEMORY:
            said = f"a result of {elements:,} elements" if elements else f"{sum(storages.values()):,} elements at once"
            raise TooLargeError(f"it would allocate too much: {said}")


def _at_most(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many elements a new result can have, cheaply: what the arguments multiply up to where nothing is known."""
    if any(returned.alias_info is not None for returned in operation._schema.returns):
        return 0  # a view, or written in place
    values = _leaves([*args, *kwargs.values()])
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if (known := _RESULTS.get(operation._schema.name.removeprefix("aten::"))) is not None:
        return known(tensors)
    sizes = math.prod(value for value in values if isinstance(value, int) and value > 1)
    try:
        shape: torch.Size = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
        return sizes * math.prod(shape)
    except RuntimeError:  # no operation element by element
        return sizes * math.prod(max(tensor.numel(), 1) for tensor in tensors)


def _product(tensors: Sequence[torch.Tensor]) -> int:
    left, right = tensors[-2:]
    return left.numel() // max(left.shape[-1], 1) * right.shape[-1]


def _as_the_first(tensors: Sequence[torch.Tensor]) -> int:
    return tensors[0].numel()


# the frequent ones whose results are known without a closer look
_RESULTS: dict[str, Callable[[Sequence[torch.Tensor]], int]] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _product),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm"), _as_the_first),
    **dict.fromkeys(("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_softmax"), _as_the_first),
    "embedding": lambda tensors: tensors[1].numel() * tensors[0].shape[-1],
    "cat": lambda tensors: sum(tensor.numel() for tensor in tensors),
}


def _foreseen(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Elements of the largest new result, by the same operation on tensors without memory; 0 where that cannot be."""

    def without_memory(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to("meta")
        if isinstance(value, list | tuple):
            return type(value)(map(without_memory, value))
        return torch.device("meta") if isinstance(value, torch.device) else value

    try:
        keywords = {name: without_memory(value) for name, value in kwargs.items()}
        if not tensors_in(args) and "device" in {argument.name for argument in operation._schema.arguments}:
            keywords["device"] = torch.device("meta")
        results = tensors_in(operation(*map(without_memory, args), **keywords))
    except Exception:  # no kernel for shapes alone, or values decide: then it is run, and seen afterwards
        return 0
    return max((tensor.numel() for tensor in results), default=0)


def _flops(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Of matrix products and convolutions, in elements."""
    formula = flop_registry.get(getattr(operation, "overloadpacket", None))
    if formula is None:
        return 0
    return int(formula(*args, **kwargs, out_val=result)) // _FLOPS_AN_ELEMENT


def _leaves(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value]
    found = []
    for item in value:
        if isinstance(item, list | tuple):
            found += _leaves(item)
        else:
            found.append(item)
    return found


def memory_of(tensor: torch.Tensor) -> int:
    """A key of the memory that a tensor lies in, which its views share; a sparse one has no storage, and no views."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of an argument or a result, also in lists."""
    return [leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor)]
