"""AdamW with 8-bit moments: torchao's for large tensors and torch's for small ones, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growlm.growth.eight_bit_moments import (
    count_scales,
    create_dynamic_map,
    is_quantizable,
    scale_key,
)
from growlm.growth.optimizer_state import ParameterState, convert_moments
from growlm.runtime.optional_packages import explain_missing_compiler
from growlm.runtime.torchao_notices import suppress_torchao_notices

OPTIMIZER_NAME = "adamw_8bit"
TORCHAO_VERSION_PREFIX = "0.18."
"""The supported torchao release: its tensor subclass is built here, and its messages are filtered by their
text."""
MOMENT_IS_SIGNED = {"exp_avg": True, "exp_avg_sq": False}
"""Whether each moment can have negative entries."""
CPU_PART_SIZES = (262_144, 16_384, 4096)
"""Numbers of entries that are stepped at once on a CPU, largest first."""


def get_unavailable_reason(accelerator: str) -> str | None:
    """Return why this optimizer cannot run here, or None if it can; imports nothing large."""
    try:
        installed = version("torchao")
    except PackageNotFoundError:
        return "needs torchao, which is not installed: pip install 'growlm[torchao]'"
    if not installed.startswith(TORCHAO_VERSION_PREFIX):
        return (
            f"needs torchao {TORCHAO_VERSION_PREFIX}*, but {installed} is installed: "
            "pip install 'growlm[torchao]'"
        )
    return explain_missing_compiler(accelerator)


class AdamW8bit(Optimizer):
    """An optimizer that runs torchao's AdamW8bit and torch's AdamW behind one list of parameter groups.

    Its state consists of plain tensors: codes of the parameter's shape, scales, and a step count
    (`growlm/growth/eight_bit_moments.py`). torchao compiles its step for every new shape, which takes some
    ten seconds each on a CPU. There, large tensors are passed in flat parts of three sizes, so that the same
    few kernels step every model and intermediate results stay in the cache. The quantization blocks are the
    same, and so is the result.

    Args:
        groups: Parameter groups, each with `params` and `weight_decay`.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Number added to the root of the second moment.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(list(groups), {"lr": lr, "weight_decay": 0.0})
        with suppress_torchao_notices():
            from torchao.optim import AdamW8bit as TorchaoAdamW8bit
            from torchao.optim.subclass_8bit import OptimState8bit
        self._make_quantized_state: Callable[..., Tensor] = OptimState8bit
        self._large: list[tuple[dict[str, Any], list[nn.Parameter], Optimizer]] = []
        self._small: list[tuple[dict[str, Any], Optimizer]] = []
        settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        self._settings = settings
        for group in self.param_groups:
            large = [p for p in group["params"] if is_quantizable(p.shape)]
            small = [p for p in group["params"] if not is_quantizable(p.shape)]
            if large:
                views = [nn.Parameter(p.data.view(-1)[part]) for p in large for part in _parts(p)]
                # A tensor, as torchao's learning rate is: kernels would be compiled for every value of a number.
                decay = torch.tensor(group["weight_decay"])
                inner = [{"params": views, "weight_decay": decay}]
                self._large.append((group, large, TorchaoAdamW8bit(inner, **settings)))
            if small:
                self._small.append((group, torch.optim.AdamW(small, **settings, fused=True)))
        for _, adamw in self._small:
            adamw.state = self.state

    def with_groups(self, groups: Iterable[dict[str, Any]]) -> AdamW8bit:
        """Return an optimizer with the same settings and other groups, and no state."""
        return AdamW8bit(groups, **self._settings)

    def convert_state(self, state: ParameterState) -> ParameterState:
        """Return a parameter's state with its moments in 8 bits where this class has them so."""
        return convert_moments(state, use_8bit=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters, large and small."""
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
            self._attach_gradients_and_state(parameters, torchao)
            with suppress_torchao_notices():
                torchao.step()
            torchao.zero_grad()
            torchao.state.clear()
        return loss

    def _attach_gradients_and_state(
        self, parameters: list[nn.Parameter], torchao: Optimizer
    ) -> None:
        """Point torchao's views at the parameters' gradients and state; only the step count is copied."""
        views = iter(torchao.param_groups[0]["params"])
        for parameter in parameters:
            parts = [(part, next(views)) for part in _parts(parameter)]
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state |= _zero_state(parameter)
            gradient = parameter.grad.reshape(-1)
            for part, view in parts:
                view.grad = gradient[part]
                torchao.state[view] = {"step": state["step"].clone()} | {
                    entry: self._state_part(state, entry, part) for entry in MOMENT_IS_SIGNED
                }
            state["step"] += 1

    def _state_part(self, state: dict[str, Tensor], entry: str, part: slice) -> Tensor:
        codes, scale, signed = state[entry], state[scale_key(entry)], MOMENT_IS_SIGNED[entry]
        block = codes.numel() // scale.numel()
        blocks = slice(part.start // block, part.stop // block)
        values = create_dynamic_map(signed, codes.device)
        return self._make_quantized_state(
            codes.view(-1)[part], scale[blocks], values, signed, dtype=torch.float32
        )


def _zero_state(parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of a parameter that has not been stepped, as torchao initializes it."""
    state = {"step": torch.tensor(0.0)}
    for entry in MOMENT_IS_SIGNED:
        state[entry] = torch.zeros_like(parameter, dtype=torch.uint8)
        state[scale_key(entry)] = torch.zeros(
            count_scales(parameter.shape), device=parameter.device
        )
    return state


def _parts(parameter: Tensor) -> Iterator[slice]:
    """Yield slices of the flattened parameter, in whole blocks; the last slice includes a small remainder."""
    start, end = 0, parameter.numel()
    # On a GPU, launching kernels for many parts costs more than compiling one for each shape.
    sizes = (end,) if parameter.is_cuda else CPU_PART_SIZES
    for size in sizes:
        while end - start >= size:
            left = end - start - size
            stop = start + size if left >= CPU_PART_SIZES[-1] else end
            yield slice(start, stop)
            start = stop
