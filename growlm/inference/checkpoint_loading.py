"""A checkpoint, to be used."""

from __future__ import annotations

from pathlib import Path

from growlm.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from growlm.huggingface.pretrained import PretrainedFolder, open_pretrained
from growlm.runtime.errors import UserError


def open_checkpoint(folder: str, tokenizer_name: str | None) -> tuple[PretrainedFolder, Tokenizer]:
    """What is known of a checkpoint before its weights are read, and what its tokens are.

    Args:
        folder: A checkpoint of ours, or a Hugging Face folder.
        tokenizer_name: For a checkpoint that does not say it.

    Raises:
        UserError: If the folder holds no model, or its tokenizer is not known, another, or larger than the model's
            vocabulary.
    """
    pretrained = open_pretrained(Path(folder).expanduser(), "checkpoint")
    tokenizer = pretrained.open_tokenizer()
    if tokenizer is None:
        if tokenizer_name is None:
            allowed = (
                "the checkpoint does not say which tokenizer it was trained with: give its name"
            )
            raise UserError("tokenizer_name", None, allowed)
        tokenizer = load_tokenizer(tokenizer_name)
    elif tokenizer_name not in (None, tokenizer.name):
        allowed = f"the checkpoint was trained with {tokenizer.name}; leave it out"
        raise UserError("tokenizer_name", tokenizer_name, allowed)
    rows = pretrained.config.vocab_size
    if tokenizer.vocab_size > rows:
        allowed = f"has {tokenizer.vocab_size} tokens, the model in {folder} only {rows}"
        raise UserError("tokenizer_name", tokenizer.name, allowed)
    return pretrained, tokenizer
