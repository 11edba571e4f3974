"""A stand-in for a model that may be run: same code, own small-valued tensors, on the CPU.

Tracing must not touch what the user owns. The twin shares no tensor with the model, has no hooks and no compiled code,
is in evaluation mode, and stands on the CPU even where the model is on the meta device or sharded.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from weightdecay.naming import bare_class, inner, unwrapped

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def absent(model: nn.Module) -> dict[int, Any]:
    """Placeholders without memory for a model's tensors, for parts of it that hold a reference to the whole."""
    tensors = [*model.parameters(), *model.buffers()]
    return {id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor in tensors}


def twin(model: nn.Module, outside: Mapping[int, Any] | None = None) -> nn.Module:
    """A runnable stand-in for a model or for one part of it.

    Args:
        model: what to copy; whatever in it cannot be copied raises what `copy.deepcopy` raises.
        outside: what `absent` made of the whole, so that a reference to it does not copy its tensors.
    """
    memo: dict[int, Any] = dict(outside or {})
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        memo[id(parameter)] = _stand_in(parameter, generator)
    for buffer in model.buffers():
        memo[id(buffer)] = _buffer(buffer)
    shells: list[tuple[nn.Module, nn.Module]] = []
    for module in model.modules():
        if inner(module) is None:
            cls: Any = bare_class(module)
            shells.append((module, cls.__new__(cls)))
            memo[id(module)] = shells[-1][1]
    for module in model.modules():
        if inner(module) is not None:
            memo[id(module)] = memo[id(unwrapped(module))]
    for module, shell in shells:
        state = {name: value for name, value in vars(module).items() if name not in ("_fsdp_param_group", *_HOOKS)}
        state["_compiled_call_impl"] = None
        shell.__dict__.update(copy.deepcopy(state, memo))
        shell.__dict__.update({name: OrderedDict() for name in _HOOKS if name in vars(module)})
        shell.__dict__["training"] = False
    result: nn.Module = memo[id(model)]
    return result


def _stand_in(parameter: nn.Parameter, generator: torch.Generator) -> nn.Parameter:
    dtype = parameter.dtype if parameter.dtype.is_floating_point or parameter.dtype.is_complex else torch.float32
    if dtype.itemsize < 4 and dtype.is_floating_point:
        dtype = torch.float32
    values = torch.empty(parameter.shape, dtype=dtype).normal_(0.0, 0.02, generator=generator)
    return nn.Parameter(values, requires_grad=False)


def _buffer(buffer: torch.Tensor) -> torch.Tensor:
    if buffer.device.type == "meta" or type(buffer) is not torch.Tensor:
        values = torch.ones(buffer.shape)
        return values if buffer.dtype in (torch.float16, torch.bfloat16) else values.to(buffer.dtype)
    detached = buffer.detach().to("cpu", copy=True)
    return detached.float() if detached.dtype in (torch.float16, torch.bfloat16) else detached


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever runs inside leaves random states, default dtype, warnings and standard streams as they were."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    disabled, dtype = logging.root.manager.disable, torch.get_default_dtype()
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            _uncompiled(),
            torch.device("cpu"),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.set_default_dtype(dtype)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    """Compiled functions run as they were written; without a compiler loaded there are none."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
