"""One block of a decoder: attention and a feed-forward part, each a branch beside the residual stream.

Shapes: B batch, T time, D d_model.
"""

from __future__ import annotations

from torch import Tensor, nn

from weightdecay.kernels.library import usable
from weightdecay.models.attention import Attention
from weightdecay.models.cache import LayerCache
from weightdecay.models.config import ModelConfig
from weightdecay.models.experts import Experts
from weightdecay.models.feedforward import FeedForward
from weightdecay.models.layers import KernelNorm, StochasticDepth, branched, has_hooks, make_norm
from weightdecay.models.routing import Routing


class Block(nn.Module):
    """Two branches f, one after the other, each with norms where `norms` of the configuration puts them.

        x ← sum(x + branch(f(before(x)))),   each of the three a norm or nothing

        pre       x + f(norm(x))              post      norm(x + f(x))
        sandwich  x + norm(f(norm(x)))        output    x + norm(f(x))

    Parallel branches both have the block's input: x + attention(norm₁(x)) + feedforward(norm₂(x)), norm₂ being norm₁
    where they have one norm.

    Args:
        layer: which block this is, counted from 0.
        attention: (stream, cache, what else it takes) to the branch's output.
    """

    def __init__(self, config: ModelConfig, layer: int, attention: nn.Module) -> None:
        super().__init__()
        norms = config.norms
        self.parallel = config.branches != "sequential"
        self.attention_norm = make_norm(config)
        self.attention = attention
        self.feedforward_norm = make_norm(config) if config.branches != "parallel_one_norm" else None
        self.feedforward: Experts | FeedForward = _feedforward(config, layer)
        if norms.before and norms.after != "none":
            self.attention_output_norm = make_norm(config)
            self.feedforward_output_norm = make_norm(config)
        self.dropout = nn.Dropout(config.training.dropout)
        self.stochastic_depth = StochasticDepth(config.training.stochastic_depth * (layer + 1) / config.n_layers)

        # Where each norm acts, by the end of its name; a block with norms on one side alone has one a branch.
        last = "output_norm" if norms.before else "norm"
        self.before = "norm" if norms.before else ""
        self.after_branch = last if norms.after == "branch" else ""
        self.after_sum = last if norms.after == "sum" else ""
        self.adds_branch_of_norm = norms.before and norms.after == "none" and not self.parallel

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None, *more: Tensor) -> tuple[Tensor, Routing | None]:
        """The stream after this block, and which of its experts the tokens went to if it has any."""
        attended_BTD = self._as_one_function(self.attention, self.attention_norm, x_BTD, cache)
        if attended_BTD is None:
            x_BTD, normed_BTD = self._branched("attention", x_BTD)
            attended_BTD = self._added("attention", x_BTD, self.attention(normed_BTD, cache, *more))

        output_BTD = self._as_one_function(self.feedforward, self.feedforward_norm, attended_BTD)
        if output_BTD is not None:
            return output_BTD, None
        if self.feedforward_norm is not None:
            stream_BTD, normed_BTD = self._branched("feedforward", x_BTD if self.parallel else attended_BTD)
            attended_BTD = attended_BTD if self.parallel else stream_BTD
        output = self.feedforward(normed_BTD)
        y_BTD, routing = output if isinstance(output, tuple) else (output, None)
        return self._added("feedforward", attended_BTD, y_BTD), routing

    def _as_one_function(
        self, part: nn.Module, norm: nn.Module | None, x_BTD: Tensor, cache: LayerCache | None = None
    ) -> Tensor | None:
        """x + part(norm(x)) by the one function that `kernels.branches` has for it; None where it has none."""
        drops = self.training and (self.dropout.p or self.stochastic_depth.probability)
        if not self.adds_branch_of_norm or drops or cache is not None or not usable(x_BTD):
            return None
        if not (isinstance(part, Attention | FeedForward) and isinstance(norm, KernelNorm) and part.is_one_function):
            return None
        if has_hooks(norm, part, *part.children()):  # which are to see what goes in and out of their module
            return None
        return part.added(x_BTD, norm.kernel())

    def _branched(self, branch: str, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The stream beside a branch, and what the branch begins with."""
        return branched(getattr(self, f"{branch}_{self.before}"), x_BTD) if self.before else (x_BTD, x_BTD)

    def _added(self, branch: str, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """The stream with a branch's output, less what dropout takes of it."""
        dropped_BTD = self.stochastic_depth(self.dropout(self._normed(branch, self.after_branch, y_BTD)))
        return self._normed(branch, self.after_sum, x_BTD + dropped_BTD)

    def _normed(self, branch: str, norm: str, x_BTD: Tensor) -> Tensor:
        normed_BTD: Tensor = getattr(self, f"{branch}_{norm}")(x_BTD) if norm else x_BTD
        return normed_BTD


def _feedforward(config: ModelConfig, layer: int) -> Experts | FeedForward:
    if config.experts is None:
        return FeedForward(config, config.d_ff)
    if layer < config.experts.n_dense_layers:
        return FeedForward(config, config.experts.d_ff_dense or config.d_ff)
    return Experts(config, config.experts)
