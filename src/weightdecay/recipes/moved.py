"""How older versions spelt settings: one table, by which what they wrote is still read.

run.batch_ramp = ["0:32000", "4e9:500000"]              TOKENS:BATCH_TOKENS
schedule.grad_clip_changes = ["30e9:0.3"]               TOKENS:NORM
schedule.stages = ["cosine to 0.1 over 4.3e12", …]      SHAPE to FRACTION over TOKENS
optimizer.lr_multipliers = ["^embedding=0.1"]           PATTERN=FACTOR, and so on
model.n_heads = 12                                      the model without parts, see `models.flat`
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from weightdecay.models.flat import in_parts

_POINT = r"(?P<tokens>[^:]*):(?P<{}>[^:]*)"
_OF_PATTERN = r"(?P<pattern>.+)=(?P<{}>[^=]*)"
# Settings that were lists of texts, and how a text of theirs reads as the table that it now is.
_ROWS = {
    "run.batch_ramp": _POINT.format("batch_tokens"),
    "schedule.grad_clip_changes": _POINT.format("grad_clip"),
    "schedule.stages": r"(?P<shape>\S+) to (?P<to>\S+) over (?P<over_tokens>\S+)",
    "optimizer.muon_stacked": _OF_PATTERN.format("matrices"),
    "optimizer.beta1_overrides": _OF_PATTERN.format("beta"),
    "optimizer.beta2_overrides": _OF_PATTERN.format("beta"),
    "optimizer.lr_multipliers": _OF_PATTERN.format("factor"),
    "optimizer.weight_decay_multipliers": _OF_PATTERN.format("factor"),
    "optimizer.role_overrides": _OF_PATTERN.format("role"),
}


def as_spelt_now(values: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` pairs with every older spelling as the one of today."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if section == "model":
            found |= {f"model.{path}": item for path, item in in_parts({name: value}).items()}
        else:
            found[key] = _rows(value, _ROWS[key]) if key in _ROWS else value
    return found


def given_twice(values: Mapping[str, Any]) -> list[str]:
    """What is given both by its name and by an older one, in words."""
    return [
        f"{name} is given twice: once as {key}, its older name"
        for key, value in values.items()
        for name in as_spelt_now({key: value})
        if name != key and name in values
    ]


def as_of_now(values: Mapping[str, Any], version: int) -> dict[str, Any]:
    """What a run wrote, with settings that it did not have at what it did without them."""
    now = {"run.arithmetic": "autocast", **as_spelt_now(values)}
    if version > 1:
        return now
    dense_layers, layers = now.get("model.experts.n_dense_layers", 0), now.get("model.n_layers", 0)
    if now.get("optimizer.name") == "muon" and now.get("model.experts.n_experts") and dense_layers < layers:
        # Muon took each matrix that is no table or head, routers too.
        return {"optimizer.role_overrides": [{"pattern": "router", "role": "linear weight"}], **now}
    return now


def _rows(value: Any, spelling: str) -> Any:
    """A list with each text as the table that it stood for; what stands for none is left for reading to refuse."""
    if isinstance(value, str):
        try:
            value = tomllib.loads(f"value = {value}")["value"] if value.lstrip().startswith("[") else [value]
        except tomllib.TOMLDecodeError:
            return value
    return [_row(entry, spelling) for entry in value] if isinstance(value, list | tuple) else value


def _row(entry: Any, spelling: str) -> Any:
    found = re.fullmatch(spelling, entry.strip()) if isinstance(entry, str) else None
    return found.groupdict() if found else entry
