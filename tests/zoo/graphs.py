"""Graph and geometric networks: messages, attention over neighbours, equivariance, point sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.model import Model, of


def graph(width: int = 8, edge_width: int = 0) -> Any:
    """Six nodes in a ring, with their edges in both directions."""
    ring = torch.arange(6)
    edges = torch.stack([torch.cat([ring, (ring + 1) % 6]), torch.cat([(ring + 1) % 6, ring])])
    batch = (torch.randn(6, width), edges)
    return (*batch, torch.rand(12, edge_width)) if edge_width else batch


def conv(name: str, *args: Any, **settings: Any) -> nn.Module:
    model: nn.Module = getattr(of("torch_geometric.nn"), name)(*args, **settings)
    return model


LINEAR = {r"weight$": "x @ weight.T, in PyG's own Linear"}
BIAS = {r"bias$": "added to each node, feature by feature"}
ATTENTION = {r"att(_\w+)?$": "(x * att).sum(-1): a projection to one score a head"}
G = "torch-geometric"
MODELS = [
    Model(
        G,
        "GCN",
        lambda: conv("GCN", 8, 16, num_layers=2, out_channels=4, norm="graph_norm"),
        graph,
        decays=LINEAR,
        exempt=BIAS | {r"norms\.\d+\.(weight|mean_scale)$": "gain of GraphNorm, and how much of the mean it takes"},
    ),
    Model(
        G,
        "GAT",
        lambda: conv("GAT", 8, 16, num_layers=2, out_channels=4, heads=2),
        graph,
        decays=LINEAR | ATTENTION,
        exempt=BIAS,
    ),
    Model(
        G,
        "GATv2",
        lambda: conv("GAT", 8, 16, num_layers=2, out_channels=4, heads=2, v2=True),
        graph,
        decays=LINEAR | ATTENTION,
        exempt=BIAS,
    ),
    Model(
        G,
        "GIN",
        lambda: conv("GIN", 8, 16, num_layers=2, out_channels=4, train_eps=True),
        graph,
        decays=LINEAR,
        exempt=BIAS | {r"eps$": "(1 + eps) * x: a scale"},
    ),
    Model(
        G,
        "GMMConv",
        lambda: conv("GMMConv", 8, 16, dim=2, kernel_size=3),
        lambda: graph(8, 2),
        decays=LINEAR | {r"^g$": "x @ g: a matrix for each kernel"},
        exempt=BIAS | {r"^(mu|sigma)$": "exp(-(e - mu)² / sigma²): centres and widths of Gaussians"},
    ),
    Model(
        G,
        "AttentiveFP",
        lambda: conv("AttentiveFP", 8, 16, 4, edge_dim=4, num_layers=2, num_timesteps=2),
        lambda: (*graph(8, 4), torch.zeros(6, dtype=torch.long)),
        decays=LINEAR | ATTENTION,
        exempt=BIAS,
    ),
    Model(
        G,
        "PNA",
        lambda: conv(
            "PNA",
            8,
            16,
            num_layers=2,
            out_channels=4,
            aggregators=["mean", "max"],
            scalers=["identity"],
            deg=torch.tensor([0, 0, 6]),
        ),
        graph,
        decays=LINEAR,
        exempt=BIAS,
    ),
    Model(
        G,
        "TransformerConv",
        lambda: conv("TransformerConv", 8, 16, heads=2, beta=True),
        graph,
        decays=LINEAR,
        exempt=BIAS,
    ),
    Model(G, "ChebConv", lambda: conv("ChebConv", 8, 16, K=3), graph, decays=LINEAR, exempt=BIAS),
    Model(
        G,
        "RGCNConv",
        lambda: conv("RGCNConv", 8, 16, num_relations=3, num_bases=2),
        lambda: (*graph(), torch.arange(12) % 3),
        decays={
            r"weight$": "bases of the relations' matrices",
            r"comp$": "comp @ bases: how each relation's matrix is put together, a factor of it",
            r"root$": "x @ root",
        },
        exempt=BIAS,
    ),
    Model(
        G, "NNConv", lambda: conv("NNConv", 8, 16, nn.Linear(4, 128)), lambda: graph(8, 4), decays=LINEAR, exempt=BIAS
    ),
    Model(
        G,
        "ARMAConv",
        lambda: conv("ARMAConv", 8, 16, num_stacks=2, num_layers=2),
        graph,
        decays={r"weight$": "x @ weight, one matrix a stack"},
        exempt=BIAS,
    ),
    Model(
        G, "SuperGATConv", lambda: conv("SuperGATConv", 8, 16, heads=2), graph, decays=LINEAR | ATTENTION, exempt=BIAS
    ),
    Model(G, "FAConv", lambda: conv("FAConv", 8), lambda: (graph()[0], torch.randn(6, 8), graph()[1]), decays=LINEAR),
    Model(
        G,
        "GENConv",
        lambda: conv("GENConv", 8, 16, aggr="softmax", learn_t=True, msg_norm=True, learn_msg_scale=True),
        graph,
        decays=LINEAR,
        exempt={
            r"\.t$": "softmax(t * x): a temperature",
            r"scale$": "scales the message's length",
            r"mlp\.1\.weight$": "the gain of a batch norm",
        },
    ),
    Model(
        G,
        "SchNet",
        lambda: conv(
            "SchNet",
            hidden_channels=16,
            num_filters=16,
            num_interactions=2,
            num_gaussians=8,
            interaction_graph=all_pairs,
        ),
        lambda: (torch.tensor([6, 1, 1, 8]), torch.randn(4, 3)),
    ),
    Model(
        G,
        "Polynormer",
        lambda: conv("Polynormer", 8, 16, 4, local_layers=2, global_layers=1),
        lambda: (*graph(), torch.zeros(6, dtype=torch.long)),
        decays={r"local_convs\.\d+\.lin\.weight$": "x @ weight.T, in PyG's own Linear"},
        exempt={r"local_convs\.\d+\.bias$": "added to each node"},
    ),
    Model(
        G,
        "GatedGraphConv",
        lambda: conv("GatedGraphConv", 16, num_layers=2),
        graph,
        decays={r"^weight$": "x @ weight[i], one matrix a layer"},
    ),
    Model(
        "egnn-pytorch",
        "EGNN_Network",
        lambda: of("egnn_pytorch").EGNN_Network(
            num_tokens=8,
            num_positions=16,
            dim=16,
            depth=2,
            global_linear_attn_every=1,
            global_linear_attn_heads=2,
            global_linear_attn_dim_head=8,
            num_global_tokens=2,
            coor_weights_clamp_value=2.0,
            norm_coors=True,
        ),
        lambda: (torch.randint(0, 8, (1, 10)), torch.randn(1, 10, 3)),
        exempt={r"coors_norm\.scale$": "scales directions of length 1"},
        open={r"global_tokens$": "learned tokens beside the real ones"},
    ),
    Model(
        "e3nn",
        "gated convolution",
        lambda: equivariant(),
        lambda: torch.randn(5, 10),
        decays={r"[02]\.weight$": "all blocks of the equivariant matrix, stored flat"},
        exempt={r"2\.bias$|3\.bias$": "added to scalars", r"3\.weight$": "the gain of its norm"},
    ),
    Model(
        "e3nn",
        "tensor product with its own weights",
        lambda: of("e3nn.o3").FullyConnectedTensorProduct("4x0e+2x1o", "1x0e+1x1o", "4x0e+2x1o"),
        lambda: (torch.randn(5, 10), torch.randn(5, 4)),
        decays={r"^weight$": "the weights of all paths from two inputs to the output, stored flat"},
    ),
]


def all_pairs(positions: torch.Tensor, batch: torch.Tensor) -> Any:
    """Every atom beside every other: SchNet's neighbours without pyg-lib."""
    first, second = torch.triu_indices(len(batch), len(batch), offset=1)
    edges = torch.stack([torch.cat([first, second]), torch.cat([second, first])])
    return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=-1)


def equivariant() -> nn.Module:
    o3, parts = of("e3nn.o3"), of("e3nn.nn")
    gate = parts.Gate("4x0e", [torch.relu], "2x0e", [torch.sigmoid], "2x1o")
    return nn.Sequential(
        o3.Linear("4x0e+2x1o", gate.irreps_in),
        gate,
        o3.Linear(gate.irreps_out, "4x0e+2x1o", biases=True),
        parts.BatchNorm("4x0e+2x1o"),
    )
