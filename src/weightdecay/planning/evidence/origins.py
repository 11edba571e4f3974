"""Where a tensor of a forward comes from: which parameters, by which steps, and whether the input had a part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from weightdecay.planning.evidence.uses import NORMALISING, PRODUCTS, Use

LONGEST_PATH = 6
_SPREADS = frozenset({"sqrt", "std", "linalg_vector_norm", "norm", "frobenius_norm"})
_KEEPS_SPREAD = frozenset({"add", "clamp", "clamp_min", "maximum", "mul", "sub"})


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Parameters and input at once is a parameter that the input has modulated, as hypernetworks do: still a weight, if
    used as one.

    Attributes:
        parameters: those that it is made of, with the steps from each.
        live: whether it depends on the input.
        trait: what kind of live tensor it is, which tells a later partner what it met.
        source: the same number where one live tensor is only another's form: turned, cut, joined again, rotated.
        is_bare: the input alone made it, as it makes masks and positions.
        scaled_by: parameters by which it was multiplied.
        weighed: of those the ones whose products are still to be summed, as far as that is seen, with that use and the
            axes, counted from the end, along which the parameter varies.
        scored: parameters that it is a product of, with the axes, counted from the end, along which the input lies.
        summed: tables that were added, with how many of their axes were longer than 1 there, as long as nothing else
            was done.
        gains: gains of the norm whose result it is.
        normalised: what kind of tensor was normalised to make it.
    """

    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    live: bool = False
    trait: str = ""
    source: int = 0
    is_bare: bool = False
    scaled_by: frozenset[str] = frozenset()
    weighed: Mapping[str, tuple[Use, frozenset[int]]] = field(default_factory=dict)
    scored: Mapping[str, frozenset[int]] = field(default_factory=dict)
    summed: Mapping[str, int] = field(default_factory=dict)
    gains: frozenset[str] = frozenset()
    normalised: str = ""


CONSTANT = Origin()


class Argument(NamedTuple):
    """A tensor that an operation takes, in which of its arguments, and where it comes from."""

    slot: str
    tensor: torch.Tensor
    origin: Origin


def partner_of(own: Argument, arguments: Sequence[Argument]) -> str:
    """What kind of thing a parameter meets in an operation."""
    others = [other.origin for other in arguments if other is not own]
    # `x · mask` and `q · cos(position)`: the mask and the angles are not what is met
    live = sorted((origin for origin in others if origin.live), key=lambda origin: origin.is_bare)
    if live:
        return live[0].trait or "activation"
    return "parameter" if any(origin.parameters for origin in others) else "constant"


def trait_of(name: str, live: Sequence[Origin], arguments: Sequence[Argument]) -> str:
    """What kind of live tensor an operation yields."""
    traits = {origin.trait for origin in live}
    if name in PRODUCTS:
        is_term = "add" in name
        factors = [a.origin for a in arguments if a.slot != "offs" and not (is_term and a.slot == "self")]
        # What a layer made of learned tokens meets projections as the input's own would.
        made = any(PRODUCTS & {*path} for origin in factors for path in origin.parameters.values() if not origin.live)
        among = sum(origin.live for origin in factors) + (made and any(o.trait == "projection" for o in factors))
        return "scores" if among > 1 else "projection"
    if name in NORMALISING:
        return "normalised"
    if name.startswith("_fft_") and name != "_fft_c2r":
        return "spectrum"
    if name in ("rsqrt", "reciprocal"):
        return "inverse-spread"
    if name in _SPREADS or (name in _KEEPS_SPREAD and traits == {"spread"}):
        return "spread"
    if name in ("add", "sub") and "scores" in traits:
        return "scores"
    return "looked-up" if name == "embedding" else "activation"


def modulated(arguments: Sequence[Argument]) -> dict[str, tuple[str, ...]]:
    """The parameters that are no smaller than what they met: the input modulates them, and not they the input."""
    met = max((a.tensor.numel() for a in arguments if not a.origin.parameters), default=0)
    return {
        parameter: (*through, "modulation")[:LONGEST_PATH] if not a.origin.live else through
        for a in arguments
        for parameter, through in a.origin.parameters.items()
        if a.tensor.numel() >= met
    }


def distinct(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape, with 1 for the axes along which `expand` only repeats."""
    if tensor.layout != torch.strided:
        return tuple(tensor.shape)
    return tuple(size if stride else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def varying(tensor: torch.Tensor) -> frozenset[int]:
    """The axes along which it varies, counted from the end: -1 is the last."""
    shape = distinct(tensor)
    return frozenset(axis - len(shape) for axis, size in enumerate(shape) if size > 1)


def geometry(own: tuple[int, ...], result: tuple[int, ...], partner: tuple[int, ...]) -> str:
    """How a tensor lies in a result that it was broadcast to.

    number and vector: it varies over no axis, or one. Of those that vary over more, outer: its partner is itself
    repeated along one of them; patch: it is repeated within; repeated: it fills the last axes and is repeated over at
    least two before them; grid: the rest.
    """
    mine, whole, other = own[::-1], result[::-1], partner[::-1]
    varies = [axis for axis, size in enumerate(mine) if size > 1]
    if len(varies) < 2:
        return ("number", "vector")[len(varies)]
    if any(axis >= len(other) or other[axis] == 1 for axis in varies) and len(whole) == max(len(mine), len(other)):
        return "outer"
    last = varies[-1]
    if any(mine[axis] == 1 and whole[axis] > 1 for axis in range(min(last, len(whole)))):
        return "patch"
    return "repeated" if sum(size > 1 for size in whole[last + 1 :]) > 1 else "grid"
