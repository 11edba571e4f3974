"""Public training runs and the decay that they had.

In comes runs.toml and, for every run that is the size of a recipe, the recipe; out come `PublishedRun`s, and those that
are nearest to a run that is planned. Begin with runs.py.
"""
