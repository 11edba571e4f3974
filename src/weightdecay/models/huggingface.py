"""Models as directories of transformers: config.json and safetensors, read and written.

    from pathlib import Path
    from weightdecay import GPT
    from weightdecay.models.huggingface import read_config, read_weights, write

    config = read_config(Path("SmolLM2-135M"))
    weights = read_weights(Path("SmolLM2-135M"), config, report=print)
    write(Path("out"), GPT(config), weights)

A model that transformers has no counterpart of is written in a format of our own: weightdecay.json in the place of
config.json, and our names in model.safetensors. Both are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightdecay.declared.values import plain
from weightdecay.errors import ConfigError, DamagedError, did_you_mean
from weightdecay.models import weightfiles
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.families import FAMILIES, family_of
from weightdecay.models.family import Family
from weightdecay.models.tensors import Link, same
from weightdecay.models.weightfiles import read_json

CONFIG, OWN_CONFIG, GENERATION = "config.json", "weightdecay.json", "generation_config.json"
# As large as transformers long made its files.
SHARD_BYTES = 5e9
# The first had the names of `models.flat`, which are still read.
_OWN_FORMAT = 2
# Masks and tables that older files carry along and the model computes itself.
_COMPUTED = re.compile(r"(\.attn\.(bias|masked_bias)|\.attention\.(bias|masked_bias)|rotary_emb\.inv_freq)$")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def holds_a_model(path: Path) -> bool:
    """Whether a directory is one that this module reads."""
    return (path / CONFIG).is_file() or (path / OWN_CONFIG).is_file()


def read_config(path: Path) -> ModelConfig:
    """The decoder in a directory; what only training sees is at its default.

    Raises:
        ConfigError: an architecture, or a setting of it, that is not known here; every one is named.
        DamagedError: the file cannot be read.
    """
    if (path / OWN_CONFIG).is_file():
        return _own_config(path / OWN_CONFIG)
    file = path / CONFIG
    values = read_json(file)
    try:
        return _family(values).config(values)
    except ConfigError as error:
        raise ConfigError([f"{file}: {fault}" for fault in error.faults]) from error
    except TypeError as error:
        raise ConfigError(f"{file}: a value has a type that no model of this kind has: {error}") from error


def read_weights(path: Path, config: ModelConfig, report: Callable[[str], None]) -> dict[str, Tensor]:
    """The weights under our names, in float32.

    Args:
        config: as `read_config` gave it.
        report: told what weights in another precision become.

    Raises:
        ConfigError: there are no weights, or they lie in a format that is not read here.
        DamagedError: missing, extra or misshapen tensors, all of them named; a file that cannot be read.
    """
    found = weightfiles.read_weights(path)
    ours = GPT.blueprint(config).tensors()
    own = (path / OWN_CONFIG).is_file()
    links = [same(name, name) for name in ours] if own else _links(path, config)
    shapes = {
        name: part.shape for link in links for name, part in zip(link.theirs, link.unpack(ours[link.ours]), strict=True)
    }
    faults: list[str] = []
    if not own:
        found = _without_extras(path, found, config, shapes, faults)
    faults += [f"{path}: no tensor '{name}'" for name in sorted(shapes.keys() - found.keys())]
    faults += [f"{path}: tensor '{name}' is not this model's" for name in sorted(found.keys() - shapes.keys())]
    faults += [
        f"{path}: tensor '{name}' is {list(found[name].shape)}, the configuration makes it {list(shape)}"
        for name, shape in sorted(shapes.items())
        if name in found and found[name].shape != shape
    ]
    if faults:
        raise DamagedError("\n".join(faults))
    dtypes = {tensor.dtype for tensor in found.values()}
    if strange := sorted(str(dtype) for dtype in dtypes if dtype not in _FLOATS):
        raise ConfigError(f"{path}: weights in {', '.join(strange)}; float32, float16 and bfloat16 are read")
    for dtype in sorted(dtypes - {torch.float32}, key=str):
        report(
            f"{path}: weights in {_name(dtype)} become float32, which holds each of them exactly; "
            "training keeps and updates them in float32"
        )
    wide = {name: tensor.float() for name, tensor in found.items()}
    return {link.ours: link.pack([wide[name] for name in link.theirs]).contiguous() for link in links}


@dataclass(frozen=True)
class Written:
    """A directory that was written.

    Attributes:
        architecture: the class of transformers that loads it; empty if there is none.
        lacking: why there is none.
        files: the names of the weights' files.
    """

    architecture: str
    lacking: str
    files: list[str]


def write(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    end_of_text_id: int | None = None,
    dtype: torch.dtype = torch.float32,
    shard_bytes: float = SHARD_BYTES,
) -> Written:
    """Write a directory that `transformers.AutoModelForCausalLM.from_pretrained` loads, or one in our own format.

    Args:
        path: an existing empty directory.
        weights: under our names, a tied tensor once; each is asked for once, so they may lie on the disk.
        end_of_text_id: the token that ends a document.
        dtype: float32, bfloat16 or float16, to which every weight is rounded; selection biases of routers are not.
        shard_bytes: the most that a file of weights holds, one larger tensor aside.

    Raises:
        ConfigError: a weight that `dtype` cannot hold; the tensors are named.
    """
    lacking, family = "", None
    try:
        family = family_of(config)
    except ConfigError as error:
        lacking = str(error)
    links = family.links(config) if family else [same(name, name) for name in weights]
    faults: list[str] = []
    files = weightfiles.write_weights(path, _parts(weights, links, dtype, faults), shard_bytes)
    if faults:
        raise ConfigError(faults)
    if family is None:
        own = {"format": _OWN_FORMAT, "model": plain(config)}
        _write_json(path / OWN_CONFIG, own)
        return Written("", lacking, files)
    ends = {"bos_token_id": end_of_text_id, "eos_token_id": end_of_text_id}
    document = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": _name(dtype),
        **ends,
        "pad_token_id": None,
        "initializer_range": config.initialisation.std,
        **family.describe(config),
    }
    _write_json(path / CONFIG, document)
    # Documents end with the token that begins them, and nothing was ever padded; generate() wants a token for it.
    _write_json(path / GENERATION, {**ends, "pad_token_id": end_of_text_id})
    return Written(family.architecture, "", files)


def _parts(
    weights: Mapping[str, Tensor], links: Iterable[Link], dtype: torch.dtype, faults: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Their tensors one after the other: copies, as parts of one tensor share its memory, which no file can hold."""
    for link in links:
        tensor = weights[link.ours].detach()
        # It moves by thousandths, which fewer bits do not tell apart; transformers keeps it in float32 as well.
        kind = torch.float32 if link.ours.endswith(".selection_bias") else dtype
        for name, part in zip(link.theirs, link.unpack(tensor), strict=True):
            rounded = part.to(kind, copy=True, memory_format=torch.contiguous_format)
            if not bool(rounded.isfinite().all()) and bool(part.isfinite().all()):
                largest = float(part.abs().max())
                faults.append(f"{link.ours}: holds {largest:g}, which {_name(dtype)} cannot: give another dtype")
            yield name, rounded


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_json(file: Path, document: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _own_config(file: Path) -> ModelConfig:
    document = read_json(file)
    if document.get("format") not in range(1, _OWN_FORMAT + 1):
        raise ConfigError(f"{file}: format {document.get('format')!r} is not known here; update weightdecay")
    try:
        return ModelConfig(**document["model"])
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{file}: not a model's configuration: {error}") from error


def _family(values: Mapping[str, Any]) -> Family:
    known = str(values.get("model_type", ""))
    if known not in FAMILIES:
        architecture = ", ".join(values.get("architectures") or []) or "none named"
        raise ConfigError(f"architecture '{known}' ({architecture}) is not known here: {did_you_mean(known, FAMILIES)}")
    return FAMILIES[known]


def _links(path: Path, config: ModelConfig) -> list[Link]:
    return _family(read_json(path / CONFIG)).links(config)


def _without_extras(
    path: Path, found: Mapping[str, Tensor], config: ModelConfig, shapes: Mapping[str, Any], faults: list[str]
) -> dict[str, Tensor]:
    """Their tensors under the names of a model with a head, without what is computed or stands there twice."""
    family = _family(read_json(path / CONFIG))
    kept = {_with_prefix(name, family, shapes): t for name, t in found.items() if not _COMPUTED.search(name)}
    if not config.tied_head:
        return kept
    (table,) = family.links(config)[0].theirs
    for head in ("lm_head.weight", "embed_out.weight"):
        second = kept.pop(head, None)
        if second is not None and table in kept and not torch.equal(second, kept[table]):
            faults.append(f"{path}: tensor '{head}' is not the embedding, to which the configuration ties it")
    return kept


def _with_prefix(name: str, family: Family, shapes: Mapping[str, Any]) -> str:
    """Files of a base model lack the prefix that the model with a head gives its names."""
    return family.prefix + name if name not in shapes and family.prefix + name in shapes else name
