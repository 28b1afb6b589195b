"""A model's folder: `config.json`, `model.safetensors`, and `optimizer.safetensors` where it is kept.

Written beside its place and renamed into it, so that a folder of that name is always whole; `config.json` comes
last, so that what is beside its place never loads.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from growlm.checkpoint.tensor_files import Entry, TensorFiles, flush, write_tensors
from growlm.errors import UserError
from growlm.growth.optimizer_state import State
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM

FORMAT = "growlm/1"
CONFIG_NAME = "config.json"
WEIGHTS = "model"
OPTIMIZER = "optimizer"


def save_model(
    model: TransformerLM,
    folder: Path,
    record: dict[str, Any],
    states: Mapping[str, State] | None = None,
) -> None:
    """Write a model.

    Args:
        model: Its weights are written as they are, straight from memory.
        folder: Made; must not exist.
        record: What else to remember (phase, step, tokenizer ...), plain JSON values.
        states: The optimizer's, by parameter name, if they are to be kept.

    Raises:
        FileExistsError: If the folder exists.
        OSError: If it cannot be written; nothing is left behind.
    """
    with new_folder(folder) as partial:
        weights = dict(model.state_dict())
        entries = [Entry(name, t.dtype, tuple(t.shape)) for name, t in weights.items()]
        write_tensors(partial, WEIGHTS, entries, weights.__getitem__)
        if states is not None:
            flat = {
                f"{name}.{key}": t for name, state in states.items() for key, t in state.items()
            }
            entries = [Entry(name, t.dtype, tuple(t.shape)) for name, t in flat.items()]
            write_tensors(partial, OPTIMIZER, entries, flat.__getitem__)
        write_config(partial, model.config, record)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends well, and vanishes when it does not.

    Raises:
        FileExistsError: If the name is taken.
    """
    if folder.exists():
        raise FileExistsError(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    made = [parent for parent in partial.parents if not parent.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.iterdir():
            flush(path)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            parent.rmdir()
        raise


def write_config(folder: Path, config: ModelConfig, record: Mapping[str, Any]) -> None:
    """Write `config.json`, which makes the folder a checkpoint."""
    content = {"format": FORMAT, "model": dataclasses.asdict(config), **record}
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")


def read_config(folder: Path, key: str = "checkpoint") -> tuple[ModelConfig, dict[str, Any]]:
    """The model's shape, and the record written with it.

    Args:
        folder: Of the checkpoint.
        key: What the user calls it, for the message.

    Raises:
        UserError: If the folder is no checkpoint of ours.
    """
    path = folder / CONFIG_NAME
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(key, folder, f"no readable {CONFIG_NAME} there") from error
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise UserError(key, folder, f"{CONFIG_NAME} is not of format {FORMAT}")
    try:
        config = ModelConfig(**record.pop("model"))
        config.validate()
    except (KeyError, TypeError, UserError) as error:
        raise UserError(key, folder, f"{CONFIG_NAME} describes no model: {error}") from error
    return config, record


def load_model(folder: Path, key: str = "checkpoint") -> tuple[TransformerLM, dict[str, Any]]:
    """Read a model, tensor by tensor, and its record.

    Args:
        folder: Of the checkpoint.
        key: What the user calls it, for the message.

    Raises:
        UserError: If the folder is no checkpoint of ours, or weights and config do not agree.
    """
    config, record = read_config(folder, key)
    with torch.device("meta"):
        model = TransformerLM(config)
    files = TensorFiles(folder, WEIGHTS, key)
    check_shapes(files, {n: tuple(t.shape) for n, t in model.state_dict().items()}, key)
    model.load_state_dict({name: files.read(name) for name in files.names}, assign=True)
    return model, record


def load_states(folder: Path) -> dict[str, State]:
    """The optimizer's state by parameter name; empty if it was not kept."""
    if not TensorFiles.exist(folder, OPTIMIZER):
        return {}
    files = TensorFiles(folder, OPTIMIZER)
    states: dict[str, State] = {}
    for full_name in files.names:
        name, _, entry = full_name.rpartition(".")
        states.setdefault(name, {})[entry] = files.read(full_name)
    return states


def check_shapes(files: TensorFiles, expected: Mapping[str, tuple[int, ...]], key: str) -> None:
    """Check that the files hold the tensors that a config describes.

    Raises:
        UserError: Naming the first tensor that is missing, unknown or of another shape.
    """
    present = set(files.names)
    for name in sorted(expected.keys() | present):
        if name not in present:
            raise UserError(key, files.folder, f"the weights lack {name}")
        if name not in expected:
            raise UserError(key, files.folder, f"the weights hold {name}, unknown to the config")
        if (shape := files.entry(name).shape) != expected[name]:
            allowed = f"{name} is {shape}, the config says {expected[name]}"
            raise UserError(key, files.folder, allowed)
