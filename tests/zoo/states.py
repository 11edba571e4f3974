"""All that a plan must leave as it was: tensors, flags, hooks, plain attributes, gradients, generators, settings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything by a name that says where it was found; tensors are copied."""
    return dict(_of_tensors(model)) | dict(_of_modules(model)) | dict(_of_the_process())


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of what is not what it was, bit for bit."""
    return [name for name in {**before, **after} if not _same(before.get(name), after.get(name))]


def _of_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield f"parameter {name}", parameter.detach().clone()
        yield f"gradient of {name}", parameter.grad
        yield f"flags of {name}", (id(parameter), parameter.requires_grad, parameter._version, parameter.is_leaf)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        yield f"buffer {name}", buffer.detach().clone()


def _of_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules(remove_duplicate=False):
        yield f"class of {name}", type(module)
        yield f"hooks of {name}", [list(getattr(module, kind, ())) for kind in _HOOKS]
        for attribute, value in vars(module).items():
            if isinstance(value, bool | int | float | str | None):
                yield f"{name}.{attribute}", value


def _of_the_process() -> Iterator[tuple[str, Any]]:
    yield "torch's generator", torch.get_rng_state()
    yield "numpy's generator", np.random.get_state()[1].tobytes()  # type: ignore[index]
    yield "Python's generator", random.getstate()
    yield "torch's settings", (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and _bits(first) == _bits(second)
    return type(first) is type(second) and bool(first == second or first != first)


def _bits(tensor: Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().contiguous().cpu()
    return bytes(plain.flatten().view(torch.uint8).numpy()) if plain.numel() else b""
