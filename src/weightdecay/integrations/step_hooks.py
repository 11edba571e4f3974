"""Audits in a loop that offers no callback: torch's hook of all optimizers' steps says when one begins.

A hook on the optimizer itself would run in the audit's own steps, too; those of all optimizers that are ours do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from weightdecay.errors import ConfigError
from weightdecay.integrations.step_audits import StepAudits


@contextmanager
def audited_steps(
    audits: StepAudits,
    model: nn.Module,
    optimizers: Sequence[Any],
    *,
    folder: str | Path,
    steps_done: Callable[[], int] = lambda: 0,
) -> Iterator[StepAudits]:
    """In here the optimizers' due steps are audited just before they are made.

    Optimizers that train one model are audited together, as soon as the first of them comes to a due step.

    Args:
        steps_done: how many steps were made before, asked at the first one: a checkpoint may be loaded in here.

    Raises:
        ConfigError: one of them is no torch optimizer, whose steps torch would tell of.
    """
    if odd := [one for one in optimizers if not isinstance(one, Optimizer)]:
        raise ConfigError(
            f"a {type(odd[0]).__name__} is no torch.optim.Optimizer, so nobody tells when it steps: call "
            "weightdecay.audit(model, optimizer) in the loop"
        )
    steps: Counter[int] = Counter()
    before: list[int] = []

    def look(optimizer: Optimizer, *_: Any) -> None:
        if not any(optimizer is one for one in optimizers):
            return
        if not before:
            before.append(steps_done())
            audits.start(folder, before[0])
        steps[id(optimizer)] += 1
        step = before[0] + steps[id(optimizer)]
        if audits.is_due(step):
            audits.look(model, optimizers, step)

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield audits
    finally:
        handle.remove()
        if before:
            audits.close()
