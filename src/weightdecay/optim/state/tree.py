"""Nested state as tensors under flat names, and back: what comes out is what went in, types and all.

    exp_avg           a tensor
    step:int          a Python number, as a scalar tensor; also float and bool
    GG[0]             the first of a list; GG(0) of a tuple, GG<0> of a set
    update.exp_avg    of a dict in a dict
    {0}.exp_avg       of a dict whose key is the number 0
    exprs[0]:text     text, as the bytes of its UTF-8
    Q[0]:t            a matrix that lies in memory by columns: its transpose; products of it round by how it lies
    Q:none            None; and GG:list, GG:tuple, GG:set, GG:dict where there is nothing inside

Characters that mean something here are written `%xx` inside keys, and an empty key is `%`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError

# How one value is reached from the one around it, and by which key or place.
Step: TypeAlias = tuple[str, str | int | float]

_NUMBERS: dict[str, type] = {"int": int, "float": float, "bool": bool}
_DTYPES = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}
_CONTAINERS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "dict": dict}
_BRACKETS = {"list": "[]", "tuple": "()", "set": "<>"}
_OTHERS = ("none", "text", "t")
_SPECIAL = re.compile(r"[%/.:()\[\]{}<>]")
_STEP = re.compile(
    r"\.(?P<key>[^/.:()\[\]{}<>]*)|\{(?P<number>[^{}]+)\}"
    r"|\[(?P<list>\d+)\]|\((?P<tuple>\d+)\)|<(?P<set>\d+)>"
)


def flattened(name: str, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """One parameter's state as `"<name>/<path>"` -> tensor.

    Raises:
        OptimizerError: with the path of everything in it that is no tensor, number or text, and no container of them.
    """
    tensors: dict[str, Tensor] = {}
    faults: list[str] = []

    def visit(value: Any, path: str) -> None:
        full = f"{name}/{path.removeprefix('.')}"
        try:
            leaf = _leaf(value)
        except OptimizerError as error:
            faults.append(f"{full} is {error}")
            return
        if leaf is not None:
            tensors[full + leaf[0]] = leaf[1]
            return
        for step, inside in _inside(value):
            if type(step[1]) in (str, int, float):
                visit(inside, path + _written(step))
            else:
                kind = type(step[1]).__name__
                faults.append(f"{full} has the key {step[1]!r}, a {kind}: only text and numbers can be saved")

    if state:
        visit(dict(state), "")
    if faults:
        raise OptimizerError(faults)
    return tensors


def _leaf(value: Any) -> tuple[str, Tensor] | None:
    """The suffix of a value and the tensor that stands for it; None where it holds others."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        if whole.layout is not torch.strided:
            layout = str(whole.layout).removeprefix("torch.")
            raise OptimizerError(f"a tensor of layout {layout}: only dense ones can be saved")
        if whole.is_meta:
            raise OptimizerError("a tensor on meta, which holds no numbers to be saved")
        if whole.is_contiguous():
            return "", whole.detach()
        by_columns = whole.ndim == 2 and whole.t().is_contiguous()
        return (":t", whole.detach().t()) if by_columns else ("", whole.detach().contiguous())
    if value is None:
        return ":none", _nothing()
    if type(value) is str:
        return ":text", torch.tensor(list(value.encode("utf-8", "surrogatepass")), dtype=torch.uint8)
    if type(value) in _NUMBERS.values():
        try:
            return f":{kind}", torch.tensor(value, dtype=_DTYPES[kind])
        except (OverflowError, RuntimeError, ValueError):
            raise OptimizerError("an int of more than 64 bits: it cannot be saved") from None
    if type(value) not in _CONTAINERS.values():
        raise OptimizerError(f"a {kind}: only tensors, numbers and text can be saved, and containers of them")
    return None if value else (f":{kind}", _nothing())


def unflattened(entries: Mapping[str, Tensor]) -> dict[Any, Any]:
    """One parameter's state of its paths and tensors.

    Raises:
        OptimizerError: a list or tuple has gaps, one path leads to a value and through it, or a tensor is not the
            number or text that its path says.
    """
    root = _Node()
    for path, tensor in entries.items():
        try:
            steps, value = _parsed(path, tensor)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # of Python's and torch's conversions
            raise OptimizerError(f"{path}: it cannot be read as what it says ({error}): it is damaged") from error
        node = root
        for step in steps[:-1]:
            node = node.setdefault(step, _Node())
            if not isinstance(node, _Node):
                raise OptimizerError(f"{path}: something in it is a value and a container at once")
        if steps[-1] in node:
            raise OptimizerError(f"{path}: it is there twice, or as a value and a container at once")
        node[steps[-1]] = value
    return {key: _built(value, _written((kind, key))) for (kind, key), value in root.items()}


class _Node(dict[Any, Any]):
    """What has others inside; a plain dict is a value."""


def _parsed(path: str, tensor: Tensor) -> tuple[list[Step], Any]:
    path, kind = _split_kind(path)
    text = path if path.startswith("{") else f".{path}"
    steps: list[Step] = []
    place = 0
    while place < len(text):
        found = _STEP.match(text, place)
        if found is None:  # written by no `flattened`: a key as it stands
            steps = [("dict", path)]
            break
        steps.append(_read(found))
        place = found.end()

    if kind in _NUMBERS:
        number = tensor.item()
        if (value := _NUMBERS[kind](number)) != number == number:  # NaN is itself
            raise ValueError(f"{number} is no {kind}")
        return steps, value
    if kind == "none":
        return steps, None
    if kind == "text":
        return steps, bytes(tensor.tolist()).decode("utf-8", "surrogatepass")
    if kind == "t":
        return steps, tensor.t()
    return steps, _CONTAINERS[kind]() if kind else tensor


def _split_kind(path: str) -> tuple[str, str]:
    before, _, kind = path.rpartition(":")
    return (before, kind) if kind in _NUMBERS or kind in _CONTAINERS or kind in _OTHERS else (path, "")


def _built(node: Any, path: str) -> Any:
    if not isinstance(node, _Node):
        return node
    kinds = {kind for kind, _ in node}
    if len(kinds) > 1:
        raise OptimizerError(f"{path}: it is a {' and a '.join(sorted(kinds))} at once")

    built = {key: _built(value, path + _written((kind, key))) for (kind, key), value in node.items()}
    if kinds == {"dict"}:
        return built
    if missing := set(range(max(built) + 1)) - set(built):
        raise OptimizerError(f"{path}: number {min(missing)} of its {max(built) + 1} is missing")
    return _CONTAINERS[kinds.pop()](built[index] for index in range(len(built)))


def _inside(value: Any) -> list[tuple[Step, Any]]:
    if isinstance(value, dict):
        return [(("dict", key), inside) for key, inside in value.items()]
    return [((type(value).__name__, index), inside) for index, inside in enumerate(value)]


def _written(step: Step) -> str:
    kind, key = step
    if kind != "dict":
        return str(key).join(_BRACKETS[kind])
    if not isinstance(key, str):
        return f"{{{key!r}}}"
    return "." + (_SPECIAL.sub(lambda found: f"%{ord(found.group()):02x}", key) or "%")


def _read(found: re.Match[str]) -> Step:
    kind = str(found.lastgroup)
    text = found[kind]
    if kind == "number":
        return "dict", int(text) if text.lstrip("-").isdecimal() else float(text)
    if kind == "key":
        return "dict", "" if text == "%" else re.sub(r"%([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), text)
    return kind, int(text)


def _nothing() -> Tensor:
    """A tensor for what has no value, since safetensors holds tensors alone."""
    return torch.zeros((), dtype=torch.uint8)
