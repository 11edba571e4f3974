"""`weightdecay watch`: the audit of a training program that nobody edits.

In comes a program as it would be handed to Python; it runs as it would, in this process, and its optimizers are caught
in the midst of a step. Out come the findings of `auditing`, on the terminal and as files. Nothing of the run changes.

    launching.py    `launch`: the watched process from its first line to its last; read this one first
    program.py      what is run, and running it as Python itself would
    settings.py     what was asked for, handed on to processes that the program starts
    arming.py       waits for the program to import torch
    steps.py        counts the outermost steps of each optimizer, and knows when one is to be audited
    silent.py       optimizers whose steps no hook sees: how far they have come shows in their weights
    groupless.py    optimizers that keep their tensors in a list and their settings as attributes
    loads.py        λ that a load put in the place of what was asked for
    owners.py       which live models and optimizers belong together
    examining.py    the audit itself, on the first rank, without a word to the others
    signals.py      signals that come during an audit wait for its end
    muted.py        what a step prints in the trials of an audit is lost
    records.py      what all processes of a run saw, brought together and written
    leaving.py      how a process ends: also by os._exit, by becoming another program, in a fork
    tracebacks.py   errors that pass us show no frame of ours
    worker/         what Python runs first in processes that the program starts
    page.py         the findings as a page
    telling.py      what is said on the terminal

Until the program imports torch nothing here does, since what it sets before that must count.
"""
