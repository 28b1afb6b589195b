"""The tokenizer's files beside a converted model: carried as they are, or made from an encoding of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growlm.data.tokenization.huggingface_tokenizer import (
    TOKENIZER_FILES,
    TOKENIZER_JSON,
    read_tokenizer_json,
)
from growlm.data.tokenization.tiktoken_encodings import ENCODINGS, END_OF_TEXT
from growlm.huggingface.config_reading import TOKEN_ID_KEYS
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists

GENERATION_CONFIG = "generation_config.json"


def list_hf_sidecar_files(folder: Path) -> list[Path]:
    """What a folder has of the files that go along, also where none of them is a tokenizer that we can read."""
    return [path for name in TOKENIZER_FILES if lexists(path := folder / name)]


def check_tokenizer_fits(folder: Path, vocab_size: int, key: str) -> None:
    """Check that a model has a row for every id of a folder's tokenizer, if it has one.

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
    """Write the files of one of our own encodings.

    Args:
        name: Of the encoding.
        target: Folder.
        max_seq_len: Of the model.
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


def get_builtin_token_ids(name: str, vocab_size: int, folder: Path, key: str) -> dict[str, int]:
    """The special token ids of one of our own encodings: one token begins, ends and fills.

    Args:
        name: Of the encoding.
        vocab_size: Of the model.
        folder: For messages.
        key: Likewise.

    Raises:
        UserError: If there is no such encoding, or the model has fewer rows than it has ids.
    """
    if name not in ENCODINGS:
        allowed = f"names the tokenizer {name!r}; known: {', '.join(ENCODINGS)}"
        raise UserError(key, folder, allowed)
    encoding = ENCODINGS[name]()
    _check_vocab_size(folder, key, encoding.n_vocab, vocab_size)
    return dict.fromkeys(TOKEN_ID_KEYS, encoding.eot_token)


def write_generation_config(target: Path, token_ids: Mapping[str, Any]) -> None:
    """Write `generation_config.json`, unless the folder has one.

    Args:
        target: Folder.
        token_ids: By the names of `TOKEN_IDS`; nothing is written of those that are None.
    """
    given = {name: value for name, value in token_ids.items() if value is not None}
    if (target / GENERATION_CONFIG).exists() or not given:
        return
    _write_json(target / GENERATION_CONFIG, given)


def _check_vocab_size(path: Path, key: str, num_ids: int, vocab_size: int) -> None:
    if num_ids > vocab_size:
        allowed = f"the tokenizer has {num_ids} ids, the model {vocab_size} rows for them"
        raise UserError(key, path, allowed)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
