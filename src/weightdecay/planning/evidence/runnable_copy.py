"""A copy of a model that may be run: same code, own small-valued tensors, on the CPU or without memory at all.

Tracing must not touch what the user owns. The copy shares no tensor with the model, has no hooks but torch's own, no
compiled code, is in evaluation mode, and stands on the CPU or the meta device wherever the model is, or is sharded.
"""

from __future__ import annotations

import copy
import functools
import io
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from itertools import repeat
from types import CellType, FunctionType
from typing import Any, Literal

import torch
from torch import nn

from weightdecay.naming import bare_class, registered, unwrapped

Device = Literal["cpu", "meta"]

_LARGEST_WITH_VALUES = 1 << 20  # elements of a buffer that keeps its values where parameters have none
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))
_NOT_COPIED = frozenset({"_fsdp_param_group", *_HOOKS})
_LOCKS: dict[type, Any] = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}


def placeholders(model: nn.Module) -> dict[int, Any]:
    """Tensors without memory for a model's own, for parts of it that hold a reference to the whole."""
    tensors = [*model.parameters(), *model.buffers()]
    return {id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor in tensors}


def whole_shapes(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """The shape of each parameter by its id; of what FSDP has sharded the whole one."""
    return {id(entry.parameter): entry.shape for entry in registered(model) if entry.name == entry.parameter_name}


def runnable_copy(
    model: nn.Module,
    device: Device = "cpu",
    outside: Mapping[int, Any] | None = None,
    shapes: Mapping[int, tuple[int, ...]] | None = None,
) -> nn.Module:
    """A copy of a model, or of one part of it, that may be run.

    Args:
        model: what to copy.
        device: "meta" for a copy whose parameters have shapes only; small buffers keep their values.
        outside: what `placeholders` made of the whole, so that a reference to it does not copy its tensors.
        shapes: what `whole_shapes` said of the whole with all its wrappers, where parameters show only pieces.
    """
    modules = list(_without_scripted(model))
    memo: dict[int, Any] = {**(outside or {}), **_own_tensors(modules, shapes or {}, device)}

    # shells first, since modules refer to each other; what only wraps is left out
    shells: list[tuple[nn.Module, Any]] = [
        (module, object.__new__(bare_class(module))) for module in modules if unwrapped(module) is module
    ]
    memo.update({id(module): shell for module, shell in shells})
    for module in modules:
        if id(module) not in memo:
            memo[id(module)] = copied(unwrapped(module), memo)

    for module, shell in shells:
        _fill(shell, module, memo)
    result: nn.Module = copied(model, memo)
    for module in result.modules():
        if isinstance(module, torch.jit.ScriptModule):
            module.eval()
            _make_leaves(module)
    return result


def _make_leaves(module: torch.jit.ScriptModule) -> None:
    """A scripted module copies itself as an operation of autograd: its parameters would be results of the model's."""
    for parameter in module.parameters():
        parameter.detach_().requires_grad_(parameter.dtype.is_floating_point)


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """A copy as `copy.deepcopy` makes it, of what it refuses as well.

    A lock gets a lock of its own, an iterator or an open file is left out (None), since to run it would move it; what
    else cannot be copied (a thread, a process group, a module of Python) is shared, and so are its like inside others.
    """
    known = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # whatever the `__deepcopy__` or `__reduce__` of the user's objects raises
        for key in list(memo)[known:]:  # what was begun and not ended
            del memo[key]
    if isinstance(value, dict):
        return _filled_dict(value, memo)
    if type(value) in (list, tuple, set, deque):
        return type(value)(copied(item, memo) for item in value)
    if type(value) in _LOCKS:
        return _LOCKS[type(value)]()
    if isinstance(value, Iterator | io.IOBase):
        return None
    if type(value).__module__.partition(".")[0] in sys.stdlib_module_names or not hasattr(value, "__dict__"):
        return value
    if isinstance(value, type) or type(value).__module__.startswith("torch."):
        return value
    memo[id(value)] = shell = object.__new__(type(value))
    shell.__dict__.update(_filled_dict(vars(value), memo))
    return shell


def _filled_dict(values: Mapping[Any, Any], memo: dict[int, Any]) -> Any:
    filled: Any = OrderedDict() if isinstance(values, OrderedDict) else {}
    for key, item in values.items():
        filled[key] = copied(item, memo)
    return filled


def _without_scripted(model: nn.Module) -> Iterator[nn.Module]:
    """All modules but those of TorchScript, which copy themselves with all that is in them."""
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in seen or isinstance(module, torch.jit.ScriptModule):
            continue
        seen.add(id(module))
        yield module
        waiting += [child for child in module._modules.values() if child is not None]


def _fill(shell: Any, module: nn.Module, memo: dict[int, Any]) -> None:
    state = {name: value for name, value in vars(module).items() if name not in _NOT_COPIED}
    if isinstance(module, torch.fx.GraphModule):
        memo[id(state["_graph"])] = state["_graph"]  # its code is in its class; the graph is not run
    state.update(training=False, _compiled_call_impl=None)
    # what `copy.deepcopy` takes for unchangeable, though it leads back to the user's model
    for value in _held(state):
        if isinstance(value, FunctionType) and id(value) not in memo:
            _rebind(value, memo)
        elif isinstance(value, weakref.ref) and isinstance(target := value(), nn.Module):
            memo[id(value)] = weakref.ref(memo.get(id(target), nn.Module()))  # of what is not copied a dead one
    shell.__dict__.update(copied(state, memo))
    for name in _HOOKS:
        shell.__dict__[name] = OrderedDict()
        for key, hook in vars(module).get(name, {}).items():
            if _is_torchs(hook):
                shell.__dict__[name][key] = copied(hook, memo)


def _rebind(function: FunctionType, memo: dict[int, Any]) -> None:
    """Let a function that closes over the model's modules and tensors close over the copy's in the copy."""
    memo[id(function)] = function  # as it is, where it closes over nothing of these, or over itself
    cells, changed = list(function.__closure__ or ()), False
    for index, cell in enumerate(cells):
        try:
            inside = cell.cell_contents
        except ValueError:  # empty
            continue
        if isinstance(inside, FunctionType) and id(inside) not in memo:
            _rebind(inside, memo)
        if memo.get(id(inside), inside) is not inside:
            cells[index], changed = CellType(memo[id(inside)]), True
    if changed:
        bound = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
        )
        bound.__kwdefaults__ = function.__kwdefaults__
        memo[id(function)] = bound


def _is_torchs(hook: object) -> bool:
    """Whether it makes a weight of others, as the older weight and spectral norms do: the forward needs it."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _own_tensors(modules: list[nn.Module], shapes: Mapping[int, tuple[int, ...]], device: Device) -> dict[int, Any]:
    """What stands in the copy for each tensor that these modules hold, registered or not."""
    generator = torch.Generator().manual_seed(0)
    own: dict[int, Any] = {}
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in own:
                shape = shapes.get(id(parameter), tuple(parameter.shape))
                own[id(parameter)] = _stand_in(parameter, shape, device, generator)
    for module in modules:
        for tensor in _held(vars(module)):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in own and not isinstance(tensor, nn.Parameter):
                own[id(tensor)] = _with_values(tensor, device)
    return own


def _held(attributes: Mapping[str, Any], depth: int = 4) -> list[Any]:
    """What stands in attributes, also in lists, dictionaries and partial functions."""
    found: list[Any] = []
    waiting: list[tuple[Any, int]] = [(attributes, depth)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, functools.partial):
            value = [value.func, *value.args, *value.keywords.values()]
        if not isinstance(value, dict | list | tuple) or not depth:
            found.append(value)
            continue
        waiting += zip(value.values() if isinstance(value, dict) else value, repeat(depth - 1))
    return found


def _stand_in(
    parameter: nn.Parameter, shape: tuple[int, ...], device: Device, generator: torch.Generator
) -> torch.Tensor:
    """A parameter of that shape and small values; what holds integers or is sparse keeps what it has."""
    dtype = single(parameter.dtype)
    drawn = dtype.is_floating_point or dtype.is_complex
    if device == "meta":
        values = torch.empty(shape, dtype=dtype, device="meta")
    elif drawn and parameter.layout == torch.strided:
        values = torch.empty(shape, dtype=dtype).normal_(0.0, 0.02, generator=generator)
    elif parameter.device.type == "meta":
        values = torch.ones(shape, dtype=dtype)
    elif type(parameter) is nn.Parameter:
        values = parameter.detach().to("cpu", copy=True)
    else:
        return copy.deepcopy(parameter).cpu()  # of its own class, which knows how it is packed
    return nn.Parameter(values, requires_grad=bool(parameter.requires_grad) and drawn)


def _with_values(tensor: torch.Tensor, device: Device) -> torch.Tensor:
    """The same values where it has some and may, else ones."""
    dtype = single(tensor.dtype)
    if device == "meta" and tensor.numel() > _LARGEST_WITH_VALUES:
        return torch.empty(tensor.shape, dtype=dtype, device="meta")
    if tensor.device.type == "meta" or type(tensor) is not torch.Tensor or _is_freed(tensor):
        return torch.ones(tensor.shape, dtype=dtype)
    return tensor.detach().to("cpu", copy=True).to(dtype)


def _is_freed(tensor: torch.Tensor) -> bool:
    """Whether its memory was given back, as FSDP does between forwards: to read it would end the process."""
    return tensor.layout == torch.strided and tensor.numel() > 0 and tensor.untyped_storage().size() == 0


def single(dtype: torch.dtype) -> torch.dtype:
    """The precision in which a copy runs: half precision has no kernel for some operations on a CPU."""
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype
