"""Inputs for models that denoise: a noisy sample, a time, and what the sample is to show.

Their arguments are called alike everywhere, and how wide each is stands in the configuration, or shows in the layer
that takes it. Values do not matter: the trace looks at operations.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

_BATCH, _TOKENS, _SIDE, _FRAMES = 2, 9, 32, 2
TIME = re.compile(r"^(timesteps?|time|t|sigma|noise_levels?|noise_cond|log_snr)$")
_OTHERS = re.compile(r"^(hidden_states|sample|x|img|image|latents?|noisy_\w+)$")
_CONTEXT = re.compile(r"encoder_hidden_states$|^context$|^text$|^txt$|caption|prompt|^cond$")
_CONTEXT_WIDTHS = (
    "caption_channels", "joint_attention_dim", "text_dim", "text_embed_dim", "context_dim", "encoder_hid_dim",
    "cap_feat_dim", "cross_attention_dim", "embedding_dim",
)  # fmt: skip
_POOLED_WIDTHS = ("pooled_projection_dim", "projection_dim", "pooled_dim")
_CONTEXT_LAYER = re.compile(r"context|text|txt|caption|to_k$|to_kv$|cond")


class _Asked(NamedTuple):
    """A model's configuration, and the shape of the sample that goes with what is asked for."""

    config: Mapping[str, Any]
    shape: tuple[int, ...]

    @property
    def text_tokens(self) -> int:
        """How many; some models have a table of positions for exactly so many."""
        return _first(self.config, ("max_text_seq_length", "num_embeddings")) or _TOKENS

    @property
    def image_tokens(self) -> int:
        """How many, each of which has a position of its own."""
        return self.shape[1] if len(self.shape) == 3 else _SIDE * _SIDE

    @property
    def position_axes(self) -> int:
        """How many numbers a position has."""
        return len(self.config.get("axes_dims_rope") or (0, 0, 0))


def diffusion_inputs(
    module: nn.Module, config: Mapping[str, Any], parameters: Sequence[inspect.Parameter]
) -> Iterator[dict[str, Any]]:
    """Keyword arguments for a forward that takes a sample and a time; none for any other."""
    names = [parameter.name for parameter in parameters]
    time = next((name for name in names if TIME.search(name)), None)
    sample = next((name for name in names if _OTHERS.search(name)), None)
    if time is None or sample is None:
        return
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    for shape in _sample_shapes(module, config):
        inputs: dict[str, Any] = {sample: _floats(*shape)}
        for name in names:
            value = _value(name, module, _Asked(config, shape))
            if value is not None and (name in required or name in _IF_CONFIGURED):
                inputs[name] = value
            elif name in required:
                inputs.setdefault(name, None)
        for when in (torch.full((_BATCH,), 1.0), torch.ones(_BATCH, dtype=torch.long)):
            yield {**inputs, time: when}


def _sample_shapes(module: nn.Module, config: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """As the first layer takes it: tokens, a picture, or a video with its frames before or after the channels."""
    layers = (m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd))
    first = next(layers, None)
    channels = _first(config, ("in_channels", "latent_channels", "channels", "in_dim", "embedding_dim"))
    convolution = next((m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    if convolution is not None:
        axes = len(convolution.kernel_size)
        wide = channels or convolution.in_channels
        if axes == 3:
            yield _BATCH, wide, _FRAMES, _SIDE, _SIDE
        elif axes == 2:
            if "num_frames" not in config and "sample_frames" not in config:
                yield _BATCH, wide, _SIDE, _SIDE
            yield _BATCH, _FRAMES, wide, _SIDE, _SIDE
            yield _BATCH, wide, _FRAMES, _SIDE, _SIDE
            yield _BATCH, wide, _SIDE, _SIDE
        elif axes == 1:
            yield _BATCH, wide, _SIDE
    if isinstance(first, nn.Linear):
        yield _BATCH, _TOKENS, channels or first.in_features
        yield _BATCH, _TOKENS, first.in_features
        yield _BATCH, first.in_features
        if channels:
            yield _BATCH, channels, _SIDE, _SIDE
            yield _BATCH, channels


def _value(name: str, module: nn.Module, asked: _Asked) -> Any:
    """What an argument of that name takes; None where its name or the configuration does not say."""
    if _CONTEXT.search(name):
        width = _first(asked.config, _CONTEXT_WIDTHS) or _width_of_layer(module, _CONTEXT_LAYER)
        return _floats(_BATCH, asked.text_tokens, width) if width else None
    maker = _BY_NAME.get(name)
    return None if maker is None else maker(asked)


def _pooled(asked: _Asked) -> Any:
    width = _first(asked.config, _POOLED_WIDTHS)
    return _floats(_BATCH, width) if width else None


def _guidance(asked: _Asked) -> Any:
    return torch.full((_BATCH,), 1.0) if asked.config.get("guidance_embeds") else None


def _added_conditions(asked: _Asked) -> Any:
    """SDXL's sizes and pooled text, PixArt's resolution."""
    total, each = asked.config.get("projection_class_embeddings_input_dim"), asked.config.get("addition_time_embed_dim")
    kind = asked.config.get("addition_embed_type")
    if kind == "text_time" and total and each:
        return {"text_embeds": _floats(_BATCH, total - 6 * each), "time_ids": _floats(_BATCH, 6)}
    if kind in ("image", "text_image", "image_hint"):
        width = _first(asked.config, ("encoder_hid_dim", "cross_attention_dim"))
        return {"image_embeds": _floats(_BATCH, width), "text_embeds": _floats(_BATCH, width)} if width else None
    if "use_additional_conditions" in asked.config:
        return {"resolution": _floats(_BATCH, 2), "aspect_ratio": _floats(_BATCH, 1)}
    return None


def _added_times(asked: _Asked) -> Any:
    total, each = asked.config.get("projection_class_embeddings_input_dim"), asked.config.get("addition_time_embed_dim")
    return _floats(_BATCH, total // each) if total and each else None


def _classes(asked: _Asked) -> Any:
    kind, width = asked.config.get("class_embed_type"), asked.config.get("projection_class_embeddings_input_dim")
    if kind in ("projection", "simple_projection") and width:
        return _floats(_BATCH, width)
    counted = asked.config.get("num_class_embeds") or asked.config.get("num_embeds_ada_norm") or kind == "timestep"
    return torch.ones(_BATCH, dtype=torch.long) if counted else None


def _image_context(asked: _Asked) -> Any:
    width = _first(asked.config, ("image_dim",))
    return _floats(_BATCH, _TOKENS, width) if width else None


def _control(asked: _Asked) -> Any:
    """A picture to follow, eight times as large as the latents."""
    channels = _first(asked.config, ("conditioning_channels",)) or asked.shape[1]
    return _floats(_BATCH, channels, 8 * _SIDE, 8 * _SIDE)


def _proposed(asked: _Asked) -> Any:
    width = _first(asked.config, ("embedding_dim",))
    return _floats(_BATCH, width) if width else None


def _mask(asked: _Asked) -> Any:
    return torch.ones(_BATCH, asked.text_tokens, dtype=torch.long)


_BY_NAME: dict[str, Callable[[_Asked], Any]] = {
    "pooled_projections": _pooled,
    "guidance": _guidance,
    "added_cond_kwargs": _added_conditions,
    "added_time_ids": _added_times,
    "class_labels": _classes,
    "y": _classes,
    "encoder_hidden_states_image": _image_context,
    "controlnet_cond": _control,
    "proj_embedding": _proposed,
    "encoder_attention_mask": _mask,
    "encoder_hidden_states_mask": _mask,
    "img_ids": lambda asked: torch.zeros(asked.image_tokens, asked.position_axes),
    "txt_ids": lambda asked: torch.zeros(asked.text_tokens, asked.position_axes),
    "img_shapes": lambda _: [[(1, 3, 3)]] * _BATCH,
    "txt_seq_lens": lambda asked: [asked.text_tokens] * _BATCH,
    "num_frames": lambda _: 1,
    "height": lambda _: 3,
    "width": lambda _: 3,
}
# given also where the forward has a default: the configuration says that it wants them
_IF_CONFIGURED = frozenset({
    "encoder_hidden_states", "pooled_projections", "guidance", "added_cond_kwargs", "added_time_ids", "class_labels",
    "img_ids", "txt_ids", "encoder_hidden_states_mask", "encoder_hidden_states_image", "img_shapes", "num_frames",
    "height", "width",
})  # fmt: skip


def _width_of_layer(module: nn.Module, pattern: re.Pattern[str]) -> int | None:
    """Of the first linear layer whose name says that it takes the context."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and pattern.search(name):
            return layer.in_features
    return None


def _first(config: Mapping[str, Any], names: Sequence[str]) -> int | None:
    for name in names:
        value = config.get(name)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
