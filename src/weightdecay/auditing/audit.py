"""What decays otherwise than asked in a training, by how much, and the code that mends it.

Three questions, one after the other: what was asked of each tensor (`asking`), what a step of its optimizer does to it
(`live_probe`), and what is wrong where the two differ (`judging`). Findings, fixes and tables are made of the answers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from weightdecay.auditing.arguments import UNSAID, Rate, Told, told
from weightdecay.auditing.asking import Asking
from weightdecay.auditing.findings import Code, ranked
from weightdecay.auditing.fixes import Fixes
from weightdecay.auditing.gathering import gathered
from weightdecay.auditing.ignoring import unmatched, without_ignored
from weightdecay.auditing.judging import Judgement, judged, orders
from weightdecay.auditing.live_probe import probe
from weightdecay.auditing.placing import placing_of
from weightdecay.auditing.reasons import Circumstances
from weightdecay.auditing.result import Audit
from weightdecay.auditing.seating import Seating
from weightdecay.errors import ConfigError
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.policies.policy_file import PolicyName
from weightdecay.planning.policies.role_policies import Policy
from weightdecay.rules import RuleLike

Ignore: TypeAlias = Mapping[Code, str | Sequence[str]] | str | Path

# Steps that are compared where few bits leave it open whether rounding takes the decay away.
_MORE_STEPS = 16


def audit(
    model: nn.Module | None,
    optimizer: Any = None,
    *,
    optimizers: Sequence[Any] | Mapping[Any, Any] | None = None,
    plan: DecayPlan | None = None,
    policy: PolicyName | Path | Policy = UNSAID,
    weight_decay: float | Sequence[float] | None = None,
    lr: Rate | Sequence[Rate] | None = None,
    rule: RuleLike | None = None,
    steps: int | None = None,
    ignore: Ignore | None = None,
) -> Audit:
    """Find what decays otherwise than asked in a loop that anybody wrote. Nothing is changed.

        import torch, weightdecay

        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1)
        audit = weightdecay.audit(model, optimizer)
        print(audit)
        print(audit.ok)  # False: λ goes through Adam's gradient, and gains and biases decay

    Asked is what is given here, else what the plan says, else the λ in the groups. Call it between two steps, before
    the first one or in the midst of a run, with gradients or without; no other thread may train meanwhile, and where
    tensors are sharded all processes call it.

    Args:
        model: that is trained, bare or wrapped; None where the tensors belong to none.
        optimizer: anything with `param_groups` and `step()`, or several of them.
        optimizers: the same.
        plan: says who decays, and how much.
        policy: says who decays. Where nobody names a plan or a policy, what `default` exempts is a warning or a note,
            for published policies differ.
        weight_decay: λ that was meant, 0.0 included, for all optimizers or one for each.
        lr: what the coming step should use: a number, a schedule, or one for each optimizer.
        rule: how λ is meant, where it is not by the rule that most of an optimizer follows; `"l2"` says that λ is to
            go through the gradient.
        steps: of the whole run; amounts are then given over the run, too.
        ignore: `{"code": "pattern of names"}`, or a file that `Audit.to_json()` was written to: what is not to be said.

    Raises:
        ConfigError: an argument is of no use; all faults at once.
    """
    given = told(
        model,
        optimizer,
        optimizers=optimizers,
        plan=plan,
        policy=policy,
        weight_decay=weight_decay,
        lr=lr,
        rule=rule,
        steps=steps,
        ignore=ignore,
    )
    return audited(given)


def audited(given: Told) -> Audit:
    """The audit of what was told, in which all is checked.

    Raises:
        ConfigError: a pattern of `ignore` is found in no name.
    """
    started = time.perf_counter()
    placing = placing_of(given.model, given.optimizers)
    seen = probe(given.model, list(given.optimizers))
    asking = Asking(given)
    seating = Seating(given, asking, placing, seen)
    if faults := unmatched(given.ignored, list(seating.sizes())):
        raise ConfigError(faults)
    if seating.is_undecided():
        more = probe(given.model, list(given.optimizers), steps=_MORE_STEPS)
        seating = Seating(given, asking, placing, seen, more)
    judgements = [*placing.judgements(), *_of_steps(seating), *seating.foreign_rules(), *seating.stale_rates()]
    if not judgements and seating.nobody_asks():
        judgements = [Judgement("by-design", "note", "", 0, 0, 0, about="nobody asks")]

    circumstances = Circumstances(
        probe=seen,
        asked=seating.asked_by_name(),
        scales=seating.scales,
        policy="" if asking.plan is None else asking.plan.policy,
        policy_is_given=given.policy_is_given,
        strangers=placing.strangers,
    )
    fixes = Fixes(given, placing, seen, seating.scales)
    findings = gathered(judgements, circumstances, fixes, seating.over_run(judgements))
    sizes = seating.sizes()
    remaining, ignored = without_ignored(findings, given.ignored, sizes)
    return Audit(
        findings=tuple(ranked(remaining)),
        ignored=ignored,
        unknown=tuple(asking.unknown),
        remarks=tuple(seating.remarks()),
        tensors=len(sizes),
        elements=sum(sizes.values()),
        probe=seen,
        elapsed_s=time.perf_counter() - started,
    )


def _of_steps(seating: Seating) -> list[Judgement]:
    found = [judgement for seat in seating.seats for judgement in judged(seat)]
    for optimizer in range(len(seating.told.optimizers)):
        own = [seat for seat in seating.seats if seat.tensor.optimizer == optimizer]
        blamed = {one.name for one in found if one.optimizer == optimizer and one.severity != "note"}
        found += [one for one in orders(own) if one.name not in blamed]
    return found
