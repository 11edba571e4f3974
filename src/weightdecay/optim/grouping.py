"""Groups from what an optimizer is given: a plan, groups, or parameters; and groups split by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.checks import group_title
from weightdecay.planning.plan import DecayPlan
from weightdecay.planning.roles import Role

Group: TypeAlias = dict[str, Any]


@runtime_checkable
class HasParamGroups(Protocol):
    """What an optimizer needs of a decay plan."""

    def param_groups(self, *, lr: float) -> Sequence[Group]: ...


# A plan, or what torch takes: parameters, (name, parameter) pairs, groups.
Params: TypeAlias = HasParamGroups | Iterable[Any]
# One rule, or rules by pattern of the tensors' names, of which the first that matches holds.
Rules: TypeAlias = str | Mapping[str, str]

# Tables that are looked up, and matrices that end in a softmax: nothing normalises what comes out of a head, and the
# rows of a table are no inputs of a common map.
TABLES_AND_HEADS = frozenset({Role.EMBEDDING, Role.POSITION_EMBEDDING, Role.RELATIVE_POSITION, Role.OUTPUT_HEAD})


def listed_groups(params: Any, lr: float | Tensor) -> list[Group] | None:
    """The groups, new dictionaries that we may change; None for what torch is to explain the faults of."""
    if isinstance(params, HasParamGroups):
        groups = [dict(group) for group in params.param_groups(lr=float(lr))]
        if isinstance(lr, Tensor):  # a plan counts in floats; what follows the tensor must go on following it
            groups = [{**group, "lr": lr} if group.get("lr") == float(lr) else group for group in groups]
        return groups
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        return None
    listed = list(params)
    if not listed:
        return None
    if not isinstance(listed[0], dict):
        return [{"params": listed}]
    return [dict(group) for group in listed] if all(isinstance(group, dict) for group in listed) else None


def tables_and_heads(params: Any) -> frozenset[str]:
    """The names of a plan's embeddings and output heads; a tied tensor is both. Empty where there is no plan."""
    if not isinstance(params, DecayPlan):
        return frozenset()
    return frozenset(tensor.name for tensor in params.tensors if TABLES_AND_HEADS.intersection(tensor.roles))


def named_tensors(group: Group) -> list[tuple[str, Tensor]] | None:
    """A group's tensors with their names, "" where they have none; None where torch is to explain the faults."""
    params = group["params"]
    entries = [params] if isinstance(params, Tensor) else [] if isinstance(params, set) else list(params)
    tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        return None
    names = group.get("param_names") or [entry[0] if isinstance(entry, tuple) else "" for entry in entries]
    group["params"] = entries  # an iterator can be read once only
    return list(zip(names, tensors, strict=True))


def shared_tensors(groups: Sequence[Group]) -> list[str]:
    """Faults: tensors that are in more than one group, each named."""
    first: dict[int, str] = {}
    faults = []
    for index, group in enumerate(groups):
        title = group_title(group, index)
        for position, (name, tensor) in enumerate(named_tensors(group) or [] if "params" in group else []):
            seen = first.setdefault(id(tensor), title)
            if seen != title:
                label = f"'{name}'" if name else f"tensor {position} of shape {tuple(tensor.shape)}"
                faults.append(
                    # torch's words within, which its users' tests look for
                    f"{title}: {label} is in {seen} as well and would decay twice; some parameters appear in more than "
                    "one parameter group: leave each in one"
                )
    return faults


def split_group(group: Group, labels: Sequence[str]) -> list[tuple[str, Group]]:
    """One group for each label, in the order of their first tensors; a name says the label if there are several."""
    entries, names = group["params"], group.get("param_names")
    parts = []
    for label in dict.fromkeys(labels):
        chosen = [index for index, own in enumerate(labels) if own == label]
        part = {**group, "params": [entries[index] for index in chosen]}
        if names:
            part["param_names"] = [names[index] for index in chosen]
        if "name" in group and len(set(labels)) > 1:
            part["name"] = f"{group['name']} {label}"
        parts.append((label, part))
    return parts


def with_rules(groups: list[Group], rule: Rules, apart: frozenset[str]) -> list[Group]:
    """Groups in which each tensor follows its rule; a group with its own `rule` stays as it is.

    Args:
        rule: one rule or patterns; under `corrected` the tensors in `apart` keep `decoupled`.

    Raises:
        OptimizerError: tensors that no pattern matches, patterns that match no tensor, tensors without a name.
    """
    if not isinstance(rule, Mapping) and not (rule == "corrected" and apart):
        return groups
    patterns = dict(rule) if isinstance(rule, Mapping) else dict.fromkeys(apart, "decoupled") | {"*": rule}
    unused, faults, ruled = set(patterns) - apart - {"*"}, [], []
    for group in groups:
        named = named_tensors(group)
        if named is None or "rule" in group:
            ruled.append(group)
            continue
        labels = []
        for name, _ in named:
            found = next((pattern for pattern in patterns if pattern in (name, "*") or fnmatchcase(name, pattern)), "")
            unused.discard(found)
            labels.append(patterns.get(found, ""))
            if not found:
                faults.append(f"no pattern of `rule` matches '{name}': end with '*' for the rest")
        ruled += [{**part, "rule": label} for label, part in split_group(group, labels)]
    faults += [
        f"the pattern '{pattern}' of `rule` matches no tensor: correct or remove it" for pattern in sorted(unused)
    ]
    if faults:
        raise OptimizerError(faults)
    return ruled


def rule_for_the_rest(rule: Rules) -> str:
    """The rule of a tensor that nothing else is known of, such as one that is added later."""
    return rule.get("*", "decoupled") if isinstance(rule, Mapping) else rule
