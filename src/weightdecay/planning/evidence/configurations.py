"""A model's configuration, of whatever library, and a small model that is built from one.

Configurations serve that a class takes back: transformers' objects, diffusers' frozen dictionaries, dataclasses, plain
dictionaries. To shrink one, known sizes are lowered, and everything that says which parts there are stays. Several
degrees are tried, since some families tie their sizes to each other.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from weightdecay.naming import bare_class

# diffusers shows `config` as a property of what it keeps here
_ATTRIBUTES = ("config", "_internal_dict", "cfg", "args", "hparams")
_DEPTH = {
    "num_hidden_layers": 4, "num_layers": 4, "n_layer": 4, "n_layers": 4, "encoder_layers": 4, "decoder_layers": 4,
    "num_encoder_layers": 4, "num_decoder_layers": 4, "depth": 4, "num_single_layers": 4, "num_blocks": 4,
}  # fmt: skip
_TABLES = {
    "vocab_size": 256, "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256, "max_seq_len": 256,
    "vocab_size_per_layer_input": 256, "block_size": 256, "padded_vocab_size": 256, "context_length": 256,
}  # fmt: skip
_WIDTHS = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "embed_dim": 64, "emb_dim": 64, "dim": 64, "embedding_size": 64,
    "intermediate_size": 96, "ffn_dim": 96, "d_ff": 96, "n_inner": 96, "ffn_hidden_size": 96, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "n_query_groups": 2,
}  # fmt: skip
_HEADS = {
    "head_dim": 16, "d_kv": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_size": 16,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "n_expert": 4, "n_expert_per_token": 2,
}  # fmt: skip


class _Degree(NamedTuple):
    """Sizes to lower to, and what to divide all widths by, which keeps the proportions that some families insist on."""

    sizes: Mapping[str, int]
    divisor: int = 1


_FEWER = {**_DEPTH, **_TABLES, **_EXPERTS}
# from the smallest model to the one that only has fewer layers, experts and rows
_DEGREES = (
    _Degree({**_FEWER, **_WIDTHS, **_HEADS}),
    _Degree({**_FEWER, **_WIDTHS}),
    _Degree(_FEWER, 64),
    _Degree(_FEWER, 16),
    _Degree(_FEWER, 4),
    _Degree(_FEWER),
)


def configuration_of(model: nn.Module) -> Any | None:
    """What a model keeps as its configuration; no property of the user's model is read."""
    for name in _ATTRIBUTES:
        config = vars(model).get(name)
        if config is not None and as_mapping(config):
            return config
    return None


def as_mapping(config: Any) -> dict[str, Any]:
    """A configuration's values by name; none if it is nothing that holds values by name."""
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict"):
        return dict(config.to_dict())
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {}


def shrunk(model: nn.Module, largest: int) -> Iterator[nn.Module]:
    """Models of the same class with at most `largest` elements; none if it has no configuration or will not shrink."""
    config = configuration_of(model)
    if config is None:
        return
    cls = bare_class(model)
    for degree in _DEGREES:
        try:
            with torch.device("meta"):
                elements = sum(parameter.numel() for parameter in _built(cls, config, degree).parameters())
            small = _built(cls, config, degree) if elements <= largest else None
        except Exception:  # a family that refuses these sizes: try others
            continue
        if small is not None:
            yield small


def _built(cls: Any, config: Any, degree: _Degree) -> nn.Module:
    """The class called as its own library calls it with a configuration."""
    values = _lower(as_mapping(copy.deepcopy(config)), degree)
    if hasattr(config, "to_dict"):
        small: Any = type(config)(**{name: v for name, v in values.items() if name not in ("id2label", "label2id")})
    elif dataclasses.is_dataclass(config):
        fields = {field.name for field in dataclasses.fields(config) if field.init}
        make: Any = type(config)
        small = make(**{name: value for name, value in values.items() if name in fields})
    else:
        return _from_mapping(cls, values)
    model: nn.Module = cls(small)
    return model


def _from_mapping(cls: Any, values: dict[str, Any]) -> nn.Module:
    """By `from_config`, or by keywords, or by the dictionary as the one argument."""
    model: nn.Module
    if hasattr(cls, "from_config"):
        model = cls.from_config(values)
        return model
    taken = inspect.signature(cls).parameters
    wanted = [name for name, parameter in taken.items() if parameter.default is parameter.empty]
    by_keywords = set(wanted) <= values.keys() <= taken.keys()
    model = cls(**values) if by_keywords else cls(values)
    return model


def _lower(values: Mapping[str, Any], degree: _Degree) -> dict[str, Any]:
    """Sizes lowered, per-layer lists cut to as many layers, token ids kept inside the vocabulary."""
    lowered: dict[str, Any] = {}
    layers = next((values[name] for name in _DEPTH if isinstance(values.get(name), int)), None)
    for name, value in values.items():
        is_size = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, Mapping):
            lowered[name] = _lower(value, degree)
        elif is_size and name in degree.sizes:
            lowered[name] = min(value, degree.sizes[name])
        elif is_size and name in _WIDTHS and value % degree.divisor == 0:
            lowered[name] = value // degree.divisor
        elif is_size and str(name).endswith("_token_id"):
            lowered[name] = min(value, _TABLES["vocab_size"] - 1)
        elif isinstance(value, list) and layers is not None and len(value) == layers:
            lowered[name] = _kinds_first(value)
        else:
            lowered[name] = value
    return lowered


def _kinds_first(per_layer: list[Any]) -> list[Any]:
    """As many entries as a small model has layers, among them every kind as long as there is room."""
    count = min(len(per_layer), _DEPTH["num_hidden_layers"])
    kinds = [value for index, value in enumerate(per_layer) if value not in per_layer[:index]][:count]
    return kinds + per_layer[: count - len(kinds)]
