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

    Args:
        layer: which block this is, counted from 0.
        attention: (stream, cache, what else it takes) to the branch's output.
    """

    def __init__(self, config: ModelConfig, layer: int, attention: nn.Module) -> None:
        super().__init__()
        norms = config.norms
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

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None, *more: Tensor) -> tuple[Tensor, Routing | None]:
        """The stream after this block, and which of its experts the tokens went to if it has any."""
        attended_BTD, _ = self._through("attention", x_BTD, cache, *more)
        return self._through("feedforward", attended_BTD)

    def _through(self, branch: str, x_BTD: Tensor, *more: object) -> tuple[Tensor, Routing | None]:
        """The stream after one branch: in a call of one kernel, where there is one for it, or part by part."""
        part = getattr(self, branch)
        if (norm := self._norm_of_one_kernel(branch, part, x_BTD, *more)) is not None:
            return part.added(x_BTD, norm.kernel()), None
        x_BTD, normed_BTD = self._branched(branch, x_BTD)
        output = part(normed_BTD, *more)
        y_BTD, routing = output if isinstance(output, tuple) else (output, None)
        return self._added(branch, x_BTD, y_BTD), routing

    def _norm_of_one_kernel(self, branch: str, part: nn.Module, x_BTD: Tensor, *more: object) -> KernelNorm | None:
        """The norm of a branch whose x + part(norm(x)) `kernels.branches` computes as one; else None."""
        norm = getattr(self, f"{branch}_norm")
        if not (isinstance(part, Attention | FeedForward) and isinstance(norm, KernelNorm) and part.is_one_function):
            return None
        drops = self.training and (self.dropout.p or self.stochastic_depth.probability)
        adds_branch_of_norm = self.before and not self.after_branch and not self.after_sum
        if drops or not adds_branch_of_norm or not usable(x_BTD) or any(one is not None for one in more):
            return None
        # Hooks are to see what goes in and out of their module.
        return None if has_hooks(norm, part, *part.children()) else norm

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


class ParallelBlock(Block):
    """Both branches of the block's input: x + attention(norm₁(x)) + feedforward(norm₂(x)).

    norm₂ is norm₁ where the two have one norm.
    """

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None, *more: Tensor) -> tuple[Tensor, Routing | None]:
        """The stream after this block, and which of its experts the tokens went to if it has any."""
        x_BTD, normed_BTD = self._branched("attention", x_BTD)
        attended_BTD = self._added("attention", x_BTD, self.attention(normed_BTD, cache, *more))
        if self.feedforward_norm is not None:
            _, normed_BTD = self._branched("feedforward", x_BTD)
        output = self.feedforward(normed_BTD)
        y_BTD, routing = output if isinstance(output, tuple) else (output, None)
        return self._added("feedforward", attended_BTD, y_BTD), routing


def make_block(config: ModelConfig, layer: int, attention: nn.Module) -> Block:
    """The block that a configuration's `branches` name; arguments as of `Block`."""
    kind = Block if config.branches == "sequential" else ParallelBlock
    return kind(config, layer, attention)


def _feedforward(config: ModelConfig, layer: int) -> Experts | FeedForward:
    if config.experts is None:
        return FeedForward(config, config.d_ff)
    if layer < config.experts.n_dense_layers:
        return FeedForward(config, config.experts.d_ff_dense or config.d_ff)
    return Experts(config, config.experts)
