"""Compute phase cache keys: runs with equal keys have bit-identical states after a phase."""

from __future__ import annotations

import hashlib
import inspect
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import growlm
from growlm.config.flatten import flatten_config
from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import RunConfig
from growlm.growth.grow_model import Operator
from growlm.growth.operators.registry import operators_to_dicts
from growlm.optim import adamw_8bit
from growlm.optim.lr_schedule import compute_lr_factor
from growlm.runtime.hardware import Machine, fingerprint_processor
from growlm.training.resume.resume_from import is_source_path
from growlm.training.run_folder import RunFingerprint

SETTINGS_OUTSIDE_KEY = (
    "baseline.",  # already resolved into the phases
    "checkpoint.every_",
    "checkpoint.keep_final_state",
    "cluster.",  # only used for estimates
    "data.cache",
    "data.max_unknown_fraction",
    "data.path",  # the key contains the checksum of the tokens
    "growth.",  # already resolved into the phases
    "logger.",
    "model.",  # already resolved into the phases
    "name",
    "phases.",  # the key contains the resolved phases up to the state
    "resume",
    "reuse.",
    "run_dir",
    "tokenizer.path",  # the key contains checksums of the tokens and the tokenizer's files
    "schedule.",  # the key contains the learning rate factor of every step
    "trainer.accelerator",  # the key contains the resolved accelerator and precision
    "trainer.keep_freed_memory",
    "trainer.max_time",
    "trainer.memory_gb",
    "trainer.precision",
)
"""Prefixes of settings that do not enter a key directly."""
HASHED_LIBRARIES = ("torch", "lightning", "numpy")


def compute_phase_cache_keys(
    config: RunConfig,
    plan: Plan,
    machine: Machine,
    fingerprint: RunFingerprint,
    checkpoint_metadata: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return a cache key for the state after each phase but the last, in order.

    A key covers all phases up to its own (models, operators, lengths, the learning rate of every step), every
    setting that may affect the result, the tokens, the checkpoint metadata, growlm's code and that of other
    packages' operators, the libraries and the processor.

    Args:
        config: Config of the run.
        plan: Plan made from the config.
        machine: Machine that the run uses.
        fingerprint: Fingerprint of the run, with the checksum of the tokens.
        checkpoint_metadata: Other metadata of the checkpoints, with checksums of their files; JSON-serializable.
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
        "operator_code": _operator_code_digests(phase.operators),
        "steps": phase.num_steps,
        "rates": hashlib.sha256(_to_json_bytes(rates)).hexdigest(),
    }


def _operator_code_digests(operators: Sequence[Operator]) -> list[str]:
    """Return checksums of the modules that define operators of other packages, whose code is not growlm's."""
    digests = []
    for operator_class in map(type, operators):
        if not operator_class.__module__.startswith("growlm."):
            file = inspect.getsourcefile(operator_class)
            # Code that is in no file, such as a notebook's, cannot be compared: nothing is reused.
            code = secrets.token_bytes() if file is None else Path(file).read_bytes()
            digests.append(hashlib.sha256(code).hexdigest())
    return digests


def _code_digest() -> str:
    """Return a checksum of growlm's source code, without the HTML report, which only displays results."""
    package = Path(growlm.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith("reporting/html/"):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


CODE_DIGEST = _code_digest()
"""Checksum of growlm's source code when this process started."""


def _to_json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()
