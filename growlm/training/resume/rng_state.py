"""Save and restore the RNG states of Python, NumPy and torch.

Callbacks may use them; growlm's own random numbers depend on no global state.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def capture_rng_states() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the RNG states: those of Python and NumPy as a JSON record, those of torch as tensors."""
    state: Any = np.random.get_state(legacy=False)
    key = [int(word) for word in state["state"]["key"]]
    record = {
        "python": random.getstate(),
        "numpy": {**state, "state": {**state["state"], "key": key}},
    }
    tensors = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return record, tensors


def restore_rng_states(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Restore RNG states that `capture_rng_states` returned."""
    version, words, gauss = record["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = record["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"random.cuda.{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"random.cuda.{index}"], index)
