"""What a training really does to its weights, whoever wrote the loop.

In comes a model with its optimizers, or a finished checkpoint; out come the decay that each tensor really gets, and
findings: what decays wrongly, by how much, and the code that mends it. Nothing that comes in is changed.

    audit.py        `audit`: what was asked for, what was seen, and the findings; read this one first
    asking.py       what was asked of each tensor
    live_probe.py   `probe`: steps the real tensors, measures, and puts everything back
    optimizer_probe.py  one optimizer of a probe, from trying which tensors can be stepped apart to the twin
    stepping.py     a bench on which a real step is made any number of times from the same place
    written.py, python_state.py  what a step writes to, saved before; what objects hold, remembered
    sighting.py     the four steps of a tensor; carriers.py: masters, compensations and other copies of weights
    measuring.py    what was removed, as sums; forms.py: how it follows a group's numbers; telling.py: values of it
    probed.py       what a probe saw, as values; probe_table.py: for people
    scales.py       by which rule each group decays, and whether it follows its own lr and peak
    judging.py      tensor by tensor, one cause where asked and seen differ
    fixes.py        the code that mends
    findings.py     a finding, as a value; result.py: an audit's result
"""
