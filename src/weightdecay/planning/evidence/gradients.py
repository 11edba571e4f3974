"""Which parameters a gradient of a forward's output gets to: read from autograd's graph, nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

# operations whose derivative is zero everywhere: autograd has nodes for them, and nothing comes through
_FLAT = ("Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn", "Heaviside")


def reached(outputs: Iterable[torch.Tensor]) -> set[int] | None:
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
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return None
        if node.name().startswith(_FLAT):
            continue
        if hasattr(node, "variable"):
            leaves.add(node.variable._cdata)
        waiting += [following for following, _ in node.next_functions if following is not None]
    return leaves
