"""A small model of the same architecture, built from the configuration of one that is too large to run.

Only models with a configuration in the manner of transformers can be shrunk: known sizes are lowered, everything that
says which parts there are stays. Several degrees are tried, since some families tie their sizes to each other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

_DEPTH = {
    "num_hidden_layers": 4, "num_layers": 4, "n_layer": 4, "n_layers": 4, "encoder_layers": 4, "decoder_layers": 4,
    "num_encoder_layers": 4, "num_decoder_layers": 4, "depth": 4,
}  # fmt: skip
_TABLES = {
    "vocab_size": 256, "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256, "max_seq_len": 256,
    "vocab_size_per_layer_input": 256,
}  # fmt: skip
_WIDTHS = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "embed_dim": 64, "emb_dim": 64, "dim": 64, "embedding_size": 64,
    "intermediate_size": 96, "ffn_dim": 96, "d_ff": 96, "n_inner": 96, "ffn_hidden_size": 96, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16,
}  # fmt: skip
_HEADS = {"head_dim": 16, "d_kv": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1,
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


def shrunk(model: nn.Module, largest: int) -> Iterator[nn.Module]:
    """Models of the same class with at most `largest` elements; none if it has no configuration or will not shrink."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return
    for degree in _DEGREES:
        try:
            small = _shrunk_config(config, degree)
            with torch.device("meta"):
                elements = sum(parameter.numel() for parameter in type(model)(small).parameters())
            built = type(model)(small) if elements <= largest else None
        except Exception:  # a family that refuses these sizes: try others
            continue
        if built is not None:
            yield built


def _shrunk_config(config: Any, degree: _Degree) -> Any:
    small = copy.deepcopy(config)
    changed = _lower(small.to_dict(), degree)
    return type(config)(**{name: value for name, value in changed.items() if name not in ("id2label", "label2id")})


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
