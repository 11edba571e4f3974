"""Small tensors that stand for parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# The axes of a small tensor. The first two are alike, so that state of one axis or of their square is cut alike,
# and 12 can be halved, thirded and quartered by who stacks matrices or splits heads.
SIZES = (12, 12, 4, 3, 2)


def small_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a small tensor that stands for one of this shape; axes of length 1 stay so."""
    sizes = SIZES[: len(shape)] + (2,) * (len(shape) - len(SIZES))
    return tuple(min(n, size) or size for n, size in zip(shape, sizes, strict=True))


def away_from_zero(shape: tuple[int, ...], generator: torch.Generator, *, is_complex: bool) -> Tensor:
    """Random numbers of size 0.25 and more.

    Squares of smaller ones vanish in float16, as Adam's eps does, and it divides by them.
    """
    dtype = torch.complex128 if is_complex else torch.float64
    numbers = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    return numbers + 0.25 * torch.sgn(numbers)


def small_tensor(
    param: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, generator: torch.Generator
) -> Tensor:
    """A tensor of this shape in place of a parameter, of its class.

    Args:
        dtype: in place of a floating one's; None for its own.
    """
    # A tensor without storage can be built, and not stepped.
    device = torch.device("cpu") if param.device.type == "meta" else param.device
    dtype = dtype if dtype is not None and param.dtype.is_floating_point else param.dtype
    small = away_from_zero(shape, generator, is_complex=dtype.is_complex).to(device=device, dtype=dtype)
    small.requires_grad_(small.is_floating_point() or small.is_complex())
    return _of_class(small, param)


def _of_class(small: Tensor, param: Tensor) -> Tensor:
    """As one of the parameter's class, by which it may be known; one that wraps others becomes a plain parameter."""
    kind: Any = type(param)
    wraps = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    if not wraps and kind not in (Tensor, nn.Parameter):
        made: Tensor = small.detach().as_subclass(kind)
        return made.requires_grad_(small.requires_grad)
    return nn.Parameter(small, requires_grad=small.requires_grad) if isinstance(param, nn.Parameter) else small
