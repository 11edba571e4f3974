"""transformers' Trainer, and what is made of it (TRL's SFTTrainer …): a callback that audits, and our plan.

from transformers import Trainer
from weightdecay.integrations.transformers import AuditCallback, PlannedDecay

class PlannedTrainer(PlannedDecay, Trainer):
    decay_policy = "default"

trainer = PlannedTrainer(model, args, train_dataset=data, callbacks=[AuditCallback(at_steps=(1, 1000))])
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from weightdecay.auditing.regrouping import regroup
from weightdecay.errors import MissingExtraError
from weightdecay.integrations.step_audits import FailOn, StepAudits
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.plan import plan
from weightdecay.planning.policies.overrides import Overrides
from weightdecay.planning.policies.policy_file import PolicyName
from weightdecay.planning.policies.role_policies import Policy
from weightdecay.runs import Tracker

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingExtraError("weightdecay.integrations.transformers", "hf") from None


class AuditCallback(TrainerCallback):  # type: ignore[misc]  # transformers tells no types
    """Audits a Trainer just before some of its optimizer's steps, with their gradients.

    λ that was asked for is `TrainingArguments.weight_decay` where that is not 0, unless `weight_decay=` says otherwise.
    Trackers keep their files in `output_dir`; those of Weights & Biases and trackio write into the Trainer's own run
    where it has one (`report_to`).

    Args:
        at_steps, every, fail_on, trackers, asked: as `weightdecay.integrations.step_audits.StepAudits` has them.
    """

    def __init__(
        self,
        at_steps: Collection[int] = (1,),
        *,
        every: int | None = None,
        fail_on: FailOn | None = None,
        trackers: str | Tracker | Iterable[str | Tracker] = (),
        **asked: Any,
    ) -> None:
        self.steps = StepAudits(at_steps, every=every, fail_on=fail_on, trackers=trackers, **asked)

    @property
    def audits(self) -> Any:
        """What was found, by step."""
        return self.steps.audits

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.start(args.output_dir, state.global_step)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        step = state.global_step + 1
        if self.steps.is_due(step):
            asked = {"weight_decay": args.weight_decay} if args.weight_decay else {}
            self.steps.look(model, [unwrapped(optimizer)], step, steps=state.max_steps, **asked)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.close()


def unwrapped(optimizer: Any) -> Any:
    """The optimizer in Accelerate's wrapper, which steps only where gradients are to be synchronised."""
    while type(optimizer).__name__ == "AcceleratedOptimizer":
        optimizer = optimizer.optimizer
    return optimizer


class PlannedDecay:
    """For a Trainer of one's own, before the Trainer among its bases: a plan says who decays, all else stays.

    `TrainingArguments` say λ, the optimizer and its settings as ever.

    Attributes:
        decay_policy, decay_overrides: of the plan, as `weightdecay.plan` takes them.
    """

    decay_policy: ClassVar[PolicyName | Path | Policy] = "default"
    decay_overrides: ClassVar[Overrides] = ()
    # what the Trainer has
    args: Any
    model: Any
    optimizer: Any

    def decay_plan(self, model: nn.Module) -> DecayPlan:
        """The plan by which the optimizer's groups are made; override it for one of another kind."""
        return plan(
            model,
            self.args.weight_decay,
            policy=self.decay_policy,
            overrides=self.decay_overrides,
            unknown="exempt",
            trace="optional",
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The names that decay, as this model has them, wrapped or not."""
        groups = self._planned(model).param_groups(lr=1.0)
        decaying = {id(parameter) for group in groups if group["decay_multiplier"] for parameter in group["params"]}
        return [name for name, parameter in model.named_parameters() if id(parameter) in decaying]

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's own, with its two groups divided further where the plan has more shares of λ than 0 and 1."""
        has_own = self.optimizer is not None
        optimizer = super().create_optimizer(model)  # type: ignore[misc]  # the Trainer's, next in line
        planned = self._planned(self.model if model is None else model)
        if not has_own and any(one.multiplier not in (0.0, 1.0) for one in planned):
            regroup(unwrapped(optimizer), planned, self.args.weight_decay)
        return optimizer

    def _planned(self, model: nn.Module) -> DecayPlan:
        """The plan, made once: a model that is wrapped later has the same tensors under other names."""
        made: DecayPlan | None = getattr(self, "_weightdecay_plan", None)
        if made is None:
            made = self._weightdecay_plan = self.decay_plan(model)
        return made.on(model)
