"""Tokenizers, and the tokenization of whole corpora with a cache on disk."""
