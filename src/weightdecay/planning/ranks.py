"""Whether all ranks hold the same plan: groups that differ between ranks update one tensor in two ways."""

from __future__ import annotations

import hashlib
from typing import Any

import torch.distributed as dist

from weightdecay.errors import CheckFailedError
from weightdecay.planning.patterns import some
from weightdecay.planning.planned import Plan


def check_ranks(plan: Plan) -> None:
    """Compare the plan with those of all ranks of the default process group; nothing to do without one.

    Every rank must call it. Only a digest travels, and the plans themselves where digests differ.

    Raises:
        CheckFailedError: on all ranks, if any plan differs from rank 0's.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    lines = [(t.name, t.shape, tuple(t.roles), t.weight_decay, t.lr_multiplier, t.lr) for t in plan]
    digests = _gather(hashlib.sha256(repr(lines).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    everyone = _gather(lines)
    differing = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    first, other = set(everyone[0]), set(everyone[differing[0]])
    names = sorted({line[0] for line in first ^ other}) or ["the same tensors in another order"]
    raise CheckFailedError(
        f"ranks {', '.join(map(str, differing))} plan otherwise than rank 0: {some(names)}. "
        "Build the same model with the same policy everywhere; pipeline stages compare before plan.on(stage, part=True)"
    )


def _gather(value: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
