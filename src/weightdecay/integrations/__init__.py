"""Other programs that a training works with, each in a module that alone imports it.

In comes a training that a framework drives, or the rows of a run; out go audits at some of its steps, our plan in its
optimizer, and numbers and alarms in what the user looks at already.

    step_audits.py      audits at some steps, told to a log and to trackers; read this one first
    step_hooks.py       the same for loops that offer no callback, by torch's hook of all optimizers' steps
    transformers.py, lightning.py, accelerate.py, torchtitan.py, peft.py    each framework's own way to the same
    tracker_rows.py     what of a row is a number, what an alarm
    trackers.py         TensorBoard, Weights & Biases and trackio by name; tensorboard.py, wandb.py, trackio.py
    pytest_plugin.py    the audit in a test
"""
