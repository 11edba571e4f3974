"""Roles from use: what a tensor did in the traced forward says what it is.

A matrix is what takes part in a matrix product, whatever class and name it has; a gain is what multiplies a normalised
activation; a bias is what is added once per feature. The rules below read only the recorded uses and the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from weightdecay.planning.evidence.tensors import TensorFacts
from weightdecay.planning.evidence.uses import (
    AROUND_NORM,
    ATTENDED,
    BIAS_SLOTS,
    FACTORS,
    GATES,
    JOINS,
    LOOKUPS,
    MODULATION,
    NORMALISING,
    PRODUCTS,
    ROUTED,
    SPREAD,
    SQUASHES,
    TERMS,
    WEIGHT_SLOTS,
    Use,
)
from weightdecay.planning.roles.roles import NormPlace, Role

_DIAGONAL = frozenset({"diag", "diag_embed"})
_COMPLEX = frozenset({"complex", "_fft_r2c", "_fft_c2c"})
_MASK_SLOTS = frozenset({"attn_mask", "attn_bias"})
_TAKEN = LOOKUPS | {ROUTED}
_FEW_TOKENS = 64  # rows: what is joined to a sequence has no more, a vocabulary or a codebook does


class _Case(NamedTuple):
    """A use beside all uses of the tensor, with the steps before it, and how many axes of the tensor are longer than 1.

    `is_bias`: it is where a product takes a bias.
    """

    use: Use
    uses: tuple[Use, ...]
    rows: int
    longest: int
    through: frozenset[str]
    is_bias: bool

    def is_also(self, operations: Iterable[str]) -> bool:
        """Whether the tensor is used in one of these operations, too."""
        return not {use.operation for use in self.uses}.isdisjoint(operations)


Rule = Callable[[_Case], Role | None]


def _layer_bias(case: _Case) -> Role | None:
    """Added in a layer's own product, even where the layer sees no input, as one that makes biases of distances."""
    return Role.BIAS if case.is_bias and not case.use.through and case.rows < 2 else None


def _vocabulary(case: _Case) -> Role | None:
    """The input chooses its rows, whatever becomes of them."""
    use = case.use
    is_table = use.operation in ("embedding", "_embedding_bag") and use.slot == "weight" and case.rows > 1
    return Role.EMBEDDING if is_table and use.partner not in ("constant", "parameter") else None


def _query(case: _Case) -> Role | None:
    """Attention weighs what the input gave by its product with each of its rows."""
    return Role.LEARNED_TOKEN if case.use.operation == ATTENDED else None


def _product(case: _Case) -> Role | None:
    """It is summed with the input over one of its axes, as it lies there: a matrix may be stored flat, or in pieces."""
    use = case.use
    if use.operation not in PRODUCTS or case.is_bias:
        return None
    if _DIAGONAL & case.through:
        return Role.SCALE
    if SPREAD in case.through:  # it scales or shifts what takes part in the product
        return None
    # Made positive, or one number for many: a scale of something. And a vector is a matrix only as it was stored.
    if SQUASHES & case.through or (use.rows < 2 and use.through):
        return None
    # A learned query, or the left factor of a product that its later use tells.
    if use.partner == "parameter" and (use.through or use.slot not in WEIGHT_SLOTS):
        return None
    # What a layer made of learned queries or of a table of distances is no longer a weight.
    if PRODUCTS & case.through and (
        _TAKEN & case.through or use.slot not in WEIGHT_SLOTS or use.partner in ("projection", "attention")
    ):
        return None

    if _TAKEN & case.through:
        if case.rows > 2:
            return Role.EXPERT_STACK
        # Rows of distances meet queries; rows that meet the stream itself are those of a matrix in another order.
        return Role.RELATIVE_POSITION if use.partner in ("projection", "parameter") else Role.LINEAR
    return Role.EXPERT_STACK if use.rows > 2 and case.rows > 2 and use.geometry == "stack" else Role.LINEAR


def _convolution(case: _Case) -> Role | None:
    use = case.use
    is_kernel = "conv" in use.operation and use.slot == "weight" and (use.rows > 1 or not use.through)
    # What multiplies a spectrum is the spectrum of a kernel, if it is stored as one or nothing but made into one.
    is_spectrum = use.operation == "mul" and use.partner == "spectrum" and (use.rows > 1 or "_fft_r2c" in case.through)
    is_kernel = is_kernel or (is_spectrum and case.through <= _COMPLEX)
    return Role.CONVOLUTION if is_kernel else None


def _weight_norm(case: _Case) -> Role | None:
    if case.use.operation != "_weight_norm_interface":
        return None
    return {"v": Role.WEIGHT_NORM_DIRECTION, "g": Role.WEIGHT_NORM_GAIN}.get(case.use.slot)


def _measured(case: _Case) -> Role | None:
    """Distances to its rows: a codebook if rows are then looked up, else centres, which only shift.

    `|x − c|²` is spelt by a function of its own, or as `|x|² − 2 x·c + |c|²`.
    """
    use = case.use
    if SPREAD in case.through or SQUASHES & case.through:
        return None
    squares = [u for u in case.uses if u.operation in TERMS | JOINS and {"pow", "sum"} <= {*u.through}]
    by_products = use.operation in PRODUCTS and any("sqrt" not in u.through for u in squares)
    if "cdist" not in use.operation and not by_products:
        return None
    products = sum(u.operation in PRODUCTS for u in case.uses)
    return Role.EMBEDDING if case.is_also(LOOKUPS) or products > by_products else Role.BIAS


def _lookup(case: _Case) -> Role | None:
    use = case.use
    taken = _TAKEN & case.through
    if not taken or PRODUCTS & case.through:
        return None
    if use.operation in TERMS:
        if (SQUASHES | GATES) & case.through:  # the knots of a spline
            return Role.SCALE
        if case.rows < 2:
            return Role.LEARNED_TOKEN
        if use.partner == "scores":
            return Role.RELATIVE_POSITION
        # Chosen by a router and added to what experts made: their biases. Fixed indices choose positions.
        return Role.BIAS if use.partner == "projection" and ROUTED in taken else Role.POSITION_EMBEDDING
    is_mask = use.operation.startswith("_scaled_dot_product") and use.slot in _MASK_SLOTS
    return Role.RELATIVE_POSITION if is_mask else None


def _table(case: _Case) -> Role | None:
    use = case.use
    is_choice = use.operation == "embedding" or use.partner != "constant"  # fixed indices only cut a piece out
    is_table = use.operation in LOOKUPS and use.slot in ("weight", "self") and case.rows > 1 and is_choice
    if not is_table or (SQUASHES | GATES) & case.through:
        return None
    # Rows of weights for something else, one row a task.
    gates = [u for u in case.uses if not _TAKEN.isdisjoint(u.through)]
    return Role.SCALE if gates and all(GATES & {*u.through} for u in gates) else Role.EMBEDDING


def _norm(case: _Case) -> Role | None:
    if case.use.operation not in NORMALISING:
        return None
    return {"weight": Role.NORM_GAIN, "bias": Role.BIAS}.get(case.use.slot)


def _state(case: _Case) -> Role | None:
    """`-exp(A_log)` is a time constant; what is only made positive is a scale (`logit_scale.exp()`)."""
    if PRODUCTS & case.through or not SQUASHES & {case.use.operation, *case.through}:
        return None
    return Role.STATE_SPACE if case.rows and ("neg" in case.through or case.rows > 1) else Role.SCALE


def _mix(case: _Case) -> Role | None:
    use = case.use
    if use.operation == "lerp" and use.slot == "weight":
        return Role.TIME_MIX
    return Role.TIME_MIX if use.operation == "mul" and "rsub" in case.through else None


def _factor(case: _Case) -> Role | None:
    use = case.use
    if use.operation in ("prelu", "_prelu_kernel", "clamp", "addcmul") and use.slot != "self":
        return Role.SCALE
    if use.operation not in FACTORS or use.geometry == "outer" or PRODUCTS & case.through:
        return None
    if use.partner == "parameter":
        return Role.SCALE if case.rows < 2 or GATES & case.through else None
    return Role.NORM_GAIN if use.partner == "normalised" and not GATES & case.through else Role.SCALE


def _modulation(case: _Case) -> Role | None:
    """The input is added to it, and its pieces then scale and shift another activation."""
    return Role.SCALE if case.use.operation == MODULATION and case.use.rows > 1 else None


def _term(case: _Case) -> Role | None:
    use = case.use
    rows = case.rows if use.through else max(case.rows, use.rows)
    if case.is_bias or (use.operation, use.slot) == ("convolution", "bias"):
        return Role.BIAS
    if use.operation.startswith("_scaled_dot_product") and use.slot in _MASK_SLOTS:
        return Role.RELATIVE_POSITION
    if use.operation not in TERMS or PRODUCTS & case.through or (use.partner == "parameter" and rows > 1):
        return None
    if use.geometry in ("number", "vector"):
        return Role.BIAS
    if rows < 2:
        return Role.LEARNED_TOKEN if "cat" in case.through else Role.BIAS
    if use.partner == "scores":
        return Role.RELATIVE_POSITION
    if (SQUASHES | GATES) & case.through:
        return Role.SCALE
    # Each of its rows is compared with all of the input: centres. Positions lie along an axis that the input has.
    if use.geometry == "outer" and use.operation in ("sub", "rsub"):
        return Role.EMBEDDING if case.is_also(LOOKUPS) else Role.BIAS
    repeated = use.geometry == "repeated" or (use.geometry == "patch" and use.partner == "projection")
    return Role.BIAS if repeated else Role.POSITION_EMBEDDING


def _joined(case: _Case) -> Role | None:
    use = case.use
    if use.operation not in JOINS or use.partner in ("parameter", "constant"):
        return None
    if case.rows > 1 and case.longest > _FEW_TOKENS and case.rows == 2 and use.rows == 2:
        return Role.EMBEDDING if case.is_also(LOOKUPS) else Role.LEARNED_TOKEN
    return Role.SCALE if use.partner == "scores" else Role.LEARNED_TOKEN


def _fed(case: _Case) -> Role | None:
    """A tensor that goes where activations go: into a layer, or into attention; or a vector that weighs features."""
    use = case.use
    if use.operation in PRODUCTS and use.axes < 2 and use.partner != "parameter":
        return Role.SCALE
    if use.operation in PRODUCTS | NORMALISING or "conv" in use.operation or "_scaled_dot" in use.operation:
        return Role.LEARNED_TOKEN
    return None


# in order: what a tensor is first of all. A table that is looked up and added is told by what it is added to.
_RULES: tuple[Rule, ...] = (
    _layer_bias,
    _vocabulary,
    _weight_norm,
    _measured,
    _query,
    _product,
    _convolution,
    _lookup,
    _table,
    _norm,
    _state,
    _mix,
    _factor,
    _modulation,
    _term,
    _joined,
    _fed,
)


def rows_and_columns(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axes of length 1, which only serve to broadcast."""
    return tuple([size for size in shape if size != 1])


def by_use(facts: TensorFacts) -> tuple[Role, Use] | None:
    """The role that recorded uses give, and the use that decided; None if there are none, or none that tells."""
    uses, rows = facts.uses or (), len(rows_and_columns(facts.shape))
    longest = facts.shape[0] if facts.shape else 0
    cases = []
    for use in uses:
        is_bias = (use.operation, use.slot) in BIAS_SLOTS
        cases.append(_Case(use, uses, rows, longest, frozenset(use.through), is_bias))
    for rule in _RULES if cases else ():
        for case in cases:
            role = rule(case)
            if role is not None:
                return role, case.use
    return None


def norm_place(facts: TensorFacts) -> NormPlace | None:
    """Where the norm of a gain stands, from what it normalises and what its result goes into; None if not seen."""
    uses = facts.uses or ()
    before = {use.partner for use in uses if use.operation == AROUND_NORM and use.slot == "before"}
    after = {use.partner for use in uses if use.operation == AROUND_NORM and use.slot == "after"}
    kinds = {use.operation for use in uses}
    if "native_group_norm" in kinds:
        return NormPlace.GROUP
    if any("batch_norm" in kind for kind in kinds):
        return NormPlace.BATCH
    if not before:
        return None
    if "scores" in after and before <= {"projection", "activation"}:
        return NormPlace.QUERY_KEY
    if after == {"residual"}:
        return NormPlace.OUTPUT
    if "residual" in after:
        return NormPlace.STREAM
    return NormPlace.INPUT if "product" in after else NormPlace.OTHER
