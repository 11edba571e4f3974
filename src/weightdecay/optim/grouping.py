"""Groups from what an optimizer is given: a plan, groups, or parameters; and groups split by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

from torch import Tensor

from weightdecay.amounts import number
from weightdecay.errors import OptimizerError, group_title
from weightdecay.optim.roundings import as_rounding, spelt_rounding
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.roles.roles import Role
from weightdecay.rules import CORRECTED, DECOUPLED, Rule, RuleLike, as_rule, spelt

Group: TypeAlias = dict[str, Any]


@runtime_checkable
class HasParamGroups(Protocol):
    """What an optimizer needs of a decay plan."""

    def param_groups(self, *, lr: float) -> Sequence[Group]: ...


# A plan, or what torch takes: parameters, (name, parameter) pairs, groups.
Params: TypeAlias = HasParamGroups | Iterable[Any]
# One rule, or rules by pattern of the tensors' names, of which the first that matches holds.
Rules: TypeAlias = RuleLike | Mapping[str, RuleLike]

# Tables that are looked up, and matrices that end in a softmax: nothing normalises what comes out of a head, and the
# rows of a table are no inputs of a common map.
TABLES_AND_HEADS = frozenset({Role.EMBEDDING, Role.POSITION_EMBEDDING, Role.RELATIVE_POSITION, Role.OUTPUT_HEAD})

# Maps from vectors to vectors, of which orthogonal ones are the neutral update. A router chooses, a convolution is a
# stack of small ones with its own geometry, a table is no map: those are for AdamW.
HIDDEN_MATRICES = frozenset({
    Role.LINEAR, Role.EXPERT_STACK, Role.ATTENTION_IN_PROJECTION, Role.RECURRENT, Role.LORA_A, Role.LORA_B,
    Role.WEIGHT_NORM_DIRECTION,
})  # fmt: skip


def groups_in(optimizer: Any) -> list[Group]:
    """The groups of an optimizer, or of what wraps one; an error for anything else."""
    groups: Any = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        raise OptimizerError(f"an optimizer of torch's kind is wanted, and this is {optimizer!r:.60}")
    return groups


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


def muon_tensors(plan: DecayPlan) -> frozenset[str]:
    """The names of the tensors that Muon takes, by their roles; all others are AdamW's.

    A tensor with several roles is Muon's only if it is a hidden matrix in each of them, and if it has the axes of a
    matrix or a stack of matrices: an axis of length 1 makes a vector of it. A matrix with a row for each word of an
    embedding, outside the numbered blocks, is taken for a head, whatever its name.
    """
    words = {tensor.shape[0] for tensor in plan.tensors if Role.EMBEDDING in tensor.roles}
    return frozenset(
        tensor.name
        for tensor in plan.tensors
        if not tensor.frozen
        and HIDDEN_MATRICES.issuperset(tensor.roles)
        and is_matrix(tensor.shape)
        and (tensor.shape[0] not in words or any(part.isdecimal() for part in tensor.name.split(".")))
    )


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether this is the shape of a matrix, or of a stack of them, that is more than a vector."""
    return len(shape) in (2, 3) and min(shape[-2:]) > 1


def names_in(group: Mapping[str, Any]) -> list[str] | None:
    """The names of a group's tensors; None where it has none, or of others than it holds since somebody changed it."""
    names: list[str] = group.get("param_names") or []
    return names if names and len(names) == len(group["params"]) else None


def called(group: Mapping[str, Any], position: int) -> str:
    """What one of a group's tensors is called in a message: by its name, or its place."""
    names = names_in(group)
    return f"'{names[position]}'" if names else f"tensor {position}"


def misnamed(group: Group, index: int) -> list[str]:
    """Faults: names that are given with the tensors of a group, and are not as many."""
    names, tensors = group.get("param_names"), group.get("params")
    if not names or not isinstance(tensors, list) or len(names) == len(tensors):
        return []
    return [f"{group_title(group, index)} has {len(tensors)} tensors and {len(names)} names: give one for each"]


def named_tensors(group: Group) -> list[tuple[str, Tensor]] | None:
    """A group's tensors with their names, "" where they have none; None where torch is to explain the faults."""
    params: Any = group.get("params")
    listed = isinstance(params, Iterable) and not isinstance(params, set)
    entries = [params] if isinstance(params, Tensor) else list(params) if listed else []
    tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        return None
    group["params"] = entries  # an iterator can be read once only
    names = names_in(group) or [entry[0] if isinstance(entry, tuple) else "" for entry in entries]
    return list(zip(names, tensors, strict=True))


def with_names_like(group: Group, others: Sequence[Group]) -> Group:
    """A group that is to stand beside others, nameless or not as they are: torch refuses a mixture.

    A tensor that joins named ones without a name is called by its place.
    """
    named = named_tensors(group)
    of_others = ["param_names" in other for other in others if other["params"]]
    if not of_others or (named is None and group["params"] != []):
        return group
    tensors = [tensor for _, tensor in named or ()]
    if not all(of_others):
        return {key: value for key, value in group.items() if key != "param_names"} | {"params": tensors}
    index = len(others)
    names = [name or f"group{index}.{position}" for position, (name, _) in enumerate(named or ())]
    return {**group, "params": tensors, "param_names": names}


def name_empty(groups: Iterable[Group]) -> None:
    """Let groups without tensors stand beside those with names, if there are any: torch takes them for nameless."""
    listed = list(groups)
    if any(name for group in listed for name, _ in named_tensors(group) or ()):
        for group in listed:
            if group.get("params") == []:
                group.setdefault("param_names", [])


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


def unlike_in_one_tensor(groups: Sequence[Group], key: str, wanted: Sequence[Any]) -> list[str]:
    """Faults: one tensor as a setting of groups that should get different values, of which the last would hold."""
    first: dict[int, tuple[str, Any]] = {}
    faults = []
    for index, (group, value) in enumerate(zip(groups, wanted, strict=True)):
        if not isinstance(group.get(key), Tensor):
            continue
        title, seen = first.setdefault(id(group[key]), (group_title(group, index), value))
        if seen != value:
            faults.append(
                f"{title} and {group_title(group, index)} have one tensor for {key} and should get different values: "
                "give each a tensor of its own"
            )
    return faults


def drop_repeats(group: Group) -> None:
    """Leave each tensor in its group once, or it would decay twice; torch has warned of it."""
    places = {id(tensor): place for place, tensor in reversed(list(enumerate(group["params"])))}
    if len(places) == len(group["params"]):
        return
    kept = sorted(places.values())
    for key in ("params", "param_names"):
        if key in group:
            group[key] = [group[key][place] for place in kept]


def with_gradient(group: Group) -> list[Any]:
    """The parameters that a step changes: those with a gradient, be it zero."""
    return [p for p in group["params"] if p.grad is not None]


def split_group(group: Group, labels: Sequence[str]) -> list[tuple[str, Group]]:
    """One group for each label, in the order of their first tensors; a name says the label if there are several."""
    entries, names = group["params"], names_in(group)
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
        rule: one rule or patterns; under `CORRECTED` the tensors in `apart` keep `DECOUPLED`.

    Raises:
        OptimizerError: tensors that no pattern matches, patterns that match no tensor, tensors without a name, unknown
            rules.
    """
    patterns = _patterns(rule, apart)
    if patterns is None:
        return groups
    labels_of: dict[Rule, str] = {}
    for one in patterns.values():  # rules of one's own may share a name
        alike = sum(one.name == other.name for other in labels_of if other != one)
        labels_of.setdefault(one, f"{one.name} {alike + 1}" if alike else one.name)
    by_label = {label: one for one, label in labels_of.items()}
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
            labels.append(labels_of[patterns[found]] if found else "")
            if not found:
                faults.append(f"no pattern of `rule` matches '{name}': end with '*' for the rest")
        ruled += [
            {**part, "rule": spelt(by_label[label])} for label, part in split_group(group, labels) if label in by_label
        ]
    faults += [
        f"the pattern '{pattern}' of `rule` matches no tensor: correct or remove it" for pattern in sorted(unused)
    ]
    if faults:
        raise OptimizerError(faults)
    return ruled


def _patterns(rule: Rules, apart: frozenset[str]) -> dict[str, Rule] | None:
    """The rule of each pattern; None where all tensors follow one."""
    if _is_by_pattern(rule):
        given: Mapping[Any, RuleLike] = rule  # by a caller whom no type checker has seen
        if odd := [pattern for pattern in given if not isinstance(pattern, str)]:
            raise OptimizerError(f"the pattern {odd[0]!r} of `rule` is no text: give patterns of the tensors' names")
        return {pattern: as_rule(one) for pattern, one in rule.items()}
    if apart and isinstance(rule, str | Rule) and rule in (CORRECTED, CORRECTED.name):
        return dict.fromkeys(apart, DECOUPLED) | {"*": CORRECTED}
    return None


def _is_by_pattern(rule: Rules) -> TypeGuard[Mapping[str, RuleLike]]:
    """Whether these are rules by pattern; the fields of one rule, as a saved state holds it, say its name."""
    return isinstance(rule, Mapping) and "name" not in rule


def rule_for_the_rest(rule: Rules) -> Any:
    """The rule of a tensor that nothing else is known of, such as one that is added later."""
    return rule.get("*", DECOUPLED) if _is_by_pattern(rule) else rule


def with_rule(group: Group, settings: Mapping[str, Any]) -> Group:
    """The group with its rule, rounding and peak lr.

    The lr that a group begins with is its peak unless one is given; a schedule may only go below it. A peak given for
    all is scaled for a group with its own lr: at ten times the lr it has ten times the peak.
    """
    chosen = {"rule": settings["rule"], "rounding": settings["rounding"], **group}
    try:
        rule, rounding = as_rule(chosen["rule"]), as_rounding(chosen["rounding"])
    except OptimizerError:
        return chosen  # whose faults are told with all others
    chosen |= {"rule": spelt(rule), "rounding": spelt_rounding(rounding)}
    if not rule.needs_peak or chosen.get("peak_lr") is not None:
        return chosen

    lr, base_lr = number(group.get("lr", settings["lr"])), number(settings["lr"])
    base_peak = number(settings.get("peak_lr"))
    if base_peak is None or lr is None or not base_lr:
        chosen["peak_lr"] = lr if settings.get("peak_lr") is None else settings["peak_lr"]
    else:
        chosen["peak_lr"] = base_peak * (lr / base_lr)
    return chosen
