"""Which tensors decay, and why. Knows nothing of our own models: it serves any `nn.Module`."""
