"""The names under which an optimizer's tensors are saved and found again."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError
from weightdecay.naming import names_by_parameter, without_wrappers
from weightdecay.optim.grouping import names_in

# A model, its named tensors, or names in the order of the groups; None: the optimizer's own `param_names`.
Names: TypeAlias = nn.Module | Mapping[str, Tensor] | Sequence[tuple[str, Tensor]] | Sequence[str] | None


def parameter_names(optimizer: torch.optim.Optimizer, names: Names = None) -> dict[Tensor, str]:
    """Parameter -> name, in the order of the groups.

    A model settles what each is called, whatever wraps it; a tied tensor has its first name. Names that are given, and
    those that the groups hold, are taken as they are, but for attributes that only a wrapper makes (`_orig_mod` …).

    Raises:
        OptimizerError: some parameter has no name, or a name is given twice.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    named = _named(optimizer, params, names)
    if len(named) < len(set(params)):
        raise OptimizerError(
            f"{len(set(params)) - len(named)} of {len(params)} parameters have no name: give the model, or build the "
            "optimizer from a plan or from model.named_parameters()"
        )

    if twice := sorted(name for name, times in Counter(named.values()).items() if times > 1):
        raise OptimizerError(f"names of more than one parameter: {', '.join(twice)}")
    return named


def _named(optimizer: torch.optim.Optimizer, params: list[Tensor], names: Names) -> dict[Tensor, str]:
    given: Any = names  # whatever the caller gave, be its type what it may
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if isinstance(names, nn.Module):
        found: dict[Tensor, Any] = names_by_parameter(names)
    elif names is None:
        own = bare([name for group in optimizer.param_groups for name in names_in(group) or ()])
        found = dict(zip(params, own, strict=True)) if len(own) == len(params) else {}
    elif isinstance(given, Mapping) or (listed and all(isinstance(one, tuple) and len(one) == 2 for one in given)):
        # A tied tensor's first name is the last one set.
        found = {p: name for name, p in reversed(list(dict(given).items()))}
    elif listed and len(given) != len(params):
        raise OptimizerError(f"{len(given)} names for {len(params)} parameters: give one for each, in their order")
    else:
        found = dict(zip(params, given, strict=True)) if listed else dict.fromkeys(params)
    if not all(isinstance(name, str) for name in found.values()):
        raise OptimizerError(
            f"names is {names!r:.60}: give the model, dict(model.named_parameters()), or a list of names"
        )
    return {p: found[p] for p in params if p in found}


def bare(names: Sequence[str]) -> list[str]:
    """The names without attributes that only a wrapper makes (`_orig_mod` …), unless two would become one."""
    found = [without_wrappers(name) for name in names]
    return found if len(set(found)) == len(set(names)) else list(names)


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that keeps the state, where others' code wraps one and hands its state on.

    Raises:
        OptimizerError: it keeps state of its own beside that of an optimizer inside it, one of which would be lost.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptimizerError(f"an optimizer of torch's kind is wanted, and this is {optimizer!r:.60}")
    inside = getattr(optimizer, "optimizer", None)
    if isinstance(inside, torch.optim.Optimizer) and inside.state is optimizer.state:
        own = type(optimizer).state_dict is not torch.optim.Optimizer.state_dict
        if own and (more := optimizer.state_dict().keys() - {"state", "param_groups"}):
            raise OptimizerError(
                f"{type(optimizer).__name__} wraps a {type(inside).__name__} and keeps more beside its state "
                f"({', '.join(sorted(more))}), which would be lost: save the wrapper's state_dict() instead"
            )
        return unwrapped(inside)

    faults = [
        f"{type(optimizer).__name__} wraps a {type(other).__name__} as `{attribute}` and keeps state beside it, so one "
        f"of the two would be lost: save and load both, `optimizer.{attribute}` and the wrapper, by their state_dict"
        for attribute, other in vars(optimizer).items()
        if isinstance(other, torch.optim.Optimizer) and other.state is not optimizer.state
    ]
    if faults:
        raise OptimizerError(faults)
    return optimizer


# --- renamed modules


def new_names(names: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Saved name -> the one it has now.

    Args:
        names: all that were saved.
        rename: pattern -> new name; each `*` stands for any characters and is put in the place of the new name's.
            The first pattern that fits counts.

    Raises:
        OptimizerError: a pattern fits nothing, has another number of `*` than its new name, or two names become one.
    """
    given: Any = rename  # by a caller whom no type checker has seen
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise OptimizerError(f"rename is {given!r:.60}: give patterns of saved names and what they are called now")
    names = list(dict.fromkeys(names))
    matchers: dict[str, re.Pattern[str]] = {}
    faults = []
    for pattern, new in rename.items():
        stars = pattern.count("*"), new.count("*")
        if stars[0] != stars[1]:
            faults.append(f"rename: '{pattern}' has {stars[0]} `*` and '{new}' has {stars[1]}: give as many")
        matchers[pattern] = re.compile("(.*?)".join(map(re.escape, pattern.split("*"))), re.DOTALL)
        if not any(map(matchers[pattern].fullmatch, names)):
            there = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            faults.append(f"rename: '{pattern}' fits no tensor that was saved; there are {there or 'none'}")
    if faults:
        raise OptimizerError(faults)

    became: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found = ((matcher.fullmatch(name), rename[pattern]) for pattern, matcher in matchers.items())
        became[next((_filled(new, match.groups()) for match, new in found if match), name)].append(name)
    if faults := [f"rename: {' and '.join(old)} would both be '{new}'" for new, old in became.items() if len(old) > 1]:
        raise OptimizerError(faults)
    return {old: new for new, (old,) in became.items()}


def _filled(new: str, stood_for: Sequence[str]) -> str:
    """The new name with what the n-th `*` stood for in the place of the n-th."""
    first, *others = new.split("*")
    return first + "".join(text + part for text, part in zip(stood_for, others, strict=True))
