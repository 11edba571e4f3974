"""A policy as a TOML file, so that a repository can keep its own beside its recipe.

name = "ours"
base = "default"            # any policy that decides by role

[roles]                     # multipliers of λ that differ from the base
"embedding" = 0.0
"expert stack" = 0.5

[norms]                     # norm gains by where the norm stands, before what `roles` says of all of them
"query/key norm" = 1.0

[[override]]                # in order; the first found in a name decides, and each must match something
pattern = 'layers\\.\\d+\\.mlp\\.gate'
multiplier = 0.0
lr_multiplier = 10.0
reason = "kept free while the gate warms up"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from weightdecay.declared.fields import CLOSED, Number, Rows, Text
from weightdecay.declared.reading import attempt
from weightdecay.errors import PlanError, did_you_mean
from weightdecay.planning.policies.emulated import EMULATED
from weightdecay.planning.policies.overrides import Override, override_faults
from weightdecay.planning.policies.role_policies import ROLE_POLICIES, Policy, RolePolicy
from weightdecay.planning.roles.roles import NormPlace, Role

RolePolicyName = Literal["default", "all", "none", "matrices", "no-embeddings", "olmo2", "qwen3-next"]
EmulatedName = Literal["torch", "nanogpt", "transformers", "timm", "mingpt", "bert", "levanter", "composer"]
PolicyName = Literal[RolePolicyName, EmulatedName]
POLICIES: dict[str, Policy] = {**ROLE_POLICIES, **EMULATED}

Multiplier = Annotated[Number, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class OverrideRow:
    """What is said of the tensors whose name a pattern is found in."""

    __pydantic_config__ = CLOSED

    pattern: Text
    """Regular expression, searched in the canonical name and its aliases; it must match something."""
    multiplier: Multiplier | None = None
    """Share of λ, 0 exempts; without one it is the policy's."""
    lr_multiplier: Multiplier = 1.0
    """Share of the learning rate."""
    reason: Text = ""
    """Why, in words."""
    role: Role | None = None
    """What the tensors are for, in place of what is seen."""


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """A policy file."""

    __pydantic_config__ = CLOSED

    name: Text = ""
    """Of the policy; without one, the file's."""
    base: RolePolicyName = "default"
    """A policy that decides by role, whose multipliers hold where nothing else is said."""
    roles: dict[Role, Multiplier] = field(default_factory=dict)
    """Multipliers of λ by role."""
    norms: dict[NormPlace, Multiplier] = field(default_factory=dict)
    """Those of norm gains by where the norm stands, before what `roles` says of all of them."""
    override: Rows[OverrideRow] = ()
    """In order: the first found in a name decides."""


def read_policy(path: Path) -> tuple[RolePolicy, tuple[Override, ...]]:
    """The policy in a TOML file, and its overrides.

    Raises:
        PlanError: the file cannot be read, or holds unknown keys, roles or values; all faults together.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read the policy {path}: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{path} is no valid TOML: {error}") from error
    content, faults = attempt(PolicyFile, table)
    rows = content.override if content else ()
    overrides = tuple(Override(**vars(row)) for row in rows)
    patterns = [fault for override in overrides for fault in override_faults(override)]
    if content is None or patterns:
        raise PlanError([f"{path}: {words}" for words in (*(fault.words for fault in faults), *patterns)])

    base = ROLE_POLICIES[content.base]
    # What the file says of all gains goes before what its base says of some.
    of_base = {} if Role.NORM_GAIN in content.roles else base.norms
    name = content.name or path.stem
    policy = RolePolicy(name, {**base.multipliers, **content.roles}, {**of_base, **content.norms})
    return policy, overrides


def find_policy(policy: str | Path | Policy) -> tuple[Policy, tuple[Override, ...]]:
    """The policy of that name or in that TOML file, with the overrides that the file brings along.

    Raises:
        PlanError: no policy has that name, the file is not sound, or this is no policy at all.
    """
    if isinstance(policy, Path):
        return read_policy(policy)
    if not isinstance(policy, str):
        if not callable(getattr(policy, "decide", None)):
            raise PlanError(f"policy is {policy!r}: give a name ({', '.join(POLICIES)}), a Path or a Policy")
        return policy, ()
    if policy in POLICIES:
        return POLICIES[policy], ()
    if policy.endswith(".toml"):
        return read_policy(Path(policy))
    raise PlanError(f"there is no policy '{policy}' ({did_you_mean(policy, POLICIES)}); a file must end in .toml")
