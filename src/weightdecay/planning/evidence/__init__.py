"""What is seen of each tensor, before anyone judges it.

In: a model, and a batch if the user has one. Out: `TensorFacts` of every tensor, with the `Use`s that a forward showed.

- `tensors`: names, shapes, owners and authors' marks, read without running anything.
- `tracing`: decides what to run (the whole model, its parts, a smaller copy) within one budget, on copies alone.
- `recorder`: the dispatch mode that runs a forward within the budget, and writes down what happens.
- `following`: reads that, and follows parameters to where they meet the input. Open this first; `norms` and `scores`
  read the same steps for what stands between and what is weighed.
- `uses`, `origins`, `axes`: the values that these pass on.
"""
