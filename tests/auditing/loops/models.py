"""Healthy: models that share, wrap, compile or reparametrise, and the policies that published code follows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from examples.museum.exhibit import Loop
from examples.museum.language_model import LanguageModel, two_groups
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import weightdecay
from tests.auditing.loops.parts import ConvNet, adamw, picture_loss, seeded, train


def tied_head() -> Loop:
    model = seeded()
    model.head.weight = model.tokens.weight
    optimizer = adamw(model)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def one_block_used_twice() -> Loop:
    model = seeded()
    model.blocks = nn.ModuleList([model.blocks[0]] * 3)
    optimizer = adamw(model)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


class Checkpointed(LanguageModel):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        logits: Tensor = self.head(self.norm(x))
        return logits


def gradient_checkpointing() -> Loop:
    model = seeded(Checkpointed)
    optimizer = adamw(model)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def weight_norm() -> Loop:
    model = seeded()
    for block in model.blocks:
        nn.utils.parametrizations.weight_norm(block.up)
    optimizer = torch.optim.AdamW(weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3))
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def spectral_norm() -> Loop:
    model = seeded()
    for block in model.blocks:
        nn.utils.parametrizations.spectral_norm(block.down)
    optimizer = torch.optim.AdamW(weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3))
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def compiled() -> Loop:
    model = seeded()
    model_that_runs = torch.compile(model, backend="eager")
    optimizer = adamw(model)
    train(model_that_runs, optimizer)  # type: ignore[arg-type]
    return Loop(model_that_runs, optimizer, {"weight_decay": 0.1})  # type: ignore[arg-type]


def batch_norm_and_convolutions_in_eval_mode() -> Loop:
    model = seeded(ConvNet)
    optimizer = torch.optim.AdamW(weightdecay.plan(model, weight_decay=0.05).param_groups(lr=1e-3))
    train(model, optimizer, loss=picture_loss)
    return Loop(model.eval(), optimizer, {"weight_decay": 0.05})


def data_parallel() -> Loop:
    model = nn.DataParallel(seeded())
    optimizer = adamw(model)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def no_decay_anywhere() -> Loop:
    model = seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    train(model, optimizer)
    return Loop(model, optimizer, {})


def no_decay_asked_and_none_there() -> Loop:
    model = seeded()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.0})


def everything_decays_by_torchs_policy() -> Loop:
    model = seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    train(model, optimizer)
    return Loop(model, optimizer, {"policy": "torch"})


def two_axes_decay_by_nanogpts_policy() -> Loop:
    model = seeded()
    optimizer = adamw(model, betas=(0.9, 0.95))
    train(model, optimizer)
    return Loop(model, optimizer, {"policy": "nanogpt", "weight_decay": 0.1})


def embeddings_exempt_by_olmos_policy() -> Loop:
    model = seeded()
    rest = [p for p in model.parameters() if p is not model.tokens.weight]
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": [model.tokens.weight], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"policy": "olmo2", "weight_decay": 0.1})


def embeddings_exempt_and_no_policy_given() -> Loop:
    """Published policies differ on embeddings: a note at most."""
    model = seeded()
    rest = [p for p in model.parameters() if p is not model.tokens.weight]
    optimizer = torch.optim.AdamW(
        [*two_groups(rest, 0.1), {"params": [model.tokens.weight], "weight_decay": 0.0}],
        lr=1e-3,
    )
    train(model, optimizer)
    return Loop(model, optimizer, {})


def plan_with_multipliers() -> Loop:
    """Half of λ on the head: what the plan asks of each tensor counts, not one number."""
    model = seeded()
    plan = weightdecay.plan(model, weight_decay=0.1, overrides={"head.weight": 0.5})
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-3))
    train(model, optimizer)
    return Loop(model, optimizer, {"plan": plan})


def hooks_that_only_look() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    norms: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: norms.append(model.head.weight.detach().norm().item()))
    optimizer.register_step_post_hook(lambda *_: norms.append(model.head.weight.detach().norm().item()))
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def our_own_model() -> Loop:
    torch.manual_seed(0)
    model = weightdecay.GPT(weightdecay.recipe("llama2:nano").model)
    plan = weightdecay.plan(model, weight_decay=0.1)
    return Loop(model, weightdecay.AdamW(plan, lr=6e-4), {"plan": plan})


def empty_group() -> Loop:
    model = seeded()
    groups = [*two_groups(model.parameters(), 0.1), {"params": [], "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


LOOPS: list[Callable[[], Loop]] = [
    tied_head,
    one_block_used_twice,
    gradient_checkpointing,
    weight_norm,
    spectral_norm,
    compiled,
    batch_norm_and_convolutions_in_eval_mode,
    data_parallel,
    no_decay_anywhere,
    no_decay_asked_and_none_there,
    everything_decays_by_torchs_policy,
    two_axes_decay_by_nanogpts_policy,
    embeddings_exempt_by_olmos_policy,
    embeddings_exempt_and_no_policy_given,
    plan_with_multipliers,
    hooks_that_only_look,
    our_own_model,
    empty_group,
]
