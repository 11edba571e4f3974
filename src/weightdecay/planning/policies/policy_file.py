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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from weightdecay.errors import PlanError, did_you_mean
from weightdecay.planning.policies.emulated import EMULATED
from weightdecay.planning.policies.overrides import Override, is_multiplier, override_faults
from weightdecay.planning.policies.role_policies import ROLE_POLICIES, Policy, RolePolicy
from weightdecay.planning.roles.roles import NormPlace, Role

PolicyName = Literal[
    "default", "all", "none", "matrices", "no-embeddings", "olmo2", "qwen3-next", "torch", "nanogpt", "transformers",
    "timm", "mingpt", "bert", "levanter", "composer",
]  # fmt: skip
POLICIES: dict[str, Policy] = {**ROLE_POLICIES, **EMULATED}

_KEYS = ("name", "base", "roles", "norms", "override")
_OVERRIDE_KEYS = ("pattern", "multiplier", "lr_multiplier", "reason", "role")

K = TypeVar("K", Role, NormPlace)


def read_policy(path: Path) -> tuple[RolePolicy, tuple[Override, ...]]:
    """The policy in a TOML file, and its overrides.

    Raises:
        PlanError: the file cannot be read, or holds unknown keys, roles or values; all faults together.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read the policy {path}: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{path} is no valid TOML: {error}") from error
    faults = [f"{path}: there is no key '{key}': {did_you_mean(key, _KEYS)}" for key in content if key not in _KEYS]
    base = content.get("base", "default")
    if base not in ROLE_POLICIES:
        faults.append(
            f"{path}: base '{base}' is no policy that decides by role: {did_you_mean(str(base), ROLE_POLICIES)}"
        )
    multipliers = _multipliers(path, "role", Role, content.get("roles", {}), faults)
    norms = _multipliers(path, "place of a norm", NormPlace, content.get("norms", {}), faults)
    overrides = _overrides(path, content.get("override", []), faults)
    if faults:
        raise PlanError(faults)
    name = str(content.get("name", path.stem))
    # What the file says of all gains goes before what its base says of some.
    of_base = {} if Role.NORM_GAIN in multipliers else ROLE_POLICIES[base].norms
    policy = RolePolicy(name, {**ROLE_POLICIES[base].multipliers, **multipliers}, {**of_base, **norms})
    return policy, overrides


def _multipliers(path: Path, kind: str, names: type[K], table: Any, faults: list[str]) -> dict[K, float]:
    """The multipliers of a table, by the values of an enumeration."""
    if not isinstance(table, Mapping):
        faults.append(f"{path}: {table!r} should be a table of multipliers, each after its {kind}")
        return {}
    known = {member.value: member for member in names}
    found: dict[K, float] = {}
    for name, value in table.items():
        if name not in known:
            faults.append(f"{path}: there is no {kind} '{name}': {did_you_mean(name, known)}")
        elif not is_multiplier(value):
            faults.append(f"{path}: the multiplier of '{name}' is {value!r}: give a finite number of at least 0")
        else:
            found[known[name]] = float(value)
    return found


def _overrides(path: Path, entries: Sequence[Mapping[str, Any]], faults: list[str]) -> tuple[Override, ...]:
    found = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: override {number}"
        unknown = [key for key in entry if key not in _OVERRIDE_KEYS]
        faults += [f"{where}: there is no key '{key}': {did_you_mean(key, _OVERRIDE_KEYS)}" for key in unknown]
        if "pattern" not in entry:
            faults.append(f"{where} has no pattern: give a regular expression of tensor names")
        if not unknown and "pattern" in entry:
            found.append(Override(**entry))
            faults += [f"{where}: {fault}" for fault in override_faults(found[-1])]
    return tuple(found)


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
