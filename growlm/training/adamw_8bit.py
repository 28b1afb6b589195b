"""AdamW whose moments take 8 bits: torchao's for large tensors, torch's for the others, as one optimizer."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growlm.errors import UserError
from growlm.growth.eight_bit import dynamic_map, fits_eight_bits, scale_of, scales_in

NAME = "adamw_8bit"
VERSION = "0.18."
"""Of torchao, whose tensors are built here and whose messages are known here."""
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Whether each has negative entries."""
PARTS = (262_144, 16_384, 4096)
"""Entries that are stepped at once on a CPU."""


def why_unavailable(accelerator: str) -> str | None:
    """Why this optimizer cannot run here, in words; None if it can. Imports nothing large."""
    try:
        found = version("torchao")
    except PackageNotFoundError:
        return "needs torchao, which is not installed: pip install 'growlm[torchao]'"
    if not found.startswith(VERSION):
        return f"needs torchao {VERSION}*, installed is {found}: pip install 'growlm[torchao]'"
    if accelerator == "gpu":
        return None if find_spec("triton") else "needs triton, which is not installed, on a GPU"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"needs a C++ compiler on a CPU, and there is no {compiler} (CXX names another)"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return f"needs Python's headers on a CPU, and there is no Python.h in {headers}"
    return None


def check_available(optimizer: str, accelerator: str) -> None:
    """Refuse what cannot run here.

    Args:
        optimizer: Its name; only this module's own can be unavailable.
        accelerator: `cpu` or `gpu`.

    Raises:
        UserError: If it cannot.
    """
    reason = why_unavailable(accelerator) if optimizer == NAME else None
    if reason is not None:
        raise UserError("optimizer.name", optimizer, reason)


class AdamW8bit(Optimizer):
    """torchao's AdamW8bit and torch's AdamW behind one list of groups.

    State is in plain tensors: codes of the parameter's shape, scales, and a step (`growlm/growth/eight_bit.py`).
    torchao compiles its step for every shape that it meets, some ten seconds each on a CPU. There it is handed
    large tensors in flat parts of three sizes, so that the same few kernels step every model, and what they need
    on the way stays in the cache; blocks are the same, and so is the result.

    Args:
        groups: Each with `params` and `weight_decay`.
        lr: Learning rate.
        betas: Decays of the moments.
        eps: Added to the root of the second.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(list(groups), {"lr": lr, "weight_decay": 0.0})
        with _quiet():
            from torchao.optim import AdamW8bit as TorchaoAdamW8bit
            from torchao.optim.subclass_8bit import OptimState8bit
        self._held: Callable[..., Tensor] = OptimState8bit
        self._large: list[tuple[dict[str, Any], list[nn.Parameter], Optimizer]] = []
        self._small: list[tuple[dict[str, Any], Optimizer]] = []
        settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        for group in self.param_groups:
            large = [p for p in group["params"] if fits_eight_bits(p.shape)]
            small = [p for p in group["params"] if not fits_eight_bits(p.shape)]
            if large:
                views = [nn.Parameter(p.data.view(-1)[part]) for p in large for part in _parts(p)]
                # A tensor, like torchao's rate: a number would be compiled in, and kernels made for every value.
                decay = torch.tensor(group["weight_decay"])
                inner = [{"params": views, "weight_decay": decay}]
                self._large.append((group, large, TorchaoAdamW8bit(inner, **settings)))
            if small:
                self._small.append((group, torch.optim.AdamW(small, **settings, fused=True)))
        for _, adamw in self._small:
            adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, adamw in self._small:
            for key in ("lr", "weight_decay"):
                adamw.param_groups[0][key] = group[key]
            adamw.step()
        for group, parameters, torchao in self._large:
            for key in ("lr", "weight_decay"):
                torchao.param_groups[0][key].fill_(group[key])
            self._lend(parameters, torchao)
            with _quiet():
                torchao.step()
            torchao.zero_grad()
            torchao.state.clear()
        return loss

    def _lend(self, parameters: list[nn.Parameter], torchao: Optimizer) -> None:
        """Gradients and state to the parts of the parameters: nothing is copied but the step."""
        views = iter(torchao.param_groups[0]["params"])
        for parameter in parameters:
            parts = [(part, next(views)) for part in _parts(parameter)]
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state |= _zeros(parameter)
            gradient = parameter.grad.reshape(-1)
            for part, view in parts:
                view.grad = gradient[part]
                torchao.state[view] = {"step": state["step"].clone()} | {
                    entry: self._part(state, entry, part) for entry in MOMENTS
                }
            state["step"] += 1

    def _part(self, state: dict[str, Tensor], entry: str, part: slice) -> Tensor:
        codes, scale, signed = state[entry], state[scale_of(entry)], MOMENTS[entry]
        block = codes.numel() // scale.numel()
        blocks = slice(part.start // block, part.stop // block)
        values = dynamic_map(signed, codes.device)
        return self._held(codes.view(-1)[part], scale[blocks], values, signed, dtype=torch.float32)


def _zeros(parameter: Tensor) -> dict[str, Tensor]:
    """Of a parameter that has not been stepped, as torchao begins."""
    state = {"step": torch.tensor(0.0)}
    for entry in MOMENTS:
        state[entry] = torch.zeros_like(parameter, dtype=torch.uint8)
        state[scale_of(entry)] = torch.zeros(scales_in(parameter.shape), device=parameter.device)
    return state


def _parts(parameter: Tensor) -> Iterator[slice]:
    """Of the flattened parameter, each of whole blocks; the last takes what is too little for one of its own."""
    start, end = 0, parameter.numel()
    sizes = (end,) if parameter.is_cuda else PARTS  # there, a launch costs more than a compilation
    for size in sizes:
        while end - start >= size:
            left = end - start - size
            stop = start + size if left >= PARTS[-1] else end
            yield slice(start, stop)
            start = stop


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchao and the compiler say of themselves when they are loaded and first used."""

    def is_worth_saying(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        kernels_for_gpus = said.startswith("Failed to load ") and "/torchao/" in said
        return not (kernels_for_gpus or "Calling register_constant() on Enum subclasses" in said)

    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    for logger in loggers:
        logger.addFilter(is_worth_saying)
    try:
        with warnings.catch_warnings():
            for hint in (
                r"`torch\.jit\.script_method` is deprecated",
                "OptimState8bit does not implement _stable_hash_for_caching",
            ):
                warnings.filterwarnings("ignore", hint)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_worth_saying)
