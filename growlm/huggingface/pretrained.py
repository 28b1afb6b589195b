"""Open a folder with a trained model: a growlm checkpoint or a Hugging Face model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from growlm.checkpoint.checkpoint_folder import (
    OPTIMIZER_STEM,
    WEIGHTS_STEM,
    read_config,
    read_model,
    read_optimizer_states,
)
from growlm.checkpoint.optimizer_files import StateInfos, read_state_infos
from growlm.checkpoint.safetensors_io import TensorFiles, TensorSource
from growlm.data.tokenization.huggingface_tokenizer import HUGGINGFACE, TOKENIZER_JSON
from growlm.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from growlm.distributed.process_group import DistributedContext
from growlm.growth.optimizer_state import ParameterState, convert_moments
from growlm.huggingface.config_reading import is_hf_folder, read_hf_config
from growlm.huggingface.tensor_conversion import HuggingFaceTensors, get_state_dict_shapes
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.storage.input_files import hash_input_file, lexists

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder with a trained model, whose weights are read on request.

    Attributes:
        folder: Folder of the model.
        key: Setting that named the folder, for messages.
        config: Config of the model.
        record: Other entries of its `config.json`.
        is_growlm: Whether it is a growlm checkpoint, not a Hugging Face model.
    """

    folder: Path
    key: str
    config: ModelConfig
    record: dict[str, Any]
    is_growlm: bool

    @cached_property
    def weights(self) -> TensorSource:
        """Weights under growlm's names, each read on request.

        Raises:
            UserError: If they are missing or damaged.
        """
        if self.is_growlm:
            return TensorFiles(self.folder, WEIGHTS_STEM, self.key)
        return HuggingFaceTensors(self.folder, self.key)

    @cached_property
    def digest(self) -> str:
        """Checksum of all safetensors files: weights and optimizer state."""
        files = sorted(self.folder.glob("*.safetensors"))
        lines = "".join(f"{p.name} {hash_input_file(p, self.key, self.folder)}\n" for p in files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def load_model(
        self,
        config: ModelConfig | None = None,
        mesh: DeviceMesh | None = None,
        dist_context: DistributedContext | None = None,
    ) -> TransformerLM:
        """Load the model into memory in fp32.

        Args:
            config: Config to use instead of the folder's own; it may differ only in fields that change no weight.
            mesh: Device mesh to shard the model over; None for the full model.
            dist_context: Process group, with a mesh.

        Raises:
            UserError: If weights and config do not match.
        """
        config, dtype = config or self.config, torch.float32
        if mesh is not None:
            # Imported only here: the module loads slowly, and few runs need it.
            from growlm.checkpoint.distributed_checkpoint import read_sharded_model

            return read_sharded_model(
                config, self.weights, mesh, dist_context or DistributedContext(), dtype
            )
        return read_model(config, self.weights, dtype=dtype, in_memory=True)

    def open_tokenizer(self, eos_token: str | None = None) -> Tokenizer | None:
        """Load the model's tokenizer; None if the folder does not have or name one.

        Args:
            eos_token: Token that ends a text, in place of what the folder names.

        Raises:
            UserError: If the tokenizer cannot be loaded.
        """
        name = self.record.get("tokenizer")
        if not self.is_growlm:
            name = HUGGINGFACE if lexists(self.folder / TOKENIZER_JSON) else None
        return None if name is None else load_tokenizer(name, self.folder, self.key, eos_token)

    def read_optimizer_states(
        self, use_8bit: bool, mesh: DeviceMesh | None = None
    ) -> dict[str, ParameterState]:
        """Load the optimizer state by parameter name into memory; empty if none was saved.

        Args:
            use_8bit: Whether to convert moments to 8 bits; else 8-bit moments are converted back.
            mesh: Device mesh to shard the states over; None for full states.
        """
        stored = read_optimizer_states(self.folder) if self.is_growlm else {}
        states: dict[str, ParameterState] = {}
        for name, state in stored.items():
            converted = {name: convert_moments(state, use_8bit)}
            if mesh is not None:
                from growlm.model.fsdp import shard_optimizer_states

                converted = shard_optimizer_states(converted, mesh)
            states[name] = {entry: tensor.clone() for entry, tensor in converted[name].items()}
        return states

    def read_state_infos(self) -> StateInfos:
        """Read the dtypes and shapes of the optimizer state; empty if none was saved.

        Raises:
            UserError: If the files are damaged, or a state matches no parameter of the model.
        """
        if not self.is_growlm or not TensorFiles.exist(self.folder, OPTIMIZER_STEM):
            return {}
        return read_state_infos(
            TensorFiles(self.folder, OPTIMIZER_STEM, self.key), get_state_dict_shapes(self.config)
        )


def open_pretrained(folder: Path, key: str) -> PretrainedFolder:
    """Open a folder with a trained model, without reading its weights.

    Args:
        folder: Folder of a growlm checkpoint or a Hugging Face model.
        key: Setting that named the folder, for messages.

    Raises:
        UserError: If it is neither, or a model that growlm cannot represent.
    """
    is_growlm = not is_hf_folder(folder)
    config, record = (read_config if is_growlm else read_hf_config)(folder, key)
    return PretrainedFolder(folder, key, config, record, is_growlm)
