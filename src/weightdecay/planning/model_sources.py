"""A model to plan from what a user names: a Hugging Face configuration, a safetensors file, or a Python factory.

Nothing is downloaded but a hub model's `config.json`; no weights are read, no remote code runs. Models are built on the
meta device, so that 405 billion parameters cost no memory.
"""

from __future__ import annotations

import importlib
import json
import socket
import struct
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightdecay.errors import DamagedError, MissingExtraError, PlanError, did_you_mean
from weightdecay.planning.evidence.tensors import TensorFacts, read_shapes

_HUB = "hf:"
_PYTHON = "python:"
_INDEX = ".safetensors.index.json"
_LONGEST_MESSAGE = 300  # characters of an error that others wrote
_LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format itself


@dataclass(frozen=True)
class Source:
    """What was found: a module, or only names and shapes, on which verdicts are weaker."""

    model: nn.Module | None = None
    shapes: tuple[TensorFacts, ...] = ()

    @property
    def to_plan(self) -> nn.Module | dict[str, torch.Tensor]:
        """What `weightdecay.plan` takes: the module, or tensors without memory of these names and shapes."""
        if self.model is not None:
            return self.model
        return {facts.name: torch.empty(facts.shape, device="meta") for facts in self.shapes}


def open_source(text: str) -> Source | None:
    """The model behind a name, or None if it is of none of these kinds.

    Args:
        text: `hf:ORG/NAME`, a directory with `config.json`, that file, a `.safetensors` file (or an index of several),
            or `python:package.module:factory`.

    Raises:
        PlanError: the thing exists but no model can be built from it.
        DamagedError: a safetensors header that does not hold together.
    """
    path = Path(text)
    if text.startswith(_PYTHON):
        return Source(model=_from_factory(text.removeprefix(_PYTHON)))
    if text.startswith(_HUB):
        return Source(model=_from_config(text.removeprefix(_HUB), hub=True))
    if path.suffix == ".safetensors" or path.name.endswith(_INDEX):
        files = [path] if path.suffix == ".safetensors" else _shards(path)
        return Source(shapes=tuple(read_shapes([shape for file in files for shape in safetensors_shapes(file)])))
    if path.name == "config.json" or (path / "config.json").is_file():
        file = path if path.suffix == ".json" else path / "config.json"
        return Source(model=_from_config(str(_checked_config(file).parent)))
    return None


def _checked_config(path: Path) -> Path:
    """Read before transformers does, whose own messages on a broken file mislead."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict) or "model_type" not in content:
        raise PlanError(f'{path} is no transformers configuration: it has no "model_type"')
    transformers, family = _transformers(), str(content["model_type"])
    if family not in transformers.CONFIG_MAPPING:
        raise PlanError(
            f"{path}: transformers {transformers.__version__} knows no model type '{family}': "
            f"{did_you_mean(family, transformers.CONFIG_MAPPING.keys())} Or is a newer transformers needed?"
        )
    return path


def _hub_resolves() -> bool:
    """Whether the hub's address can be found; if not, its client would try six times, for half a minute."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("planning a Hugging Face model", "hf") from error
    return transformers


def _from_config(name: str, *, hub: bool = False) -> nn.Module:
    """The model that a configuration describes, in a local directory or on the hub."""
    transformers = _transformers()
    cached = hub and not _hub_resolves()
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=cached)
    except Exception as error:  # each family validates its configuration with errors of its own
        if cached:
            raise PlanError(
                f"the Hugging Face hub cannot be reached, and {name} was not downloaded before: fetch its config.json "
                "where there is a network, and plan that file"
            ) from error
        raise PlanError(f"no configuration could be had from {name}: {_in_short(error)}") from error
    try:
        with torch.device("meta"):
            model: nn.Module = _model_class(transformers, config)(config)
            return model
    except Exception as error:  # whatever an architecture's constructor raises on a configuration that does not fit it
        raise PlanError(
            f"transformers {transformers.__version__} cannot build a {config.model_type} model from {name}: "
            f"{type(error).__name__}: {_in_short(error)}"
        ) from error


def _model_class(transformers: Any, config: Any) -> Callable[[Any], nn.Module]:
    """The class that the configuration names, or the family's causal, else its base model."""
    for architecture in config.architectures or ():
        if hasattr(transformers, architecture):
            found: Callable[[Any], nn.Module] = getattr(transformers, architecture)
            return found
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING):
        if type(config) in mapping:
            choice = mapping[type(config)]
            return choice[0] if isinstance(choice, tuple) else choice  # type: ignore[no-any-return]
    raise LookupError(f"no model class is known for {type(config).__name__}")


def _in_short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:_LONGEST_MESSAGE] or type(error).__name__


def _from_factory(text: str) -> nn.Module:
    """`package.module:factory`, called without arguments on the meta device; or a model that stands there already.

    What the factory raises is the user's own.
    """
    module_name, _, factory_name = text.partition(":")
    if not module_name or not factory_name:
        raise PlanError(f"python:{text} names no factory: write python:package.module:factory")
    sys.path.insert(0, "")  # as `python -m` does: the module may lie where the user stands
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise PlanError(f"there is no module '{error.name}': is it installed, or beside you?") from error
    finally:
        sys.path.remove("")
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise PlanError(
            f"{module_name} has no callable '{factory_name}': {did_you_mean(factory_name, names or ['none'])}"
        )
    if isinstance(factory, nn.Module):
        return factory
    with torch.device("meta"):
        made = factory()
    if not isinstance(made, nn.Module):
        raise PlanError(f"{text} made {_what(made)}: a factory must return a torch.nn.Module")
    return made


def _what(made: Any) -> str:
    """What a factory made instead of a model, in words, with where the model may be in it."""
    if isinstance(made, type):
        return f"the class {made.__name__}, not an instance of it"
    kind = type(made).__name__
    if isinstance(made, Mapping | Sequence):
        pairs = made.items() if isinstance(made, Mapping) else enumerate(made)
        inside = [key for key, value in pairs if isinstance(value, nn.Module)]
        if inside:
            return f"a {kind} with a model at [{inside[0]!r}]: return that alone"
    return f"a {kind}"


def _shards(index: Path) -> list[Path]:
    """The files that an index of a sharded checkpoint names, each once."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [index.parent / Path(name).name for name in dict.fromkeys(names)]
    except OSError as error:
        raise PlanError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{index} is no index of a sharded checkpoint: {type(error).__name__}: {error}") from error


def safetensors_shapes(path: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, dtype) of each tensor, from the header alone.

    Reference: the safetensors format, 8 bytes of length (little-endian) and that many bytes of JSON.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            if len(start) < 8:
                raise DamagedError(f"{path} holds {size} bytes, too few for a safetensors file: fetch or save it again")
            length = struct.unpack("<Q", start)[0]
            if not 0 < length <= min(size - 8, _LARGEST_HEADER):
                raise DamagedError(
                    f"{path} is truncated or no safetensors file: its header should be {length} bytes long"
                )
            header = json.loads(file.read(length))
        return [
            (name, tuple(int(n) for n in entry["shape"]), str(entry["dtype"]))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} has a damaged safetensors header ({error}): fetch or save it again") from error
