"""What decay does in a run, while it runs: norms, rotation and realised decay beside what theory predicts.

In come a model and its optimizers, any; out come rows, one for each tensor that was looked at and one for each role,
and alarms in words. A few tensors are copied before a step that is due, compared after it, and let go again.

    monitor.py     `Monitor`: hooks on a step, what is due, rows and alarms; read this one first
    hooking.py     where a step begins and ends, also for wrappers and for what is no torch optimizer
    rotation.py    which tensors are looked at in which step, within a budget of bytes
    measuring.py   one tensor in one step, as sums; spectral.py: its largest singular value
    directions.py  the update that an optimizer's state tells: Adam's, Lion's, SGD's
    decaying.py    the decay of a group: what its numbers ask for, and what comes of it
    courses.py     where the norm goes while η and the decay move
    theory.py      what a tensor comes to, and how far it is from there
    rows.py        rows of tensors and of roles
    alarms.py      what is wrong, from rows alone
"""
