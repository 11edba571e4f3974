"""Passes over memory that torch has no one operation for, in C: what a bfloat16 training step on a processor does
between its matrix products.

In come contiguous bfloat16 tensors on a processor, out come bfloat16 tensors and float32 gradients of parameters; the
arithmetic between is float32. The sources lie in `source/`, are compiled once for this machine when a training first
asks for them (`library`), and are kept in the user's cache. Where there is no compiler, nothing here is used, and the
models compute by torch's own operations.

Begin with `library`; `norms`, `activations`, `attention`, `loss` and `products` each stand beside the C file of their
name. `causal` is attention where the processor's own instructions multiply matrices (`source/tiles.h`), as small
products then are ours, too; larger ones are torch's. `branches` puts them together: each half of a usual block is one
function, which goes kernel by kernel (`branch_by_parts`) or, where it is small, in one call (`branch_at_once`).
"""
