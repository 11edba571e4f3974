"""Emulated rules beside the real ones, written here once more from their sources where they cannot be installed."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import PlanError

# a family of each kind: norms of their own, state spaces, experts, vision with tokens, encoder-decoder, LayerNorm
# modules around linear layers, names that hold "norm" or "bias"
LIVE = [
    "LlamaForCausalLM", "GPT2LMHeadModel", "MambaForCausalLM", "GptOssForCausalLM", "DbrxForCausalLM", "T5Model",
    "RwkvForCausalLM", "Gemma3ForCausalLM", "MixtralForCausalLM", "ViTModel", "SwinModel", "RobertaPreLayerNormModel",
    "CLIPModel",
]  # fmt: skip


def live(name: str) -> nn.Module:
    pytest.importorskip("transformers")
    from tests.planning.zoo import tiny

    model = tiny(name)
    assert model is not None
    return model


def decaying(model: nn.Module, policy: Any) -> set[str]:
    plan = weightdecay.plan(model, policy=policy)
    return {tensor.name for tensor in plan if tensor.decays}


def first_names(model: nn.Module, names: Any) -> set[str]:
    return {name for name, _ in model.named_parameters()} & set(names)


@pytest.mark.transformers
@pytest.mark.parametrize("name", LIVE)
def test_transformers_is_the_trainers_own_answer(name: str) -> None:
    from tests.planning.skeletons import trainer_names

    model = live(name)
    assert decaying(model, "transformers") == first_names(model, trainer_names(model))


@pytest.mark.transformers
@pytest.mark.parametrize("name", LIVE)
def test_a_live_model_gets_the_labels_read_from_its_source(name: str) -> None:
    from tests.planning.labels import label
    from weightdecay.planning.evidence.tensors import read_tensors

    model = live(name)
    plan = weightdecay.plan(model)
    for facts in read_tensors(model):
        if (expected := label(facts)) != "disputed":
            assert plan[facts.name].decays == (expected == "decays"), plan[facts.name]


@pytest.mark.long
@pytest.mark.transformers
@pytest.mark.parametrize("kind", ["causal", "other"])
def test_every_architecture_that_builds_is_planned_right_from_the_living_model(kind: str) -> None:
    pytest.importorskip("transformers")
    from tests.planning.labels import label
    from tests.planning.skeletons import trainer_names
    from tests.planning.zoo import causal_models, other_models, tiny
    from weightdecay.planning.evidence.tensors import read_tensors

    wrong: dict[str, list[str]] = {}
    judged = 0
    for name in causal_models() if kind == "causal" else other_models():
        model = tiny(name)
        if model is None:
            continue
        assert decaying(model, "transformers") == first_names(model, trainer_names(model)), name
        assert decaying(model, "nanogpt") == nanogpt(model), name
        plan = weightdecay.plan(model, unknown="exempt")
        for facts in read_tensors(model):
            expected = label(facts)
            judged += expected != "disputed"
            if expected != "disputed" and plan[facts.name].decays != (expected == "decays"):
                wrong.setdefault(name, []).append(facts.name)
    assert sum(map(len, wrong.values())) <= 0.001 * judged, wrong
    assert len(wrong) <= (3 if kind == "causal" else 4), wrong


def nanogpt(model: nn.Module) -> set[str]:
    """nanoGPT model.py, `configure_optimizers`."""
    return {name for name, parameter in model.named_parameters() if parameter.dim() >= 2}


def timm(model: nn.Module) -> set[str]:
    """timm/optim/_param_groups.py, `param_groups_weight_decay`, with the model's own list."""
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    return {
        name
        for name, parameter in model.named_parameters()
        if not (parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch.fnmatch(name, entry) for entry in listed))
    }


def mingpt(model: nn.Module) -> set[str]:
    """minGPT mingpt/model.py, `configure_optimizers`."""
    found = set()
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters():
            if not name.endswith("bias") and name.endswith("weight") and isinstance(module, nn.Linear):
                found.add(f"{module_name}.{name}" if module_name else name)
    return found


class PatchModel(nn.Module):
    """Like timm's vision transformers: tokens, a position table, a list of exempt names."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 16))
        self.patch_embed = nn.Conv2d(3, 16, 4, stride=4)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)])
        self.gamma = nn.Parameter(torch.ones(16, 1))
        self.head = nn.Linear(16, 10)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_*"}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(image), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(x.mean(1) * self.gamma.squeeze(1))
        return logits


@pytest.mark.parametrize(("policy", "rule"), [("nanogpt", nanogpt), ("timm", timm), ("mingpt", mingpt)])
def test_a_rule_on_shapes_and_names_equals_its_original(policy: str, rule: Any) -> None:
    model = PatchModel()
    assert decaying(model, policy) == rule(model)


@pytest.mark.transformers
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "MambaForCausalLM", "SwinModel", "GptOssForCausalLM"])
def test_the_same_on_models_with_tensors_of_all_ranks(name: str) -> None:
    model = live(name)
    assert decaying(model, "nanogpt") == nanogpt(model)
    assert decaying(model, "timm") == timm(model)
    assert decaying(model, "mingpt") == first_names(model, mingpt(model))


def test_ours_honours_the_list_of_the_models_author_and_shows_it() -> None:
    plan = weightdecay.plan(PatchModel())
    assert not plan["pos_embed"].decays
    assert "no_weight_decay()" in plan["pos_embed"].reason
    assert plan["patch_embed.weight"].decays


def test_bert_olmo2_levanter_torch_and_composer_on_one_model() -> None:
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))

    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(9, 8), "mlp": nn.Linear(8, 8), "LayerNorm": nn.LayerNorm(8), "norm": LlamaRMSNorm(),
            "last_layer_norm": nn.LayerNorm(8),
        }
    )  # fmt: skip
    assert decaying(model, "torch") == decaying(model, "composer") == set(dict(model.named_parameters()))
    assert decaying(model, "bert") == {"embed.weight", "mlp.weight", "norm.weight"}
    assert decaying(model, "levanter") == {"mlp.weight"}
    assert decaying(model, "olmo2") == set(dict(model.named_parameters())) - {"embed.weight"}


def test_a_policy_that_is_not_there_is_answered_with_its_nearest() -> None:
    with pytest.raises(PlanError, match="did you mean 'transformers'"):
        weightdecay.plan(nn.Linear(2, 2), policy="transfomers")  # type: ignore[arg-type]
