"""What an optimizer's step really does to weights: seen, not read from its keys or from a list of names.

In comes any torch optimizer; out comes a `StepReport`: for each group, how its `weight_decay` enters a step, the
fraction that a step removes, whether its direction looks at the weights, or why nothing can be said of it. All is
tried on twins of the optimizer with a few numbers in each tensor, and nothing of the original is touched.

    probe.py        `probe_step`: the experiments and what follows from them; read this one first
    report.py       what it says of each group
    seen.py         what is seen in one precision, and what holds in all
    watch.py        twins that step beside real steps, and see what comes once in a hundred steps
    progress.py     what steps leave: state of tensors, and keys of groups that tell how far they have come

    kinds.py        which groups and tensors are tried for all
    marks.py        what tells single tensors apart, which makes them unlike kinds
    twin.py         twins of an optimizer: how they are made so that they step, with which gradients
    walks.py        twins that are led, and when two ways are the same
    sparing.py      what a step spares: some tensors, or what has no gradient
    entering.py     how λ enters: which led twin without λ goes the way of the one with λ
    copying.py      an object and what hangs on it, copied with small tensors in place of the parameters
    small.py        the small tensors that stand for parameters
    absent.py       what stands for a thing that is not copied
    following.py    whether hooks run in its steps, and which settings and gradients these use
    outermost.py    one step, however often its hooks run
    isolation.py    a place to step in that leaves no trace: no hook, no generator, no write to what is real
    outside.py      what code of an optimizer reaches beside it, kept as it is
"""
