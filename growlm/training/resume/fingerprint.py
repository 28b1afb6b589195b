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
from growlm.config.flatten import flat
from growlm.config.phase_plan import Plan, PlannedPhase
from growlm.config.schema import RunConfig
from growlm.growth.operators.registry import operators_as_data
from growlm.optim import adamw_8bit
from growlm.optim.lr_schedule import schedule_factor
from growlm.runtime.hardware import Machine, processor
from growlm.training.resume.resume_from import is_path
from growlm.training.run_folder import Circumstances

WITHOUT_INFLUENCE = (
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
LIBRARIES = ("torch", "lightning", "numpy")


def phase_keys(
    config: RunConfig,
    plan: Plan,
    machine: Machine,
    circumstances: Circumstances,
    carried: Mapping[str, Any] | None = None,
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
        for key, value in flat(asdict(config))
        if not key.startswith(WITHOUT_INFLUENCE) and not is_path(key)
    }
    more = ("torchao",) if config.optimizer.name == adamw_8bit.NAME else ()
    digest = hashlib.sha256()
    start = {
        "code": CODE,
        "libraries": [version(name) for name in LIBRARIES + more],
        "processor": processor(machine),
        "circumstances": asdict(circumstances),
        "carried": carried,
        "settings": settings,
    }
    digest.update(_text(start))
    keys = []
    for phase in plan.phases[:-1]:
        digest.update(_text(_phase(config, plan, phase)))
        keys.append(digest.hexdigest()[:32])
    return keys


def _phase(config: RunConfig, plan: Plan, phase: PlannedPhase) -> dict[str, Any]:
    rates = [schedule_factor(config.schedule, plan, phase, step) for step in range(phase.steps)]
    return {
        "name": phase.name,
        "settings": asdict(phase.settings),
        "model": asdict(phase.model),
        "operators": operators_as_data(phase.operators),
        "steps": phase.steps,
        "rates": hashlib.sha256(_text(rates)).hexdigest(),
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


CODE = _code_digest()
"""As it was when this process began."""


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()
