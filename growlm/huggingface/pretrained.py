"""A folder with a trained model, whoever made it: a checkpoint of ours, or a Hugging Face one."""

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
    """What is known of a folder before any of its weights is read.

    Attributes:
        folder: The folder.
        key: What the user calls it, for messages.
        config: The model's shape.
        record: What else its `config.json` says.
        is_ours: Whether it is a checkpoint of ours.
    """

    folder: Path
    key: str
    config: ModelConfig
    record: dict[str, Any]
    is_growlm: bool

    @cached_property
    def weights(self) -> TensorSource:
        """The weights under our names, each read when it is asked for.

        Raises:
            UserError: If they are missing or damaged.
        """
        if self.is_growlm:
            return TensorFiles(self.folder, WEIGHTS_STEM, self.key)
        return HuggingFaceTensors(self.folder, self.key)

    @cached_property
    def digest(self) -> str:
        """Checksum of the weights' and the optimizer's files."""
        files = sorted(self.folder.glob("*.safetensors"))
        both = "".join(f"{p.name} {hash_input_file(p, self.key, self.folder)}\n" for p in files)
        return hashlib.sha256(both.encode()).hexdigest()

    def load_model(
        self,
        config: ModelConfig | None = None,
        mesh: DeviceMesh | None = None,
        dist_context: DistributedContext | None = None,
    ) -> TransformerLM:
        """The model in fp32 and in memory of its own.

        Args:
            config: Its own, or one that differs in what changes no weight.
            mesh: All processes, for a model divided among them.
            world: They too.

        Raises:
            UserError: If weights and config do not agree.
        """
        config, dtype = config or self.config, torch.float32
        if mesh is not None:
            from growlm.checkpoint.distributed_checkpoint import (
                read_sharded_model,  # loads slowly, and few need it
            )

            return read_sharded_model(
                config, self.weights, mesh, dist_context or DistributedContext(), dtype
            )
        return read_model(config, self.weights, dtype=dtype, in_memory=True)

    def open_tokenizer(self) -> Tokenizer | None:
        """What its tokens are; None if nothing says it.

        Raises:
            UserError: If it cannot be loaded.
        """
        name = self.record.get("tokenizer")
        if not self.is_growlm:
            name = HUGGINGFACE if lexists(self.folder / TOKENIZER_JSON) else None
        return None if name is None else load_tokenizer(name, self.folder, self.key)

    def read_optimizer_states(
        self, use_8bit: bool, mesh: DeviceMesh | None = None
    ) -> dict[str, ParameterState]:
        """The optimizer's state by parameter name, in memory of its own; empty if none was kept.

        Args:
            eight_bits: Whether moments are held in 8 bits; each is brought into that form as it is read.
            mesh: All processes, for states divided among them.
        """
        states = read_optimizer_states(self.folder) if self.is_growlm else {}
        found: dict[str, ParameterState] = {}
        for name, state in states.items():
            formed = {name: convert_moments(state, use_8bit)}
            if mesh is not None:
                from growlm.model.fsdp import shard_optimizer_states

                formed = shard_optimizer_states(formed, mesh)
            found[name] = {entry: tensor.clone() for entry, tensor in formed[name].items()}
        return found

    def read_state_infos(self) -> StateInfos:
        """Type and shape of what `states` has.

        Raises:
            UserError: If the optimizer's files are damaged, or hold what fits no parameter of the model.
        """
        if not self.is_growlm or not TensorFiles.exist(self.folder, OPTIMIZER_STEM):
            return {}
        return read_state_infos(
            TensorFiles(self.folder, OPTIMIZER_STEM, self.key), get_state_dict_shapes(self.config)
        )


def open_pretrained(folder: Path, key: str) -> PretrainedFolder:
    """Look at a folder with a trained model.

    Args:
        folder: Of either kind.
        key: What the user calls it, for messages.

    Raises:
        UserError: If it is neither, or a model that ours cannot represent.
    """
    is_ours = not is_hf_folder(folder)
    config, record = (read_config if is_ours else read_hf_config)(folder, key)
    return PretrainedFolder(folder, key, config, record, is_ours)
