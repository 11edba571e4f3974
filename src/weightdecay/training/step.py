"""One training step, and one evaluation. Shapes: B sequences, T time, V vocabulary."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from weightdecay.errors import TrainingError
from weightdecay.evaluation.loss import nats
from weightdecay.kernels.library import usable
from weightdecay.kernels.memory import give_back_freed_memory
from weightdecay.kernels.norms import norm_of_all
from weightdecay.models.arithmetic import products_in, weights_in
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Losses
from weightdecay.optim.clipping import NonfiniteGradientError, OnNonfinite, clipped_step, total_norm
from weightdecay.training.distributed import Ranks


@dataclass(frozen=True)
class StepResult:
    """What one step saw.

    Attributes:
        loss: mean cross-entropy in nats a token.
        grad_norm: of the gradient before clipping.
        skipped: whether the update was left out because the gradient was not finite.
        load: choices that fell on each expert, [layers with experts, experts], over all ranks; None without experts.
    """

    loss: float
    grad_norm: float
    skipped: bool = False
    load: Tensor | None = None


def take_step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    *,
    sequences: int,
    ranks: Ranks,
    dtype: torch.dtype,
    grad_clip: float,
    seed: tuple[int, int],
    on_nonfinite: OnNonfinite = "stop",
) -> StepResult:
    """Accumulate the mean gradient over the step's sequences, clip it, update.

    Args:
        objective: (tokens, targets) to `models.objective.Losses`; the sum of both is minimised.
        micro_batches: this rank's (tokens, targets), each int64 [B, T]; B may differ.
        sequences: in the micro-batches of all ranks together.
        dtype: of the matrix products, see `models.arithmetic`; the weights stay as they are.
        grad_clip: largest norm of the gradient over all tensors and ranks; 0 does not clip.
        seed: (run's seed, step); dropout of each micro-batch and rank depends on nothing else, so that a resumed
            run draws what an uninterrupted one would.
        on_nonfinite: `stop` raises where a gradient is not finite, `skip` leaves the update out and says so.

    Raises:
        TrainingError: the gradient is not finite and `on_nonfinite` is `stop`; weights and optimizer state are as
            before the step.
    """
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    load: Tensor | None = None
    with weights_in(objective, dtype):
        for index, (tokens_BT, targets_BT) in enumerate(micro_batches):
            _seed_draws(ranks.device, _mix(*seed, index, ranks.rank))
            last = index == len(micro_batches) - 1
            passes = sequences / (ranks.world_size * len(tokens_BT))  # so many like this one make the step
            with _gradients_stay_local(objective, unless=last), products_in(objective, dtype, ranks.device):
                losses: Losses = objective(tokens_BT, targets_BT)
                loss = losses.total / passes  # ranks exchange the mean of their gradients
            loss.backward()  # type: ignore[no-untyped-call]
            total += losses.cross_entropy.detach() / passes
            if losses.load is not None:
                load = losses.load if load is None else load + losses.load

    try:
        # Ranks have the same gradient here, so the same norm, and all decide alike.
        norm_of = norm_of_all if usable(total, dtype) else total_norm
        max_norm = grad_clip if grad_clip > 0 else None
        clipped = clipped_step(optimizer, max_norm, on_nonfinite=on_nonfinite, norm_of=norm_of)
    except NonfiniteGradientError as error:
        raise TrainingError(
            f"step {seed[1] + 1}: the gradient is not finite (loss {_mean(total, ranks):g}); the update was not made. "
            "Lower --lr, lengthen the warm-up, or leave such steps out (--set run.on_nonfinite=skip); --resume auto "
            "goes on from the last checkpoint"
        ) from error
    optimizer.zero_grad(set_to_none=True)
    total_load = ranks.sum_of(load) if load is not None else None
    # To read the loss waits for the device, which then has the update to go on with.
    return StepResult(_mean(total, ranks), clipped.grad_norm, clipped.skipped, total_load)


def _mean(total: Tensor, ranks: Ranks) -> float:
    """A sum's mean over the ranks."""
    return ranks.total(float(total))[0] / ranks.world_size


def evaluate(
    model: GPT, batches: Iterable[tuple[Tensor, Tensor]], *, ranks: Ranks, dtype: torch.dtype
) -> tuple[float, int]:
    """Σ of the negative log-likelihood in nats, and the number of tokens it is over; ranks share the batches."""
    give_back_freed_memory()  # which steps keep for each other: an evaluation's tensors are of other sizes
    own = (batch for index, batch in enumerate(batches) if index % ranks.world_size == ranks.rank)
    total, count = ranks.total(*nats(model, own, device=ranks.device, dtype=dtype))
    return total, int(count)


@contextlib.contextmanager
def _gradients_stay_local(objective: nn.Module, *, unless: bool) -> Iterator[None]:
    """Ranks exchange gradients once a step, with the last micro-batch."""
    if unless or not isinstance(objective, DistributedDataParallel):
        yield
    else:
        with objective.no_sync():
            yield


def _seed_draws(device: torch.device, seed: int) -> None:
    """Seed what dropout draws from: these generators alone, for to look for others costs a millisecond."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _mix(*numbers: int) -> int:
    """One seed from several numbers, unlike for every tuple."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
