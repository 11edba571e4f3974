"""The files that a model's weights lie in: one safetensors file, or several with an index, as transformers has them.

model.safetensors
model-00001-of-00003.safetensors …  and  model.safetensors.index.json, which says what lies where
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from weightdecay.errors import ConfigError, DamagedError
from weightdecay.storage import save_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_weights(path: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: float) -> list[str]:
    """Write tensors as they come, a new file before one would grow beyond `shard_bytes`.

    No more than one file's tensors are held, and the next one; a tensor larger than a file has one of its own.

    Args:
        path: an existing directory without weights.
        tensors: (name, tensor), contiguous and sharing no memory.

    Returns:
        The names of the files.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    sizes: list[int] = []

    def flush() -> None:
        save_tensors(held, path / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sum(one.nbytes for one in held.values()) + tensor.nbytes > shard_bytes:
            flush()
        held[name] = tensor
        sizes.append(tensor.nbytes)
    flush()
    names = [WEIGHTS] if len(shards) == 1 else [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    for number, name in enumerate(names):
        (path / f"shard-{number}").rename(path / name)
    if len(shards) > 1:
        located = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(located.items()))}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a directory.

    Raises:
        ConfigError: there are none, or in a format that is not read here.
        DamagedError: a file that is missing or cannot be read.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(path):
        found |= _load(file)
    return found


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedError: the file is missing, cannot be read, or holds something else.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except PermissionError:
        raise  # not damaged: its owner has to let us
    except (OSError, ValueError) as error:
        raise DamagedError(f"{file}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{file}: not a JSON object")
    return document


def weight_files(path: Path) -> list[Path]:
    if (path / INDEX).is_file():
        mapping = read_json(path / INDEX).get("weight_map")
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
    except PermissionError:
        raise  # not damaged: its owner has to let us
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{file}: cannot be read: {error}") from error
