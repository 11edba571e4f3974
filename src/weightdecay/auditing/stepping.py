"""Steps of a real optimizer, from where it stands, after each of which everything is put back."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import optimizer as torchs

from weightdecay.auditing.measuring import local
from weightdecay.auditing.python_state import PythonState
from weightdecay.auditing.sharding import CommunicatesError, agreed_each, is_distributed
from weightdecay.auditing.written import Written
from weightdecay.probing.isolation import isolated, storages
from weightdecay.probing.small import away_from_zero
from weightdecay.probing.twin import set_number

_SEED = 20_000

Settings: TypeAlias = Mapping[int, Mapping[str, float]]
"""For each group, by its place, the numbers that it has during a step."""

Gradients: TypeAlias = Literal["own", "drawn", "as they are"]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tensor stands in an optimizer."""

    group: int
    index: int
    tensor: Tensor


def places_of(optimizer: Any) -> list[Place]:
    """Every place, in order; a tensor may have several."""
    return [
        Place(number, index, tensor)
        for number, group in enumerate(optimizer.param_groups)
        for index, tensor in enumerate(group["params"])
    ]


class Bench:
    """An optimizer with some of its tensors, to be stepped any number of times from the same place.

    Inside the `with` its groups hold these tensors alone, by the same lists and dictionaries; outside nothing has
    changed.

    Args:
        places: of the tensors; they are all different.
        saves: save whatever can be reached before a step, because its kernels write past torch's dispatcher.
        gradients: those that the tensors have, with 0 where there is none or it is not finite; or such ones drawn; or
            none where there is none.

    Attributes:
        reached: the objects that can be reached from the optimizer.
    """

    def __init__(
        self, optimizer: Any, places: Sequence[Place], *, saves: bool = False, gradients: Gradients = "own"
    ) -> None:
        self.optimizer, self.places, self.saves, self.gradients = optimizer, list(places), saves, gradients
        self.written = Written()
        self._python: PythonState | None = None
        self._others: list[Tensor] = []
        self._made: dict[int, Tensor] = {}  # gradients in place of those that are not there
        tensors = [place.tensor for place in self.places]
        unbelieved = agreed_each([not is_believed(p.grad) for p in tensors], tensors)
        self._believed = {id(p): not one for p, one in zip(tensors, unbelieved, strict=True)}

    # --- the groups

    def __enter__(self) -> Bench:
        groups, chosen = self.optimizer.param_groups, {id(place.tensor) for place in self.places}
        self._others = [p for group in groups for p in group["params"] if id(p) not in chosen]
        left = {id(p) for p in self._others}
        if left:
            state = getattr(self.optimizer, "state", {})
            left |= {id(held) for p, held in state.items() if id(p) not in chosen}
        self._groups = PythonState(groups, leave=left | chosen)
        try:
            self._narrow()
            self._python = PythonState(roots_of(self.optimizer), leave=left)
            # The weights before a step are read from what was saved, in whichever way the step writes to them.
            for tensor in [*(place.tensor for place in self.places), *(self._python.tensors if self.saves else ())]:
                self.written.save(tensor)
            self._start = {id(place.tensor): local(place.tensor) for place in self.places}
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        surely(self._groups.put_back)

    def _narrow(self) -> None:
        for number, group in enumerate(self.optimizer.param_groups):
            own = [place for place in self.places if place.group == number]
            held = group["params"]
            if len(own) == len(held):
                continue
            for key in ("params", "param_names"):
                values = group.get(key)
                if isinstance(values, list) and len(values) == len(held):
                    values[:] = [values[place.index] for place in own]
            if not isinstance(held, list):
                group["params"] = [place.tensor for place in own]

    @property
    def reached(self) -> int:
        return self._python.objects if self._python is not None else 0

    # --- steps

    @contextmanager
    def stepped(
        self,
        settings: Settings | None = None,
        *,
        steps: int = 1,
        prepare: Callable[[], None] | None = None,
        before_each: Callable[[], None] | None = None,
        after_each: Callable[[], None] | None = None,
    ) -> Iterator[None]:
        """In here all is as after a step; afterwards as before it.

        Args:
            steps: how many are made, with the same gradients.
            prepare, before_each, after_each: what else is done before the first step, and around each; what that
                writes to is put back, too.
        """
        hooks = {kind: others_hooks(kind) for kind in ("pre", "post")}
        try:
            for number, values in (settings or {}).items():
                for key, value in values.items():
                    self._set(self.optimizer.param_groups[number], key, value)
            self._give_gradients()
            self._do(prepare)
            for step in range(steps):
                self._do(before_each)
                with isolated(_SEED + step), _with_hooks(hooks), warnings.catch_warnings(), self.written:
                    warnings.simplefilter("ignore")
                    self.optimizer.step()
                self._do(after_each)
            self._refuse_communication()
            yield
        finally:
            surely(self.put_back)

    def _refuse_communication(self) -> None:
        if self.written.communicates and not any(is_distributed(place.tensor) for place in self.places):
            raise CommunicatesError(
                "its step speaks with other processes and changes tensors that belong to them; probe it where one "
                "process has all of them, or the optimizer that it wraps"
            )

    @torch.no_grad()
    def _do(self, what: Callable[[], None] | None) -> None:
        if what is not None:
            with self.written:
                what()

    def _set(self, group: Any, key: str, value: float) -> None:
        # Under a schedule of ours λ is the schedule's times the group's share in it.
        own = group.get("decay_multiplier") if key == "weight_decay" else None
        if own is not None:
            weight_decay = float(group["weight_decay"])
            group["decay_multiplier"] = own * value / weight_decay if weight_decay else 0.0
        set_number(group, key, value)

    def put_back(self) -> None:
        if self._python is not None:
            self._python.put_back()
        self.written.put_back()

    # --- gradients

    def _give_gradients(self) -> None:
        for place in self.places:
            p, gradient = place.tensor, place.tensor.grad
            if gradient is None and self.gradients == "as they are":
                continue
            if gradient is None or not self.has_gradient(place):
                if id(p) not in self._made:
                    self._made[id(p)] = self._drawn(p) if self.gradients == "drawn" else torch.zeros_like(p)
                p.grad = self._made[id(p)]
            elif gradient.layout != torch.strided:
                p.grad = gradient.clone()  # what a step writes to is not one memory that could be saved

    def weights(self, place: Place) -> Tensor:
        """The numbers that lie here, as they were before a step, whatever memory the tensor has now."""
        return self.written.original(self._start[id(place.tensor)])

    def has_gradient(self, place: Place) -> bool:
        return self._believed.get(id(place.tensor), False)

    def gradient(self, place: Place) -> Tensor | None:
        """The part of a finite dense gradient that lies here, as it was before a step."""
        gradient = place.tensor.grad
        if gradient is None or not self.has_gradient(place) or gradient.layout != torch.strided:
            return None
        return self.written.original(local(gradient))

    def _drawn(self, p: Tensor) -> Tensor:
        gradient = torch.zeros_like(p)
        here = gradient.to_local() if hasattr(gradient, "to_local") else gradient
        generator = torch.Generator().manual_seed(_SEED)
        here.copy_(away_from_zero(tuple(here.shape), generator, is_complex=p.is_complex()))
        return gradient

    # --- what a step did beside

    def is_blind(self) -> bool:
        """Whether something has changed, in the step that was just made, that no write was seen to."""
        return self.written.has_unseen_writes()

    def strays(self) -> bool:
        """Whether a step wrote to parameters of the optimizer that are not among these tensors."""
        return any(storage in self.written.seen for p in self._others for storage in storages(p))


def roots_of(optimizer: Any) -> list[Any]:
    """From where all that a step may change in Python can be reached; wrappers show what others hold."""
    hooks = [*others_hooks("pre"), *others_hooks("post")]
    return [optimizer, optimizer.param_groups, getattr(optimizer, "state", None), hooks]


def others_hooks(kind: str) -> list[Any]:
    """Hooks of all optimizers' steps; those of ours only look on, and a probe's steps are none to look at."""
    hooks = getattr(torchs, f"_global_optimizer_{kind}_hooks", {})
    return [hook for hook in hooks.values() if not _module_of(hook).startswith("weightdecay.")]


def _module_of(hook: Any) -> str:
    return str(getattr(getattr(hook, "__func__", hook), "__module__", None) or type(hook).__module__)


@contextmanager
def _with_hooks(hooks: Mapping[str, Sequence[Any]]) -> Iterator[None]:
    """Run these for all optimizers' steps; who isolates steps puts back what ran before."""
    for kind, own in hooks.items():
        setattr(torchs, f"_global_optimizer_{kind}_hooks", OrderedDict(enumerate(own)))
    yield


def is_believed(gradient: Tensor | None) -> bool:
    """Whether there is a gradient, and a finite one."""
    if gradient is None:
        return False
    here = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    values = here._values() if here.layout == torch.sparse_coo else here
    # One pass: what is not finite makes a sum that is not, and so may large numbers, which are then looked at.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def surely(put_back: Callable[[], None]) -> None:
    """Put back, also when somebody interrupts; a second time is the same as the first."""
    try:
        put_back()
    except KeyboardInterrupt:
        put_back()
        raise
