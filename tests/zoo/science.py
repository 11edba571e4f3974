"""Functions, tables and series: operators, embeddings of numbers, forecasts, torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.inputs import rows
from tests.zoo.model import Model, of
from tests.zoo.reasons import RELATIVE, RMS

SPECTRAL = {r"convs\.\d+\.bias$": "added to each channel", r"skips\.\d+\.weight$": "soft gating: scales each channel"}


DIRECTION = {r"weight\.original1$": "weight norm's direction"}


LENGTH = {r"weight\.original0$": "weight norm's gain"}


KAN: dict[str, Any] = {
    "decays": {
        r"coef$": "einsum with the splines' values",
        r"scale_base$": "(scale_base * silu(x)).sum(): a matrix over edges",
    },
    "exempt": {r"affine$": "scale and shift inside and outside each symbolic function"},
    "open": {
        r"scale_sp$": "times each edge's spline, summed over edges: a matrix, or a scale of what is weighted already"
    },
}


ONE_WIDE = "multiplies one feature to a vector: a projection from width 1, or scales; its authors' groups leave it out"


MODELS = [
    Model(
        "pykan",
        "KAN",
        lambda: of("kan").KAN(width=[8, 16, 4], grid=3, k=3, auto_save=False, symbolic_enabled=False),
        rows,
        **KAN,
    ),
    Model(
        "pykan",
        "KAN, small",
        lambda: of("kan").KAN(width=[2, 4, 1], grid=3, k=3, auto_save=False, symbolic_enabled=True),
        lambda: rows(2),
        **KAN,
    ),
    Model(
        "pytorch-tabnet",
        "TabNet",
        lambda: of("pytorch_tabnet.tab_network").TabNet(
            8, 3, n_d=4, n_a=4, n_steps=2, virtual_batch_size=6, group_attention_matrix=torch.eye(8)
        ),
        rows,
    ),
    Model(
        "tabm",
        "TabM",
        lambda: of("tabm").TabM(
            n_num_features=8,
            cat_cardinalities=[],
            d_out=3,
            n_blocks=2,
            d_block=16,
            dropout=0.0,
            k=4,
            arch_type="tabm",
            start_scaling_init="random-signs",
        ),
        rows,
        decays={r"\.weight$": "a matrix that all members share, or a stack of one for each"},
        exempt={
            r"\.[rs]$": "scale each member's features before and after the shared matrix",
            r"\.bias$": "a bias for each member",
        },
    ),
    Model(
        "rtdl-num-embeddings",
        "periodic embeddings and an MLP",
        lambda: periodic(),
        rows,
        decays={r"linear\.weight$": "a stack of matrices, one a feature"},
        exempt={r"linear\.bias$": "a stack of biases"},
        open={r"periodic\.weight$": "cos(2π w x): frequencies, or a projection from width 1"},
    ),
    Model(
        "rtdl-num-embeddings",
        "piecewise-linear embeddings",
        lambda: piecewise(),
        rows,
        decays={r"linear\.weight$": "a stack of matrices, one a feature"},
        exempt={r"linear0\.bias$": "a stack of biases"},
        open={r"linear0\.weight$": ONE_WIDE},
    ),
    Model(
        "rtdl_revisiting_models",
        "FT-Transformer",
        lambda: of("rtdl_revisiting_models").FTTransformer(
            n_cont_features=8,
            cat_cardinalities=[3],
            d_out=3,
            n_blocks=2,
            d_block=16,
            attention_n_heads=2,
            attention_dropout=0.0,
            ffn_d_hidden=None,
            ffn_d_hidden_multiplier=2.0,
            ffn_dropout=0.0,
            residual_dropout=0.0,
        ),
        lambda: (rows(), torch.randint(0, 3, (6, 1))),
        exempt={r"embeddings\.bias$": "a bias for each feature's token"},
        open={r"cls_embedding\.weight$": "a learned token", r"cont_embeddings\.weight$": ONE_WIDE},
    ),
    Model(
        "neuraloperator",
        "FNO",
        lambda: of("neuralop.models").FNO(n_modes=(4, 4), hidden_channels=8, in_channels=1, out_channels=1, n_layers=2),
        lambda: torch.randn(1, 1, 16, 16),
        decays={r"weight\.tensor$": "einsum over channels, a matrix for each frequency"},
        exempt=SPECTRAL,
    ),
    Model(
        "neuraloperator",
        "TFNO",
        lambda: of("neuralop.models").TFNO(
            n_modes=(4, 4),
            hidden_channels=8,
            in_channels=1,
            out_channels=1,
            n_layers=2,
            factorization="Tucker",
            rank=0.4,
        ),
        lambda: torch.randn(1, 1, 16, 16),
        decays={r"weight\.(core|factors)": "core and factors of what FNO has as one stack of matrices"},
        exempt=SPECTRAL,
    ),
    Model(
        "neuraloperator",
        "UNO",
        lambda: of("neuralop.models").UNO(
            in_channels=1,
            out_channels=1,
            hidden_channels=8,
            uno_out_channels=[8, 8, 8],
            uno_n_modes=[[4, 4]] * 3,
            uno_scalings=[[1.0, 1.0], [0.5, 0.5], [2.0, 2.0]],
            n_layers=3,
            channel_mlp_skip="linear",
        ),
        lambda: torch.randn(1, 1, 16, 16),
        decays={r"weight\.tensor$": "einsum over channels, a matrix for each frequency"},
        exempt={r"convs\.\d+\.bias$": "added to each channel"},
    ),
    Model(
        "siren-pytorch",
        "SirenNet",
        lambda: of("siren_pytorch").SirenNet(2, 16, 3, 2),
        lambda: rows(2),
        decays={r"weight$": "F.linear"},
        exempt={r"bias$": "F.linear"},
    ),
    Model(
        "pytorch-tcn",
        "TCN",
        lambda: of("pytorch_tcn").TCN(8, [16, 16], kernel_size=3, use_norm="weight_norm", input_shape="NLC"),
        lambda: torch.randn(2, 20, 8),
        decays=DIRECTION,
        exempt=LENGTH,
    ),
    Model(
        "pytorch-crf",
        "CRF",
        lambda: Tagger(),
        lambda: torch.randn(2, 5, 8),
        exempt={r"(start|end)_transitions$": "added to the scores at the ends: biases"},
        open={r"\.transitions$": "added to the scores of each pair of labels: a table, or biases"},
    ),
    Model(
        "chronos-forecasting",
        "Chronos-Bolt",
        lambda: bolt(),
        lambda: torch.randn(2, 32),
        exempt=RMS,
        open=RELATIVE
        | {r"shared\.weight$": "two rows, start and [REG], that no input looks up: learned tokens, or an embedding"},
    ),
    Model(
        "gluonts",
        "PatchTST",
        lambda: of("gluonts.torch.model.patch_tst.module").PatchTSTModel(
            num_feat_dynamic_real=0,
            prediction_length=4,
            context_length=16,
            patch_len=4,
            stride=4,
            padding_patch="end",
            d_model=16,
            nhead=2,
            dim_feedforward=32,
            dropout=0.0,
            activation="relu",
            norm_first=False,
            num_encoder_layers=2,
            scaling="mean",
        ),
        lambda: (torch.randn(2, 16), torch.ones(2, 16)),
    ),
    Model("gluonts", "TFT", lambda: tft(), lambda: tft_batch()),
    Model("demucs", "HDemucs", lambda: demucs(), lambda: torch.randn(1, 2, 16384), exempt={r"\.scale$": "layer scale"}),
    Model(
        "torch",
        "nn.Transformer",
        lambda: nn.Transformer(32, 4, 2, 2, 64, batch_first=True),
        lambda: (torch.randn(2, 8, 32), torch.randn(2, 6, 32)),
    ),
    Model("torch", "LSTM with projection, GRU", lambda: Recurrent(), lambda: torch.randn(2, 8, 8)),
    Model(
        "torch",
        "weight, spectral and orthogonal parametrisations",
        lambda: parametrised(),
        lambda: torch.randn(2, 3, 8, 8),
        decays=DIRECTION
        | {r"2\.parametrizations\.weight\.original$": "the weight before it is divided by its spectral norm"},
        exempt=LENGTH,
        open={r"4\.parametrizations\.weight\.original$": "generates an orthogonal matrix: a weight, or angles"},
    ),
]


def periodic() -> nn.Module:
    embeddings = of("rtdl_num_embeddings").PeriodicEmbeddings(8, 4, lite=False)
    return nn.Sequential(embeddings, nn.Flatten(), nn.Linear(32, 3))


def piecewise() -> nn.Module:
    package = of("rtdl_num_embeddings")
    bins = package.compute_bins(torch.rand(64, 8), n_bins=4)
    return nn.Sequential(
        package.PiecewiseLinearEmbeddings(bins, 4, activation=True, version="B"), nn.Flatten(), nn.Linear(32, 3)
    )


class Tagger(nn.Module):
    """A linear layer's scores through a conditional random field."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(8, 4)
        self.crf = of("torchcrf").CRF(4, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.crf(self.scores(x), torch.zeros(x.shape[:2], dtype=torch.long))


def bolt() -> nn.Module:
    settings = {
        "context_length": 32,
        "prediction_length": 8,
        "input_patch_size": 8,
        "input_patch_stride": 8,
        "quantiles": [0.1, 0.5, 0.9],
        "use_reg_token": True,
    }
    config = of("transformers").T5Config(
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        vocab_size=2,
        pad_token_id=0,
        decoder_start_token_id=0,
        reg_token_id=1,
        chronos_config=settings,
    )
    model: nn.Module = of("chronos.chronos_bolt").ChronosBoltModelForForecasting(config)
    return model


def tft() -> nn.Module:
    model: nn.Module = of("gluonts.torch.model.tft.module").TemporalFusionTransformerModel(
        context_length=8,
        prediction_length=4,
        d_feat_static_real=[1],
        c_feat_static_cat=[3],
        d_feat_dynamic_real=[2],
        c_feat_dynamic_cat=[],
        num_heads=2,
        d_hidden=8,
        d_var=8,
        dropout_rate=0.0,
    )
    return model


def tft_batch() -> Any:
    return (
        torch.randn(2, 8),
        torch.ones(2, 8),
        torch.randn(2, 1),
        torch.zeros(2, 1, dtype=torch.long),
        torch.randn(2, 12, 2),
        torch.zeros(2, 12, 0, dtype=torch.long),
    )


def demucs() -> nn.Module:
    model: nn.Module = of("demucs.hdemucs").HDemucs(sources=["voice", "rest"], channels=4, hybrid_old=False)
    return model


class Recurrent(nn.Module):
    """All of torch's recurrent modules in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, proj_size=8, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.cell = nn.LSTMCell(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        x, _ = self.gru(self.lstm(x)[0])
        return self.cell(x[:, -1])


def parametrised() -> nn.Module:
    p = nn.utils.parametrizations
    return nn.Sequential(
        p.weight_norm(nn.Conv2d(3, 8, 3)),
        nn.ReLU(),
        p.spectral_norm(nn.Conv2d(8, 8, 3)),
        nn.Flatten(),
        p.orthogonal(nn.Linear(128, 16)),
        p.weight_norm(nn.Linear(16, 4)),
    )
