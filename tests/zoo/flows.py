"""Densities: normalising flows and Gaussian processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.inputs import rows
from tests.zoo.model import Model, of

SPLINE = {
    r"unnormalized_(widths|heights|derivatives)$": "softmax or softplus makes them the bins and slopes of a spline"
}


ENTRIES = {r"(lower|upper)_entries$": "entries of triangular matrices, stored flat"}


NORMAL = {r"(^|\.)(s|t|log_scale|shift)$": "scale and shift of each feature"}


KERNEL = {r"raw_\w+$": "softplus makes them length scales, periods, noise and output scale"}


MODELS = [
    Model(
        "nflows",
        "coupling splines and LU",
        lambda: splines(),
        rows,
        decays=ENTRIES,
        exempt=SPLINE | NORMAL | {r"upper_diag$": "softplus makes it the diagonal: a scale", r"0\.bias$": "added"},
    ),
    Model(
        "nflows",
        "QR, SVD, Householder, batch norm",
        lambda: linears(),
        rows,
        decays={r"upper_entries$": "entries of a triangular matrix, stored flat"}
        | {r"q_vectors$": "directions of reflections, normalised on their way", r"_weight$": "a matrix"},
        exempt={
            r"\.bias$": "added",
            r"diag(onal)?$": "its exponential or softplus is the diagonal: a scale",
            r"unconstrained_weight$": "softplus makes it the gain of batch norm",
        },
    ),
    Model(
        "nflows",
        "masked autoregressive flow",
        lambda: of("nflows.transforms").MaskedAffineAutoregressiveTransform(8, 16),
        rows,
    ),
    Model(
        "normflows",
        "autoregressive rational quadratic splines",
        lambda: of("normflows").flows.AutoregressiveRationalQuadraticSpline(8, 1, 16),
        rows,
    ),
    Model(
        "normflows",
        "coupled splines, LU permutation, ActNorm",
        lambda: normflow(),
        rows,
        decays=ENTRIES,
        exempt=SPLINE | NORMAL | {r"upper_diag$": "softplus makes it the diagonal: a scale", r"linear\.bias$": "added"},
    ),
    Model(
        "normflows",
        "planar and radial",
        lambda: planar(),
        rows,
        decays={r"\.w$": "(w * z).sum(): a projection to width 1"},
        exempt={r"\.(b|alpha|beta)$": "shift, radius and strength", r"z_0$": "the centre, subtracted"},
        open={r"\.u$": "u * tanh(w z + b): a projection from width 1, or a scale of each feature"},
    ),
    Model("zuko", "NSF", lambda: Density(of("zuko.flows").NSF(8, transforms=2, hidden_features=(16,))), rows),
    Model(
        "zuko",
        "UNAF",
        lambda: Density(of("zuko.flows").UNAF(8, transforms=1, hidden_features=(16,))),
        rows,
        decays={r"integrand\.\d+\.weight$": "a stack of matrices, one a feature"},
        exempt={r"integrand\.\d+\.bias$": "a stack of biases"},
    ),
    Model(
        "gpytorch",
        "exact GP, ARD RBF",
        lambda: exact_gp(),
        rows,
        decays={r"mean\.weights$": "x @ weights"},
        exempt=KERNEL | {r"mean\.bias$": "added"},
    ),
    Model(
        "gpytorch",
        "SVGP",
        lambda: svgp(),
        rows,
        exempt=KERNEL
        | {
            r"inducing_points$": "centres to which distances are taken",
            r"chol_variational_covar$": "a covariance's factor, which starts as the identity",
        },
        open={
            r"variational_mean$": "values at the inducing points, met by the kernel as a matrix; a vector all the same"
        },
    ),
]


class Density(nn.Module):
    """A flow, called for the log density of its input, as one trains it."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: torch.Tensor) -> Any:
        return self.flow().log_prob(x)


def splines() -> nn.Module:
    t = of("nflows.transforms")
    net = of("nflows.nn.nets").ResidualNet
    coupling = t.PiecewiseRationalQuadraticCouplingTransform(
        torch.tensor([1, 0] * 4),
        lambda i, o: net(i, o, hidden_features=16),
        num_bins=4,
        tails="linear",
        tail_bound=3.0,
        apply_unconditional_transform=True,
    )
    model: nn.Module = t.CompositeTransform([t.LULinear(8), coupling, t.ActNorm(8)])
    return model


def linears() -> nn.Module:
    t = of("nflows.transforms")
    model: nn.Module = t.CompositeTransform(
        [t.QRLinear(8, 4), t.SVDLinear(8, 4), t.NaiveLinear(8), t.HouseholderSequence(8, 3), t.BatchNorm(8)]
    )
    return model


def normflow() -> nn.Module:
    n = of("normflows").flows
    return Chain(
        n.CoupledRationalQuadraticSpline(8, 1, 16), n.LULinearPermute(8), n.ActNorm((8,)), n.AffineConstFlow((8,))
    )


def planar() -> nn.Module:
    n = of("normflows").flows
    return Chain(n.Planar((8,)), n.Radial((8,)))


class Chain(nn.Module):
    """Flows in a row; each gives its value and the logarithm of its determinant."""

    def __init__(self, *flows: nn.Module) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def forward(self, x: torch.Tensor) -> Any:
        total = 0.0
        for flow in self.flows:
            x, log_determinant = flow(x)
            total = total + log_determinant
        return x, total


def exact_gp() -> nn.Module:
    g = of("gpytorch")

    class ExactGP(g.models.ExactGP):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(torch.rand(6, 8), torch.rand(6), g.likelihoods.GaussianLikelihood())
            self.mean = g.means.LinearMean(8)
            self.kernel = g.kernels.ScaleKernel(g.kernels.RBFKernel(ard_num_dims=8) + g.kernels.PeriodicKernel())

        def forward(self, x: torch.Tensor) -> Any:
            return g.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    model: nn.Module = ExactGP().eval()
    return model


def svgp() -> nn.Module:
    g = of("gpytorch")

    class SVGP(g.models.ApproximateGP):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            posterior = g.variational.CholeskyVariationalDistribution(10)
            super().__init__(g.variational.VariationalStrategy(self, torch.rand(10, 8), posterior))
            self.mean = g.means.ConstantMean()
            self.kernel = g.kernels.ScaleKernel(g.kernels.RBFKernel(ard_num_dims=8))

        def forward(self, x: torch.Tensor) -> Any:
            return g.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    return SVGP()
