"""From the positional state of others' checkpoints to state by name.

A `state_dict` of torch numbers parameters in the order of the groups they were given in. Which order that was is a
convention of the program that wrote it; with the model at hand it can be followed, and the shapes tell if it was not.

    tensors, settings = from_positional(torch.load("optimizer.pt", weights_only=True), model, "transformers")
    load_state_by_name(optimizer, tensors, settings, names=model, on_change="override")
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.settings import Settings, plain_setting
from weightdecay.optim.state import flattened

Layout = Literal["torch", "transformers", "nanogpt"]

# transformers@5.23 `Trainer.get_decay_parameter_names`, searched for in the lower-case name
_TRANSFORMERS_EXEMPT = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


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
    if layout == "torch":
        return [name for name, _ in model.named_parameters()]
    inside_layer_norm = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters()
    }

    def decays(name: str, p: Tensor) -> bool:
        if layout == "nanogpt":
            return p.dim() >= 2
        return name not in inside_layer_norm and not _TRANSFORMERS_EXEMPT.search(name.lower())

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, p in trained if decays(name, p)] + [name for name, p in trained if not decays(name, p)]


def from_positional(
    state_dict: Mapping[str, Any], model: nn.Module, layout: Layout = "torch"
) -> tuple[dict[str, Tensor], Settings]:
    """State and settings by name, as `state_by_name` and `settings_by_name` give them.

    Args:
        state_dict: an optimizer's `state_dict()`; names that it holds itself (`param_names`) go before the layout.
        model: the model it was trained with.
        layout: the order in which the writing program groups parameters.

    Raises:
        OptimizerError: no optimizer's state at all; another number of parameters than the model has, or moments whose
            shape is not their parameter's, each named: the order was another.
    """
    if missing := [f"'{key}'" for key in ("param_groups", "state") if key not in state_dict]:
        raise OptimizerError(
            f"this is no optimizer's state_dict, it has no {' and no '.join(missing)}: of a checkpoint that holds more "
            "give the optimizer's part, such as checkpoint['optimizer']"
        )
    ids = [saved for group in state_dict["param_groups"] for saved in group["params"]]
    own_names = [name for group in state_dict["param_groups"] for name in group.get("param_names", ())]
    names = own_names if len(own_names) == len(ids) else positional_names(model, layout)
    if len(names) != len(ids):
        raise OptimizerError(
            f"the state is of {len(ids)} parameters and the model gives {len(names)} in layout '{layout}': "
            "another model, another layout, or frozen parameters"
        )
    by_id = dict(zip(ids, names, strict=True))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    faults = [
        f"{by_id[saved]}/{key}: saved with shape {tuple(value.shape)}, this model has {shapes.get(by_id[saved])}"
        for saved, state in state_dict["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.ndim and tuple(value.shape) != shapes.get(by_id[saved])
    ]
    if faults:
        raise OptimizerError([*faults, f"the parameters were not saved in the order of layout '{layout}'"])
    tensors: dict[str, Tensor] = {}
    for saved, state in state_dict["state"].items():
        tensors |= flattened(by_id[saved], state)
    groups = [
        {
            "params": [by_id[saved] for saved in group["params"]],
            **{key: plain_setting(value) for key, value in group.items() if key not in ("params", "param_names")},
        }
        for group in state_dict["param_groups"]
    ]
    present = {full.rpartition("/")[0] for full in tensors}
    stateless = [name for name in names if name not in present]
    return tensors, {"optimizer": "", "stateless": stateless, "groups": groups}
