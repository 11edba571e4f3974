"""How much work a plan may do: counted in operations and elements, so that it ends alike on every machine.

A clock would cut a plan short on a busy machine and not on an idle one, and their locks would differ. So work is
counted; the clock is a safety stop alone, and a plan that it cut says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

MOST_OPERATIONS = 100_000
MOST_ELEMENTS = 3_000_000_000
LARGEST_RESULT = 1 << 28  # elements of one result in memory: 1 GiB of float32


class OverBudgetError(Exception):
    """A forward that was run did more than a look at its operations is worth."""


class DeadlineError(OverBudgetError):
    """The clock stopped it."""


class Budget:
    """What may still be done; every operation of a traced forward asks it.

    Args:
        operations: how many operations may be run.
        elements: how many elements their results may hold, together.
        deadline: seconds from now after which nothing more is run.
    """

    def __init__(
        self, operations: int = MOST_OPERATIONS, elements: int = MOST_ELEMENTS, deadline: float = math.inf
    ) -> None:
        self.operations = operations
        self.elements = elements
        self.ends = time.monotonic() + deadline

    def run(self, operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operation's result, paid for.

        Raises:
            OverBudgetError: no work is left for it.
        """
        if time.monotonic() > self.ends:
            raise DeadlineError("the deadline has passed")
        if self.operations <= 0 or self.elements <= 0:
            raise OverBudgetError("all operations and elements of the budget are spent")

        result = operation(*args, **kwargs)

        self.operations -= 1
        self.elements -= sum(tensor.numel() for tensor in tensors_in(result))
        return result


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of an argument or a result, also in lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
