"""One run of a copy: what it did to each parameter, how it ended, and which parameters a gradient gets to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from weightdecay.planning.evidence.batches import as_arguments, named_tensors
from weightdecay.planning.evidence.budget import Budget, OverBudgetError
from weightdecay.planning.evidence.following import uses_of
from weightdecay.planning.evidence.recorder import Recorder
from weightdecay.planning.evidence.uses import Use
from weightdecay.planning.evidence.without_values import autocast_as_on_the_cpu

# what a forward that was written for inference says where gradients are recorded
_NO_GRADIENTS_WANTED = re.compile(r"requires? grad|[Ii]nference tensor|leaf [Vv]ariable")

# operations whose derivative is zero everywhere: autograd has nodes for them, and nothing comes through
_FLAT = ("Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn", "Heaviside")


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
    without_values = "meta" in {tensor.device.type for tensor in parameters.values()}
    fed = [tensor for _, tensor in named_tensors(inputs)]
    recorder = Recorder(parameters, fed, budget, without_values=without_values)
    where = autocast_as_on_the_cpu() if without_values else nullcontext()
    fault: BaseException | None = None
    try:
        with budget.one_run(), torch.set_grad_enabled(gradients), where, recorder:
            output = copy(*positional, **named)
    except (Exception, OverBudgetError, SystemExit) as error:  # whatever the user's forward raises
        fault = error
    uses = uses_of(recorder.recording)
    return Run(uses, fault) if fault is not None else Run(uses, None, _reached(copy, output, parameters))


def _reached(copy: nn.Module, output: Any, parameters: Mapping[str, torch.Tensor]) -> frozenset[str] | None:
    # a loss may be left in an attribute, for whoever trains the model
    kept = [tensor for _, tensor in named_tensors([*map(vars, copy.modules())], depth=4) if tensor.grad_fn is not None]
    leaves = _leaves_of([*[tensor for _, tensor in named_tensors(output)], *kept])
    return None if leaves is None else frozenset(name for name, p in parameters.items() if p._cdata in leaves)


def _leaves_of(outputs: Iterable[torch.Tensor]) -> set[int] | None:
    """The leaves that gradients of these tensors get to, by `_cdata`; None where the graph does not tell.

    A tensor in a scripted module has another Python object at each look; what it stands for has one address.

    It does not where no output has a graph (a forward under `no_grad`), or where a function of the user's own, such as
    a checkpoint, makes gradients that autograd does not show.
    """
    ends = [tensor for tensor in outputs if tensor.requires_grad]
    if not ends:
        return None
    leaves = {tensor._cdata for tensor in ends if tensor.grad_fn is None}
    waiting: list[Any] = [tensor.grad_fn for tensor in ends if tensor.grad_fn is not None]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return None
        if node.name().startswith(_FLAT):
            continue
        if hasattr(node, "variable"):
            leaves.add(node.variable._cdata)
        waiting += map(itemgetter(0), node.next_functions)
    return leaves
