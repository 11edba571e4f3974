"""Weights as they lie in files, whoever wrote them; each tensor is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from weightdecay.auditing.forensics.pickled import load_pickled
from weightdecay.checkpoint import MANIFEST, Checkpoint, checkpoints
from weightdecay.errors import ConfigError, DamagedError
from weightdecay.models import weightfiles
from weightdecay.models.config import ModelConfig
from weightdecay.models.huggingface import OWN_CONFIG, read_config
from weightdecay.naming import unwrapped, without_wrappers
from weightdecay.planning.model_sources import safetensors_shapes
from weightdecay.planning.patterns import some
from weightdecay.recipes.files import read_settings
from weightdecay.recipes.settings import TrainConfig

Source = str | Path | Mapping[str, Tensor] | nn.Module
Shape = tuple[int, ...]

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOATS = frozenset(_FLOATS.values())
_OF_DDP = "module."
_KINDS = (
    "a Hugging Face directory, a run directory or one of its checkpoints, a .safetensors file (or the index of "
    "several), or a file that torch.save wrote"
)


@dataclass(frozen=True)
class Stored:
    """Weights by name, and what lies beside them.

    Attributes:
        where: what to call them.
        shapes: of every tensor.
        dtypes: of every tensor; "float32" and the like, or what the file calls another.
        read: one tensor.
        config: config.json; empty where there is none.
        model: the decoder, where it is one of ours.
        training: what the run was asked for, where a run of ours left that.
        folder: where further files lie, such as a tokenizer.
    """

    where: str
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    read: Callable[[str], Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    model: ModelConfig | None = None
    training: TrainConfig | None = None
    folder: Path | None = None


def open_stored(source: Source) -> Stored:
    """Weights from whatever a user names, or holds in memory.

    Raises:
        ConfigError: there is nothing of a kind that is read here.
        DamagedError: a file that is not what was written.
    """
    if isinstance(source, nn.Module):
        bare = unwrapped(source)
        return _in_memory(type(bare).__name__, bare.state_dict())
    if isinstance(source, Mapping):
        return _in_memory("the state dict", source)
    if not isinstance(source, str | Path):
        raise ConfigError(f"a checkpoint is {_KINDS}, a state dict or a module, not {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        return _directory(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory; give {_KINDS}")
    if path.name.endswith(".safetensors.index.json"):
        return _safetensors(str(path), weightfiles.weight_files(path.parent), folder=path.parent)
    if path.suffix == ".safetensors":
        return _safetensors(str(path), [path], folder=path.parent)
    return _in_memory(str(path), load_pickled(path), folder=path.parent)


def _directory(path: Path) -> Stored:
    if (path / ".metadata").is_file():
        raise ConfigError(
            f"{path} is a distributed checkpoint, whose .metadata is pickle: gather it first, by "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save, and give the file"
        )
    if ours := checkpoint_of(path):
        return _written_by_us(ours)

    has_config = (path / "config.json").is_file()
    config = weightfiles.read_json(path / "config.json") if has_config else {}
    model = read_config(path) if (path / OWN_CONFIG).is_file() else None
    weights = sorted(path.glob("*.safetensors"))
    if (path / weightfiles.INDEX).is_file() or (path / weightfiles.WEIGHTS).is_file():
        return _safetensors(str(path), weightfiles.weight_files(path), config=config, model=model, folder=path)
    if len(weights) == 1:
        return _safetensors(str(path), weights, config=config, model=model, folder=path)
    if pickled := sorted(path.glob("pytorch_model*.bin")):
        tensors = {name: tensor for file in pickled for name, tensor in load_pickled(file).items()}
        return _in_memory(str(path), tensors, config=config, folder=path)
    found = some(sorted(file.name for file in path.iterdir())) if any(path.iterdir()) else "nothing"
    raise ConfigError(f"{path}: no weights: it holds {found}; give {_KINDS}")


@dataclass(frozen=True)
class OfRun:
    """A checkpoint that our trainer wrote, and the run that it lies in, if it still does."""

    path: Path
    run: Path | None

    @property
    def step(self) -> int:
        """How many steps it has behind it, as its directory's name says."""
        return int(self.path.name.rpartition("-")[2])


def checkpoint_of(path: Path) -> OfRun | None:
    """The newest whole checkpoint of a run directory, or the one that this is; None for anything else.

    Raises:
        ConfigError: the run has none yet.
    """
    if (path / "run.toml").is_file():
        whole = [one.path for one in checkpoints(path / "checkpoints") if (one.path / MANIFEST).is_file()]
        if not whole:
            raise ConfigError(
                f"{path}: the run has no checkpoint yet: one is taken at its end, or --checkpoint-every N"
            )
        return OfRun(whole[-1], path)
    if (path / MANIFEST).is_file() and (path / weightfiles.WEIGHTS).is_file():
        run = path.resolve().parent.parent
        return OfRun(path, run if (run / "run.toml").is_file() else None)
    return None


def _written_by_us(found: OfRun) -> Stored:
    if faults := Checkpoint(found.path).faults():
        raise DamagedError(f"{'; '.join(faults)}: give another of the run's checkpoints")
    training = read_settings(found.run / "run.toml").config() if found.run else None
    return _safetensors(
        str(found.path),
        [found.path / weightfiles.WEIGHTS],
        model=training.model if training else None,
        training=training,
        folder=found.run or found.path,
    )


def _safetensors(where: str, files: list[Path], **beside: Any) -> Stored:
    """Tensors of one or several files, of which the headers are read now."""
    place = {name: file for file in files for name, _, _ in safetensors_shapes(file)}
    headers = [entry for file in files for entry in safetensors_shapes(file)]
    for file in files:
        _opened(file)

    def read(name: str) -> Tensor:
        tensor: Tensor = _opened(place[name]).get_tensor(name)
        return tensor

    shapes = {name: shape for name, shape, _ in headers}
    dtypes = {name: _FLOATS.get(dtype, dtype) for name, _, dtype in headers}
    return _checked(Stored(where, shapes, dtypes, read, **beside))


def _opened(file: Path) -> Any:
    """Opening compares the file's length with its header's."""
    try:
        return safe_open(file, "pt")
    except PermissionError:
        raise  # not damaged: its owner has to let us
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{file} is truncated or damaged ({error}): fetch or save it again") from error


def _in_memory(where: str, tensors: Mapping[str, Tensor], **beside: Any) -> Stored:
    if odd := [f"'{name}' is {type(tensor).__name__}" for name, tensor in tensors.items() if not _is_tensor(tensor)]:
        raise ConfigError(f"{where}: a state dict holds tensors alone, but {some(odd)}")
    if absent := [f"'{name}'" for name, tensor in tensors.items() if tensor.is_meta]:
        raise ConfigError(f"{where}: {some(absent)} on the meta device, without any numbers: give the trained weights")
    if sparse := [f"'{name}'" for name, tensor in tensors.items() if tensor.layout is not torch.strided]:
        raise ConfigError(f"{where}: {some(sparse)} sparse: give dense weights")
    bare = {without_wrappers(name): tensor.detach() for name, tensor in tensors.items()}
    # All of a model that DistributedDataParallel holds stands under one name.
    under = bool(bare) and all(name.startswith(_OF_DDP) for name in bare)
    named = {name.removeprefix(_OF_DDP) if under else name: tensor for name, tensor in bare.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in named.items()}
    return _checked(Stored(where, shapes, dtypes, lambda name: named[name], **beside))


def _checked(stored: Stored) -> Stored:
    """The same, if what it holds is weights of the precision that they were trained in."""
    faults = []
    if not stored.shapes:
        faults.append(f"{stored.where} holds no tensors")
    if odd := [f"'{name}'" for name, dtype in stored.dtypes.items() if dtype.lower().startswith(("complex", "c64"))]:
        faults.append(f"{stored.where}: {some(odd)} complex: decay is told from real weights alone")
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in stored.shapes.items()}
    packed = {name: dtype for name, dtype in stored.dtypes.items() if dtype not in FLOATS and stored.shapes[name]}
    if not odd and 2 * sum(sizes[name] for name in packed) > sum(sizes.values()):
        kinds = ", ".join(sorted(set(packed.values())))
        faults.append(
            f"{stored.where}: the weights are quantised ({kinds}): rounding has changed them more than decay did; give "
            "the checkpoint that they were made from"
        )
    if faults:
        raise ConfigError(faults)
    return stored


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
