"""Copy, create and check the files beside a model's weights: its tokenizer's, and its license."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growlm.data.tokenization.huggingface_tokenizer import (
    EOS_TOKEN_ENTRY,
    TOKENIZER_FILES,
    TOKENIZER_JSON,
    read_tokenizer_json,
)
from growlm.data.tokenization.tiktoken_encodings import ENCODINGS, END_OF_TEXT
from growlm.huggingface.config_reading import TOKEN_ID_KEYS
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists, read_json

GENERATION_CONFIG = "generation_config.json"


LICENSE_PREFIXES = ("license", "licence", "notice", "copying", "use_policy")
"""Beginnings, in lower case, of the names of files with the terms that a model is used under."""


def list_hf_sidecar_files(folder: Path) -> list[Path]:
    """List the files to copy with a model: those of its tokenizer, readable by growlm or not, and its license."""
    tokenizer = [path for name in TOKENIZER_FILES if lexists(path := folder / name)]
    return tokenizer + list_license_files(folder)


def list_license_files(folder: Path) -> list[Path]:
    """List the files of a folder with the terms that its model is used under."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name.lower().startswith(LICENSE_PREFIXES) and not path.is_dir()
    ]


def check_tokenizer_fits(folder: Path, vocab_size: int, key: str) -> None:
    """Check that a model's vocabulary covers every id of its folder's tokenizer, if it has one.

    Raises:
        UserError: If not, or if the tokenizer cannot be read.
    """
    path = folder / TOKENIZER_JSON
    if not lexists(path):
        return
    tokenizer = read_tokenizer_json(path, key)
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    _check_vocab_size(path, key, max(ids, default=-1) + 1, vocab_size)


def write_builtin_tokenizer(name: str, target: Path, max_seq_len: int) -> None:
    """Write the Hugging Face files of one of growlm's built-in encodings.

    Args:
        name: Name of the encoding.
        target: Folder to write to.
        max_seq_len: Context length of the model.
    """
    from growlm.huggingface.byte_level_tokenizer import build_byte_level_tokenizer

    tokenizer = build_byte_level_tokenizer(ENCODINGS[name](), END_OF_TEXT)
    tokenizer.save(str(target / TOKENIZER_JSON))
    specials = {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "pad")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **specials,
        "model_max_length": max_seq_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    _write_json(target / "tokenizer_config.json", settings)
    _write_json(target / "special_tokens_map.json", specials)


def write_eos_token(target: Path, eos_token: str) -> None:
    """Write the end of text that a run was given into `tokenizer_config.json`, in place of what it says."""
    path = target / "tokenizer_config.json"
    content = read_json(path, "source", target, dict[str, Any]) if lexists(path) else {}
    content.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    _write_json(path, content | {EOS_TOKEN_ENTRY: eos_token})


def get_builtin_token_ids(name: str, vocab_size: int, folder: Path, key: str) -> dict[str, int]:
    """Return the special token ids of a built-in encoding: one token serves as BOS, EOS and padding.

    Args:
        name: Name of the encoding.
        vocab_size: Vocabulary size of the model.
        folder: Folder of the checkpoint, for messages.
        key: Setting that named the folder, for messages.

    Raises:
        UserError: If there is no such encoding, or it has more ids than the model's vocabulary.
    """
    if name not in ENCODINGS:
        reason = f"names an unknown tokenizer, {name!r}; known: {', '.join(ENCODINGS)}"
        raise UserError(key, folder, reason)
    encoding = ENCODINGS[name]()
    _check_vocab_size(folder, key, encoding.n_vocab, vocab_size)
    return dict.fromkeys(TOKEN_ID_KEYS, encoding.eot_token)


def write_generation_config(target: Path, token_ids: Mapping[str, Any]) -> None:
    """Write `generation_config.json`, unless the folder has one.

    Args:
        target: Folder to write to.
        token_ids: Special token ids by the names of `TOKEN_ID_KEYS`; those that are None are left out.
    """
    given = {name: value for name, value in token_ids.items() if value is not None}
    if (target / GENERATION_CONFIG).exists() or not given:
        return
    _write_json(target / GENERATION_CONFIG, given)


def _check_vocab_size(path: Path, key: str, num_ids: int, vocab_size: int) -> None:
    if num_ids > vocab_size:
        reason = f"the tokenizer has {num_ids} ids, but the model's vocabulary has {vocab_size}"
        raise UserError(key, path, reason)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
