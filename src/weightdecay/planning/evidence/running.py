"""One run of a copy: what it did to each parameter, how it ended, and which parameters a gradient gets to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weightdecay.planning.evidence.batches import as_arguments, named_tensors
from weightdecay.planning.evidence.budget import Budget, OverBudgetError
from weightdecay.planning.evidence.gradients import reached
from weightdecay.planning.evidence.recorder import UsageRecorder
from weightdecay.planning.evidence.uses import Use
from weightdecay.planning.evidence.without_values import WithoutValues, autocast_as_on_the_cpu

# what a forward that was written for inference says where gradients are recorded
_NO_GRADIENTS_WANTED = re.compile(r"requires? grad|[Ii]nference tensor|leaf [Vv]ariable")


@dataclass(frozen=True)
class Run:
    """What was seen.

    `fault` is what stopped it, None where it came to its end. `reached` are the names of the parameters that a gradient
    of the output gets to, None where that cannot be told.
    """

    uses: Mapping[str, set[Use]]
    fault: BaseException | None
    reached: frozenset[str] | None = None


def run_once(copy: nn.Module, inputs: Any, parameters: Mapping[str, torch.Tensor], budget: Budget) -> Run:
    """Run a copy on inputs: a tensor, positional arguments, or keywords.

    Args:
        copy: made by `runnable_copy`, on the CPU or without memory.
        inputs: on the CPU, in single precision.
        parameters: those to follow, by name.
        budget: what it may do.
    """
    run = _run(copy, inputs, parameters, budget, gradients=True)
    if run.fault is not None and _NO_GRADIENTS_WANTED.search(str(run.fault)):
        return _run(copy, inputs, parameters, budget, gradients=False)
    return run


def _run(
    copy: nn.Module, inputs: Any, parameters: Mapping[str, torch.Tensor], budget: Budget, *, gradients: bool
) -> Run:
    positional, named = as_arguments(inputs)
    has_values = not any(tensor.is_meta for tensor in parameters.values())
    runner = budget if has_values else WithoutValues(budget)
    recorder = UsageRecorder(parameters, [tensor for _, tensor in named_tensors(inputs)], runner)
    try:
        with budget.one_run(), torch.set_grad_enabled(gradients), autocast_as_on_the_cpu(), recorder:
            output = copy(*positional, **named)
    except (Exception, OverBudgetError, SystemExit) as error:  # whatever the user's forward raises
        return Run(recorder.uses, error)
    return Run(recorder.uses, None, _reached(copy, output, parameters))


def _reached(copy: nn.Module, output: Any, parameters: Mapping[str, torch.Tensor]) -> frozenset[str] | None:
    # a loss may be left in an attribute, for whoever trains the model
    kept = [tensor for module in copy.modules() for _, tensor in named_tensors(_plain(module), depth=3)]
    leaves = reached([*(tensor for _, tensor in named_tensors(output)), *kept])
    return None if leaves is None else frozenset(name for name, p in parameters.items() if p._cdata in leaves)


def _plain(module: nn.Module) -> dict[str, Any]:
    """The module's attributes without its parameters, which stand in no graph of their own."""
    return {name: value for name, value in vars(module).items() if name not in ("_parameters", "_modules")}
