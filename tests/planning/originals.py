"""The rules that we emulate, loaded from where they are: installed packages, and checkouts that lie in one folder.

    WEIGHTDECAY_ORIGINALS=~/checkouts python -m pytest -m long tests/planning/test_originals.py

The folder holds checkouts of karpathy/nanoGPT, karpathy/minGPT, google-research/bert, mosaicml/composer,
marin-community/levanter and marin-community/haliax, each under its repository's name. Of each only the file with the
rule is run; what that file imports and the rule does not use is replaced by a stand-in, but for levanter's.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

Rule = Callable[[nn.Module], set[str]]
"""From a model to the first names of the tensors that decay, frozen ones left out."""


def checkout(repository: str, path: str) -> Path:
    """A file of a checkout; skips the test if it is not there."""
    folder = os.environ.get("WEIGHTDECAY_ORIGINALS")
    if not folder:
        pytest.skip(f"set WEIGHTDECAY_ORIGINALS to a folder that holds a checkout of {repository}")
    file = Path(folder).expanduser() / repository.rpartition("/")[2] / path
    if not file.exists():
        pytest.skip(f"{file} is not there: check out {repository} in {folder}")
    return file


def installed(package: str, path: str) -> Path:
    """A file of an installed package, which need not be importable as a whole."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"pip install --no-deps {package}")
    return Path(spec.origin).parent / path


@contextmanager
def _stand_ins(modules: Mapping[str, Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield


def run_file(path: Path, stand_ins: Mapping[str, Any] | None = None) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(f"original_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _stand_ins({**(stand_ins or {}), spec.name: module}):
        spec.loader.exec_module(module)
    return module


def decaying(model: nn.Module, groups: list[dict[str, Any]]) -> set[str]:
    """What decays, in the groups of an optimizer whose λ is not 0."""
    found = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    return trainable(model, lambda _, parameter: id(parameter) in found)


def trainable(model: nn.Module, decays: Callable[[str, nn.Parameter], bool]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad and decays(name, parameter)}


def torchs() -> Rule:
    return lambda model: decaying(model, torch.optim.AdamW(model.parameters()).param_groups)


def transformers() -> Rule:
    from transformers.trainer import Trainer

    def rule(model: nn.Module) -> set[str]:
        # the method uses nothing of its trainer
        names = {*Trainer.get_decay_parameter_names(None, model)}
        return trainable(model, lambda name, _: name in names)

    return rule


def nanogpt() -> Rule:
    cls = run_file(checkout("karpathy/nanoGPT", "model.py")).GPT
    return lambda model: decaying(model, cls.configure_optimizers(model, 0.1, 1e-3, (0.9, 0.95), "cpu").param_groups)


def timm() -> Rule:
    # the one import that is replaced serves layer-wise learning rates
    path = installed("timm", "optim/_param_groups.py")
    group = run_file(path, {"timm": MagicMock(), "timm.models": MagicMock()}).param_groups_weight_decay

    def rule(model: nn.Module) -> set[str]:
        listed: Any = getattr(model, "no_weight_decay", set)
        return decaying(model, group(model, 0.05, no_weight_decay_list=listed()))

    return rule


def mingpt() -> Rule:
    """It stops with an assertion on tensors that it does not know, so that it is asked once more without these."""
    path = checkout("karpathy/minGPT", "mingpt/model.py")
    configure = run_file(path, {"mingpt": MagicMock(), "mingpt.utils": MagicMock()}).GPT.configure_optimizers
    settings = SimpleNamespace(weight_decay=0.1, learning_rate=1e-3, betas=(0.9, 0.95))

    def rule(model: nn.Module) -> set[str]:
        # it sorts names, under all of which a tied tensor must be found
        names = {name: nn.Parameter() for name, _ in model.named_parameters(remove_duplicate=False)}
        view = SimpleNamespace(named_modules=model.named_modules, named_parameters=lambda: names.items())
        try:
            optimizer = configure(view, settings)
        except AssertionError as stopped:
            for name in ast.literal_eval(re.findall(r"\{.*\}", str(stopped))[0]):
                del names[name]
            optimizer = configure(view, settings)
        found = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
        return trainable(model, lambda name, _: name in names and id(names[name]) in found)

    return rule


def bert() -> Rule:
    """Its optimizer is built by its own `create_optimizer`, on a TensorFlow that does nothing, and asked by name."""
    tensorflow = MagicMock()
    tensorflow.train.Optimizer = type("Optimizer", (), {"__init__": lambda *_: None})
    tensorflow.clip_by_global_norm.return_value = ((), None)
    module = run_file(checkout("google-research/bert", "optimization.py"), {"tensorflow": tensorflow})
    built: list[Any] = []
    module.AdamWeightDecayOptimizer.apply_gradients = lambda optimizer, *_, **__: built.append(optimizer)
    module.create_optimizer(None, 1e-4, 100, 0, False)
    return lambda model: trainable(model, lambda name, _: built[0]._do_use_weight_decay(name))


def composer() -> Rule:
    stand_ins = {"composer": MagicMock(), "composer.utils": MagicMock()}
    path = checkout("mosaicml/composer", "composer/optim/decoupled_weight_decay.py")
    with pytest.MonkeyPatch.context() as patch:
        # torch has dropped this mark of an argument without default
        patch.setattr(sys.modules["torch.optim.optimizer"], "required", object(), raising=False)
        cls = run_file(path, stand_ins).DecoupledAdamW
    return lambda model: decaying(model, cls(model.parameters(), lr=1e-3).param_groups)


def levanter() -> Rule:
    """Its rule walks trees of equinox modules: each model gets a tree with the same classes and attributes."""
    source, haliax = checkout("marin-community/levanter", "src"), checkout("marin-community/haliax", "src")
    with pytest.MonkeyPatch.context() as patch:
        for path in (source, haliax):
            patch.syspath_prepend(path)
        equinox = pytest.importorskip("equinox", reason="levanter needs jax and equinox")
        config = pytest.importorskip("levanter.optim.config", reason="pip install what levanter imports")
    jax = importlib.import_module("jax")
    mask = config.AdamConfig().build_weight_decay_mask()
    element = jax.numpy.zeros(())

    def tree(module: nn.Module, prefix: str, names: list[str]) -> Any:
        parts: dict[str, Any] = {}
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                parts[attribute] = element
                names.append(f"{prefix}{attribute}")
        for attribute, child in module._modules.items():
            if child is not None and next(child.parameters(), None) is not None:
                parts[attribute] = tree(child, f"{prefix}{attribute}.", names)
        fields = {f"its_{part}": value for part, value in parts.items()}  # "0" and "cls" would be no fields
        body = {"__annotations__": dict.fromkeys(fields, Any)}
        return type(type(module).__name__, (equinox.Module,), body)(**fields)

    def rule(model: nn.Module) -> set[str]:
        names: list[str] = []
        with warnings.catch_warnings(action="ignore"):  # no experiment tracker is set up
            answers = jax.tree_util.tree_leaves(mask(tree(model, "", names)))
        decay = {name for name, answer in zip(names, answers, strict=True) if answer}
        return trainable(model, lambda name, _: name in decay)

    return rule


ORIGINALS: dict[str, Callable[[], Rule]] = {
    "torch": torchs,
    "transformers": transformers,
    "nanogpt": nanogpt,
    "timm": timm,
    "mingpt": mingpt,
    "bert": bert,
    "composer": composer,
    "levanter": levanter,
}
