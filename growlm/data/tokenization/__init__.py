"""Tokenizers, and parallel tokenization of whole corpora with a cache on disk."""
