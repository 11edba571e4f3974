"""The text of a lock: a plan as JSON, one tensor a line, so that a diff reads well."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightdecay.errors import DamagedError, PlanError
from weightdecay.planning.planned import Plan, PlannedTensor
from weightdecay.planning.roles.roles import NormPlace, Role, Strength

FORMAT = "weightdecay plan"
# Keys that version 1 did not have from its beginning may be missing, and what does not know them passes them over.
VERSION = 1


@dataclass(frozen=True)
class Lock:
    """What a lock holds."""

    policy: str
    weight_decay: float
    tensors: tuple[PlannedTensor, ...]
    incomplete: str = ""


def lock_text(plan: Plan) -> str:
    """A header, then the tensors in the model's order."""
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "policy": plan.policy,
        "weight_decay": plan.weight_decay,
    }
    if plan.incomplete:
        head["incomplete"] = plan.incomplete
    header = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())
    lines = ",\n".join(f"    {json.dumps(_to_dict(tensor, plan.weight_decay), ensure_ascii=False)}" for tensor in plan)
    return f'{{\n{header},\n  "tensors": [\n{lines}\n  ]\n}}\n'


def _to_dict(tensor: PlannedTensor, weight_decay: float) -> dict[str, Any]:
    line: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "roles": [role.value for role in tensor.roles],
        "multiplier": tensor.multiplier,
        "evidence": tensor.evidence,
        "reason": tensor.reason,
    }
    said = {
        "aliases": list(tensor.aliases) or None,
        "ruling": tensor.ruling.value if tensor.ruling else None,
        # λ follows from the multiplier, but for one that the model's author has set
        "weight_decay": None if tensor.weight_decay == weight_decay * tensor.multiplier else tensor.weight_decay,
        "lr_multiplier": None if tensor.lr_multiplier == 1.0 else tensor.lr_multiplier,
        "lr": tensor.lr,
        "strength": tensor.strength.name.lower() if tensor.strength else None,
        "norm": tensor.norm.value if tensor.norm else None,
        "contested": tensor.contested or None,
        "given": tensor.given or None,
    }
    return line | {key: value for key, value in said.items() if value is not None}


def read_lock_text(path: Path) -> Lock:
    """What the lock file at `path` holds.

    Raises:
        PlanError: the file is no lock, or of a newer format.
        DamagedError: it is one, but does not hold together.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read the lock {path}: {error.strerror}; write one with --lock {path}") from error
    except ValueError as error:
        raise DamagedError(f"{path} is no valid JSON ({error}): write the lock anew with --lock {path}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PlanError(f'{path} is no lock of a decay plan: its "format" should be "{FORMAT}"')
    if content.get("version") != VERSION:
        raise PlanError(
            f"{path} has lock format {content.get('version')}, this weightdecay reads {VERSION}: "
            "update weightdecay, or write the lock anew with --lock"
        )
    try:
        weight_decay = float(content["weight_decay"])
        tensors = tuple(_from_dict(line, weight_decay) for line in content["tensors"])
        return Lock(str(content["policy"]), weight_decay, tensors, str(content.get("incomplete", "")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path}: a damaged lock ({type(error).__name__}: {error}): write it anew") from error


def _from_dict(line: dict[str, Any], weight_decay: float) -> PlannedTensor:
    multiplier, λ, lr = float(line["multiplier"]), line.get("weight_decay"), line.get("lr")
    ruling = Role(line["ruling"]) if "ruling" in line else None
    return PlannedTensor(
        name=str(line["name"]),
        aliases=tuple(line.get("aliases", ())),
        shape=tuple(int(size) for size in line["shape"]),
        roles=tuple(Role(role) for role in line["roles"]),
        evidence=str(line["evidence"]),
        multiplier=multiplier,
        why=str(line["reason"]).removeprefix(f"{ruling}: "),
        weight_decay=weight_decay * multiplier if λ is None else float(λ),
        ruling=ruling,
        lr_multiplier=float(line.get("lr_multiplier", 1.0)),
        contested=bool(line.get("contested", False)),
        lr=None if lr is None else float(lr),
        strength=Strength[line["strength"].upper()] if "strength" in line else None,
        norm=NormPlace(line["norm"]) if "norm" in line else None,
        given=bool(line.get("given", False)),
    )
