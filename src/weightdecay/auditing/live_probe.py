"""The decay that each tensor really gets, from any optimizer, on the real tensors and state."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from weightdecay.auditing.optimizer_probe import OptimizerProbe
from weightdecay.auditing.probed import Probe
from weightdecay.errors import OptimizerError
from weightdecay.naming import names_by_parameter

_LOCK = threading.RLock()


def probe(
    model: nn.Module | None, optimizer: Any = None, *, optimizers: Sequence[Any] | None = None, steps: int | None = None
) -> Probe:
    """See what the next step of each optimizer would take from each tensor, and leave everything as it was.

        decay of w in a step:  ⟨w, S(0, w) − S(λ, w)⟩ / ‖w‖²

    where S is the optimizer's own step, from where it stands, with the gradients that the tensors have. It is made on
    the real tensors, a few at a time, and undone: model, optimizer, gradients, generators and hooks are the same
    objects with the same contents afterwards, also if a step raises. Call it between two steps; no other thread may
    train meanwhile. Where tensors are sharded, all processes call it.

        import torch, weightdecay

        model = torch.nn.Linear(64, 64)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        print(weightdecay.probe(model, optimizer)["weight"].realised)  # 1e-4

    Args:
        model: whose tensors they are; None if they belong to none.
        optimizer: anything with `param_groups` and `step()`, or several of them.
        optimizers: the same.
        steps: how many steps are compared, and their mean is taken; 1 unless given. More average the noise of low
            precision.

    Raises:
        OptimizerError: there is nothing to step; all faults at once.
    """
    started = time.perf_counter()
    every = [*_listed(optimizer), *_listed(optimizers)]
    _refuse(every, steps)
    names: dict[Tensor, str] = {} if model is None else names_by_parameter(model)
    with _LOCK:
        probed = [OptimizerProbe(one, place, names, steps or 1).probed() for place, one in enumerate(every)]
    return Probe(
        tuple(tensor for tensors, _, _ in probed for tensor in tensors),
        tuple(group for _, groups, _ in probed for group in groups),
        tuple(one for _, _, one in probed),
        elapsed_s=time.perf_counter() - started,
    )


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _refuse(optimizers: Sequence[Any], steps: int | None) -> None:
    faults = [
        f"optimizer {place} is a {type(one).__name__} without `{missing}`: a probe takes what has `param_groups` and "
        "`step()`"
        for place, one in enumerate(optimizers)
        for missing in ("param_groups", "step")
        if not hasattr(one, missing)
    ]
    if not optimizers:
        faults.append("no optimizer was given: probe(model, optimizer)")
    given: Any = steps
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        faults.append(f"steps must be a number of at least 1, got {steps!r}")
    if faults:
        raise OptimizerError(faults)
