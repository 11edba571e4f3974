"""A plan as a JSON file that a repository commits: one tensor a line, so that a diff reads well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weightdecay.errors import DamagedError, PlanError
from weightdecay.planning.decay_plan import DecayPlan, PlannedTensor
from weightdecay.planning.roles.roles import Role

FORMAT = "weightdecay plan"
VERSION = 1


def to_json(plan: DecayPlan) -> str:
    """The lock's text: a header, then the tensors in the model's order."""
    head = {"format": FORMAT, "version": VERSION, "policy": plan.policy, "weight_decay": plan.weight_decay}
    header = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    lines = ",\n".join(f"    {json.dumps(_to_dict(tensor), ensure_ascii=False)}" for tensor in plan)
    return f'{{\n{header},\n  "tensors": [\n{lines}\n  ]\n}}\n'


def _to_dict(tensor: PlannedTensor) -> dict[str, Any]:
    line: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "roles": [role.value for role in tensor.roles],
        "multiplier": tensor.multiplier,
        "evidence": tensor.evidence,
        "reason": tensor.reason,
    }
    if tensor.aliases:
        line["aliases"] = list(tensor.aliases)
    if tensor.lr_multiplier != 1.0:
        line["lr_multiplier"] = tensor.lr_multiplier
    if tensor.contested:
        line["contested"] = True
    return line


def write_lock(plan: DecayPlan, path: Path) -> None:
    path.write_text(to_json(plan), encoding="utf-8")


def read_lock(path: Path) -> DecayPlan:
    """The plan in a lock file; it belongs to no model until `plan.on(model)`.

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
        tensors = [_from_dict(line, weight_decay) for line in content["tensors"]]
        return DecayPlan(tensors, policy=str(content["policy"]), weight_decay=weight_decay)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path}: a damaged lock ({type(error).__name__}: {error}): write it anew") from error


def _from_dict(line: dict[str, Any], weight_decay: float) -> PlannedTensor:
    multiplier = float(line["multiplier"])
    return PlannedTensor(
        name=str(line["name"]),
        aliases=tuple(line.get("aliases", ())),
        shape=tuple(int(size) for size in line["shape"]),
        roles=tuple(Role(role) for role in line["roles"]),
        evidence=str(line["evidence"]),
        multiplier=multiplier,
        reason=str(line["reason"]),
        weight_decay=weight_decay * multiplier,
        lr_multiplier=float(line.get("lr_multiplier", 1.0)),
        contested=bool(line.get("contested", False)),
    )
