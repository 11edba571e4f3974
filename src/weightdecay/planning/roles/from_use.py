"""Verdicts from use: what a tensor did in the traced forward says what it is.

A matrix is what takes part in a matrix product, whatever class and name it has; a gain is what multiplies a normalised
activation; a bias is what is added once per feature. The rules below read only the recorded uses and the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from weightdecay.planning.evidence.recorder import LOOKUPS, NORMALISING, PRODUCTS, WEIGHT_SLOTS, Use
from weightdecay.planning.evidence.tensors import TensorFacts
from weightdecay.planning.roles.from_type_and_name import rows_and_columns
from weightdecay.planning.roles.roles import Role, Strength, Verdict

_JOINS = frozenset({
    "cat", "where", "copy", "index_put", "masked_scatter", "scatter", "masked_fill", "index_copy", "slice_scatter",
})  # fmt: skip
_SQUASHES = frozenset({"exp", "softplus", "exp2", "log1p", "expm1", "log"})
_GATES = frozenset({"sigmoid", "tanh", "_softmax", "hardtanh", "relu"})
_FACTORS = frozenset({"mul", "div", "pow"})
_TERMS = frozenset({"add", "sub", "rsub"})
_BIAS_SLOTS = frozenset({("addmm", "self"), ("baddbmm", "self"), ("addmv", "self"), ("addbmm", "self")})


class _Case(NamedTuple):
    """A use, and of the tensor's shape what rules ask for: its axes, and those of them longer than 1."""

    use: Use
    axes: int
    rows: int


Rule = Callable[[_Case], Role | None]


def _layer_bias(case: _Case) -> Role | None:
    """Added in a layer's own product, even where the layer sees no input, as one that makes biases of distances."""
    use = case.use
    return Role.BIAS if (use.operation, use.slot) in _BIAS_SLOTS and not use.through and case.rows < 2 else None


def _vocabulary(case: _Case) -> Role | None:
    """The input chooses its rows, whatever becomes of them."""
    use = case.use
    is_table = use.operation in ("embedding", "_embedding_bag") and use.slot == "weight" and case.rows > 1
    return Role.EMBEDDING if is_table and use.partner not in ("constant", "parameter") else None


def _product(case: _Case) -> Role | None:
    use = case.use
    if use.operation not in PRODUCTS or (use.operation, use.slot) in _BIAS_SLOTS or _SQUASHES & {*use.through}:
        return None
    if case.axes < 2 or (case.rows < 2 and use.through):
        return None
    if use.partner == "parameter" and (use.through or use.slot not in WEIGHT_SLOTS):
        return None  # learned queries, or the left factor of a product that is told by its later use
    if PRODUCTS & {*use.through} and (
        LOOKUPS & {*use.through} or use.slot not in WEIGHT_SLOTS or use.partner == "projection"
    ):
        return None
    if LOOKUPS & {*use.through}:
        return Role.EXPERT_STACK if case.rows > 2 else Role.RELATIVE_POSITION
    return Role.EXPERT_STACK if case.rows > 2 and use.geometry == "stack" else Role.LINEAR


def _convolution(case: _Case) -> Role | None:
    use = case.use
    is_kernel = "conv" in use.operation and use.slot == "weight" and (case.rows > 1 or not use.through)
    return Role.CONVOLUTION if is_kernel else None


def _weight_norm(case: _Case) -> Role | None:
    if case.use.operation != "_weight_norm_interface":
        return None
    return {"v": Role.WEIGHT_NORM_DIRECTION, "g": Role.WEIGHT_NORM_GAIN}.get(case.use.slot)


def _lookup(case: _Case) -> Role | None:
    use = case.use
    looked_up = LOOKUPS & {*use.through}
    if looked_up and use.operation in _TERMS:
        if case.rows < 2:
            return Role.LEARNED_TOKEN
        if use.partner == "scores":
            return Role.RELATIVE_POSITION
        return Role.BIAS if use.partner == "projection" and "embedding" not in looked_up else Role.POSITION_EMBEDDING
    if looked_up and use.operation.startswith("_scaled_dot_product"):
        return Role.RELATIVE_POSITION
    return None


def _table(case: _Case) -> Role | None:
    use = case.use
    is_choice = use.operation == "embedding" or use.partner != "constant"  # fixed indices only cut a piece out
    if use.operation in LOOKUPS and use.slot in ("weight", "self") and case.rows > 1 and is_choice:
        return Role.EMBEDDING
    return Role.EMBEDDING if "cdist" in use.operation else None


def _norm(case: _Case) -> Role | None:
    use = case.use
    if use.operation in NORMALISING and use.slot in ("weight", "bias"):
        return Role.NORM_GAIN if use.slot == "weight" else Role.BIAS
    return None


def _state(case: _Case) -> Role | None:
    """`-exp(A_log)` is a time constant; what is only made positive is a scale (`logit_scale.exp()`)."""
    use = case.use
    if PRODUCTS & {*use.through}:  # what a layer made of learned queries is no longer theirs
        return None
    if not _SQUASHES & {use.operation, *use.through}:
        return None
    return Role.STATE_SPACE if case.rows and ("neg" in use.through or case.rows > 1) else Role.SCALE


def _mix(case: _Case) -> Role | None:
    use = case.use
    if use.operation == "lerp" and use.slot == "weight":
        return Role.TIME_MIX
    return Role.TIME_MIX if use.operation == "mul" and "rsub" in use.through else None


def _factor(case: _Case) -> Role | None:
    use = case.use
    if use.operation in ("prelu", "_prelu_kernel", "clamp", "addcmul") and use.slot != "self":
        return Role.SCALE
    if use.operation not in _FACTORS or use.geometry == "outer" or PRODUCTS & {*use.through}:
        return None
    if use.partner == "parameter":
        return Role.SCALE if case.rows < 2 else None
    return Role.NORM_GAIN if use.partner == "normalised" and not _GATES & {*use.through} else Role.SCALE


def _term(case: _Case) -> Role | None:
    use = case.use
    if (use.operation, use.slot) in _BIAS_SLOTS or (use.operation, use.slot) == ("convolution", "bias"):
        return Role.BIAS
    if use.operation.startswith("_scaled_dot_product") and use.slot in ("attn_mask", "attn_bias"):
        return Role.RELATIVE_POSITION
    if use.operation not in _TERMS or PRODUCTS & {*use.through} or (use.partner == "parameter" and case.rows > 1):
        return None
    if use.geometry in ("number", "vector"):
        return Role.BIAS
    if case.rows < 2:
        return Role.LEARNED_TOKEN if "cat" in use.through else Role.BIAS
    if use.partner == "scores":
        return Role.RELATIVE_POSITION
    repeated = use.geometry == "repeated" or (use.geometry == "patch" and use.partner == "projection")
    return Role.BIAS if repeated else Role.POSITION_EMBEDDING


def _joined(case: _Case) -> Role | None:
    use = case.use
    if use.operation not in _JOINS or use.partner in ("parameter", "constant"):
        return None
    return Role.SCALE if use.partner == "scores" else Role.LEARNED_TOKEN


def _fed(case: _Case) -> Role | None:
    """A tensor that goes where activations go: into a layer, or into attention; or a vector that weighs features."""
    use = case.use
    if use.operation in PRODUCTS and case.axes < 2 and use.partner != "parameter":
        return Role.SCALE
    if use.operation in PRODUCTS | NORMALISING or "conv" in use.operation or "_scaled_dot" in use.operation:
        return Role.LEARNED_TOKEN
    return None


# in order: what a tensor is first of all. A table that is looked up and added is told by what it is added to.
_RULES: tuple[Rule, ...] = (
    _layer_bias,
    _vocabulary,
    _weight_norm,
    _product,
    _convolution,
    _lookup,
    _table,
    _norm,
    _state,
    _mix,
    _factor,
    _term,
    _joined,
    _fed,
)


def _case(use: Use, facts: TensorFacts) -> _Case:
    return _Case(use, len(facts.shape), len(rows_and_columns(facts.shape)))


def by_use(facts: TensorFacts) -> Verdict | None:
    """The verdict from recorded uses; None if there are none, or none that tells."""
    uses = [Use.parse(text) for text in facts.uses or ()]
    for rule in _RULES:
        for use in uses:
            role = rule(_case(use, facts))
            if role is not None:
                return Verdict(role, describe(use), Strength.TRACED)
    return None


def describe(use: Use) -> str:
    """One use in words."""
    steps = dict.fromkeys(_WORDS.get(step, step.strip("_")) for step in use.through)
    before = f"after {', '.join(steps)} " if steps else ""
    where = {"number": ", as one number", "vector": ", one number per feature"}.get(use.geometry, "")
    return f"traced: {before}{_verb(use)}{where if use.operation in _FACTORS else ''}"


def _verb(use: Use) -> str:
    partner = _PARTNERS.get(use.partner, "an activation")
    operation = use.operation.removeprefix("native").strip("_").replace("_", " ")
    if (use.operation, use.slot) in _BIAS_SLOTS:
        return "is added to a matrix product"
    if use.operation in PRODUCTS:
        which = "one matrix of many" if use.geometry == "stack" else "a matrix"
        return f"multiplies {partner} as {which}"
    if use.operation in LOOKUPS:
        by = {"constant": "fixed indices", "activation": "indices"}.get(use.partner, partner)
        return f"is looked up by {by}"
    if use.operation in NORMALISING:
        return {"weight": "is the gain of", "bias": "is the shift of"}.get(use.slot, "enters") + f" a {operation}"
    if "conv" in use.operation and use.slot in ("weight", "bias"):
        return f"convolves {partner}" if use.slot == "weight" else "is added to a convolution"
    if use.operation in _VERBS:
        return f"{_VERBS[use.operation]} {partner}"
    if use.operation in _JOINS:
        return f"is joined ({operation}) with {partner}"
    return f"is `{use.slot}` of {operation}, with {partner}"


_VERBS = {"mul": "multiplies", "div": "divides or is divided by", "add": "is added to", "sub": "is subtracted with"}
_PARTNERS = {
    "input": "the input", "parameter": "another parameter", "constant": "a constant",
    "normalised": "a normalised activation", "projection": "a projection", "scores": "attention scores",
    "looked-up": "looked-up embeddings",
}  # fmt: skip
_WORDS = {
    "add": "a sum", "mul": "a product", "rsub": "1 − w", "neg": "a change of sign", "_softmax": "softmax",
    "modulation": "modulation by the input", "mm": "a matrix product", "embedding": "a look-up",
}  # fmt: skip


def agreeing(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Verdicts with each role once, the first kept."""
    return tuple({verdict.role: verdict for verdict in reversed(verdicts)}.values())[::-1]
