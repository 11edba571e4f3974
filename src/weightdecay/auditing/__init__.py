"""What a training really does to its weights, whoever wrote the loop.

In comes a model with its optimizers, or a finished checkpoint; out come the decay that each tensor really gets, and
findings: what decays wrongly, by how much, and the code that mends it. Nothing that comes in is changed.

    audit.py        `audit`: what was asked for, what was seen, and the findings; read this one first
    live_probe.py   `probe`: steps the real tensors, measures, and puts everything back
    probed.py       what a probe saw, as values
    findings.py     a finding and an audit's result, as values
"""
