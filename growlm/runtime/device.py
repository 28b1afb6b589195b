"""Choose the accelerator (CPU or GPU) and detect native bf16 support."""

from __future__ import annotations

import torch

from growlm.runtime.errors import UserError


def resolve_accelerator(requested: str, key: str) -> str:
    """Return the accelerator to use: `cpu` or `gpu`.

    Args:
        requested: `cpu`, `gpu`, or `auto`, which takes a GPU if there is one.
        key: Name of the setting, for the error message.

    Raises:
        UserError: If a GPU is requested and there is none.
    """
    if requested == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if requested == "gpu" and not torch.cuda.is_available():
        raise UserError(key, "gpu", "this machine has no CUDA device; use cpu or auto")
    return requested


def has_native_bf16(accelerator: str) -> bool:
    """Return whether the processor has bf16 matrix instructions (AVX512-BF16, AMX, CUDA)."""
    if accelerator == "gpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))


def torch_device(accelerator: str) -> torch.device:
    """Return the current CUDA device for `gpu`, the CPU for `cpu`."""
    return torch.device("cuda" if accelerator == "gpu" else "cpu")
