"""Load the tokenizer that a run's config names."""

from __future__ import annotations

from pathlib import Path

from growlm.config.instantiate import instantiate_target
from growlm.config.own_classes import get_spec
from growlm.config.schema import OWN, RunConfig
from growlm.data.tokenization.huggingface_tokenizer import find_tokenizer_files
from growlm.data.tokenization.own_tokenizer import OwnTokenizer
from growlm.data.tokenization.tokenizer import Tokenizer, load_tokenizer


def load_run_tokenizer(config: RunConfig) -> Tokenizer:
    """Load a shipped tokenizer, or one of the user's own.

    Raises:
        UserError: If it cannot be loaded or used.
    """
    settings = config.tokenizer
    if settings.name != OWN:
        return load_tokenizer(settings.name, settings.path, eos_token=settings.eos_token)
    assert settings._target_ is not None
    spec = get_spec(config, "tokenizer")
    return OwnTokenizer(
        settings._target_, settings.arguments, instantiate_target("tokenizer", spec)
    )


def list_tokenizer_files(config: RunConfig, tokenizer: Tokenizer) -> list[Path]:
    """Return the files that accompany every checkpoint; none for a built-in tokenizer, which has a name."""
    if isinstance(tokenizer, OwnTokenizer):
        return tokenizer.files
    path = config.tokenizer.path
    return [] if path is None else find_tokenizer_files(Path(path).expanduser())
