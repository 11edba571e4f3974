"""What a trained model can do, from any place it was written to: be loaded, sampled, judged by a text, exported.

In comes a path: a run (its newest good checkpoint, its best, or that of a step), one checkpoint, or an exported or
Hugging Face directory. `trained.find` says which of them it is; everything else takes what it found. Out come text, a
loss, a directory for transformers, a picture of a run's losses. Nothing here trains, and nothing here needs a run.
Open `trained.py` first.
"""
