"""Short trainings whose λ, η, schedule, shape and tokens are drawn at random, and what decay they really had."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import weightdecay
from weightdecay.schedules import Schedule, schedule

_BATCH, _CONTEXT = 8, 32


@dataclass(frozen=True)
class BlindRun:
    """A training's start and end, and the answers.

    Attributes:
        decay_sum: −Σ ln(1 − a_t).
        counts: how often each id came as an input.
        init_std: of the embedding's numbers at the start.
        late_lr_over_weight_decay: the mean of η_t/λ that the norms at the end are made of.
    """

    start: dict[str, Tensor]
    end: dict[str, Tensor]
    decay_sum: float
    counts: Tensor
    init_std: float
    late_lr_over_weight_decay: float
    model: weightdecay.ModelConfig


def blind_run(seed: int, *, policy: str = "default", tied: bool = False, steps: int | None = None) -> BlindRun:
    """A training by AdamW with warm-up and anneal; ids come as often as words do, and some never."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: float, high: float) -> float:
        return low * math.pow(high / low, float(torch.rand((), generator=generator)))

    def one_of(*choices: float) -> float:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    vocab, width, n_steps = int(one_of(256, 512, 1500)), int(one_of(48, 64, 96)), int(drawn(150, 400))
    n_steps = steps or n_steps
    peak, wanted, std = drawn(8e-4, 6e-3), drawn(0.05, 2.5), one_of(0.01, 0.02, 0.05)
    shape = ("cosine", "linear", "warmup_stable_decay")[int(one_of(0, 1, 2))]
    lr: Schedule = schedule(shape, peak=peak, steps=n_steps, warmup_steps=n_steps // 10, final_fraction=0.02)
    weight_decay = wanted / sum(lr(step) for step in range(n_steps))

    torch.manual_seed(seed)
    config = weightdecay.ModelConfig(
        vocab_size=vocab, context=_CONTEXT, n_layers=2, d_model=width, n_heads=4, positions="rotary", bias=False,
        norm=("rmsnorm", "layernorm")[seed % 2], init_std=std, tied_head=tied,
    )  # fmt: skip
    model = weightdecay.GPT(config)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = weightdecay.plan(model, weight_decay=weight_decay, policy=policy, trace=False)  # type: ignore[arg-type]
    optimizer = weightdecay.AdamW(plan, lr=peak, betas=(0.9, one_of(0.95, 0.999)))
    ids = _tokens(vocab, n_steps, drawn(0.3, 0.9), drawn(0.7, 1.4), generator)

    for step in range(n_steps):
        weightdecay.apply_schedules(optimizer, step, lr=lr, weight_decay=weight_decay)
        logits = model(ids[step, :, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[step, :, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    decays = [lr(step) * weight_decay for step in range(n_steps)]
    return BlindRun(
        start,
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        -sum(math.log1p(-decay) for decay in decays),
        torch.bincount(ids[:, :, :-1].flatten(), minlength=vocab),
        std,
        _late_mean([lr(step) / weight_decay for step in range(n_steps)], decays),
        config,
    )


def _tokens(vocab: int, steps: int, share: float, slope: float, generator: torch.Generator) -> Tensor:
    """[steps, batch, context + 1]: a share of the ids, as often as 1/rank^slope; half of them follow from the last."""
    used, n = int(vocab * share), steps * _BATCH * (_CONTEXT + 1)
    frequency = torch.arange(1, used + 1, dtype=torch.float64) ** -slope
    ranks = torch.multinomial(frequency, n, replacement=True, generator=generator)
    follower = torch.multinomial(frequency, used, replacement=True, generator=generator)
    follows = torch.rand(n, generator=generator) < 0.5
    ranks[1:] = torch.where(follows[1:], follower[ranks[:-1]], ranks[1:])
    return torch.randperm(vocab, generator=generator)[ranks].view(steps, _BATCH, _CONTEXT + 1)


def _late_mean(values: list[float], decays: list[float]) -> float:
    """Each step's value by its part of the final ‖w‖²: 2a_t·Π_{later} (1 − a)²."""
    total = weight = 0.0
    left = 1.0
    for value, decay in zip(reversed(values), reversed(decays), strict=True):
        total, weight = total + left * 2 * decay * value, weight + left * 2 * decay
        left *= (1 - decay) ** 2
    return total / weight
