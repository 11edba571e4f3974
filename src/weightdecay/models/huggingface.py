"""Models as directories of transformers: config.json and safetensors, read and written.

    config = read_config(Path("SmolLM2-135M"))
    weights = read_weights(Path("SmolLM2-135M"), config, report=print)
    write(Path("out"), GPT(config), weights)

A model that transformers has no counterpart of is written in a format of our own: weightdecay.json in the place of
config.json, and our names in model.safetensors. Both are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from weightdecay.errors import ConfigError, DamagedError, did_you_mean
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.families import FAMILIES, family_of
from weightdecay.models.family import Family
from weightdecay.models.tensors import Link, same

CONFIG, OWN_CONFIG, WEIGHTS, INDEX = (
    "config.json",
    "weightdecay.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
ARCHITECTURES = frozenset(family.architecture for family in FAMILIES.values())
_OWN_FORMAT = 1
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
    values = _json(file)
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
    found: dict[str, Tensor] = {}
    for file in _weight_files(path):
        found |= _load(file)
    with torch.device("meta"):
        ours = GPT(config).tensors()
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
            f"{path}: weights in {str(dtype).removeprefix('torch.')} become float32, which holds each of them exactly; "
            "training keeps and updates them in float32"
        )
    wide = {name: tensor.float() for name, tensor in found.items()}
    return {link.ours: link.pack([wide[name] for name in link.theirs]).contiguous() for link in links}


def write(path: Path, config: ModelConfig, weights: Mapping[str, Tensor], *, end_of_text_id: int | None = None) -> str:
    """Write a directory that `transformers.AutoModelForCausalLM.from_pretrained` loads, or one in our own format.

    Args:
        path: an existing empty directory.
        weights: under our names, a tied tensor once.
        end_of_text_id: the token that ends a document.

    Returns:
        The architecture's name in transformers, or why it has none.
    """
    try:
        family = family_of(config)
    except ConfigError as error:
        own = {"format": _OWN_FORMAT, "model": vars(config)}
        (path / OWN_CONFIG).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, path / WEIGHTS)
        return str(error)
    document = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": "float32",
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "pad_token_id": None,
        "initializer_range": config.init_std,
        **family.describe(config),
    }
    (path / CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    theirs: dict[str, Tensor] = {}
    for link in family.links(config):
        parts = link.unpack(weights[link.ours].detach())
        # Copies: parts of one tensor share its memory, which the format does not allow.
        theirs |= {
            name: part.clone(memory_format=torch.contiguous_format)
            for name, part in zip(link.theirs, parts, strict=True)
        }
    save_file(theirs, path / WEIGHTS, metadata={"format": "pt"})
    return family.architecture


def _own_config(file: Path) -> ModelConfig:
    document = _json(file)
    if document.get("format") != _OWN_FORMAT:
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


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{file}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{file}: not a JSON object")
    return document


def _weight_files(path: Path) -> list[Path]:
    if (path / INDEX).is_file():
        mapping = _json(path / INDEX).get("weight_map")
        if not isinstance(mapping, dict):
            raise DamagedError(f"{path / INDEX}: has no weight_map")
        names = sorted({str(name) for name in mapping.values()})
        files = [path / name for name in names]
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise DamagedError(f"{path / INDEX}: names files outside the directory: {', '.join(outside)}")
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DamagedError("\n".join(f"{file}: missing, and {INDEX} names it" for file in missing))
        return files
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    pickled = sorted(file.name for file in path.glob("*.bin"))
    hint = f"; {', '.join(pickled)} is pickle, which is not read here: save the model as safetensors" if pickled else ""
    raise ConfigError(f"{path}: no weights: neither {WEIGHTS} nor {INDEX} is there{hint}")


def _load(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{file}: cannot be read: {error}") from error


def _links(path: Path, config: ModelConfig) -> list[Link]:
    return _family(_json(path / CONFIG)).links(config)


def _without_extras(
    path: Path, found: Mapping[str, Tensor], config: ModelConfig, shapes: Mapping[str, Any], faults: list[str]
) -> dict[str, Tensor]:
    """Their tensors under the names of a model with a head, without what is computed or stands there twice."""
    family = _family(_json(path / CONFIG))
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
