"""From facts to verdicts: what each tensor is for, how far that can be trusted, and who says otherwise.

In: `TensorFacts`. Out: `Verdict`s, as data; `planning/sentences.py` makes prose of them.

- `classify`: the order of evidence, and what sisters and neighbours say. Open this first.
- `from_use`, `from_type`, `from_name`: one kind of evidence each, strongest first.
- `roles`: the roles, the places of norms, and the verdict itself.
"""
