"""Fills the tables of docs/plan.md from the code and the recorded models, between their markers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the recorded models lie with the tests

from tests.planning.skeletons import Skeleton, read  # noqa: E402
from weightdecay.planning.emulation import EMULATED, EmulatedPolicy  # noqa: E402
from weightdecay.planning.plan import DecayPlan, plan, plan_tensors  # noqa: E402
from weightdecay.planning.policies import ROLE_POLICIES  # noqa: E402
from weightdecay.planning.roles import DISPUTED, Role  # noqa: E402
from weightdecay.planning.tensors import TensorFacts  # noqa: E402

PAGE = ROOT / "docs" / "plan.md"


def roles() -> Iterator[str]:
    names = list(ROLE_POLICIES)
    yield "| role | " + " | ".join(f"`{name}`" for name in names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for role in Role:
        if role is not Role.UNKNOWN:
            marks = ["yes" if ROLE_POLICIES[name].multipliers[role] else "no" for name in names]
            yield f"| {role}{' (opinions differ)' if role in DISPUTED else ''} | {' | '.join(marks)} |"


def frameworks() -> Iterator[str]:
    yield "| policy | default λ | form | checked against |"
    yield "|---|---|---|---|"
    for policy in EMULATED.values():
        yield f"| `{policy.name}` | {policy.weight_decay:g} | `{policy.form}` | {policy.checked} |"


def brief_note(facts: TensorFacts) -> bool:
    """The rule of the note the project began with: `"bias" in name or "layer_norm" in name or ndim == 1` is exempt."""
    return not ("bias" in facts.name or "layer_norm" in facts.name or len(facts.shape) == 1)


def rules() -> dict[str, Callable[[Sequence[TensorFacts]], list[bool]]]:
    found: dict[str, Callable[[Sequence[TensorFacts]], list[bool]]] = {
        "`default`": lambda facts: [tensor.decays for tensor in plan_tensors(facts, unknown="exempt")]
    }
    for name in ("nanogpt", "timm", "transformers", "bert", "mingpt", "levanter", "torch"):
        found[f"`{name}`"] = partial(_emulated, EMULATED[name])
    found["the note's code"] = lambda facts: [brief_note(tensor) for tensor in facts]
    return found


def _emulated(policy: EmulatedPolicy, facts: Sequence[TensorFacts]) -> list[bool]:
    return [policy.decide(tensor, ()).multiplier == 1.0 for tensor in facts]


def mistakes(model: Skeleton, decays: Sequence[bool]) -> int:
    """Trainable, undisputed tensors that a rule decays against the label or not."""
    return sum(
        label != "disputed" and facts.trainable and decay != (label == "decays")
        for facts, label, decay in zip(model.tensors, model.labels, decays, strict=True)
    )


def measured() -> Iterator[str]:
    kinds = {kind: list(read(kind)) for kind in ("causal", "other")}
    head = [f"{len(models)} {kind} models: wholly right" for kind, models in kinds.items()]
    yield f"| rule | {head[0]} | tensors wrong | {head[1]} | tensors wrong |"
    yield "|---|---|---|---|---|"
    for name, rule in rules().items():
        cells = []
        for models in kinds.values():
            wrong = [mistakes(model, rule(model.tensors)) for model in models]
            cells += [str(sum(count == 0 for count in wrong)), f"{sum(wrong):,}"]
        yield f"| {name} | {' | '.join(cells)} |"


def smollm() -> Iterator[str]:
    """SmolLM2-135M by the configuration in its checkpoint, under each policy."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    ours = plan(model)
    yield "| policy | decay | do not | differs from `default` on |"
    yield "|---|---|---|---|"
    for name in ("default", "olmo2", "no-embeddings", "nanogpt", "transformers", "mingpt", "torch"):
        other = plan(model, policy=name)
        total = other.summary()
        decay = f"{total.decayed_tensors} ({total.decayed_elements:,})"
        exempt = f"{total.exempt_tensors} ({total.exempt_elements:,})"
        yield f"| `{name}` | {decay} | {exempt} | {_differing(ours, other)} |"


def _differing(ours: DecayPlan, other: DecayPlan) -> str:
    kinds = {str(tensor.role) for tensor in ours if tensor.decays != other[tensor.name].decays}
    return ", ".join(sorted(kinds)) or "nothing"


def fill(text: str, name: str, lines: Iterator[str]) -> str:
    begin, end = f"<!-- {name}: made by docs/make_plan_tables.py -->", f"<!-- end of {name} -->"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", "\n".join([begin, *lines, end]), text, flags=re.DOTALL)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, table in {
        "roles": roles(), "frameworks": frameworks(), "measured": measured(), "smollm": smollm(),
    }.items():  # fmt: skip
        text = fill(text, name, table)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
