"""Read the torch switches and environment variables that change the last bits of results."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

NUMERIC_VARIABLE_PREFIXES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS",
    "CUDNN_",
    "CXX",
    "DISABLE_ADDMM_CUDA_LT",
    "DNNL_",
    "KMP_",
    "MKL_",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_",
    "ONEDNN_",
    "TORCHINDUCTOR_",
    "TORCH_ALLOW_TF32",
    "TORCH_BLAS_",
    "TORCH_CUDNN_",
    "TORCH_LINEAR_",
    "VECLIB_",
)
"""Prefixes of environment variables that choose kernels, their precision, or how sums are split. Some matching
variables have no such effect. A needless fingerprint change only costs time; a missed one gives wrong bits."""
IGNORED_VARIABLE_SUFFIXES = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "VERBOSE", "CACHE_DIR")
"""Suffixes of variables to ignore. `torch.get_num_threads()` already reflects the first two."""
TORCH_SWITCHES: dict[str, Callable[[], Any]] = {
    "default dtype": torch.get_default_dtype,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "float32 matmul precision": torch.get_float32_matmul_precision,
    "denormal numbers are zero": lambda: bool(torch.tensor(1e-40) * 1 == 0),
    "cuda sdp": lambda: [
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
    ],
    "cuda blas": torch.backends.cuda.preferred_blas_library,
}
BACKEND_ATTRIBUTES = {
    "backends": ("fp32_precision",),
    "backends.cuda.matmul": (
        "allow_tf32",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
        "allow_fp16_reduced_precision_reduction",
        "fp32_precision",
    ),
    "backends.cudnn": ("enabled", "allow_tf32", "benchmark", "deterministic"),
    "backends.mkldnn": ("enabled", "allow_tf32", "deterministic", "fp32_precision"),
    "backends.mkldnn.matmul": ("fp32_precision",),
    "backends.nnpack": ("enabled",),
    "backends.opt_einsum": ("enabled", "strategy"),
}
"""Attributes below `torch` to record; one that this torch version lacks is recorded as None."""


def read_numeric_settings() -> dict[str, str]:
    """Return every switch and library version that changes results, by name; equal texts mean equal bits.

    torch's build description includes the versions of oneDNN and MKL.
    """
    found = {"torch": torch.__config__.show(), "libc": " ".join(platform.libc_ver())}
    found |= {name: _read_as_text(switch) for name, switch in TORCH_SWITCHES.items()}
    for place, names in BACKEND_ATTRIBUTES.items():
        found |= {
            f"{place}.{name}": _read_as_text(partial(_get_torch_attribute, place, name))
            for name in names
        }
    return found | read_numeric_environment()


def read_numeric_environment() -> dict[str, str]:
    """Return the environment variables that are set and change the last bits of results."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(NUMERIC_VARIABLE_PREFIXES)
        and not name.endswith(IGNORED_VARIABLE_SUFFIXES)
    }


def _read_as_text(switch: Callable[[], Any]) -> str:
    try:
        return str(switch())
    except RuntimeError as error:  # torch raises if both its old and new switches are set
        return str(error)


def _get_torch_attribute(place: str, name: str) -> Any:
    found: Any = torch
    for part in (*place.split("."), name):
        found = getattr(found, part, None)
    # Both mean exact products; "none" becomes "ieee" after a switch was set and reset.
    return "ieee" if (name, found) == ("fp32_precision", "none") else found
