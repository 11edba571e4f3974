"""Which λ for a run that is planned: what public runs of that kind used, and what laws say where they hold.

In comes what is planned (planned.py, every fault of it at once); out comes an `Advice` (advice.py, begin there), in
which no number stands without its equation, its source and how that was read; wording.py says it to people. The laws
and the runs stand below: `weightdecay.laws`, `recipes/published/`.
"""
