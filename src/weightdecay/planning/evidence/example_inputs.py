"""Inputs to try on a module that nobody gave a batch for.

What a forward wants shows in the names of its arguments, in the first tensors that the module owns, and for models
with a configuration in that. Several candidates are tried; the first that runs serves. Values do not matter: the trace
looks at operations.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from weightdecay.planning.evidence.configurations import as_mapping, configuration_of
from weightdecay.planning.evidence.diffusion_inputs import TIME, diffusion_inputs
from weightdecay.planning.evidence.graph_inputs import graph_inputs

BATCH, LENGTH = 2, 9  # unlike each other and unlike the usual widths, so that axes can be told apart

_LARGEST_GAIN = 65_536  # elements of a tensor with several axes that may still be a gain of as many features
_OPTIONAL = re.compile(r"mask|past|cache|bias|kwargs|pos|residual|output|return|state$|states?_out|layer_idx|head")
_IDS = re.compile(r"(^|_)(ids?|tokens?|idx|indices|inputs_ids)$|^input$")
_IMAGE = re.compile(r"pixel|image|img|video")
_PICTURES = ((3, 32, 32), (3, 64, 64), (3, 256, 256), (3, 224, 224), (1, 32, 32), (3, 4, 32, 32))
_MOST_COMBINATIONS = 24
_REST = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def can_be_guessed(module: nn.Module) -> bool:
    """Whether the forward's signature says anything of what it takes. Reads nothing that may be a property."""
    parameters = _signature(vars(module).get("forward") or type(module).forward)
    return parameters is not None and (not parameters or any(p.kind not in _REST for p in parameters))


def example_inputs(module: nn.Module, *, whole: bool = False) -> Iterator[dict[str, Any]]:
    """Keyword arguments for `module.forward`, most plausible first; none if it wants more than can be guessed.

    Args:
        module: a runnable copy.
        whole: whether it is the whole model, which may want large pictures.
    """
    signature = _signature(module.forward)
    if signature is None:
        return
    parameters = [p for p in signature if p.kind not in _REST]
    names = [parameter.name for parameter in parameters]
    config = configuration_of(module)
    if hasattr(config, "to_dict"):
        yield from _configured(module, config, names)
    if any(map(TIME.search, names)):
        yield from diffusion_inputs(module, as_mapping(config), parameters)
    if "edge_index" in names:
        yield from graph_inputs(module, parameters)
    wanted = [p for p in parameters if p.default is inspect.Parameter.empty]
    if not signature:
        yield {}
    if not parameters:  # `*args` says nothing
        return
    if not wanted:
        wanted = parameters[:1]
    essential = [p.name for p in wanted if not _OPTIONAL.search(p.name)] or [p.name for p in wanted[:1]]
    if len(essential) > 3:
        return
    absent = {p.name: None for p in wanted if p.name not in essential}
    widths = [
        value.dim for name, value in vars(module).items() if name.startswith("irreps_in") and hasattr(value, "dim")
    ]
    if len(widths) == len(essential):  # e3nn's layers say how wide each input is
        floats = [_floats(BATCH * LENGTH, width) for width in widths]
        yield {**dict(zip(essential, floats, strict=True)), **absent}
    choices = [list(_values(module, name, whole)) for name in essential]
    for combination in _combinations(choices):
        yield {**dict(zip(essential, combination, strict=True)), **absent}


def _signature(forward: Any) -> list[inspect.Parameter] | None:
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return None
    return parameters[1:] if parameters and parameters[0].name == "self" else parameters


def _combinations(choices: list[list[torch.Tensor]]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Those of like shapes first: two streams of activations are mostly as wide as each other."""
    yield from zip(*choices, strict=False)
    yield from itertools.islice(itertools.product(*choices), _MOST_COMBINATIONS)


def _ids(module: nn.Module) -> torch.Tensor | None:
    rows = min((m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)), default=0)
    table = getattr(module, "get_input_embeddings", lambda: None)
    with contextlib.suppress(Exception):  # whatever the user's own method raises
        rows = getattr(table(), "num_embeddings", rows)
    if rows < 2:
        return None
    return torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % max(rows - 1, 1) + (1 if rows > BATCH * LENGTH else 0)


def _values(module: nn.Module, name: str, whole: bool) -> Iterator[torch.Tensor]:
    """Tensors for one argument."""
    if TIME.search(name):
        yield torch.ones(BATCH)
        return
    if re.search(r"top_?k|expert|routing|selected", name):
        rows = torch.arange(BATCH * LENGTH * 2).reshape(BATCH * LENGTH, 2) % 2
        yield rows if re.search(r"ind|ids|selected", name) else rows * 0.0 + 0.5
        return
    ids = _ids(module)
    if ids is not None and (_IDS.search(name) or not _IMAGE.search(name)):
        yield ids
    if ids is not None and _IDS.search(name):
        return
    if _IDS.search(name) and name != "input":  # a table that is no nn.Embedding, or tokens that are activations
        yield torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 8
    layer = next((m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)), None)
    if isinstance(layer, nn.Linear):
        if _IMAGE.search(name):  # cut into patches before the first layer
            yield from (_floats(BATCH, *axes) for axes in _PICTURES)
        widths = dict.fromkeys(m.in_features for m in module.modules() if isinstance(m, nn.Linear))
        for width in list(widths)[:3]:
            yield from (_floats(BATCH, LENGTH, width), _floats(BATCH, width), _floats(BATCH, width, 6, 6))
    elif layer is not None:
        yield from _signals(layer, whole)
    yield from _own_widths(module)


def _signals(layer: nn.modules.conv._ConvNd, whole: bool) -> Iterator[torch.Tensor]:
    """What a convolution takes: a picture, or a signal in time, channels first or last or none."""
    channels = layer.in_channels
    if len(layer.kernel_size) == 2:
        for side in (32, 64, 224) if whole else (32, 64):
            yield _floats(BATCH, channels, side, side)
    elif len(layer.kernel_size) == 1:
        yield from (_floats(BATCH, channels, 64), _floats(BATCH, LENGTH, channels), _floats(BATCH, 64))
    else:
        yield _floats(BATCH, channels, 4, 32, 32)


def _own_widths(module: nn.Module) -> Iterator[torch.Tensor]:
    """Activations as wide as the parameters that the module itself, or the first in it that has some, registered."""
    owner = next((m for m in module.modules() if any(p is not None for p in m._parameters.values())), None)
    if owner is None:
        return
    shapes = [tuple(own.shape) for own in owner._parameters.values() if own is not None and own.dim() > 1]
    yield from (_floats(BATCH, LENGTH, *shape) for shape in shapes if math.prod(shape) <= _LARGEST_GAIN)
    sizes = {size for own in owner._parameters.values() if own is not None for size in own.shape if size > 1}
    for size in sorted(sizes, reverse=True)[:3]:
        yield _floats(BATCH, LENGTH, size)
        yield _floats(BATCH * LENGTH, size)
        yield _floats(BATCH, size, 6, 6)
        yield _floats(BATCH, LENGTH, 3, size)
        yield _floats(BATCH, size, LENGTH)


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _configured(module: nn.Module, config: Any, names: list[str]) -> Iterator[dict[str, Any]]:
    """Inputs by the field's standard argument names, for models that carry a configuration."""
    text: dict[str, Any] = {}
    ids = _ids(module)
    if ids is not None and "input_ids" in names:
        text["input_ids"] = ids
        if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", False):
            text["decoder_input_ids"] = ids
    if "pixel_values" in names:
        for shape in _image_shapes(module, config):
            yield {**text, "pixel_values": _floats(*shape)}
            yield {"pixel_values": _floats(*shape)}
    yield from _audio(config, names, ids)
    if text:
        yield text
    width = getattr(config, "hidden_size", None)
    for name in ("inputs_embeds", "hidden_states"):
        if name in names and isinstance(width, int):
            yield {name: _floats(BATCH, LENGTH, width)}


def _audio(config: Any, names: list[str], ids: torch.Tensor | None) -> Iterator[dict[str, Any]]:
    """Waveforms of less than a second at 16 kHz, and spectra of as many bins as the configuration says."""
    shapes: tuple[tuple[int, ...], ...]
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80
    if "input_values" in names:
        shapes = (
            (BATCH, 4_000),
            (BATCH, 16_000),
            (BATCH, getattr(config, "max_length", 64), bins),
            (BATCH, 1, 4_000),
        )
        for shape in shapes:
            yield {"input_values": _floats(*shape)}
    if "input_features" in names:
        frames = (getattr(config, "max_source_positions", None) or 32) * 2
        decoder = {"decoder_input_ids": ids} if "decoder_input_ids" in names and ids is not None else {}
        for axes in ((bins, frames), (frames, bins), (1, frames, bins)):
            yield {"input_features": _floats(BATCH, *axes), **decoder}


def _image_shapes(module: nn.Module, config: Any) -> Iterator[tuple[int, ...]]:
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    sides: list[Any] = []
    for holder in (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)):
        side = getattr(holder, "image_size", None)
        if side:
            sides.append(side)
    for side in [*sides, 64, 224]:
        height, width = side if isinstance(side, list | tuple) else (side, side)
        yield (BATCH, channels, height, width)
