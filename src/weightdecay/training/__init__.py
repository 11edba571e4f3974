"""The training loop, its checkpoints, and its progress. Experimental until 1.0."""
