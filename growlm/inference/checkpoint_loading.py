"""Open a checkpoint and its tokenizer for inference."""

from __future__ import annotations

from pathlib import Path

from growlm.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from growlm.huggingface.pretrained import PretrainedFolder, open_pretrained
from growlm.runtime.errors import UserError


def open_checkpoint(folder: str, tokenizer_name: str | None) -> tuple[PretrainedFolder, Tokenizer]:
    """Open a checkpoint, without reading its weights, and its tokenizer.

    Args:
        folder: growlm checkpoint or Hugging Face folder.
        tokenizer_name: Name of the tokenizer, for a checkpoint that does not record it.

    Raises:
        UserError: If the folder holds no model, or its tokenizer is unknown, differs from `tokenizer_name`, or is
            larger than the model's vocabulary.
    """
    pretrained = open_pretrained(Path(folder).expanduser(), "checkpoint")
    tokenizer = pretrained.open_tokenizer()
    if tokenizer is None:
        if tokenizer_name is None:
            reason = "the checkpoint does not record its tokenizer; give the tokenizer's name"
            raise UserError("tokenizer_name", None, reason)
        tokenizer = load_tokenizer(tokenizer_name)
    elif tokenizer_name not in (None, tokenizer.name):
        reason = f"the checkpoint was trained with {tokenizer.name}; remove this setting"
        raise UserError("tokenizer_name", tokenizer_name, reason)
    vocab_size = pretrained.config.vocab_size
    if tokenizer.vocab_size > vocab_size:
        reason = (
            f"has {tokenizer.vocab_size} tokens, but the model in {folder} has only {vocab_size}"
        )
        raise UserError("tokenizer_name", tokenizer.name, reason)
    return pretrained, tokenizer
