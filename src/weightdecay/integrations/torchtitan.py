"""torchtitan: our plan in its optimizers, and audits of its Trainer.

    from torchtitan.models.llama3.config_registry import llama3_debugmodel
    from weightdecay.integrations.torchtitan import PlannedOptimizers, audited

    config = llama3_debugmodel()
    config.optimizer = PlannedOptimizers.Config(param_groups=config.optimizer.param_groups, policy="default")
    trainer = config.build()
    with audited(trainer, at_steps=(1, 1000)):
        trainer.train()

Model parts are planned as they stand when the optimizers are built: sharded, or stages of a pipeline.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from weightdecay.errors import ConfigError, MissingExtraError
from weightdecay.integrations.step_audits import FailOn, StepAudits
from weightdecay.integrations.step_hooks import audited_steps
from weightdecay.integrations.tracker_rows import scalars
from weightdecay.planning.plan import plan
from weightdecay.runs import Row, Run, Tracker

try:
    from torchtitan.components.optimizer import OptimizersContainer
except ImportError:
    raise MissingExtraError("weightdecay.integrations.torchtitan", "torchtitan") from None


class PlannedOptimizers(OptimizersContainer):  # type: ignore[misc]  # torchtitan is not read for types
    """torchtitan's container of optimizers, each of whose groups is divided by a plan: patterns, λ and the rest stay.

    Model parts are planned as they stand, sharded or stages of a pipeline.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):  # type: ignore[misc]
        """torchtitan's, and whose opinion decides who decays."""

        policy: str = "default"

    def __init__(self, config: Any, *, model_parts: list[nn.Module]) -> None:
        self._policy = config.policy
        super().__init__(config, model_parts=model_parts)

    def _build_param_groups(
        self, model: nn.Module, param_group_configs: list[Any], impl_kwargs: dict[str, Any]
    ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
        made, named = OptimizersContainer._build_param_groups(model, param_group_configs, impl_kwargs)
        planned = plan(model, policy=self._policy, unknown="exempt", trace="optional").param_groups(lr=1.0)
        shares = {id(p): group["decay_multiplier"] for group in planned for p in group["params"]}

        groups: dict[str, list[dict[str, Any]]] = {}
        patterns: dict[str, list[str]] = {}
        for optimizer, own in made.items():
            for group, pattern in zip(own, named[optimizer], strict=True):
                parts = list(divided(group, shares, pattern))
                groups.setdefault(optimizer, []).extend(parts)
                patterns.setdefault(optimizer, []).extend([pattern] * len(parts))
        return groups, patterns


def divided(group: Mapping[str, Any], shares: Mapping[int, float], pattern: str) -> Iterator[dict[str, Any]]:
    """A group as one for each share of its λ.

    Raises:
        ConfigError: it names no λ, so that its optimizer's own default would decay what is not to decay.
    """
    if "weight_decay" not in group:
        raise ConfigError(f"the group of pattern '{pattern}' has no weight_decay: say it in its optimizer_kwargs")
    places: dict[float, list[int]] = {}
    for place, parameter in enumerate(group["params"]):
        places.setdefault(shares[id(parameter)], []).append(place)
    for share in sorted(places, reverse=True):
        lists = {key: [group[key][place] for place in places[share]] for key in ("params", "param_names")}
        yield {**group, **lists, "weight_decay": group["weight_decay"] * share}


@contextmanager
def audited(
    trainer: Any,
    at_steps: Collection[int] = (1,),
    *,
    every: int | None = None,
    fail_on: FailOn | None = None,
    trackers: str | Tracker | Iterable[str | Tracker] = (),
    **asked: Any,
) -> Iterator[StepAudits]:
    """In here some steps of a torchtitan Trainer's optimizers are audited just before they are made.

    What an audit comes to goes to the Trainer's own logger, too. All ranks audit, since shards are measured together.

    Args:
        at_steps, every, fail_on, trackers, asked: as `weightdecay.integrations.step_audits.StepAudits` has them.
    """
    parts = list(trainer.model_parts)
    audits = StepAudits(at_steps, every=every, fail_on=fail_on, trackers=trackers, **asked)
    audits.trackers.append(TrainersLogger(trainer))
    with audited_steps(
        audits,
        parts[0] if len(parts) == 1 else nn.ModuleList(parts),
        list(trainer.optimizers.optimizers),
        folder=trainer.config.dump_folder,
        steps_done=lambda: trainer.step - 1,  # it counts before it steps, and a checkpoint is loaded in `train`
    ):
        yield audits


class TrainersLogger:
    """A `Tracker` that hands numbers to a torchtitan Trainer's logger."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def start(self, run: Run, step: int) -> None:
        """The Trainer has opened it."""

    def row(self, row: Row) -> None:
        if values := scalars(row):
            self._trainer.metrics_processor.logger.log(values, row["step"])

    def close(self) -> None:
        """The Trainer closes it."""
