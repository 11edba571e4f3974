"""Patterns that many models share, each with its line of why."""

from __future__ import annotations

_TOKEN = "learned tokens beside the real ones: timm exempts them by list, nanoGPT's rule decays them"

GAMMA = {r"gamma$": "the gain of its norm: what F.normalize or layer_norm gives, times gamma (or gamma + 1)"}
CHANNELS = {r"\.[gb]$": "gain and bias of a norm over channels, [1, c, 1, 1]"}
RMS = {r"norm\w*(\.\d+)?\.weight$|ln_f\.weight$": "the gain of its RMSNorm"}
POSITIONS = {r"pos\w*_emb\w*$": "added along the sequence: position embeddings"}
RELATIVE = {
    r"relative_position_bias_table$|relative_attention_bias\.weight$|rel_pos_bias\.weight$": "biases by distance, "
    "looked up and added to the logits: timm exempts them by list, nanoGPT's rule decays them"
}
CLS = {r"(cls|class|dist|reg|register)_(token|tokens|emb|embedding)$": _TOKEN}
MEMORY = {r"(mem(ory)?_(tokens|[kv]|kv)|compress_mem_kv|longterm_mems|persistent_memory)$": _TOKEN}
LATENTS = {r"(latents|queries|query)$": "learned queries, one vector each: a table of tokens, or a matrix"}

# Hyper-connections: several residual streams, mixed by weights that are partly read from the streams themselves.
STREAMS = {
    r"static_(alpha|beta)$": "how streams are mixed: starts as the identity, is added, then sigmoid or Sinkhorn",
    r"(alpha|beta|post|branch|residual)_scale$": "scales the dynamic part, starts at 0.01",
}
DYNAMIC = {r"dynamic_(alpha|beta)_fn$": "norm(x) @ fn: a projection to the mixing weights, [d] being one of width 1"}
STREAM_TABLE = {r"stream_emb(ed)?$": "one vector added to each residual stream: an embedding of its index, or biases"}

LISTED = "the model's own no_weight_decay() names it"
