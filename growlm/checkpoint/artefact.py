"""A model's folder: `config.json` and `model.safetensors` (an index and shards above 5 GB).

Written beside its place and renamed into it, so that a folder of that name is always whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from growlm.errors import UserError
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM

FORMAT = "growlm/1"
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


def save_model(model: TransformerLM, folder: Path, record: dict[str, Any]) -> None:
    """Write a model.

    Args:
        model: Its weights are written as they are, straight from memory.
        folder: Made; must not exist.
        record: What else to remember (phase, step, tokenizer ...), plain JSON values.

    Raises:
        FileExistsError: If the folder exists.
        OSError: If it cannot be written; nothing is left behind.
    """
    if folder.exists():
        raise FileExistsError(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_weights(dict(model.state_dict()), partial)
        config = {"format": FORMAT, "model": dataclasses.asdict(model.config), **record}
        (partial / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        for path in partial.iterdir():
            _flush(path)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_weights(tensors: dict[str, Tensor], folder: Path) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS_NAME, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def load_model(folder: Path) -> tuple[TransformerLM, dict[str, Any]]:
    """Read a model, tensor by tensor, and its record.

    Raises:
        UserError: If the folder is no artefact of ours, or weights and config do not agree.
    """
    record = _read_config(folder)
    with torch.device("meta"):
        model = TransformerLM(ModelConfig(**record["model"]))
    expected = model.state_dict()
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                weights[name] = opened.get_tensor(name)
    for name in expected.keys() | weights.keys():
        if name not in weights:
            raise UserError("checkpoint", folder, f"the weights lack {name}")
        if name not in expected:
            raise UserError("checkpoint", folder, f"the weights hold {name}, unknown to the config")
        if weights[name].shape != expected[name].shape:
            raise UserError(
                "checkpoint",
                folder,
                f"{name} is {tuple(weights[name].shape)}, the config says {tuple(expected[name].shape)}",
            )
    model.load_state_dict(weights, assign=True)
    return model, record


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError("checkpoint", folder, f"no readable {CONFIG_NAME} there") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError("checkpoint", folder, f"{CONFIG_NAME} is not of format {FORMAT}")
    return record
