"""What the files of an optimizer's state hold, looked at before any of it is read."""

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

StateInfos = dict[str, dict[str, TensorInfo]]
"""Type and shape of every tensor, by parameter name and entry."""


def read_state_infos(files: TensorFiles, shapes: Mapping[str, tuple[int, ...]]) -> StateInfos:
    """What the files hold of each parameter's state.

    Args:
        files: Of the optimizer's state.
        shapes: Of the model's parameters, by name.

    Raises:
        UserError: If they hold a state that fits no parameter, or one that is not known how to grow.
    """
    states: StateInfos = defaultdict(dict)
    for full_name in files.names:
        name, _, entry = full_name.rpartition(".")
        states[name][entry] = files.info(full_name)
    for name, state in states.items():
        if wrong := _find_problem(name, state, shapes.get(name)):
            raise UserError(files.key, files.folder, wrong)
    return dict(states)


def _find_problem(
    name: str, state: dict[str, TensorInfo], shape: tuple[int, ...] | None
) -> str | None:
    if shape is None:
        return f"the optimizer's state of {name} belongs to no parameter"
    known = {"step", *FACTORED_ENTRIES, *MOMENT_POWERS}
    known |= {scale for scale, entry in MOMENT_OF_SCALE_KEY.items() if entry in state}
    if unknown := state.keys() - known:
        return f"no rule for the optimizer's state {min(unknown)!r} of {name}"
    expected = expected_state_shapes(state, shape)
    for entry, found in state.items():
        if found.shape != expected.get(entry):
            words = f"is {found.shape}, must be {expected.get(entry)}"
            return f"optimizer state {entry} of {name} {words}"
        if (found.dtype == torch.uint8) != (scale_key(entry) in state):
            return f"optimizer state {entry} of {name} is {found.dtype}"
    return None
