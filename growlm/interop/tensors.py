"""Tensors of files under other names and in other shapes, each made when it is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from growlm.checkpoint.artefact import WEIGHTS, check_shapes
from growlm.checkpoint.tensor_files import Entry, TensorFiles, TensorSource
from growlm.errors import UserError
from growlm.interop.architectures import Architecture
from growlm.interop.config_files import architecture_of, read_hf_config
from growlm.interop.forms import Part, Shape
from growlm.interop.rules import Link, Rule, links, their_name
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
PIECE = 2**22
"""Entries of a tensor that are looked at or converted at a time."""


@dataclass(frozen=True)
class Made:
    """A tensor that is made of others."""

    sources: tuple[str, ...]
    shape: Shape
    make: Callable[[Sequence[Part]], Tensor]


class MappedTensors:
    """A `TensorSource` over another one.

    Args:
        files: What there is.
        made: What is asked for, by name, in the order of writing.

    Raises:
        UserError: If the parts of one tensor are of different types.
    """

    def __init__(self, files: TensorSource, made: Mapping[str, Made]) -> None:
        self.files, self.folder, self.key = files, files.folder, files.key
        self._made = dict(made)
        self._entries = {
            name: Entry(name, self._dtype(name, each), each.shape)
            for name, each in self._made.items()
        }

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._made)

    def entry(self, name: str) -> Entry:
        """Type and shape of a tensor."""
        return self._entries[name]

    def read(self, name: str) -> Tensor:
        """A tensor: mapped from its file where it is there as it is, else made in memory."""
        made = self._made[name]
        return made.make([partial(self.files.read, source) for source in made.sources])

    def _dtype(self, name: str, made: Made) -> torch.dtype:
        types = {self.files.entry(source).dtype for source in made.sources}
        if len(types) > 1:
            words = ", ".join(sorted(map(str, types)))
            raise UserError(self.key, self.folder, f"the parts of {name} are of types {words}")
        return types.pop() if types else torch.float32


class Converted:
    """A `TensorSource` in another precision; no tensor is in memory in both.

    Args:
        files: What there is.
        dtype: Of everything.
    """

    def __init__(self, files: TensorSource, dtype: torch.dtype) -> None:
        self.files, self.folder, self.key = files, files.folder, files.key
        self.dtype = dtype

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return self.files.names

    def entry(self, name: str) -> Entry:
        """Type and shape of a tensor."""
        return Entry(name, self.dtype, self.files.entry(name).shape)

    def read(self, name: str) -> Tensor:
        """A tensor.

        Raises:
            UserError: If numbers of it are beyond the type.
        """
        before = self.files.entry(name)
        if before.dtype == self.dtype:
            return self.files.read(name)
        converted = torch.empty(before.shape, dtype=self.dtype)
        for start, stop in _few_rows(before.shape):
            rows = self.files.read(name)[start:stop]  # mapped for as long as this takes
            converted[start:stop] = rows
            if bool(converted[start:stop].isinf().any()) and not bool(rows.isinf().any()):
                allowed = f"{name} has numbers beyond {torch.finfo(self.dtype).max:g}"
                raise UserError("dtype", str(self.dtype).removeprefix("torch."), allowed)
        return converted


class HuggingFaceTensors(MappedTensors):
    """The tensors of a Hugging Face folder under our names and in our shapes, checked before the first is read.

    Args:
        folder: With `config.json` and `model.safetensors`, or shards and their index.
        key: What the user calls it, for messages.
        dtype: To convert to; None for that of the files.

    Raises:
        UserError: If the model cannot be ours, or its files do not hold what its config describes.
    """

    def __init__(self, folder: Path, key: str = "source", dtype: torch.dtype | None = None) -> None:
        config, _ = read_hf_config(folder, key)
        architecture = architecture_of(folder, key)
        files = open_safetensors(folder, key)
        if len(files.names) < config.n_layers:  # before building layers that are not there
            allowed = f"{len(files.names)} tensors are no {config.n_layers} layers"
            raise UserError(key, folder, f"{allowed}, as config.json says")
        shapes = our_shapes(config)
        rules, found = _layout(architecture, config, shapes, set(files.names))
        present = _Without(files, _negligible(files, architecture, rules, config, found))
        expected = {
            name: shape
            for link in found
            for name, shape in zip(link.theirs, link.their_shapes, strict=True)
        }
        check_shapes(present, expected, key)
        source = files if dtype is None else Converted(files, dtype)
        super().__init__(source, _made_of_theirs(found, config, shapes))
        self.config = config


def in_their_names(
    files: TensorSource,
    config: ModelConfig,
    architecture: Architecture,
    dtype: torch.dtype | None = None,
) -> MappedTensors:
    """The tensors of a checkpoint of ours as the architecture names and shapes them.

    Args:
        files: Of the checkpoint; they hold what the config describes.
        config: The model's.
        architecture: One that holds the config.
        dtype: To convert to; None for that of the files.

    Raises:
        UserError: If one that the architecture has no place for is not zero.
    """
    found = links(architecture.layouts[0], config, our_shapes(config))
    for link in found:
        if not link.theirs and files.read(link.ours[0]).any():
            allowed = (
                f"{link.ours[0]} is not zero, and {architecture.class_name} has no place for it; "
                "architecture=growlm exports it with a class of growlm's own"
            )
            raise UserError(files.key, files.folder, allowed)
    source = files if dtype is None else Converted(files, dtype)
    return MappedTensors(source, _made_of_ours(found, config))


def our_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of every parameter and buffer of a model; nothing is allocated."""
    with torch.device("meta"):
        model = TransformerLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def open_safetensors(folder: Path, key: str) -> TensorFiles:
    """The tensors of a Hugging Face folder, as they are.

    Raises:
        UserError: If there are none, or pickles only.
    """
    if not TensorFiles.exist(folder, WEIGHTS):
        pickles = sorted(path.name for each in PICKLES for path in folder.glob(each))
        if pickles:
            allowed = (
                f"has its weights only as {pickles[0]}, a pickle, which can run code when it is read: save the "
                "model as safetensors (save_pretrained does) where you trust the file"
            )
            raise UserError(key, folder, allowed)
    return TensorFiles(folder, WEIGHTS, key)


def _layout(
    architecture: Architecture,
    config: ModelConfig,
    shapes: Mapping[str, Shape],
    present: set[str],
) -> tuple[tuple[Rule, ...], tuple[Link, ...]]:
    """The layout that most names of the files are of."""
    layouts = [(rules, links(rules, config, shapes)) for rules in architecture.layouts]

    def num_known(layout: tuple[tuple[Rule, ...], tuple[Link, ...]]) -> int:
        return len(present.intersection(name for link in layout[1] for name in link.theirs))

    return max(layouts, key=num_known)


def _negligible(
    files: TensorFiles,
    architecture: Architecture,
    rules: tuple[Rule, ...],
    config: ModelConfig,
    found: Sequence[Link],
) -> set[str]:
    """Tensors that say nothing: stored tables, and a copy of the embedding beside it."""
    known = {name for link in found for name in link.theirs}
    patterns = [re.compile(pattern) for pattern in architecture.ignored]
    names = {name for name in files.names if any(p.fullmatch(name) for p in patterns)} - known
    head, embedding = (their_name(rules, f"{name}.weight") for name in ("head", "embedding"))
    if config.tie_embeddings and head in files.names and embedding in files.names:
        if not _equal(files, head, embedding):
            allowed = f"tie_word_embeddings is true, but {head} is not {embedding}"
            raise UserError(files.key, files.folder, allowed)
        names.add(head)
    return names


def _equal(files: TensorFiles, first: str, second: str) -> bool:
    """Whether two tensors are the same, a few rows at a time."""
    one, other = files.entry(first), files.entry(second)
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(
        torch.equal(files.read(first)[start:stop], files.read(second)[start:stop])
        for start, stop in _few_rows(one.shape)
    )


def _few_rows(shape: Shape) -> Iterator[tuple[int, int]]:
    """The first dimension in pieces, each of some megabytes."""
    step = max(1, PIECE // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


class _Without:
    """Some files less some names, for the check of shapes."""

    def __init__(self, files: TensorFiles, left_out: set[str]) -> None:
        self.folder, self.key, self.entry = files.folder, files.key, files.entry
        self.names = [name for name in files.names if name not in left_out]
        self.read = files.read


def _made_of_theirs(
    found: Sequence[Link], config: ModelConfig, shapes: Mapping[str, Shape]
) -> dict[str, Made]:
    made = {
        name: Made(link.theirs, shapes[name], partial(_to_ours, link, config, index))
        for link in found
        for index, name in enumerate(link.ours)
    }
    return {name: made[name] for name in shapes}


def _made_of_ours(found: Sequence[Link], config: ModelConfig) -> dict[str, Made]:
    return {
        name: Made(link.ours, shape, partial(_to_theirs, link, config, index))
        for link in found
        for index, (name, shape) in enumerate(zip(link.theirs, link.their_shapes, strict=True))
    }


def _to_ours(link: Link, config: ModelConfig, index: int, parts: Sequence[Part]) -> Tensor:
    return link.form.to_ours(config, parts, index)


def _to_theirs(link: Link, config: ModelConfig, index: int, parts: Sequence[Part]) -> Tensor:
    return link.form.to_theirs(config, parts, index)
