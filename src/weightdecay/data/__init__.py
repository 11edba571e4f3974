"""From text to batches: corpus, tokenizer, shards, loader."""
