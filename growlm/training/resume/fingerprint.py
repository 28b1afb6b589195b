"""What a run's state after a phase depends on, as one key: equal keys, equal states to the bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import growlm
from growlm.config.flatten import flatten_config
from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import RunConfig
from growlm.growth.operators.registry import operators_to_dicts
from growlm.optim import adamw_8bit
from growlm.optim.lr_schedule import compute_lr_factor
from growlm.runtime.hardware import Machine, fingerprint_processor
from growlm.training.resume.resume_from import is_source_path
from growlm.training.run_folder import RunFingerprint

SETTINGS_OUTSIDE_KEY = (
    "baseline.",  # has made the phases
    "checkpoint.every_",
    "cluster.",  # what is reckoned with
    "data.cache",
    "data.path",  # the tokens themselves are in the key
    "growth.",  # has gone into the phases
    "logger.",
    "model.",  # likewise
    "name",
    "phases.",  # those up to the state are in the key, resolved
    "resume",
    "reuse.",
    "run_dir",
    "tokenizer.path",  # the tokens and the tokenizer's files are in the key
    "schedule.",  # the rates themselves are in the key
    "trainer.accelerator",  # which there is, and which precision, is in the key
    "trainer.keep_freed_memory",
    "trainer.max_time",
    "trainer.memory_gb",
    "trainer.precision",
)
"""How settings begin that are not in a key as they stand."""
HASHED_LIBRARIES = ("torch", "lightning", "numpy")


def compute_phase_cache_keys(
    config: RunConfig,
    plan: Plan,
    machine: Machine,
    fingerprint: RunFingerprint,
    checkpoint_metadata: Mapping[str, Any] | None = None,
) -> list[str]:
    """A key for the state after each phase but the last, in order.

    A key covers all phases up to its own (models, operators, lengths, the rate of every step), every setting that
    is not known to be without influence, the tokens, what artefacts carry, this code, the libraries and the
    processor.

    Args:
        config: The run.
        plan: Made from it.
        machine: Where it runs.
        circumstances: The tokens' checksum.
        carried: What else artefacts say and carry, with the files' checksums; plain JSON values.
    """
    settings = {
        key: value
        for key, value in flatten_config(asdict(config))
        if not key.startswith(SETTINGS_OUTSIDE_KEY) and not is_source_path(key)
    }
    more = ("torchao",) if config.optimizer.name == adamw_8bit.OPTIMIZER_NAME else ()
    digest = hashlib.sha256()
    start = {
        "code": CODE_DIGEST,
        "libraries": [version(name) for name in HASHED_LIBRARIES + more],
        "processor": fingerprint_processor(machine),
        "circumstances": asdict(fingerprint),
        "carried": checkpoint_metadata,
        "settings": settings,
    }
    digest.update(_to_json_bytes(start))
    keys = []
    for phase in plan.phases[:-1]:
        digest.update(_to_json_bytes(_phase_record(config, plan, phase)))
        keys.append(digest.hexdigest()[:32])
    return keys


def _phase_record(config: RunConfig, plan: Plan, phase: PlannedPhase) -> dict[str, Any]:
    rates = [
        compute_lr_factor(config.schedule, plan, phase, step) for step in range(phase.num_steps)
    ]
    return {
        "name": phase.name,
        "settings": asdict(phase.settings),
        "model": asdict(phase.model_config),
        "operators": operators_to_dicts(phase.operators),
        "steps": phase.num_steps,
        "rates": hashlib.sha256(_to_json_bytes(rates)).hexdigest(),
    }


def _code_digest() -> str:
    """Of this package's source, but for the page that only shows."""
    package = Path(growlm.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith("reporting/html/"):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


CODE_DIGEST = _code_digest()
"""As it was when this process began."""


def _to_json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()
