"""The descriptions of transformers architectures, one file per family of models."""
