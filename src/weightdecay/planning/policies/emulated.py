"""What other frameworks would do with the model, quirks included, so that "X decays this" is true.

Each rule is a predicate over names, classes and shapes, as its original is, and says which source it was checked
against. Whether a tensor is trainable does not matter: the rules sort names, and a frozen tensor is in no group anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightdecay.planning.evidence.tensors import TensorFacts
from weightdecay.planning.policies.role_policies import Decision
from weightdecay.planning.roles.roles import Verdict

Rule = Callable[[TensorFacts], str]


@dataclass(frozen=True)
class EmulatedPolicy:
    """Another framework's rule. `exemption` gives the reason why a tensor does not decay, or an empty string.

    `form` is the decay rule that the framework pairs with it, `weight_decay` its default λ, `checked` the source read.
    """

    name: str
    exemption: Rule
    checked: str
    weight_decay: float
    form: str = "decoupled"

    def decide(self, facts: TensorFacts, verdicts: Sequence[Verdict]) -> Decision:
        """Emulated rules know no roles: the verdicts stay unread."""
        del verdicts
        reason = self.exemption(facts)
        outcome = f"{self.name} exempts it: {reason}" if reason else f"{self.name} decays it: nothing exempts it"
        return Decision(0.0 if reason else 1.0, f"{outcome} ({self.checked})")


def _nothing(facts: TensorFacts) -> str:
    del facts
    return ""


def _nanogpt(facts: TensorFacts) -> str:
    return "" if len(facts.shape) >= 2 else f"it has {len(facts.shape)} dimension(s), fewer than 2"


_TRANSFORMERS_NAMES = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def _transformers(facts: TensorFacts) -> str:
    """`Trainer.get_decay_parameter_names` on the tensor's first name; modules around it count too."""
    site = facts.sites[0]
    if "LayerNorm" in site.within:
        return "it lies in an nn.LayerNorm"
    found = next((pattern for pattern in _TRANSFORMERS_NAMES if re.search(pattern, site.name.lower())), None)
    return f"'{found}' is found in its name" if found else ""


def _timm(facts: TensorFacts) -> str:
    if len(facts.shape) <= 1:
        return "it has at most 1 dimension"
    if facts.name.endswith(".bias"):
        return "its name ends in '.bias'"
    return "the model's `no_weight_decay()` names it" if facts.listed else ""


def _mingpt(facts: TensorFacts) -> str:
    """`configure_optimizers` of minGPT, which stops with an assertion on what it does not know; here that is exempt."""
    site = facts.sites[0]
    around = {*site.within, *site.bases}
    if site.name.endswith("bias"):
        return "its name ends in 'bias'"
    if site.name.endswith("weight") and "Linear" in around:
        return ""
    if site.name.endswith("weight") and around & {"LayerNorm", "Embedding"}:
        return "it is the weight of an nn.LayerNorm or nn.Embedding"
    return "neither list knows it, and minGPT itself would stop here"


def _bert(facts: TensorFacts) -> str:
    found = re.search(r"LayerNorm|layer_norm|bias", facts.name)
    return f"its name holds '{found.group()}'" if found else ""


def _levanter(facts: TensorFacts) -> str:
    """`reasonable_default` on `Class.attribute`, whose answer overwrites the one on the whole path."""
    site = facts.sites[0]
    path = f"{site.owner}.{site.attribute}"
    found = next((part for part in ("LayerNorm", "RMSNorm", "RmsNorm", "Embedding") if part in path), None)
    if found:
        return f"'{found}' is in '{path}'"
    return f"'{path}' ends in 'bias'" if path.endswith("bias") else ""


EMULATED: dict[str, EmulatedPolicy] = {
    policy.name: policy
    for policy in (
        EmulatedPolicy("torch", _nothing, "torch@2.13 optim/adamw.py", 0.01),
        EmulatedPolicy("nanogpt", _nanogpt, "nanoGPT@3adf61e model.py", 0.1),
        EmulatedPolicy("transformers", _transformers, "transformers@5.23 trainer.py", 0.0),
        EmulatedPolicy("timm", _timm, "timm@1.0.31 optim/_param_groups.py", 0.0),
        EmulatedPolicy("mingpt", _mingpt, "minGPT@37baab7 mingpt/model.py", 0.1),
        EmulatedPolicy("bert", _bert, "google-research/bert@eedf571 optimization.py", 0.01),
        EmulatedPolicy("levanter", _levanter, "levanter@9263f81 src/levanter/optim/config.py", 0.1),
        EmulatedPolicy(
            "composer", _nothing, "composer@6405188 composer/optim/decoupled_weight_decay.py", 1e-5, "independent"
        ),
    )
}
