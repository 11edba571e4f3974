"""Emulated rules beside the real functions, on every architecture of transformers that builds, tensor by tensor."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from tests.planning.originals import ORIGINALS
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.policies.emulated import EMULATED


@cache
def architectures() -> dict[str, nn.Module]:
    """All of them, without memory for weights."""
    pytest.importorskip("transformers")
    from tests.planning.zoo import causal_models, other_models, tiny

    with torch.device("meta"):
        built = {name: tiny(name) for name in (*causal_models(), *other_models())}
    return {name: model for name, model in built.items() if model is not None}


def emulated(model: nn.Module, policy: str) -> set[str]:
    facts = [tensor for tensor in read_tensors(model) if tensor.trainable]
    return {tensor.name for tensor in facts if EMULATED[policy].decide(tensor, ()).multiplier}


@pytest.mark.long
@pytest.mark.transformers
@pytest.mark.parametrize("policy", ORIGINALS)
def test_an_emulated_rule_is_the_real_function_on_every_architecture(policy: str) -> None:
    rule = ORIGINALS[policy]()
    assert len(architectures()) > 500
    for name, model in architectures().items():
        assert emulated(model, policy) == rule(model), name
