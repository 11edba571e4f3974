"""How a step decays. Serves any `torch.optim.Optimizer`; knows nothing of our models, recipes or trainer.

In come a decay plan's groups, or any parameters, with a rule, a rounding and schedules; out goes a step in which each
weight decays by what its group says. An optimizer is a direction, a decay rule and a rounding:

    roundings            the values (and `weightdecay.rules`, which to open first)
    decay                a rule's arithmetic, once
    adamw … muon         the directions, on `base` (a step), `elementwise` and `pieces` (what no kernel of torch's
                         does), `compiled` (the same in one loop), `loading` (what a loaded state may change)
    control, serving     rules and schedules on optimizers that others wrote, by what `probing` sees
    scheduling           applies `weightdecay.schedules`, which say what η and λ are at a step
    state                optimizer state by name, and what a resume would change
"""
