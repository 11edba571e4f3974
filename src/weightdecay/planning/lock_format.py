"""The text of a lock: a plan as JSON, one tensor a line, so that a diff reads well."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weightdecay.declared.fields import OPEN, Count, Number, Rows, Switch, Text, Texts
from weightdecay.declared.reading import attempt
from weightdecay.errors import DamagedError, PlanError
from weightdecay.planning.planned import Plan, PlannedTensor
from weightdecay.planning.roles.roles import NormPlace, Role, Strength

FORMAT = "weightdecay plan"
# Keys that version 1 did not have from its beginning may be missing, and what does not know them passes them over.
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LockLine:
    """What a lock says of a tensor."""

    __pydantic_config__ = OPEN

    name: Text
    """Its canonical name."""
    shape: Rows[Count]
    """Its shape."""
    roles: Rows[Role]
    """What it is for; several where it is tied."""
    multiplier: Number
    """Its share of λ."""
    evidence: Text
    """What its roles rest on, in words."""
    reason: Text
    """What decided, in words."""
    aliases: Texts = ()
    """Its other names."""
    ruling: Role | None = None
    """The role by which it was decided."""
    weight_decay: Number | None = None
    """Its λ where the model's author has set one; else λ times its share."""
    lr_multiplier: Number = 1.0
    """Its share of the learning rate."""
    lr: Number | None = None
    """Its learning rate where the model's author has set one."""
    strength: Literal["shape", "name", "type", "traced"] | None = None
    """How sure its role is."""
    norm: NormPlace | None = None
    """Where its norm stands."""
    contested: Switch = False
    """Whether verdicts differ."""
    given: Switch = False
    """Whether its role was given by hand."""


@dataclass(frozen=True, kw_only=True)
class LockFile:
    """What a lock file says, less its format and version."""

    __pydantic_config__ = OPEN

    policy: Text
    """The policy's name."""
    weight_decay: Number
    """λ."""
    tensors: Rows[LockLine]
    """Every tensor, in the model's order."""
    incomplete: Text = ""
    """Why another machine may come to another plan."""


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
    found, faults = attempt(LockFile, content)
    if found is None:
        told = "; ".join(fault.words for fault in faults[:_TOLD])
        more = f" and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
        raise DamagedError(f"{path}: a damaged lock: {told}{more}: write it anew")
    tensors = tuple(_planned(line, found.weight_decay) for line in found.tensors)
    return Lock(found.policy, found.weight_decay, tensors, found.incomplete)


_TOLD = 5  # faults of a lock; one that is damaged has one or thousands


def _planned(line: LockLine, weight_decay: float) -> PlannedTensor:
    return PlannedTensor(
        name=line.name,
        aliases=line.aliases,
        shape=line.shape,
        roles=line.roles,
        evidence=line.evidence,
        multiplier=line.multiplier,
        why=line.reason.removeprefix(f"{line.ruling}: "),
        weight_decay=weight_decay * line.multiplier if line.weight_decay is None else line.weight_decay,
        ruling=line.ruling,
        lr_multiplier=line.lr_multiplier,
        contested=line.contested,
        lr=line.lr,
        strength=Strength[line.strength.upper()] if line.strength else None,
        norm=line.norm,
        given=line.given,
    )
