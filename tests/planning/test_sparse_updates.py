"""Weights that reach their matrix as a sparse tensor, in a forward that writes in place as well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import weightdecay


class SparseUpdate(nn.Module):
    """A frozen matrix and the entries of its update, as a sparse tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.entries = nn.Parameter(torch.randn(12))
        self.register_buffer("places", torch.randperm(64)[:12])

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[0] = 0.0
        assert isinstance(self.places, Tensor)
        places = torch.stack([self.places // 8, self.places % 8])
        update = torch.sparse_coo_tensor(places, self.entries, (8, 8))
        return nn.functional.linear(x, self.base.weight + update)


def test_entries_of_a_sparse_update_are_a_matrix_also_where_a_forward_writes_in_place() -> None:
    for batch in (None, torch.randn(3, 8)):
        assert weightdecay.plan(SparseUpdate(), batch=batch)["entries"].decays
