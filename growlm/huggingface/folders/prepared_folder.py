"""Prepare model folders of both kinds: check everything first, then write tensor by tensor, atomically."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch

from growlm.checkpoint.checkpoint_folder import WEIGHTS_STEM, make_config_content
from growlm.checkpoint.offline_growth import (
    ByteProgress,
    accumulate_progress,
    check_target_folder,
    create_target_folder,
)
from growlm.checkpoint.safetensors_io import (
    TensorInfo,
    TensorSource,
    read_in_parts,
    write_tensors,
)
from growlm.data.tokenization.huggingface_tokenizer import EOS_TOKEN_ENTRY, HUGGINGFACE
from growlm.data.tokenization.tokenizer import load_tokenizer
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import ARCHITECTURES, GROWLM
from growlm.huggingface.config_reading import KEPT_KEYS, TOKEN_ID_KEYS
from growlm.huggingface.config_writing import build_hf_config, can_represent, get_origin
from growlm.huggingface.keys.config_keys import CONFIG_NAME
from growlm.huggingface.tensor_conversion import find_lost_tensors, map_to_huggingface
from growlm.huggingface.tokenizer_files import (
    check_tokenizer_fits,
    get_builtin_token_ids,
    list_hf_sidecar_files,
    list_license_files,
    write_builtin_tokenizer,
    write_eos_token,
    write_generation_config,
)
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError
from growlm.storage.sidecar_files import copy_sidecar_files

CONFIG_MODULE, MODEL_MODULE = "configuration_growlm", "modeling_growlm"
AUTO_MAP = {
    "AutoConfig": f"{CONFIG_MODULE}.GrowLMConfig",
    "AutoModelForCausalLM": f"{MODEL_MODULE}.GrowLMForCausalLM",
}
"""Entry of `config.json` that tells transformers which files of the folder import growlm's own classes."""
OMITTED_RECORD_KEYS = ("tokenizer", EOS_TOKEN_ENTRY, "huggingface")
"""Entries of a checkpoint's record that an export stores elsewhere."""


@dataclass(frozen=True)
class PreparedFolder:
    """A model folder that has been checked; nothing is written yet."""

    key: str
    """Setting that named the source, for messages."""
    class_name: str
    """Class of the model."""
    config: ModelConfig
    content: Mapping[str, Any]
    """Content of `config.json`."""
    tensors: TensorSource
    """Tensors, each read or computed when it is written."""
    sidecar_files: Sequence[Path]
    """Files to copy."""
    tokenizer: str
    """Text that says what becomes of the tokenizer."""
    write_rest: Callable[[Path], None]
    """Function that writes the other files into a folder."""

    @property
    def infos(self) -> list[TensorInfo]:
        """Names, dtypes and shapes of all tensors."""
        return [self.tensors.info(name) for name in self.tensors.names]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes of the tensors; more than one where the files mix them."""
        return tuple(dict.fromkeys(info.dtype for info in self.infos))

    def write(
        self,
        target: Path,
        progress: ByteProgress = lambda done, total: None,
        finish: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Write the folder.

        Args:
            target: Folder to create; must not exist.
            progress: Function called after every tensor.
            finish: Function that checks the folder, and writes further files, before it gets its name.

        Raises:
            UserError: If the target exists, or the disk has too little space. Nothing is left behind.
        """
        infos = self.infos
        total = sum(info.nbytes for info in infos)
        check_target_folder(target, total, self.sidecar_files, self.key)
        with create_target_folder(target) as (folder, digests), torch.no_grad():
            digests |= write_tensors(
                folder,
                WEIGHTS_STEM,
                infos,
                partial(read_in_parts, self.tensors),
                accumulate_progress(progress, total),
            )
            copy_sidecar_files(self.sidecar_files, folder)
            self.write_rest(folder)
            (folder / CONFIG_NAME).write_text(json.dumps(self.content, indent=2) + "\n")
            finish(folder)


def prepare_growlm_folder(
    source: Path,
    config: ModelConfig,
    record: Mapping[str, Any],
    tensors: TensorSource,
    class_name: str,
    key: str,
) -> PreparedFolder:
    """Prepare a growlm checkpoint of a model that came from a Hugging Face folder.

    Args:
        source: Hugging Face folder, for the tokenizer.
        config: Config of the model.
        record: Further entries of `config.json`, as `read_hf_config` returns them.
        tensors: Validated tensors under growlm's names.
        class_name: Class of the model in the source.
        key: Setting that named the source, for messages.

    Raises:
        UserError: If the tokenizer does not fit the model.
    """
    check_tokenizer_fits(source, config.vocab_size, key)

    def write_rest(folder: Path) -> None:
        write_generation_config(folder, get_source_token_ids(record))

    is_readable = "tokenizer" in record
    return PreparedFolder(
        key=key,
        class_name=class_name,
        config=config,
        content=make_config_content({"model": dataclasses.asdict(config)}, record),
        tensors=tensors,
        sidecar_files=list_hf_sidecar_files(source),
        tokenizer="copied" if is_readable else "none that growlm can read: no tokenizer.json",
        write_rest=write_rest,
    )


def prepare_huggingface_folder(
    source: Path,
    config: ModelConfig,
    record: Mapping[str, Any],
    tensors: TensorSource,
    key: str,
    *,
    architecture: str = "auto",
    dtype: torch.dtype | None = None,
    checks_values: bool = True,
) -> PreparedFolder:
    """Prepare a Hugging Face folder of a model.

    Args:
        source: Folder that the model came from, for the tokenizer.
        config: Config of the model.
        record: Record of the model's checkpoint, or as `read_hf_config` returns it.
        tensors: Validated tensors under growlm's names.
        key: Setting that named the source, for messages.
        architecture: `auto` for the transformers class that computes the same, or growlm's own class if there is
            none; `growlm` for growlm's own class, which can represent every model.
        dtype: Dtype of the weights; None for that of the tensors.
        checks_values: Whether to read tensors that the architecture does not have, which must be zero.

    Raises:
        UserError: If the architecture cannot represent the model, or the tokenizer does not fit it.
    """
    is_own = architecture == GROWLM.model_type
    values = tensors if checks_values else None
    chosen = GROWLM if is_own else choose_architecture(config, record, values)
    if chosen is not GROWLM and config.is_moe and config.routing.tie_breaking:
        reason = f"{chosen.class_name} has no such setting; use architecture=growlm"
        raise UserError("routing.tie_breaking", "true", reason)
    mapped = map_to_huggingface(tensors, config, chosen, dtype, checks_values=checks_values)
    name = record.get("tokenizer")
    token_ids = _export_token_ids(source, config, record, key)
    is_copied = name in (None, HUGGINGFACE)

    def write_rest(folder: Path) -> None:
        if not is_copied:
            write_builtin_tokenizer(str(name), folder, config.max_seq_len)
        elif isinstance(eos_token := record.get(EOS_TOKEN_ENTRY), str):
            write_eos_token(folder, eos_token)
        write_generation_config(folder, token_ids)
        if chosen is GROWLM:
            _write_remote_code(folder)

    # Only the source's own pad token: transformers never trains the embedding of the config's pad token.
    pad_token_id = get_source_token_ids(record).get("pad_token_id")
    config_ids = {**token_ids, "pad_token_id": pad_token_id}
    kept_record = {k: value for k, value in record.items() if k not in OMITTED_RECORD_KEYS}
    content = build_hf_config(chosen, config, _find_dtype(mapped, chosen), config_ids, kept_record)
    content |= {key: value for key, value in get_origin(record).items() if key in KEPT_KEYS}
    files = list_hf_sidecar_files(source) if is_copied else list_license_files(source)
    return PreparedFolder(
        key=key,
        class_name=chosen.class_name,
        config=config,
        content=content | ({"auto_map": AUTO_MAP} if chosen is GROWLM else {}),
        tensors=mapped,
        sidecar_files=files,
        tokenizer="none: the checkpoint names none"
        if name is None
        else f"{name}, as tokenizer.json",
        write_rest=write_rest,
    )


def _find_dtype(tensors: TensorSource, architecture: Architecture) -> torch.dtype:
    """Return the dtype in which a class holds all tensors exactly: the widest, but for what it keeps in fp32."""
    dtypes = (
        tensors.info(name).dtype
        for name in tensors.names
        if not set(architecture.wide_modules).intersection(name.split("."))
    )
    return reduce(torch.promote_types, dtypes)


def choose_architecture(
    config: ModelConfig, record: Mapping[str, Any], files: TensorSource | None = None
) -> Architecture:
    """Return the architecture that a checkpoint came from, or else the first that can represent it.

    Args:
        config: Config of the model.
        record: Record of the checkpoint.
        files: Its tensors; if given, an architecture without some of the weights is passed over.
    """
    source_type = get_origin(record).get("model_type")
    preferred = [each for each in ARCHITECTURES if each.model_type == source_type]
    return next(
        each
        for each in (*preferred, *ARCHITECTURES)
        if can_represent(each, config) and (files is None or _has_all_weights(each, config, files))
    )


def _has_all_weights(architecture: Architecture, config: ModelConfig, files: TensorSource) -> bool:
    lost = find_lost_tensors(files, config, architecture)
    return not any(mapping.is_weight for mapping in lost.values())


def get_source_token_ids(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special token ids of the Hugging Face model that a checkpoint was made from."""
    return {name: get_origin(record).get(name) for name in TOKEN_ID_KEYS}


def _export_token_ids(
    source: Path, config: ModelConfig, record: Mapping[str, Any], key: str
) -> dict[str, Any]:
    name = record.get("tokenizer")
    if name in (None, HUGGINGFACE):
        check_tokenizer_fits(source, config.vocab_size, key)
        if name is None or EOS_TOKEN_ENTRY not in record:
            return get_source_token_ids(record)
        eos_token_id = load_tokenizer(HUGGINGFACE, source, key).eos_token_id
        return get_source_token_ids(record) | {"eos_token_id": eos_token_id}
    return dict(get_builtin_token_ids(str(name), config.vocab_size, source, key))


def _write_remote_code(folder: Path) -> None:
    for module, name in ((CONFIG_MODULE, "GrowLMConfig"), (MODEL_MODULE, "GrowLMForCausalLM")):
        text = '"""Import the class for transformers from growlm (pip install growlm)."""\n\n'
        text += (
            f'from growlm.huggingface.transformers_model import {name}\n\n__all__ = ["{name}"]\n'
        )
        (folder / f"{module}.py").write_text(text)
