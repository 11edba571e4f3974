"""One meeting of a parameter with the data of a forward, and the field's operations by what they do to a tensor."""

from __future__ import annotations

from typing import NamedTuple

# change the form of a tensor, not what it says
FORM = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "t", "transpose", "permute", "movedim",
    "expand", "expand_copy", "unsqueeze", "squeeze", "select", "slice", "split", "split_copy", "split_with_sizes",
    "chunk", "unbind", "narrow", "diagonal", "unfold", "as_strided", "detach", "alias", "clone", "contiguous",
    "_to_copy", "lift_fresh", "lift_fresh_copy", "view_as_real", "view_as_complex", "repeat", "repeat_interleave",
    "stack", "flip", "roll", "constant_pad_nd", "native_dropout", "upsample_nearest2d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
})  # fmt: skip
# take the shape of a tensor, and nothing that it says
SHAPE_ONLY = frozenset({
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like",
})  # fmt: skip
# where `F.linear`, `x @ w` and convolutions put the weight
WEIGHT_SLOTS = frozenset({"mat2", "batch2", "weight", "i2"})
# a multiplication that is summed over the axis along which the parameter varies is a matrix product, too
WEIGHTED_SUM = "weighted_sum"
PRODUCTS = frozenset({
    "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "addbmm", "_grouped_mm", "linear", "matmul",
    "_trilinear", "_sparse_addmm", "_sparse_mm", "linalg_solve_triangular", "_linalg_solve_ex", "triangular_solve",
    "linalg_lu_solve", "cholesky_solve", WEIGHTED_SUM,
})  # fmt: skip
# the slots in which such a product takes a bias
BIAS_SLOTS = frozenset({("addmm", "self"), ("baddbmm", "self"), ("addmv", "self"), ("addbmm", "self")})
NORMALISING = frozenset({
    "native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update", "_fused_rms_norm",
    "rms_norm",
})  # fmt: skip
LOOKUPS = frozenset({"embedding", "index_select", "gather", "index", "_embedding_bag", "take"})
# a step of a path: rows were taken by indices that the input gave, as a router does; by fixed ones it is the look-up
ROUTED = "routed"
# a step of a path: one number of the parameter multiplied many of something else, so that it only scales that
SPREAD = "spread"
JOINS = frozenset({
    "cat", "where", "copy", "index_put", "masked_scatter", "scatter", "masked_fill", "index_copy", "slice_scatter",
})  # fmt: skip
SQUASHES = frozenset({"exp", "softplus", "exp2", "log1p", "expm1", "log"})
GATES = frozenset({"sigmoid", "tanh", "_softmax", "hardtanh", "relu", "cumsum"})
FACTORS = frozenset({"mul", "div", "pow"})
TERMS = frozenset({"add", "sub", "rsub"})
# one real tensor and a mask that the input alone made, whose result is the real one
MASKS = frozenset({"mul", "div", "masked_fill", "where"})
SOFTMAX = frozenset({"_softmax", "_safe_softmax"})
REJOINS = frozenset({"add", "sub", "rsub", "cat", "stack", "where"})  # of one tensor's own pieces: rotations

# not an operation: its products with the input were weighed against each other, over what the input gave
ATTENDED = "attended"
# not an operation: pieces of the parameter, with the input added, scale or shift another activation
MODULATION = "modulate"
# not meetings, but what stands around a norm: what it normalises, and what its result goes into
AROUND_NORM = "norm"


class Use(NamedTuple):
    """One meeting of a parameter with the input's data.

    `operation.slot` is torch's own name of operation and argument; `through` what was done to the parameter before;
    `partner` what it met; `geometry` how it lies in the result, in a product whether it takes part whole as one
    "matrix" or as one of a "stack". `axes` is how many axes it has where it meets its partner, which need not be
    those that it is stored with, and `rows` how many of them are longer than 1.

    With the operation "norm" it is no meeting: slot "before" names what the norm normalises, "after" what its result
    goes into.
    """

    operation: str
    slot: str
    partner: str
    geometry: str
    through: tuple[str, ...] = ()
    axes: int = 0
    rows: int = 0
