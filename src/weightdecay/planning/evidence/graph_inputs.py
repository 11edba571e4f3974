"""Inputs for networks on graphs: features of nodes, and pairs of nodes that are joined."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

_NODES, _EDGES, _GRAPHS = 9, 22, 2
_WIDTHS_OF_NODES = ("in_channels", "in_features", "in_dim", "node_dim", "in_node_nf")
_WIDTHS_OF_EDGES = ("edge_dim", "edge_attr_dim", "dim", "edge_nf")
_KINDS = ("num_relations", "num_edge_types")


def graph_inputs(module: nn.Module, parameters: Sequence[inspect.Parameter]) -> Iterator[dict[str, Any]]:
    """Keyword arguments for a forward that takes `edge_index`, as torch_geometric's.

    Args:
        module: a runnable copy.
        parameters: those of its forward.
    """
    names = [parameter.name for parameter in parameters]
    required = {p.name for p in parameters if p.default is inspect.Parameter.empty}
    for width in _sizes(module, _WIDTHS_OF_NODES):
        for edge_width in _sizes(module, _WIDTHS_OF_EDGES) or [0]:
            values: dict[str, Any] = {
                names[0]: _floats(_NODES, width),
                "edge_index": torch.stack((torch.arange(_EDGES) % _NODES, torch.arange(_EDGES) * 5 % 7)),
                "edge_attr": _floats(_EDGES, edge_width) if edge_width else None,
                "edge_weight": torch.ones(_EDGES) if "edge_weight" in required else None,
                "edge_type": torch.arange(_EDGES) % min(_sizes(module, _KINDS) or [1]),
                "batch": torch.arange(_NODES) // (_NODES // _GRAPHS + 1),
                "pos": _floats(_NODES, 3),
            }
            yield {name: value for name, value in values.items() if name in names and value is not None}
            if "pseudo" in names:
                yield {names[0]: values[names[0]], "edge_index": values["edge_index"], "pseudo": values["edge_attr"]}


def _sizes(module: nn.Module, attributes: Sequence[str]) -> list[int]:
    """What the module, or the first in it that says so, calls by one of these names."""
    found: dict[int, None] = {}
    for part in module.modules():
        for name in attributes:
            value = vars(part).get(name)
            value = value[0] if isinstance(value, tuple) and value else value
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                found[value] = None
    return list(found)[:3]


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
