"""How much work a plan may do: counted in operations and elements, so that it ends alike on every machine.

A clock would cut a plan short on a busy machine and not on an idle one, and their locks would differ. So work is
counted; the clock is a safety stop alone, and a plan that it cut says so.
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch

MOST_OPERATIONS = 100_000
MOST_ELEMENTS = 4_000_000_000  # a few seconds of one core
MOST_IN_MEMORY = 1 << 28  # elements that may be alive at once: 1 GiB of float32
FORESEEN = MOST_IN_MEMORY // 4  # elements of a result from which its memory is looked at before it is made
LARGE = 1 << 20  # elements of a result below which its memory is not counted


class OverBudgetError(BaseException):
    """A forward that was run did more than a look at its operations is worth.

    No `Exception`: a forward that goes on whatever happens must not go on after this.
    """


class TooLargeError(OverBudgetError):
    """It is its tensors that are too large: without values it may still run."""


class DeadlineError(OverBudgetError):
    """The clock stopped it."""


class Budget:
    """What may still be done; the recorder pays from it for every operation.

    Attributes:
        operations: how many operations may be run.
        elements: what they may cost together.
        deadline: seconds from now after which nothing more is run, at the moment `ends`.
        kept_operations, kept_elements: what the present run has to leave.
    """

    def __init__(
        self, operations: int = MOST_OPERATIONS, elements: int = MOST_ELEMENTS, deadline: float = math.inf
    ) -> None:
        self.operations = operations
        self.elements = elements
        self.deadline = deadline
        self.ends = time.monotonic() + deadline
        self.cut = False
        self.kept_operations = 0
        self.kept_elements = 0
        self._large: list[weakref.ref[torch.Tensor]] = []

    @property
    def left(self) -> bool:
        """Whether anything may still be run."""
        self.cut = self.cut or time.monotonic() > self.ends
        return not self.cut and self.operations > self.kept_operations and self.elements > self.kept_elements

    @contextlib.contextmanager
    def one_run(self) -> Iterator[None]:
        """Inside, half of what is left may be spent, so that a forward without end leaves the other half."""
        kept = self.kept_operations, self.kept_elements
        self.kept_operations += (self.operations - kept[0]) // 2
        self.kept_elements += (self.elements - kept[1]) // 2
        try:
            yield
        finally:
            self.kept_operations, self.kept_elements = kept

    def refuse(self) -> NoReturn:
        """Say what is used up.

        Raises:
            OverBudgetError: always.
        """
        if time.monotonic() > self.ends:
            self.cut = True
            raise DeadlineError("the deadline has passed")
        kind = OverBudgetError if self.operations <= self.kept_operations else TooLargeError
        raise kind("it runs for longer than a look at its operations is worth")

    def foresee(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse an operation that would take too much memory, as far as shapes foretell it.

        What grows by values (`repeat_interleave` by a tensor) is seen only once it is there, and what a forward
        allocates without torch is not seen.

        Raises:
            TooLargeError: its result is too large.
        """
        self._allow(_foreseen(operation, args, kwargs))

    def keep(self, tensors: Sequence[torch.Tensor]) -> None:
        """Count large tensors as long as they are alive.

        Raises:
            TooLargeError: together they are too large.
        """
        self._large += [weakref.ref(tensor) for tensor in tensors]
        self._allow(0)

    def _allow(self, elements: int) -> None:
        """Let so many more be alive, or refuse."""
        alive = [(reference, tensor) for reference in self._large if (tensor := reference()) is not None]
        self._large = [reference for reference, _ in alive]
        # views share their storage; a sparse tensor has none, and no views
        storages = {
            tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor): tensor.numel()
            for _, tensor in alive
        }
        if elements + sum(storages.values()) > MOST_IN_MEMORY:
            said = f"a result of {elements:,} elements" if elements else f"{sum(storages.values()):,} elements at once"
            raise TooLargeError(f"it would allocate too much: {said}")


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


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of an argument or a result, also in lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, list | tuple) else []
