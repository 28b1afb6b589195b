"""Read and write keys of `config.json`: single ones, those of rotary embeddings, and those of blocks."""
