"""Which tensors decay, and why. Knows nothing of our own models: it serves any `nn.Module`.

A plan is made in four steps: `evidence/` sees what each tensor does, `roles/` says what it is for, `policies/` give it
a share of λ, and `deciding.py` joins that with overrides and marks to the lines of a `DecayPlan`. `plan.py` is the
door. What reads plans (`lock_format`, `comparison`, `render`, `ranks`) knows the values in `planned.py` alone.
"""
