"""The small parts that blocks are made of: linear layers, norms, rotary positions, ALiBi's slopes, stochastic depth.

Shapes: B batch, T time, D d_model, H heads, E head_dim, R the part of a head that turns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.kernels.branches import Layer
from weightdecay.kernels.library import usable
from weightdecay.kernels.norms import Norm, normed, normed_beside
from weightdecay.kernels.products import product
from weightdecay.models.config import ModelConfig

# A matrix of at least so many elements is read in so many parts, for one row. Chosen by benchmarks/sampling.py.
_LARGE, _PARTS = 1 << 17, 8


class Linear(nn.Linear):
    """torch's linear layer, in its input's precision, and faster on the single row that a sampled token is.

    Attributes:
        rounded: the weight in a lower precision, for the length of a step (`arithmetic.weights_in`).
    """

    rounded: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not is_lower(x, self.weight):
            return linear(x, self.weight, self.bias)
        if usable(x):
            return product(x, *self.layer(x.dtype))
        bias: Tensor | None = self.bias
        return F.linear(x, self.rounded_to(x.dtype), bias.to(x.dtype) if bias is not None else None)

    def rounded_to(self, dtype: torch.dtype) -> Tensor:
        """The weight in a lower precision."""
        if self.rounded is None or self.rounded.dtype != dtype or torch.compiler.is_compiling():
            return rounded(self.weight, dtype)
        return self.rounded

    def layer(self, dtype: torch.dtype) -> Layer:
        """What a kernel has to know of it."""
        return Layer(self.weight, self.bias, self.rounded_to(dtype))


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in a lower precision; gradients come back through this, unless kernels give them themselves."""
    return (weight.detach() if usable(weight, dtype) else weight).to(dtype)


def is_lower(x: Tensor, weight: Tensor) -> bool:
    """Whether an input asks for a lower precision than the weight has; under autocast torch casts by itself."""
    return x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b, as `torch.nn.functional.linear`; one row in inference mode goes part by part of W on a processor.

    torch hands one row to a routine that reads W on one thread, at a fraction of what memory gives; a batch of W's
    parts is read on all threads, at up to four times the rate.
    """
    outputs, inputs = weight_OI.shape
    one_row = x.numel() == inputs and torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
    plain = x.device.type == "cpu" and x.dtype == weight_OI.dtype == torch.float32 and weight_OI.is_contiguous()
    if not (one_row and plain) or weight_OI.numel() < _LARGE or outputs % _PARTS:
        return F.linear(x, weight_OI, bias_O)
    parts_POI = weight_OI.view(_PARTS, -1, inputs)
    y = torch.bmm(parts_POI, x.reshape(1, inputs).t().expand(_PARTS, -1, -1)).view(*x.shape[:-1], outputs)
    return y if bias_O is None else y + bias_O


def make_norm(config: ModelConfig, width: int = 0, eps: float = 0.0) -> nn.Module:
    """The configuration's normalisation over `width` features, D by default."""
    width, eps = width or config.d_model, eps or config.norms.eps
    match config.norms.kind:
        case "layernorm":
            return LayerNorm(width, eps=eps, bias=config.bias)
        case "rmsnorm_unit_offset":
            return UnitOffsetRMSNorm(width, eps)
        case _:
            return RMSNorm(width, eps=eps, elementwise_affine=config.norms.kind == "rmsnorm")


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm; of an input in a lower precision in float32 by the kernel, by torch with a gain rounded to it.

        y = w · (x − mean(x))/√(mean((x − mean(x))²) + ε) + b

    Reference: Ba et al. 2016, arXiv:1607.06450, eq. 4.
    """

    def forward(self, x: Tensor) -> Tensor:
        if usable(x):
            return normed(x, self.kernel())
        if not is_lower(x, self.weight):
            return super().forward(x)
        bias: Tensor | None = self.bias
        bias = bias.to(x.dtype) if bias is not None else None
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)

    def kernel(self) -> Norm:
        """What a kernel has to know of it."""
        return Norm(self.weight, self.bias, self.eps, centred=True)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm; under autocast in the gain's precision, else as LayerNorm's where the input's is lower.

        y = w · x/√(mean(x²) + ε)

    Reference: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def forward(self, x: Tensor) -> Tensor:
        if usable(x):
            return normed(x, self.kernel())
        if not self.elementwise_affine or self.weight.dtype == x.dtype:
            return super().forward(x)
        if is_lower(x, self.weight):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)

    def kernel(self) -> Norm:
        """What a kernel has to know of it."""
        eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps
        return Norm(self.weight if self.elementwise_affine else None, None, eps, centred=False)


class UnitOffsetRMSNorm(nn.Module):
    """RMSNorm whose gain is 1 + w, with w from 0: decay pulls the gain to 1.

        y = (1 + w) · x/√(mean(x²) + ε)

    Reference: google-deepmind/gemma, gemma/layers.py, RMSNorm.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if usable(x):
            return normed(x, self.kernel())
        wide = x.to(self.weight.dtype)
        return F.rms_norm(wide, self.weight.shape, 1.0 + self.weight, self.eps).to(x.dtype)

    def kernel(self) -> Norm:
        """What a kernel has to know of it."""
        return Norm(self.weight, None, self.eps, centred=False, offset=1.0)


# Norms that say what a kernel has to know of them.
KernelNorm = LayerNorm | RMSNorm | UnitOffsetRMSNorm


def branched(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The stream as it goes on, and its norm for a branch."""
    if usable(x) and isinstance(norm, KernelNorm) and not has_hooks(norm):
        return normed_beside(x, norm.kernel())
    return x, norm(x)


def has_hooks(*modules: nn.Module) -> bool:
    """Whether calling one of them would call something else, too."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in modules for kind in kinds)


class Rotary(nn.Module):
    """Rotary positions: turns the pair (x_i, x_{i+R/2}) at position t by the angle t · base^(−2i/R), i < R/2.

    Pairs lie half of the turning part apart, as in GPT-NeoX and transformers; Meta's own LLaMA code pairs
    neighbours, which is the same model with the rows of its query and key matrices in another order.

    Args:
        fraction: R/E; the features after the first R stay as they are.

    Reference: Su et al. 2021, arXiv:2104.09864, §3.4.
    """

    def __init__(self, head_dim: int, context: int, base: float, fraction: float = 1.0) -> None:
        super().__init__()
        self.turning = int(head_dim * fraction)
        self.whole = self.turning == head_dim
        frequency = base ** (-torch.arange(0, self.turning, 2, dtype=torch.float32) / self.turning)
        angle_TR = torch.outer(torch.arange(context, dtype=torch.float32), frequency).repeat(1, 2)
        self.register_buffer("cos_TR", angle_TR.cos(), persistent=False)
        self.register_buffer("sin_TR", angle_TR.sin(), persistent=False)
        self.cos_TR: Tensor
        self.sin_TR: Tensor

    def angles(self, time: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the first positions, float32, [T, R]."""
        return self.cos_TR[:time].float(), self.sin_TR[:time].float()

    def forward(self, x_BHTE: Tensor, start: int = 0) -> Tensor:
        """The heads of positions `start` and after, turned."""
        if self.whole:
            return self._turned(x_BHTE, start)
        turning, still = x_BHTE[..., : self.turning], x_BHTE[..., self.turning :]
        return torch.cat((self._turned(turning, start), still), dim=-1)

    def _turned(self, x_BHTR: Tensor, start: int) -> Tensor:
        end = start + x_BHTR.shape[2]
        first, second = x_BHTR.chunk(2, dim=-1)
        quarter_turn_BHTR = torch.cat((-second, first), dim=-1)
        turned = x_BHTR * self.cos_TR[start:end] + quarter_turn_BHTR * self.sin_TR[start:end]
        return turned.to(x_BHTR.dtype)


def alibi_slopes(n_heads: int) -> list[float]:
    """How fast each head's scores fall with distance: 2^(−8/H), 2^(−16/H) … for H a power of two.

    Other numbers of heads take the slopes of the next lower power of two, and then every second one of the next
    higher.

    Reference: Press et al. 2022, arXiv:2108.12409, §3; bigscience-workshop/Megatron-DeepSpeed,
    megatron/model/transformer.py, for other numbers of heads.
    """
    lower = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / lower) for head in range(lower)]
    between = [2.0 ** (-4.0 * (head + 1) / lower) for head in range(0, 2 * (n_heads - lower), 2)]
    return slopes + between


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """c·tanh(x/c): about x near 0, never beyond ±c."""
    return cap * torch.tanh(x / cap)


class StochasticDepth(nn.Module):
    """In training, drops a residual branch for whole sequences and divides the kept ones by the keep probability.

        y = x · keep / (1 − p),   keep ~ Bernoulli(1 − p) per sequence

    Reference: Huang et al. 2016, arXiv:1603.09382, §3; scaled in training rather than in use.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x_BTD
        kept = 1.0 - self.probability
        keep_B11 = torch.bernoulli(torch.full((x_BTD.shape[0], 1, 1), kept, dtype=x_BTD.dtype, device=x_BTD.device))
        return x_BTD * (keep_B11 / kept)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"
