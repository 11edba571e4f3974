"""What a model's author has written on its tensors about their decay and learning rate, read as data.

On a tensor:

    param._no_weight_decay = True                                       Mamba, flash-linear-attention
    param.no_weight_decay = True, param._no_wd = True                   tokenize_anything; butterfly and nvSubquadratic
    param._optim = {"weight_decay": 0.0, "lr": 1e-3}                    S4, Hyena, safari: rates as they are, not shares
    param._weight_decay = 0.05                                          nvSubquadratic: λ as it is
    param.optim_overrides = {"optimizer": {"weight_decay_scale": 0}}    fairseq, data2vec: shares; "lr_scale" as well
    param.skip_weight_decay = True                                      several public repositories
    param.lr_scale = 0.5, param._lr_scale = 0.5                         TinyViT, BinaryConnect; nvSubquadratic: a share
    param.lr_mult = 0.1                                                 RITM and what builds on it: a share
    class NoWeightDecayParameter(nn.Parameter)                          several public repositories

On a module, for what lies below it:

    no_weight_decay()             names (timm, Swin, BEiT); `no_weight_decay = True` means all (WhisperSpeech)
    no_weight_decay_keywords()    words that stand anywhere in a name (Swin)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from weightdecay.amounts import amount
from weightdecay.naming import places


@dataclass(frozen=True)
class Mark:
    """One thing that a model's author says of a tensor; None where it leaves that open.

    Attributes:
        where: the attribute or method that says so.
        weight_decay, lr: λ and η themselves, whatever the run's are.
        share, lr_share: of the run's λ and η; 0 exempts.
        unread: what the mark says beside, which no plan carries.
    """

    where: str
    weight_decay: float | None = None
    share: float | None = None
    lr: float | None = None
    lr_share: float | None = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a module's author says of tensors below it: those of a name, or with a word in their name."""

    prefix: str
    pattern: str
    where: str
    anywhere: bool = False

    def names(self, name: str) -> bool:
        if not name.startswith(self.prefix):
            return False
        own = name[len(self.prefix) :]
        return self.pattern in own if self.anywhere else fnmatchcase(own, self.pattern)


_EXEMPTING = ("_no_weight_decay", "no_weight_decay", "_no_wd", "skip_weight_decay")
_SCALING = ("lr_scale", "_lr_scale", "lr_mult")
_EXEMPT_CLASS = "NoWeightDecayParameter"


def marks_of(parameter: Tensor, names: Sequence[str], listings: Sequence[Listing]) -> tuple[Mark, ...]:
    """All marks of one tensor, on itself or by any of its names."""
    is_plain = type(parameter) is nn.Parameter and not vars(parameter)
    found = [] if is_plain else [*_on_tensor(parameter)]
    listed = [listing.where for listing in listings if any(map(listing.names, names))]
    return (*found, *[Mark(where, share=0.0) for where in dict.fromkeys(listed)])


def _on_tensor(parameter: Tensor) -> Iterator[Mark]:
    if any(base.__name__ == _EXEMPT_CLASS for base in type(parameter).__mro__):
        yield Mark(f"its class `{_EXEMPT_CLASS}`", share=0.0)
    for attribute in _EXEMPTING:
        said = getattr(parameter, attribute, False)
        if isinstance(said, int) and said:
            yield Mark(f"its `{attribute}`", share=0.0)

    own = getattr(parameter, "_optim", None)
    if isinstance(own, Mapping):
        beside = tuple(
            str(key) for key, value in own.items() if key not in ("weight_decay", "lr") and value is not None
        )
        yield from _mark("its `_optim`", beside, weight_decay=own.get("weight_decay"), lr=own.get("lr"))

    yield from _mark("its `_weight_decay`", (), weight_decay=getattr(parameter, "_weight_decay", None))

    overrides = getattr(parameter, "optim_overrides", None)
    shares = overrides.get("optimizer") if isinstance(overrides, Mapping) else None
    if isinstance(shares, Mapping):
        beside = tuple(str(key) for key in shares if key not in ("weight_decay_scale", "lr_scale"))
        decay, lr = shares.get("weight_decay_scale"), shares.get("lr_scale")
        yield from _mark("its `optim_overrides`", beside, share=decay, lr_share=lr)

    for attribute in _SCALING:
        if (lr := amount(getattr(parameter, attribute, None))) is not None and lr != 1.0:
            yield Mark(f"its `{attribute}`", lr_share=lr)


def _mark(where: str, unread: tuple[str, ...], **rates: Any) -> Iterator[Mark]:
    """A mark with those rates that are numbers; one that is not joins what no plan carries."""
    read = {key: amount(value) for key, value in rates.items()}
    odd = tuple(f"{key} {value!r}" for key, value in rates.items() if value is not None and read[key] is None)
    if unread or odd or any(value is not None for value in read.values()):
        yield Mark(where, **read, unread=unread + odd)


def listings(model: nn.Module) -> list[Listing]:
    """What a model and the models in it list, with names as the bare model has them."""
    found: list[Listing] = []
    for module, prefix, _, wrapped in places(model):
        # looked up on the class and in the instance's own dictionary: `nn.Module` answers other names with its tensors
        for attribute, anywhere in (("no_weight_decay", False), ("no_weight_decay_keywords", True)):
            said = vars(module).get(attribute, getattr(type(module), attribute, None))
            if said is not None and wrapped is None:
                found += _listed(module, prefix, attribute, said, anywhere=anywhere)
    return found


def _listed(module: nn.Module, prefix: str, attribute: str, said: Any, *, anywhere: bool) -> Iterator[Listing]:
    whose = f"`{prefix}" if prefix else "the model's `"
    if said is True:
        yield Listing(prefix, "*", f"{whose}{attribute}`")
        return
    names = _asked(module, attribute, prefix)
    if isinstance(names, str):
        names = (names,)
    if isinstance(names, set | frozenset | list | tuple):
        yield from (Listing(prefix, str(name), f"{whose}{attribute}()`", anywhere) for name in names)


def _asked(module: nn.Module, attribute: str, prefix: str) -> Any:
    said = getattr(module, attribute)
    if not callable(said):
        return said
    try:
        return said()
    except Exception as error:  # it is the author's own code
        warnings.warn(
            f"{prefix}{attribute}() raised {type(error).__name__}: {error}: what it would exempt is planned as if it "
            "said nothing",
            stacklevel=2,
        )
        return ()
