"""Who decays what: a policy turns verdicts into a share of λ.

- `role_policies`: ours, one multiplier per role, and per place of a norm. Open this first.
- `emulated`: what other frameworks do, quirks included, with the source that was read.
- `policy_file`, `overrides`: a user's own; `author_rates`: what a model's author marked.
- `opinions`: where the field disagrees, with both sides.
"""
