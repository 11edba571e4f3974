"""PEFT: adapters by our plan, with a rate of their own for LoRA's B, as LoRA+ has it.

    import peft, torch
    from weightdecay.integrations.peft import loraplus_groups

    model = peft.get_peft_model(model, peft.LoraConfig(use_dora=True))
    optimizer = torch.optim.AdamW(loraplus_groups(model, lr=1e-4, lr_ratio=16, weight_decay=0.1))

`peft.optimizers.create_loraplus_optimizer` goes by names and dimensions, and decays what is no matrix: DoRA's
magnitudes. What trains in the frozen rest is what a plan is made of; audits need nothing of this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from weightdecay.errors import ConfigError, MissingExtraError
from weightdecay.planning.plan import plan
from weightdecay.planning.policies.overrides import Override
from weightdecay.planning.policies.policy_file import PolicyName
from weightdecay.planning.policies.role_policies import Policy

_B = r"(^|\.)lora_B\."
_EMBEDDING = r"(^|\.)lora_embedding_[AB]\."


def loraplus_groups(
    model: nn.Module,
    *,
    lr: float,
    lr_ratio: float,
    weight_decay: float,
    embedding_lr: float = 1e-6,
    policy: PolicyName | Path | Policy = "default",
    **options: Any,
) -> list[dict[str, Any]]:
    """Groups of a model with LoRA adapters for any torch optimizer.

        η_A = lr,  η_B = lr · lr_ratio,  λ by the plan

    Args:
        model: what `peft.get_peft_model` returns.
        lr_ratio: of B's rate to A's, at least 1.
        embedding_lr: of adapters of embedding tables, as PEFT has it.
        options: further entries of every group, such as `betas`.

    Raises:
        ConfigError: the model is none of PEFT's, or has no LoRA adapter that trains.
        MissingExtraError: peft is not installed.

    Reference: Hayou, Ghosh & Yu 2024, arXiv:2402.12354; peft@0.21 optimizers/loraplus.py.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise MissingExtraError("weightdecay.integrations.peft", "peft") from None
    if not isinstance(model, PeftModel):
        raise ConfigError(f"model is a {type(model).__name__}: give what peft.get_peft_model returns")

    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = []
    if any(".lora_B." in name for name in names):
        rates.append(Override(_B, lr_multiplier=lr_ratio, reason="LoRA+"))
    if any(".lora_embedding_" in name for name in names):
        rates.append(Override(_EMBEDDING, lr_multiplier=embedding_lr / lr, reason="LoRA+"))
    if not rates:
        raise ConfigError("the model has no LoRA adapter that trains, which LoRA+ is for: use weightdecay.plan(model)")
    planned = plan(model, weight_decay, policy, overrides=rates, unknown="exempt", trace="optional")
    return planned.param_groups(lr=lr, **options)
