"""In which precision a model computes, and where its weights are rounded to it.

working    The float32 parameters are rounded once a step, for all its micro-batches, and the stream between the blocks
           has the lower precision too. Gradients reach the parameters, and are added up over micro-batches, in float32.
autocast   torch's autocast: the stream is float32, and each product rounds what goes into it.

Parameters, optimizer state and checkpoints are float32 either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from weightdecay.kernels.memory import give_back_freed_memory
from weightdecay.models.decoder import GPT
from weightdecay.models.layers import Linear, rounded

M = TypeVar("M", bound=nn.Module)


@contextmanager
def weights_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within, decoders in `module` that compute by `working` have a stream of this dtype and weights rounded to it.

    Nothing may change the weights meanwhile.
    """
    models = [model for model in _decoders(module) if model.arithmetic == "working"]
    if dtype == torch.float32 or not models:
        yield
        return

    # A model that is short of memory rounds each block's weights where it computes the block, and begins a step without
    # the pages of the last one's gradients.
    if any(model.recomputes for model in models):
        give_back_freed_memory()
    layers = [layer for model in models if not model.recomputes for layer in _layers(model)]
    weights: dict[Tensor, Tensor] = {layer.weight: rounded(layer.weight, dtype) for layer in layers}
    try:
        for model in models:
            model.stream_dtype = dtype
        for layer in layers:
            layer.__dict__["rounded"] = weights[layer.weight]  # no module or parameter, for which torch would look
        yield
    finally:
        for model in models:
            model.stream_dtype = None
        for layer in layers:
            layer.__dict__.pop("rounded", None)


def products_in(module: nn.Module, dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """What a forward pass of `module` goes through in: nothing for decoders that compute by `working`."""
    models = _decoders(module)
    if models and all(model.arithmetic == "working" for model in models):
        return nullcontext()
    return torch.autocast(device.type, dtype, dtype != torch.float32)


def _decoders(module: nn.Module) -> list[GPT]:
    return _found(module, GPT)


def _layers(model: GPT) -> list[Linear]:
    return _found(model, Linear)


def _found(module: nn.Module, kind: type[M]) -> list[M]:
    """The parts of a kind, looked for once: to go through all modules would be a tenth of a small model's step.

    They are kept with the module, so that they go when it goes and are copied when it is copied.
    """
    place = f"_parts_{kind.__name__}"
    if place not in module.__dict__:
        module.__dict__[place] = [part for part in module.modules() if isinstance(part, kind)]
    found: list[M] = module.__dict__[place]
    return found
