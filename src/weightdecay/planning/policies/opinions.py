"""On what published practice disagrees, with who does which: there a comparison calls no side wrong."""

from __future__ import annotations

from dataclasses import dataclass

from weightdecay.planning.roles.roles import DECAYING, NormPlace, Role


@dataclass(frozen=True)
class Opinion:
    """Both sides of a question that is not settled, each with its source."""

    decays: str
    exempts: str

    def __str__(self) -> str:
        return f"opinions differ. Decay: {self.decays}. No decay: {self.exempts}"


_BY_LIST = "timm's and Swin's models name them in no_weight_decay() and no_weight_decay_keywords()"
_BY_AXES = "nanoGPT's rule, whatever has two axes (nanoGPT@3adf61e model.py)"
_USUAL = "most recipes exempt every gain (nanoGPT@3adf61e, Megatron-LM@d98e8a6 by default)"
_BY_PLACE = (
    "gains before a layer (input norms) train better with it, those after a layer (output norms) worse, at 0.12B to 2B "
    "(arXiv 2605.26895 [its abstract was read])"
)

BY_ROLE: dict[Role, Opinion] = {
    Role.LEARNED_TOKEN: Opinion(_BY_AXES, _BY_LIST),
    Role.RELATIVE_POSITION: Opinion(_BY_AXES, _BY_LIST),
    Role.EMBEDDING: Opinion(
        "nanoGPT, litgpt and torchtitan, as they train GPT-2 and Llama (all of two axes, or all)",
        "OLMo 2 and OLMo 3 (OLMo-core@fa6c501, src/scripts/official: embeddings.weight at 0), minGPT and levanter",
    ),
}

BY_NORM: dict[NormPlace, Opinion] = {
    NormPlace.INPUT: Opinion(_BY_PLACE, _USUAL),
    NormPlace.OUTPUT: Opinion("OLMo 2 and OLMo 3 decay all gains (OLMo-core@fa6c501)", f"{_BY_PLACE}; {_USUAL}"),
    NormPlace.QUERY_KEY: Opinion(
        "Qwen3-Next in Megatron-LM (--apply-wd-to-qk-layernorm, PR #2753), OLMo 2 and OLMo 3", _USUAL
    ),
}


def opinion(role: Role, norm: NormPlace | None) -> Opinion | None:
    """What is disputed of tensors of that role, or of gains at that place; None where practice agrees."""
    of_place = BY_NORM.get(norm) if role is Role.NORM_GAIN and norm is not None else None
    return of_place or BY_ROLE.get(role)


# What a wrong verdict does where practice agrees; decay that is missing does the same to all.
_CONSEQUENCES = {
    Role.NORM_GAIN: "decay pulls a gain to 0 (one stored as 1 + w to 1), against what training sets it to",
    Role.BIAS: "a bias has no scale to keep small; decay only shifts what the layer can express",
    Role.SCALE: "decay closes the gate or shrinks the scale however the loss wants it",
    Role.STATE_SPACE: "decay moves the time constants: exp(A_log) goes to 1 and memory with it",
    Role.TIME_MIX: "decay pulls the mix to one side and the time constants to a fixed value",
    Role.WEIGHT_NORM_GAIN: "the gain is the layer's only scale",
}
_WITHOUT_DECAY = "without decay its norm grows and its effective learning rate falls through training"


def consequence(role: Role) -> str:
    """What it does to tensors of a role to be decayed, or exempted, against the usual; empty if nothing is known."""
    return _WITHOUT_DECAY if role in DECAYING else _CONSEQUENCES.get(role, "")
