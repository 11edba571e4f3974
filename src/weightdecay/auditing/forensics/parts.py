"""Which tensor is what, by the plan's roles; and whether the head is the embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weightdecay.auditing.forensics.stored import FLOATS, Stored
from weightdecay.errors import ConfigError, WeightDecayError, did_you_mean
from weightdecay.models.decoder import GPT
from weightdecay.planning.evidence.tensors import read_shapes
from weightdecay.planning.model_sources import open_source
from weightdecay.planning.plan import plan, plan_tensors
from weightdecay.planning.roles.roles import Role

_IS_EMBEDDING = re.compile(r"(?:^|[._])(?:tok|token|word|embed|embedding|embeddings|wte|emb)", re.IGNORECASE)
_IS_NO_TOKENS = re.compile(r"pos|wpe|rel|type|segment|rotary|norm|proj|patch|time|ln_", re.IGNORECASE)
_IS_HEAD = re.compile(r"(?:^|\.)(?:lm_head|head|output|embed_out|output_layer|unembed\w*|decoder|score)(?:\.weight)?$")
_MATRICES = frozenset(
    {
        Role.LINEAR,
        Role.EXPERT_STACK,
        Role.ATTENTION_IN_PROJECTION,
        Role.RECURRENT,
        Role.CONVOLUTION,
    }
)  # routers are not: few numbers, and gradients that are mostly signal
# Families whose gains are 1 + w: w begins where decay pulls it to.
_UNIT_OFFSET = re.compile(r"gemma|qwen3_next")


@dataclass(frozen=True)
class Parts:
    """What the tensors are.

    Attributes:
        tied: why head and embedding are taken to be one tensor; "" where they are two.
        gain_start: where gains begin.
    """

    embedding: str
    head: str | None
    tied: str
    gains: tuple[str, ...]
    biases: tuple[str, ...]
    matrices: tuple[str, ...]
    gain_start: float


def parts_of(stored: Stored, embedding: str | None = None, *, untied: bool = False) -> Parts:
    """The parts of a decoder.

    Args:
        embedding: its name, where the user knows better.
        untied: the user says that the training had a head of its own, though none is here.

    Raises:
        ConfigError: there is no embedding, or none of that name.
    """
    roles = _roles(stored)
    floats = {name: shape for name, shape in stored.shapes.items() if stored.dtypes[name] in FLOATS and 0 not in shape}
    name = _embedding(stored, roles, embedding)
    heads = [
        other
        for other, shape in floats.items()
        if other != name
        and shape == stored.shapes[name]
        and (roles.get(other) is Role.OUTPUT_HEAD or _named_head(other))
    ]
    head = heads[0] if heads else None
    gains = [other for other in floats if roles.get(other) is Role.NORM_GAIN]
    biases = [other for other in floats if roles.get(other) is Role.BIAS]
    matrices = [
        other
        for other, shape in floats.items()
        if roles.get(other) in _MATRICES and len(shape) > 1 and other not in (name, head) and not _is_table(other)
    ]
    family = str(stored.config.get("model_type", ""))
    offset = stored.model.norms.kind == "rmsnorm_unit_offset" if stored.model else bool(_UNIT_OFFSET.match(family))
    tied = _tied(stored, name, head, untied=untied)
    return Parts(name, head, tied, tuple(gains), tuple(biases), tuple(matrices), 0.0 if offset else 1.0)


def _roles(stored: Stored) -> dict[str, Role]:
    """By a module where one can be built, else by names and shapes."""
    facts = read_shapes([(name, shape, stored.dtypes[name]) for name, shape in stored.shapes.items()])
    found = {tensor.name: tensor.role for tensor in plan_tensors(facts, unknown="exempt")}
    module: Any = None
    if stored.model is not None:
        module = GPT.blueprint(stored.model)
    elif stored.config and stored.folder is not None:
        try:
            source = open_source(str(stored.folder / "config.json"))
            module = source.model if source else None
        except WeightDecayError:  # transformers is not here, or does not know it: names must do
            module = None
    if module is not None:
        found |= {
            name: tensor.role
            for tensor in plan(module, unknown="exempt", trace=False)
            for name in (tensor.name, *tensor.aliases)
            if tensor.role is not Role.UNKNOWN
        }
    return found


def _embedding(stored: Stored, roles: Mapping[str, Role], asked: str | None) -> str:
    tables = {name: shape for name, shape in stored.shapes.items() if len(shape) == 2}
    if asked is not None:
        if asked not in stored.shapes:
            raise ConfigError(f"{stored.where} has no tensor '{asked}': {did_you_mean(asked, stored.shapes)}")
        if asked not in tables:
            raise ConfigError(f"'{asked}' has shape {list(stored.shapes[asked])}: an embedding is [rows, width]")
        return _usable(stored, asked)
    by_role = [name for name in tables if roles.get(name) is Role.EMBEDDING and not _IS_NO_TOKENS.search(name)]
    by_name = [name for name in tables if _IS_EMBEDDING.search(name) and not _IS_NO_TOKENS.search(name)]
    found = [name for name in by_role or by_name if not _named_head(name)]
    if not found:
        raise ConfigError(
            f"{stored.where}: none of its {len(stored.shapes)} tensors is known as an embedding of tokens, whose rows "
            "would tell: name it with --embedding, if there is one"
        )
    return _usable(stored, max(found, key=lambda name: stored.shapes[name][0]))


def _usable(stored: Stored, name: str) -> str:
    if stored.dtypes[name] not in FLOATS:
        raise ConfigError(
            f"{stored.where}: the embedding '{name}' is quantised ({stored.dtypes[name]}): give the checkpoint that it "
            "was made from"
        )
    rows, width = stored.shapes[name]
    if rows < 2 or width < 2:
        raise ConfigError(
            f"{stored.where}: the embedding '{name}' is {rows} × {width}: with fewer than two rows and columns there "
            "is none to tell from the others"
        )
    return name


def _tied(stored: Stored, name: str, head: str | None, *, untied: bool) -> str:
    """Why the head's gradient has moved the embedding's rows, too; or ""."""
    if head is not None and torch.equal(stored.read(name), stored.read(head)):
        return f"'{head}' equals '{name}' number by number"
    inner = stored.config.get("text_config") or {}
    declared = stored.config.get("tie_word_embeddings", inner.get("tie_word_embeddings"))
    if stored.model is not None:
        declared = stored.model.tied_head
    if head is not None or untied:
        return ""
    if declared is False:
        return ""
    if declared:
        return "tie_word_embeddings in config.json" if stored.config else "tied_head in its configuration"
    return "there is no head of its own among the tensors"


def _named_head(name: str) -> bool:
    return _IS_HEAD.search(name) is not None


def _is_table(name: str) -> bool:
    return _IS_EMBEDDING.search(name) is not None or (_IS_NO_TOKENS.search(name) is not None and "proj" not in name)
