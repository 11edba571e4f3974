"""Every optimizer class of torch and of the packages that are installed, and how one of each is made.

The page `optimizers.md` and the tests of other people's optimizers walk the same list, so that neither can leave out
what the other shows.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

LR = 0.02

# Where optimizers are found, and the distribution whose version is shown.
PACKAGES = {
    "torch.optim": "torch",
    "transformers.optimization": "transformers",
    "schedulefree": "schedulefree",
    "heavyball": "heavyball",
    "torchao.optim": "torchao",
    "timm.optim": "timm",
    "pytorch_optimizer": "pytorch_optimizer",
    "optimi": "torch-optimi",
    "bitsandbytes.optim": "bitsandbytes",
    "torch_optimizer": "torch_optimizer",
    "prodigyopt": "prodigyopt",
    "lion_pytorch": "lion-pytorch",
    "accelerate.optimizer": "accelerate",
}

# Bases of other classes, which nobody makes.
_ABSTRACT = {"heavyball.PSGDBase", "heavyball.SOAPBase"}

# What a constructor gets beside parameters and lr: mostly what it wants, as its documentation shows it.
_ARGUMENTS: dict[str, Mapping[str, Any]] = {
    "pytorch_optimizer.BSAM": {"num_data": 1_000},
    "pytorch_optimizer.Ranger21": {"num_iterations": 1_000},
    # A hundred rounds of its solver a step, 45 ms of them, have no part in how it decays.
    "pytorch_optimizer.SpectralSphere": {"solver_max_iterations": 10},
    **{
        f"bitsandbytes.optim.{name}": {"momentum": 0.9}
        for name in ("SGD", "SGD8bit", "SGD32bit", "LARS", "LARS8bit", "LARS32bit", "PytorchLARS")
    },
    "transformers.optimization.Adafactor": {"relative_step": False},
}

# Optimizers whose groups say which of two algorithms steps them; without the key they are not made.
_MUONS = {"AdaGO", "AdaMuon", "DistributedMuon", "Muon", "MuonClip", "NorMuon"}

_DISTRIBUTED = {"DeMo", "DistributedMuon"}

# Settings under which a class is another optimizer: for each, what else is tried.
_VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "torch.optim.Adam": ({"amsgrad": True}, {"fused": True}, {"foreach": True}),
    "torch.optim.AdamW": ({"amsgrad": True}, {"fused": True}, {"foreach": True}, {"maximize": True}),
    "torch.optim.SGD": ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"fused": True}),
    "torch_optimizer.LARS": ({"trust_coefficient": 0.001},),
    "timm.optim.Lars": ({"always_adapt": True},),
    "timm.optim.Lamb": ({"always_adapt": True},),
    "timm.optim.AdafactorBigVision": ({"momentum": 0.9},),
    "transformers.optimization.Adafactor": ({"relative_step": False, "scale_parameter": False},),
    # Slow weights are looked at every k-th step: more seldom than a short experiment lasts.
    "pytorch_optimizer.Ranger": ({"k": 13}, {"k": 20}, {"k": 200}),
    "torch_optimizer.Ranger": ({"k": 13}, {"k": 200}),
    "torch_optimizer.RangerQH": ({"k": 13}, {"k": 200}),
}

# Flags of constructors that say how λ enters; the other value is another optimizer.
_DECAY_FLAGS = (
    "weight_decouple", "fixed_decay", "decoupled_weight_decay", "decoupled_decay", "decouple", "decouple_weight_decay",
    "decouple_wd", "decouple_lr", "cautious_weight_decay", "caution", "cautious", "corrected_weight_decay",
    "normuon",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Kind:
    """A class with the settings that it is made with."""

    package: str
    name: str
    cls: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"{self.package}.{self.name}"

    @property
    def title(self) -> str:
        """Such as `Ranger(k=13)`."""
        settings = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({settings})" if settings else self.name

    @property
    def wraps(self) -> bool:
        """Whether it is made from another optimizer."""
        return list(inspect.signature(self.cls.__init__).parameters)[1] in ("optimizer", "base_optimizer")

    def make(self, groups: Sequence[Mapping[str, Any]], lr: float = LR) -> Any:
        """One over groups of parameters; an optimizer that wraps another gets torch's AdamW.

        Options that the constructor does not take are keys of every group.
        """
        takes = inspect.signature(self.cls.__init__).parameters
        keys = {key: value for key, value in self.options.items() if key not in takes}
        given = [{**group, **keys} for group in groups]
        params = [p for group in given for p in group["params"]]
        arguments = {
            **_ARGUMENTS.get(self.path, {}),
            **{key: self.options[key] for key in self.options if key in takes},
        }
        if "lr" in takes or "base_optimizer" in takes:
            arguments["lr"] = lr

        if self.package == "accelerate.optimizer":
            importlib.import_module("accelerate").PartialState(cpu=True)
        if self.name in _DISTRIBUTED and not torch.distributed.is_initialized():
            store = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        if self.wraps:
            arguments.pop("lr", None)
            optimizer = self.cls(torch.optim.AdamW(given, lr=lr), **arguments)
        elif self.name == "GSAM":
            base = torch.optim.AdamW(given, lr=lr)
            rate = torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)
            scheduler = importlib.import_module("pytorch_optimizer").ProportionScheduler(rate, max_lr=lr)
            optimizer = self.cls(given, base, _model(params), scheduler)
        elif self.name == "WSAM":
            optimizer = self.cls(_model(params), given, torch.optim.AdamW, **arguments)
        elif self.name == "SplitOpt":
            optimizer = self.cls([{**group, "optimizer": torch.optim.AdamW, "lr": lr} for group in given])
        elif "base_optimizer" in takes:
            optimizer = self.cls(given, torch.optim.AdamW, **arguments)
        elif "model" in takes and takes["model"].default is inspect.Parameter.empty:
            optimizer = self.cls(_model(params), **arguments)
        else:
            optimizer = self.cls(given, **arguments)

        # Schedule-Free's weights are those of training only after this.
        if callable(getattr(type(optimizer), "train", None)) and self.name != "SAMWrapper":
            optimizer.train()
        return optimizer


def _model(params: Sequence[nn.Parameter]) -> nn.Module:
    model = nn.Module()
    for index, p in enumerate(params):
        model.register_parameter(f"p{index}", p)
    return model


def version(package: str) -> str:
    return importlib.metadata.version(PACKAGES[package])


def installed(package: str) -> bool:
    try:
        version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def kinds(package: str, *, variants: bool = True) -> Iterator[Kind]:
    """The classes of a package that is installed, by name, each under its settings."""
    module = _module(package)
    for name, cls in sorted(vars(module).items()):
        if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)) or cls is torch.optim.Optimizer:
            continue
        kind = Kind(package, name, cls)
        if kind.path in _ABSTRACT or (package != "torch.optim" and cls.__module__.startswith("torch.optim")):
            continue  # timm shows torch's, too
        if package == "pytorch_optimizer" and name in _MUONS:
            yield from (Kind(package, name, cls, {"use_muon": by_muon}) for by_muon in (True, False))
        else:
            yield kind
        if variants:
            yield from (Kind(package, name, cls, options) for options in _options(kind))


def _options(kind: Kind) -> Iterator[Mapping[str, Any]]:
    yield from _VARIANTS.get(kind.path, ())
    always = {"use_muon": True} if kind.package == "pytorch_optimizer" and kind.name in _MUONS else {}
    for flag, parameter in inspect.signature(kind.cls.__init__).parameters.items():
        if flag in _DECAY_FLAGS and isinstance(parameter.default, bool):
            yield {**always, flag: not parameter.default}


def _module(package: str) -> types.ModuleType:
    if package == "timm.optim" and "timm" not in sys.modules:
        # timm itself imports torchvision and Pillow for its models; its optimizers need neither.
        spec = importlib.util.find_spec("timm")
        assert spec is not None
        bare, models = types.ModuleType("timm"), types.ModuleType("timm.models")
        bare.__path__ = list(spec.submodule_search_locations or ())
        models.group_parameters = None  # type: ignore[attr-defined]
        sys.modules |= {"timm": bare, "timm.models": models}
    return importlib.import_module(package)
