"""From the positional state of others' checkpoints to state by name.

A `state_dict` of torch numbers parameters in the order of the groups they were given in. Which order that was is a
convention of the program that wrote it; with the model at hand it can be followed, and the shapes tell if it was not.

    import torch
    from weightdecay import load_state_by_name
    from weightdecay.optim.state import from_positional

    tensors, settings = from_positional(torch.load("optimizer.pt", weights_only=True), model, "transformers")
    load_state_by_name(optimizer, tensors, settings, names=model, on_change="override")
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from weightdecay.errors import OptimizerError, did_you_mean, gathered
from weightdecay.optim.grouping import names_in
from weightdecay.optim.state.names import bare
from weightdecay.optim.state.settings import Settings, plain_group
from weightdecay.optim.state.tree import flattened
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.policies.emulated import EMULATED

Layout = Literal["torch", "transformers", "nanogpt"]

# Moments that have their parameter's shape in whatever optimizer has them.
_WHOLE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "exp_inf")


def positional_names(model: nn.Module, layout: Layout = "torch") -> list[str]:
    """The names of a model's parameters in the order in which a program gives them to its optimizer.

    Args:
        layout: `torch`: as `model.parameters()`. `transformers`: what its Trainer decays, then the rest.
            `nanogpt`: tensors of two axes and more, then the rest.

    Raises:
        OptimizerError: the layout is unknown.
    """
    if layout not in get_args(Layout):
        raise OptimizerError(f"unknown layout '{layout}': {did_you_mean(str(layout), get_args(Layout))}")
    tensors = read_tensors(model)
    if layout == "torch":
        return [facts.name for facts in tensors]
    exemption = EMULATED[layout].exemption
    trained = [(facts.name, bool(exemption(facts))) for facts in tensors if facts.trainable]
    return [name for name, exempt in trained if not exempt] + [name for name, exempt in trained if exempt]


def from_positional(
    state_dict: Mapping[str, Any], model: nn.Module, layout: Layout = "torch"
) -> tuple[dict[str, Tensor], Settings]:
    """State and settings by name, as `state_by_name` and `settings_by_name` give them.

    Args:
        state_dict: an optimizer's `state_dict()`; names that it holds itself (`param_names`) go before the layout.
        model: the model it was trained with.
        layout: the order in which the writing program groups parameters.

    Raises:
        OptimizerError: no optimizer's state at all, or one that cannot be saved by name; another number of parameters
            than the model has, or moments that only another order or another model explains, each named.
    """
    if not isinstance(state_dict, Mapping):
        raise OptimizerError(f"a state_dict is wanted, and this is {state_dict!r:.60}")
    if missing := [f"'{key}'" for key in ("param_groups", "state") if key not in state_dict]:
        raise OptimizerError(
            f"this is no optimizer's state_dict, it has no {' and no '.join(missing)}: of a checkpoint that holds more "
            "give the optimizer's part, such as checkpoint['optimizer']"
        )
    groups, states = state_dict["param_groups"], state_dict["state"]
    whole = isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups)
    if not whole or not isinstance(states, Mapping) or not all(isinstance(state, Mapping) for state in states.values()):
        raise OptimizerError(
            "this state_dict's groups have no params, or its state is none by parameter: it is damaged"
        )
    ids = [saved for group in groups for saved in group["params"]]
    own_names = _as_here([name for group in groups for name in names_in(group) or ()], model)
    names = own_names if len(own_names) == len(ids) else positional_names(model, layout)
    if len(names) != len(ids):
        raise OptimizerError(
            f"the state is of {len(ids)} parameters and the model gives {len(names)} in layout '{layout}': "
            "another model, another layout, or frozen parameters"
        )

    by_id = dict(zip(ids, names, strict=True))
    tensors: dict[str, Tensor] = {}
    faults: list[str] = []
    for saved, state in states.items():
        if saved not in by_id:
            faults.append(f"state {saved!r} is of no parameter of the groups")
        elif any(value is not None for value in state.values()):
            with gathered(faults):
                tensors |= flattened(by_id[saved], state)
    if faults := faults + _shape_faults(tensors, model, layout):
        raise OptimizerError(faults)

    present = {full.rpartition("/")[0] for full in tensors}
    return tensors, {
        "optimizer": "",
        "stateless": [name for name in names if name not in present],
        "groups": [{"params": [by_id[saved] for saved in group["params"]], **plain_group(group)} for group in groups],
    }


def _as_here(names: Sequence[str], model: nn.Module) -> list[str]:
    """A file's own names as the model has them, without what a wrapper put before."""
    here = {facts.name for facts in read_tensors(model)}
    found = bare(names)
    inside = [name.removeprefix("module.") for name in found]  # DataParallel's, unless the model has such a module
    return inside if here.issuperset(inside) and not here.issuperset(found) else found


def _shape_faults(tensors: Mapping[str, Tensor], model: nn.Module, layout: Layout) -> list[str]:
    """State in the wrong places, key by key.

    A state may have shapes of its own: one number for each row or column, a square for each axis, blocks of 256. It is
    in the wrong place only where the shapes under one key are those of the parameters, and not of their own ones.
    """
    shapes = {facts.name: facts.shape for facts in read_tensors(model)}
    by_key: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        if value.ndim and name in shapes:
            by_key[key.removesuffix(":t")][name] = tuple(value.t().shape if key.endswith(":t") else value.shape)

    misplaced, another_order = [], False
    for key, found in by_key.items():
        is_whole = key in _WHOLE
        unfit = [name for name, shape in found.items() if not _may_be_of(shape, shapes[name], square=not is_whole)]
        if not unfit:
            continue
        is_permuted = not Counter(found.values()) - Counter(shapes.values())
        own = sum(shape == shapes[name] for name, shape in found.items())
        if is_permuted or is_whole or 2 * own > len(found):
            unfit = [name for name, shape in found.items() if shape != shapes[name]]
            misplaced += [
                f"{name}/{key}: saved with shape {found[name]}, this model has {shapes[name]}" for name in unfit
            ]
            another_order |= is_permuted
    if not misplaced:
        return []
    if another_order:
        return [*misplaced, f"the parameters were not saved in the order of layout '{layout}'"]
    return [*misplaced, f"the state is of another model, or not in the order of layout '{layout}'"]


def _may_be_of(state: tuple[int, ...], parameter: tuple[int, ...], *, square: bool) -> bool:
    """Whether a state of this shape can be the parameter's: its axes or 1 in their place, or fewer axes.

    Args:
        square: whether it can be a square of one axis, too.
    """
    if square and len(state) == 2 and state[0] == state[1] and state[0] in parameter:
        return True
    if len(state) != len(parameter):
        return len(state) < len(parameter)
    return all(n in (1, size) for n, size in zip(state, parameter, strict=True))
