"""What the atlas shows: for each recorded architecture its kinds of tensors, and what each policy makes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the recorded models lie with the tests

import atlas_sizes  # noqa: E402

import weightdecay  # noqa: E402
from tests.planning.skeletons import Skeleton, read  # noqa: E402
from weightdecay.planning.decay_plan import DecayPlan  # noqa: E402
from weightdecay.planning.patterns import INDEX, pattern_of  # noqa: E402
from weightdecay.planning.plan import plan_tensors  # noqa: E402
from weightdecay.planning.planned import PlannedTensor  # noqa: E402
from weightdecay.planning.policies.emulated import EMULATED  # noqa: E402
from weightdecay.planning.policies.opinions import consequence, opinion  # noqa: E402
from weightdecay.planning.policies.policy_file import find_policy  # noqa: E402
from weightdecay.planning.roles.roles import NormPlace, Role  # noqa: E402

# Ours first, then what other frameworks do, and what others mean to do.
BY_ROLE = {
    "default": ("this project's: matrices, tables, convolutions and expert stacks decay", 0.1, "decoupled"),
    "olmo2": ("OLMo-core@fa6c501 src/scripts/official: embeddings do not decay, norms and biases do", 0.1, "decoupled"),
    "qwen3-next": ("Megatron-LM PR #2753: as default, and query/key norms decay, too", 0.1, "decoupled"),
}
POLICIES = ("default", "nanogpt", "transformers", "timm", "torch", "mingpt", "bert", "levanter", "composer", "olmo2",
            "qwen3-next")  # fmt: skip
LABELS = ("decays", "exempt", "disputed")


@dataclass(frozen=True)
class Kind:
    """Tensors of one architecture whose names differ in their indices alone, and which fare alike.

    Attributes:
        planned: one of them, under our default policy.
        decays: by policy, in the order of `POLICIES`.
        exemptions: by emulated policy, why it exempts them; "" where it decays them.
        trained: False where nothing trains them, so that they are in nobody's groups.
    """

    names: tuple[str, ...]
    planned: PlannedTensor
    label: str
    decays: tuple[bool, ...]
    exemptions: tuple[str, ...]
    trained: bool

    @property
    def template(self) -> str:
        return INDEX.sub("#", self.names[0])


def kinds(model: Skeleton) -> list[Kind]:
    """The kinds of tensors of an architecture, in its order. transformers' column is its own Trainer's, as recorded."""
    ours = plan_tensors(model.tensors, unknown="exempt")
    decays = [_decaying(ours, model, name) for name in POLICIES]
    groups: dict[Any, list[int]] = {}
    for place, tensor in enumerate(ours):
        rule = tuple(column[place] for column in decays)
        key = (INDEX.sub("#", tensor.name), tensor.roles, tensor.norm, model.labels[place], rule, tensor.frozen)
        groups.setdefault(key, []).append(place)
    return [
        Kind(
            names=tuple(ours.tensors[place].name for place in places),
            planned=ours.tensors[places[0]],
            label=model.labels[places[0]],
            decays=tuple(column[places[0]] for column in decays),
            exemptions=tuple(policy.exemption(model.tensors[places[0]]) for policy in EMULATED.values()),
            trained=model.tensors[places[0]].trainable,
        )
        for places in groups.values()
    ]


def _decaying(ours: DecayPlan, model: Skeleton, policy: str) -> list[bool]:
    if policy == "transformers":
        return list(model.trainer_decays)
    if policy in EMULATED:
        return [EMULATED[policy].decide(facts, ()).multiplier != 0.0 for facts in model.tensors]
    return [tensor.decays for tensor in (ours if policy == "default" else ours.under(find_policy(policy)[0]))]


def document() -> dict[str, Any]:
    """All of it for the page: words that come again and again are numbers of a list."""
    words: dict[str, int] = {}

    def word(text: str) -> int:
        return words.setdefault(text, len(words))

    sizes = atlas_sizes.read()
    architectures = [
        _architecture(model, kind, sizes["architectures"].get(model.name, {}), word)
        for kind in ("causal", "other")
        for model in read(kind)
    ]
    return {
        "schema_version": 1,
        "made_with": {"weightdecay": weightdecay.__version__, "transformers": sizes["transformers"]},
        "policies": [_policy(name) for name in POLICIES],
        "emulated": list(EMULATED),
        "roles": {str(role): _role(role) for role in Role},
        "norms": {str(place): _opinion(Role.NORM_GAIN, place) for place in NormPlace},
        "architectures": sorted(architectures, key=lambda one: str(one[0]).lower()),
        "words": list(words),
    }


def _architecture(model: Skeleton, kind: str, sizes: dict[str, Any], word: Any) -> list[Any]:
    """`[name, model type, kind, whether sizes are its own, parameters of kinds that were not recorded, rows]`, a row
    being `[pattern, role, norm, label, trained, tensors, parameters, policies that decay it as bits, evidence, why the
    emulated policies exempt it]`."""
    own: dict[str, tuple[str, int, int]] = sizes.get("kinds", {})
    found = kinds(model)
    recorded: dict[str, int] = {}
    for one in found:
        recorded[one.template] = recorded.get(one.template, 0) + len(one.names)
    rows = []
    for one in found:
        pattern, tensors, elements = pattern_of(one.names), len(one.names), one.planned.numel * len(one.names)
        if own:
            large, tensors, elements = own.get(one.template, (pattern, 0, 0))
            share = len(one.names) / recorded[one.template]
            # Kinds that share a name, as those of layers of two sorts do, have of it what they have in the small model.
            pattern = large if share == 1.0 else pattern
            tensors, elements = round(tensors * share), round(elements * share)
        rows.append([
            word(pattern),
            word(str(one.planned.role)),
            word(str(one.planned.norm or "")),
            LABELS.index(one.label),
            int(one.trained),
            tensors,
            elements,
            sum(1 << place for place, decays in enumerate(one.decays) if decays),
            word(one.planned.evidence),
            [word(reason) for reason in one.exemptions],
        ])  # fmt: skip
    missing = sum(elements for template, (_, _, elements) in own.items() if template not in recorded)
    return [model.name, sizes.get("model_type", ""), kind, int(bool(own)), missing, rows]


def _policy(name: str) -> dict[str, Any]:
    if name in BY_ROLE:
        source, λ, form = BY_ROLE[name]
        return {"name": name, "source": source, "weight_decay": λ, "form": form, "meant": name != "default"}
    policy = EMULATED[name]
    return {"name": name, "source": policy.checked, "weight_decay": policy.weight_decay, "form": policy.form,
            "meant": False}  # fmt: skip


def _role(role: Role) -> dict[str, Any]:
    return {"consequence": consequence(role), **_opinion(role, None)}


def _opinion(role: Role, place: NormPlace | None) -> dict[str, str]:
    both = opinion(role, place)
    return {} if both is None else {"decay": both.decays, "exempt": both.exempts}


def wrong(found: Sequence[Kind], policy: str) -> Iterator[Kind]:
    """What a policy decays against the label, or exempts; nobody is wrong where opinions differ or nothing trains."""
    place = POLICIES.index(policy)
    for one in found:
        if one.trained and one.label != "disputed" and one.decays[place] != (one.label == "decays"):
            yield one
