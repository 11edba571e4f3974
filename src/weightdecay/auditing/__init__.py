"""What a training really does to its weights, whoever wrote the loop.

In comes a model with its optimizers, or a finished checkpoint; out come the decay that each tensor really gets, and
findings: what decays wrongly, by how much, and the code that mends it. Nothing that comes in is changed.

    audit.py        `audit`: what was asked for, what was seen, and the findings; read this one first
    asking.py       what was asked of each tensor
    live_probe.py   `probe`: steps the real tensors, measures, and puts everything back
    probed.py       what a probe saw, as values
    scales.py       by which rule each group decays, and whether it follows its own lr and peak
    judging.py      tensor by tensor, one cause where asked and seen differ
    fixes.py        the code that mends
    findings.py     a finding, as a value; result.py: an audit's result
"""
