"""How a step decays: rules, schedules, optimizers, precision and state. Serves any `torch.optim.Optimizer`."""
