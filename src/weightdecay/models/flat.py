"""The names that a decoder's configuration had before it came in parts; they are still read, by this one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PARTS = {
    "attention": (
        "n_heads", "n_kv_heads", "head_dim", "qk_norm", "rotary_base", "rotary_fraction", "window", "window_pattern",
        "attention_scale=scale", "attention_softcap=softcap",
    ),
    "latent": ("kv_rank", "q_rank", "rotary_head_dim", "value_head_dim", "latent_norm_eps=norm_eps"),
    "experts": (
        "n_experts", "experts_per_token=per_token", "n_shared_experts=n_shared", "n_dense_layers", "d_ff_dense",
        "router", "router_scale", "n_expert_groups=n_groups", "expert_groups_per_token=groups_per_token",
    ),
    "norms": ("norm=kind", "norm_eps=eps", "embedding_norm=embedding"),
    "mixing": (
        "value_gate_inputs", "value_gate_max", "smear_inputs", "residual_scale_first", "residual_scale_last",
        "input_scale_first", "input_scale_last", "backout_scale", "gate_init_max",
    ),
    "initialisation": (
        "init=kind", "init_std=std", "embedding_init_std=embedding_std", "position_init_std=position_std",
        "head_init_std=head_std", "residual_init=residual", "up_init_scale=up_scale",
    ),
    "training": (
        "dropout", "embedding_dropout", "stochastic_depth", "z_loss", "load_balancing", "balance_over",
        "router_bias_speed", "router_bias_update", "router_bias_tokens",
    ),
}  # fmt: skip
# An old name, and the path at which it is now.
FLAT = {
    entry.partition("=")[0]: f"{part}.{entry.rpartition('=')[2]}" for part, names in _PARTS.items() for entry in names
}
# One of them has become two: where norms stand.
PLACEMENT = "norm_placement"
PLACEMENTS: dict[str, dict[str, Any]] = {
    "pre": {"norms.before": True, "norms.after": "none"},
    "post": {"norms.before": False, "norms.after": "sum"},
    "sandwich": {"norms.before": True, "norms.after": "branch"},
    "output": {"norms.before": False, "norms.after": "branch"},
}


def in_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by old names or by paths, with each by its path."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == PLACEMENT:
            found |= PLACEMENTS.get(value, {"norms.after": value})
        else:
            found[FLAT.get(name, name)] = value
    return found
