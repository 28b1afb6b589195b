"""Validate the files of an optimizer state before any tensor is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from growlm.checkpoint.safetensors_io import TensorFiles, TensorInfo
from growlm.growth.eight_bit_moments import scale_key
from growlm.growth.optimizer_state import (
    FACTORED_ENTRIES,
    MOMENT_OF_SCALE_KEY,
    MOMENT_POWERS,
    expected_state_shapes,
)
from growlm.runtime.errors import UserError

OWN_TENSOR = "own:"
"""Prefix of an entry of a user's own optimizer that growlm does not know: a tensor of any shape."""
OWN_NUMBERS: dict[type, str] = {bool: "own-bool:", int: "own-int:", float: "own-float:"}
"""Prefixes of such entries that are plain numbers, written as tensors with a single entry."""

StateInfos = dict[str, dict[str, TensorInfo]]
"""Dtype and shape of every optimizer tensor, by parameter name and entry."""


def read_state_infos(
    files: TensorFiles, shapes: Mapping[str, tuple[int, ...]], allow_own: bool = True
) -> StateInfos:
    """Read the dtypes and shapes of the optimizer state, and check that they match the model.

    Args:
        files: Files of the optimizer state.
        shapes: Shapes of the model's parameters, by name.
        allow_own: Whether entries that only the user's own optimizer knows may be there.

    Raises:
        UserError: If a state matches no parameter, or is of a kind that growlm does not know.
    """
    states: StateInfos = defaultdict(dict)
    for full_name in files.names:
        name, _, entry = full_name.rpartition(".")
        states[name][entry] = files.info(full_name)
    for name, state in states.items():
        if not allow_own and (own := [entry for entry in state if is_own_entry(entry)]):
            reason = f"optimizer state {own[0]!r} of {name} is of the user's own optimizer: no rule to grow it by"
            raise UserError(files.key, files.folder, reason)
        if problem := _find_problem(name, state, shapes.get(name)):
            raise UserError(files.key, files.folder, problem)
    return dict(states)


def is_own_entry(entry: str) -> bool:
    """Return whether an entry is of a kind that only the user's own optimizer knows."""
    return entry.startswith((OWN_TENSOR, *OWN_NUMBERS.values()))


def _find_problem(
    name: str, state: dict[str, TensorInfo], shape: tuple[int, ...] | None
) -> str | None:
    if shape is None:
        return f"optimizer state of {name} matches no parameter of the model"
    state = {entry: found for entry, found in state.items() if not is_own_entry(entry)}
    known = {"step", *FACTORED_ENTRIES, *MOMENT_POWERS}
    known |= {scale for scale, entry in MOMENT_OF_SCALE_KEY.items() if entry in state}
    if unknown := state.keys() - known:
        return f"optimizer state {min(unknown)!r} of {name} is of an unknown kind"
    expected = expected_state_shapes(state, shape)
    for entry, found in state.items():
        if found.shape != expected.get(entry):
            mismatch = f"has shape {found.shape}; must be {expected.get(entry)}"
            return f"optimizer state {entry} of {name} {mismatch}"
        if (found.dtype == torch.uint8) != (scale_key(entry) in state):
            return f"optimizer state {entry} of {name} has unexpected dtype {found.dtype}"
    return None
