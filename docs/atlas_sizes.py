"""How large the tensors of each recorded architecture are at its own default configuration, as transformers has it.

python docs/atlas_sizes.py      writes docs/atlas/sizes.json.xz, on the meta device, with the installed transformers

The recorded models are small ones, whose parameters nobody would want counted. A class whose default configuration
does not build (mostly: a package is missing) has none, and the atlas says so.
"""

from __future__ import annotations

import json
import lzma
import math
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the recorded models lie with the tests

from weightdecay.planning.patterns import INDEX, pattern_of  # noqa: E402

FILE = ROOT / "docs" / "atlas" / "sizes.json.xz"


def read() -> dict[str, Any]:
    """`transformers`: its version; `architectures`: for each its `model_type`, and by name without indices the pattern
    of the names, how many tensors they are of, and how many parameters."""
    content: dict[str, Any] = json.loads(lzma.decompress(FILE.read_bytes()))
    return content


def record() -> None:
    import transformers

    from tests.planning.skeletons import read as recorded

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found = {model.name: _sizes(model.name) for kind in ("causal", "other") for model in recorded(kind)}
    content = {"transformers": transformers.__version__, "architectures": found}
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    FILE.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    without = [name for name, sizes in found.items() if not sizes["kinds"]]
    print(f"{len(found)} architectures, {FILE.stat().st_size:,} bytes; without sizes: {', '.join(without) or 'none'}")


def _sizes(name: str) -> dict[str, Any]:
    import torch
    import transformers

    model_type = ""
    found: dict[str, list[tuple[str, int]]] = {}
    try:
        cls: Any = getattr(transformers, name)
        model_type = cls.config_class.model_type
        with torch.device("meta"):
            model = cls(cls.config_class())
        for one, parameter in model.named_parameters():
            found.setdefault(INDEX.sub("#", one), []).append((one, math.prod(parameter.shape)))
    except Exception as error:  # others' code, and what it wants installed
        print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")
    return {"model_type": model_type, "kinds": {template: _kind(tensors) for template, tensors in found.items()}}


def _kind(tensors: list[tuple[str, int]]) -> list[Any]:
    return [pattern_of([name for name, _ in tensors]), len(tensors), sum(elements for _, elements in tensors)]


if __name__ == "__main__":
    record()
