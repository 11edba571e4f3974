"""Inputs are guessed from names, layers and configurations; what is too large and needs values is shrunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from torch import nn

from tests.planning.test_plan import RootMeanSquare
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.evidence.tracing import LARGEST_RUN, trace


def untraced(model: nn.Module) -> list[str]:
    """The names of the tensors whose use no guessed run showed."""
    return [facts.name for facts in trace(model, read_tensors(model)).tensors if not facts.uses]


class Denoiser(nn.Module):
    """As diffusers' transformers: all that they ask for, of widths that only the configuration tells."""

    def __init__(self) -> None:
        super().__init__()
        # diffusers keeps its configuration here, and shows it as a property
        self._internal_dict = {
            "in_channels": 4, "joint_attention_dim": 20, "pooled_projection_dim": 12, "guidance_embeds": True,
            "addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 36,
            "addition_time_embed_dim": 4,
        }  # fmt: skip
        self.patch = nn.Conv2d(4, 8, 2, 2)
        self.context, self.pooled, self.added = nn.Linear(20, 8), nn.Linear(12, 8), nn.Linear(12 + 6, 8)
        self.scale_shift_table = nn.Parameter(torch.randn(6, 8))

    @property
    def config(self) -> Any:
        return self._internal_dict

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert added_cond_kwargs is not None
        assert guidance is not None
        assert timestep.shape == (len(hidden_states),)
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        added = self.added(torch.cat((added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]), 1))
        condition = self.pooled(pooled_projections) + added + (timestep * guidance)[:, None]
        shift, scale, *_ = (self.scale_shift_table + condition[:, None]).chunk(6, 1)
        out: torch.Tensor = x * (1 + scale) + shift + self.context(encoder_hidden_states).mean(1, keepdim=True)
        return out


class VideoDenoiser(nn.Module):
    """Frames before channels, and no configuration: the layers tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.to_k = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(24, 8)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        batch, frames = sample.shape[:2]
        x = self.conv(sample.flatten(0, 1)) * self.gain
        keys = self.to_k(encoder_hidden_states).mean(1)[:, None, :, None, None]
        return {"sample": x.unflatten(0, (batch, frames)) + keys * timestep[:, None, None, None, None]}


class PatchesOfPictures(nn.Module):
    """A picture is cut into patches before the first linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(3 * 16 * 16, 8), nn.Parameter(torch.randn(1, 4, 8))

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        x = img.unfold(2, 16, 16).unfold(3, 16, 16).flatten(2, 3).permute(0, 2, 1, 3, 4).flatten(2)
        out: torch.Tensor = self.embed(x) + self.positions[:, : x.shape[1]]
        return out


class OnGraphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.edge_dim = 12, 5
        self.mix, self.edges, self.attention = nn.Linear(12, 8), nn.Linear(5, 8), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, edge_attr: torch.Tensor | None = None) -> torch.Tensor:
        x = self.mix(x)
        assert edge_attr is not None
        message = (x[edge_index[0]] + self.edges(edge_attr)) * self.attention[0]
        return torch.zeros_like(x).index_add(0, edge_index[1], message)


@pytest.mark.parametrize("kind", [Denoiser, VideoDenoiser, PatchesOfPictures, OnGraphs])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_inputs_are_guessed_by_the_names_of_arguments_and_the_configuration(
    kind: Callable[[], nn.Module], device: str
) -> None:
    with torch.device(device):
        model = kind()
    assert untraced(model) == []


class Asking(nn.Module):
    """Routes by values that it has computed, so that it cannot run whole without them."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm, self.steering = RootMeanSquare(width), nn.Parameter(torch.ones(width))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
            if x.mean().item() > 1e9:
                break
        out: torch.Tensor = self.norm(x) * self.steering
        return out


@dataclass
class Sizes:
    n_embd: int = 4096
    n_layer: int = 8


class Transformers(Sizes):
    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class FromObject(Asking):
    def __init__(self, config: Any) -> None:
        super().__init__(config.n_embd, config.n_layer)
        self.config = config


class FromKeywords(Asking):
    def __init__(self, n_embd: int, n_layer: int) -> None:
        super().__init__(n_embd, n_layer)
        self._internal_dict = FrozenDict(n_embd=n_embd, n_layer=n_layer)


class FromMapping(Asking):
    def __init__(self, config: Mapping[str, int]) -> None:
        super().__init__(config["n_embd"], config["n_layer"])
        self.config = config


class FrozenDict(Mapping[str, int]):
    """As diffusers'."""

    def __init__(self, **values: int) -> None:
        self.values_by_name = values

    def __getitem__(self, name: str) -> int:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)


LARGE: dict[str, Callable[[], nn.Module]] = {
    "to_dict": lambda: FromObject(Transformers()),
    "dataclass": lambda: FromObject(Sizes()),
    "keywords": lambda: FromKeywords(4096, 8),
    "dictionary": lambda: FromMapping({"n_embd": 4096, "n_layer": 8}),
}


@pytest.mark.parametrize("kind", LARGE)
def test_what_is_large_and_asks_for_values_is_told_by_a_small_one_of_its_configuration(kind: str) -> None:
    with torch.device("meta"):
        model = LARGE[kind]()
    assert sum(parameter.numel() for parameter in model.parameters()) > LARGEST_RUN
    facts = {facts.name: facts for facts in trace(model, read_tensors(model)).tensors}
    # only a run of the whole shows that the steering multiplies what is normalised
    assert facts["steering"].uses
    assert all(facts[name].uses for name in ("embed.weight", "layers.7.weight", "norm.weight"))


def test_without_a_configuration_its_parts_are_told() -> None:
    with torch.device("meta"):
        model = Asking(4096, 8)
    assert "norm.weight" not in untraced(model)
