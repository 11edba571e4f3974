"""What `torch.save` wrote, without running any code that a file may bring along."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightdecay.errors import ConfigError, DamagedError

_NAMED_CODE = re.compile(r"(?:GLOBAL|global|class|function) ([\w.]+\.[\w.]+)")
_ZIP, _PICKLE = b"PK", b"\x80"
# Where trainers keep the weights within a checkpoint, the likeliest first.
_USUAL_KEYS = ("model", "state_dict", "model_state_dict", "module", "weights", "net", "params")
_DEEPEST = 3


def load_pickled(path: Path) -> dict[str, Tensor]:
    """The weights in a file of `torch.save`, mapped rather than read where its format lets them be.

    Raises:
        ConfigError: it brings code along, or holds no state dict.
        DamagedError: it is truncated, or no such file.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        raise ConfigError(
            f"{path} is a GGUF file, whose weights are packed: unpack them (transformers' from_pretrained(…, "
            "gguf_file=…) does), save them as safetensors, and give that"
        )
    zipped = zipfile.is_zipfile(path)
    if not zipped and not start.startswith(_PICKLE):
        what = "truncated" if start.startswith(_ZIP) else "neither safetensors nor a file of torch.save"
        raise DamagedError(f"{path} is {what}: fetch or save it again")

    try:
        with warnings.catch_warnings():  # that a pickle is of another protocol is told below, if it matters
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except PermissionError:
        raise  # not damaged: its owner has to let us
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(f"{path} cannot be read: {reason}: fetch or save it again") from error

    for found in _state_dicts(loaded):
        return found
    keys = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    raise ConfigError(f"{path} holds no state dict, only {keys}: save model.state_dict(), and give that")


def _refused(path: Path, said: str) -> ConfigError | DamagedError:
    """The error for a pickle that torch does not take as mere weights."""
    if "truncated" in said or "Ran out of input" in said or "invalid load key" in said:
        return DamagedError(f"{path} is truncated or no file of torch.save: fetch or save it again")
    code = _NAMED_CODE.search(said)
    named = f" ({code[1]})" if code else ""
    return ConfigError(
        f"{path} brings pickled code along{named}, which loading would run, and which is refused here: where you trust "
        "it, load it yourself and save its weights alone: torch.save(model.state_dict(), …) or safetensors"
    )


def _state_dicts(loaded: Any, depth: int = 0) -> Iterator[dict[str, Tensor]]:
    """Mappings of names to tensors, the likeliest first; an optimizer's state is none of them."""
    if not isinstance(loaded, Mapping) or depth > _DEEPEST:
        return
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if any(tensor.ndim > 1 for tensor in tensors.values()):
        yield tensors
    usual = [key for key in _USUAL_KEYS if key in loaded]
    others = [key for key in loaded if key not in usual and "optim" not in str(key).lower()]
    for key in [*usual, *others]:
        yield from _state_dicts(loaded[key], depth + 1)
