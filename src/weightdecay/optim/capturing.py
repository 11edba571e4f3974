"""Steps that a CUDA graph can record, and where torch has none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weightdecay.optim.base import UnsupportedTensorError, Work
from weightdecay.optim.checks import group_title


def refuse_uncapturable(work: Sequence[Work]) -> None:
    """Raise where torch's kernel would, before anything has changed.

    Known at the step and no earlier: a model may be moved to the GPU after its optimizer is made.

    Raises:
        UnsupportedTensorError: `capturable` in groups whose weights are on a processor.
    """
    if torch.compiler.is_compiling():
        return  # where torch takes it everywhere
    faults = [
        f"{group_title(one.group, one.place)}: capturable=True records steps of a GPU, and some weights are on cpu: "
        "move them there, or give capturable=False"
        for one in work
        # The fused kernel keeps its count on the processor, whatever is asked.
        if one.group.get("capturable") and not one.group.get("fused") and any(p.is_cpu for p in one.weights)
    ]
    if faults:
        raise UnsupportedTensorError(faults)
