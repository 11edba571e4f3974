"""One optimizer's steps: what is remembered before one that is due, and what is made of it afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightdecay.monitoring.courses import Course, Mark
from weightdecay.monitoring.decaying import DecayOf, GroupDecay, amount, left_by_rounding
from weightdecay.monitoring.directions import Kind, kind_of, supposed
from weightdecay.monitoring.measuring import Sums, square, sums
from weightdecay.monitoring.rotation import Rotation, Turned, identities, local
from weightdecay.monitoring.rows import Row, memory
from weightdecay.monitoring.spectral import LargestSingularValues
from weightdecay.monitoring.summing import over_shards
from weightdecay.monitoring.theory import has_course, is_muon, noise_of, predicted, reach
from weightdecay.optim.decay import local as shard
from weightdecay.optim.grouping import Group
from weightdecay.planning.planned import Plan
from weightdecay.rules import DECOUPLED

# Half a unit in the last place of 1, of the dtypes in which a step can be told from another.
_EPSILON = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@dataclass(frozen=True)
class Begun:
    """Where a tensor was when it was first seen."""

    rms: float
    at: Mark
    spectral: float | None = None


@dataclass(frozen=True)
class Remembered:
    """A tensor before a step that is due: its weights, or its masters."""

    turned: Turned
    weights: Tensor


class Observer:
    """What is known of one optimizer and the tensors that it steps.

    Args:
        optimizer: None for something that is no torch optimizer, of which only groups and state are known.
        every, budget: a step is due in which `every` divides its number; bytes that are held for it.
        measures_sigma: whether σ_max is measured of all matrices; None of those alone that have a bound.
    """

    def __init__(
        self,
        model: nn.Module,
        owner: Any,
        optimizer: torch.optim.Optimizer | None,
        plan: Plan | None,
        *,
        every: int,
        budget: int | None,
        done: int,
        measures_sigma: bool | None,
    ) -> None:
        self._model, self._plan, self._owner = model, plan, owner
        self._every, self._budget, self._measures_sigma = every, budget, measures_sigma
        self.done = done
        self.kind_of_optimizer = type(owner).__name__
        self._decays = DecayOf(optimizer, self.groups)
        self._rotation = Rotation(model, self.groups, plan, budget)
        self._courses: list[Course] = []
        self._kinds: dict[int, Kind | None] = {}
        self._confirmed: set[int] = set()
        self._sigma = LargestSingularValues()
        self._begun: dict[str, Begun] = {}
        self._kept: list[Remembered] = []
        self._squares: dict[str, Tensor] = {}
        self._numbers: list[tuple[float, GroupDecay]] = []
        self._begin(self._rotation.tensors)

    @property
    def groups(self) -> list[Group]:
        groups: list[Group] = self._owner.param_groups
        return groups

    @property
    def names(self) -> set[str]:
        return {turned.name for turned in self._rotation.tensors}

    def main_course(self) -> Course | None:
        """Of the group that has decayed most."""
        return max(self._courses, key=lambda course: course.total, default=None)

    def state_dict(self) -> dict[str, Any]:
        """Where courses and tensors began, and how far they have come."""
        return {
            "courses": [asdict(course) for course in self._courses],
            "begun": {name: asdict(begun) for name, begun in self._begun.items()},
            "confirmed": sorted(self._confirmed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; a tensor that was not known then begins now."""
        self._courses = [
            Course(Mark(**own["now"]), Mark(**own["before"]), own["total"], own["decay"]) for own in state["courses"]
        ]
        saved = {name: Begun(own["rms"], Mark(**own["at"]), own["spectral"]) for name, own in state["begun"].items()}
        self._begun = {name: saved.get(name, begun) for name, begun in self._begun.items()}
        self._confirmed = set(state["confirmed"])
        self._look_ahead()

    # --- around a step

    @torch.no_grad()
    def before(self) -> None:
        """Remember the weights of those whose turn it is."""
        self._kept = []
        if not self._is_due(self.done + 1):
            return
        if identities(self.groups) != self._rotation.known:
            self._take_in()
        for turned in self._rotation.part((self.done + 1) // self._every):
            # A shard's gradient may be missing on one rank alone, and all ranks must sum up the same tensors.
            if turned.tensor.grad is not None or hasattr(turned.tensor, "to_local"):
                weights = self._stepped(turned)
                flat = turned.flat(weights)
                is_view = flat.data_ptr() == weights.data_ptr()
                self._kept.append(Remembered(turned, flat.clone() if is_view else flat))

    @torch.no_grad()
    def after(self) -> list[Row]:
        """The rows of a step; none where it was not due, or was left out."""
        kept, self._kept = self._kept, []
        if bool(getattr(self._owner, "found_inf", None)):
            return []  # a GradScaler's skipped step is none
        self.done += 1
        due = self._is_due(self.done)
        self._follow(due)
        rows = self._rows(kept) if due else []
        self._look_ahead()
        return rows

    def _look_ahead(self) -> None:
        """Know the norms of those whose turn is next: what others do to weights between two steps shows in them."""
        part = self._rotation.part((self.done + 1) // self._every) if self._is_due(self.done + 1) else []
        self._squares = {turned.name: square(turned.flat(self._stepped(turned))) for turned in part}

    def _is_due(self, step: int) -> bool:
        return step % self._every == 0

    def _follow(self, due: bool) -> None:
        """Where η and the decay of this step lead the norms."""
        groups = self.groups
        on_device = any(isinstance(group.get("lr"), Tensor) and group["lr"].is_cuda for group in groups)
        if due or not on_device or len(self._numbers) != len(groups):  # to read it there, a device would have to wait
            self._numbers = [(amount(group, "lr"), self._decays.of(index, group)) for index, group in enumerate(groups)]
        self._courses += [Course() for _ in range(len(groups) - len(self._courses))]
        for index, (group, (lr, decay)) in enumerate(zip(groups, self._numbers, strict=True)):
            if has_course(decay):
                self._courses[index].step(lr, decay.requested or 0.0, noise_of(self._kind(index, group), group))

    def _kind(self, index: int, group: Group) -> Kind | None:
        """The direction that the group's state looks like, once it has some."""
        if index not in self._kinds:
            states = (self._state(p) for p in group["params"])
            state = next((state for state in states if state), None)
            if state is None and not ("momentum" in group and self.done > 1):
                return None
            self._kinds[index] = None if is_muon(group) else kind_of(group, state or {})
        return self._kinds[index]

    # --- tensors

    def _take_in(self) -> None:
        """Tensors have come or gone."""
        self._decays.regrouped(self.groups)
        self._rotation = Rotation(self._model, self.groups, self._plan, self._budget)
        self._kinds, self._numbers, self._squares = {}, [], {}
        self._begun = {name: begun for name, begun in self._begun.items() if name in self.names}
        self._sigma.forget(self.names)
        self._courses += [Course() for _ in range(len(self.groups) - len(self._courses))]
        self._begin([turned for turned in self._rotation.tensors if turned.name not in self._begun])

    @torch.no_grad()
    def _begin(self, tensors: Sequence[Turned]) -> None:
        """Know where tensors begin."""
        found = []
        for turned in tensors:
            flat = turned.flat(self._stepped(turned))
            count = torch.tensor(float(flat.numel()), dtype=torch.float64, device=flat.device)
            found.append(torch.stack([count, square(flat)]))
        for turned, (elements, squared) in zip(tensors, over_shards(tensors, found), strict=True):
            course = self._courses[turned.group].now if turned.group < len(self._courses) else Mark()
            rms = math.sqrt(squared / elements) if elements and math.isfinite(squared) else 0.0
            self._begun[turned.name] = Begun(rms, course, self._spectral(turned))

    def _spectral(self, turned: Turned) -> float | None:
        """σ_max, where it is asked for or bounded, and its matrix lies here as a whole."""
        wanted = is_muon(self.groups[turned.group]) if self._measures_sigma is None else self._measures_sigma
        sharded = hasattr(turned.tensor, "to_local")
        if not wanted or sharded or turned.tensor.ndim not in (2, 3) or turned.tensor.is_complex():
            return None
        return self._sigma.of(turned.name, self._stepped(turned))

    def _state(self, p: Tensor) -> Mapping[str, Any]:
        state = getattr(self._owner, "state", {})
        found = state.get(p, {}) if isinstance(state, Mapping) else {}
        return found if isinstance(found, Mapping) else {}

    def _stepped(self, turned: Turned) -> Tensor:
        """What the step moves: a float32 master where there is one."""
        master = self._master(turned)
        return local(turned.tensor) if master is None else local(master)

    def _master(self, turned: Turned) -> Tensor | None:
        p = turned.tensor
        master = self._state(p).get("master") if p.dtype != torch.float32 else None
        return master if isinstance(master, Tensor) and shard(master).shape == shard(p).shape else None

    # --- rows

    def _rows(self, kept: Sequence[Remembered]) -> list[Row]:
        found = [self._summed(one) for one in kept]
        tensors = [one.turned for one in kept]
        return [self._row(one, Sums(*values)) for one, values in zip(kept, over_shards(tensors, found), strict=True)]

    def _summed(self, one: Remembered) -> Tensor:
        """The sums of this rank's part."""
        turned, index = one.turned, one.turned.group
        group, decay = self.groups[index], self._numbers[index][1]
        state, gradient = self._state(turned.tensor), turned.tensor.grad
        g = None if gradient is None or gradient.is_sparse else turned.flat(gradient)
        after = turned.flat(self._stepped(turned))
        before = one.weights.to(after.dtype)  # a first step makes masters of what had none
        kind = self._kind(index, group)
        direction = supposed(kind, group, state, g, turned.flat) if kind and before.dtype in _EPSILON else None
        initial = state.get("initial")
        total = sums(
            before,
            after,
            DECOUPLED if decay.rule.coupled else decay.rule,
            initial=turned.flat(initial) if isinstance(initial, Tensor) else None,
            direction=direction.undone if direction else None,
            second=direction.second if direction and decay.rule.coupled else None,
            gradient=g,
        )
        was = self._squares.get(turned.name)
        return torch.cat([total, (total.new_full((), math.nan) if was is None else was.to(total)).view(1)])

    def _row(self, one: Remembered, found: Sums) -> Row:
        turned, index = one.turned, one.turned.group
        group, (lr, decay) = self.groups[index], self._numbers[index]
        stepped, is_master = self._stepped(turned), self._master(turned) is not None
        head = {
            "kind": "decay",
            "step": self.done,
            "tokens": None,
            "name": turned.name,
            "role": turned.role,
            "hidden": turned.hidden,
            "optimizer": self.kind_of_optimizer,
            "group": index,
            "rule": decay.rule.name,
            "shape": list(turned.shape),
            "elements": turned.elements,
            "measured_elements": int(found.n),
            "dtype": str(stepped.dtype).removeprefix("torch."),
            "master": is_master,
            "lr": lr,
            "weight_decay": amount(group, "weight_decay"),
        }
        if not found.finite:
            return {**head, **dict.fromkeys(_MEASURED)}

        realised, seen = self._realised(turned, found, group, decay, stepped, is_master)
        removed = 0.0 if decay.rule.coupled else realised if realised is not None else decay.taken or 0.0
        update_rms, cosine = found.update(removed)
        kind = self._kind(index, group)
        is_told = kind is None or index in self._confirmed or stepped.dtype not in _EPSILON
        prediction = predicted(kind if is_told else None, group, decay, found)
        settled = prediction.equilibrium
        sigma = self._spectral(turned)
        return {
            **head,
            "decay_requested": decay.requested,
            "decay_realised": realised,
            "decay_seen": seen,
            "decay_outside": found.outside,
            "weight_rms": found.rms,
            "weight_norm": found.rms * math.sqrt(turned.elements),
            "update_rms": update_rms,
            "update_norm": update_rms * math.sqrt(turned.elements),
            "angle": found.angle,
            "cosine": cosine,
            "gradient_rms": math.sqrt(found.gg / found.n) if found.gg > 0 else None,
            "sigma_max": sigma,
            **memory(prediction.rate if decay.rule.coupled else decay.requested, None),
            "theory": prediction.theory,
            "no_theory": prediction.why,
            "equilibrium_rms": settled and settled.rms,
            "equilibrium_angle": settled and settled.angle,
            "equilibrium_cosine": settled and settled.cosine,
            **self._expected(turned, index, group, lr, prediction.theory, sigma),
            "distance": prediction.distance(found.rms),
            "steps_to_equilibrium": prediction.steps_from(found.rms),
        }

    def _realised(
        self, turned: Turned, found: Sums, group: Group, decay: GroupDecay, stepped: Tensor, is_master: bool
    ) -> tuple[float | None, str]:
        """What the step has taken: as this very step shows, or as is known of its rule, less what rounding has."""
        epsilon = _EPSILON.get(stepped.dtype)
        if epsilon is not None and found.close(epsilon):
            self._confirmed.add(turned.group)
            if not decay.rule.coupled:
                return found.taken, "step"
        if decay.rule.coupled or decay.taken is None:
            return None, ""
        if turned.tensor.is_complex() or not found.n:
            return decay.taken, decay.seen
        left = left_by_rounding(
            turned.flat(stepped),
            decay.taken,
            group,
            ours=self._decays.keeps_to_rules,
            is_master=is_master,
            kind=type(self._owner),
        )
        return (None, "") if left is None else (decay.taken * left, decay.seen)

    def _expected(self, turned: Turned, index: int, group: Group, lr: float, theory: str, sigma: float | None) -> Row:
        """Where the whole schedule since the beginning leads this tensor."""
        begun, course = self._begun[turned.name], self._courses[index]
        bound = s = None
        if theory == "muon" and begun.spectral is not None and sigma is not None:
            s = reach(group, turned.shape)
        if s is not None and begun.spectral is not None:
            bound = max(course.bound(begun.spectral, begun.at, s), 0.0)
        if theory not in ("adamw", "lion"):
            return {"sigma_bound": bound, "expected_rms": None, "expected_angle": None}
        return {
            "sigma_bound": bound,
            "expected_rms": course.rms(begun.rms, begun.at),
            "expected_angle": course.angle(begun.rms, begun.at, lr),
        }


_MEASURED = (
    "decay_requested", "decay_realised", "decay_seen", "decay_outside", "weight_rms", "weight_norm", "update_rms",
    "update_norm", "angle", "cosine", "gradient_rms", "sigma_max", "memory_steps", "memory_tokens", "theory",
    "no_theory", "equilibrium_rms", "equilibrium_angle", "equilibrium_cosine", "sigma_bound", "expected_rms",
    "expected_angle", "distance", "steps_to_equilibrium",
)  # fmt: skip
