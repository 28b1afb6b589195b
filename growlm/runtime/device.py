"""Which processor computes, and whether it multiplies bf16."""

from __future__ import annotations

import torch

from growlm.runtime.errors import UserError


def resolve_accelerator(requested: str, key: str) -> str:
    """`cpu` or `gpu`.

    Args:
        wanted: `auto`, which takes a GPU where there is one, `cpu` or `gpu`.
        key: What the user calls it, for the message.

    Raises:
        UserError: If a GPU is asked for and there is none.
    """
    if requested == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if requested == "gpu" and not torch.cuda.is_available():
        raise UserError(key, "gpu", "this machine has no CUDA device; use cpu or auto")
    return requested


def has_native_bf16(accelerator: str) -> bool:
    """Whether the processor has instructions for products of bf16 (AVX512-BF16, AMX, CUDA)."""
    if accelerator == "gpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))


def torch_device(accelerator: str) -> torch.device:
    """The first device of its kind."""
    return torch.device("cuda" if accelerator == "gpu" else "cpu")
