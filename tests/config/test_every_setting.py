"""Nothing that a user wrote is ignored: every setting is read by what runs, or refused, or listed here."""

import copy
import dataclasses
import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import get_type_hints

import pytest
from omegaconf import OmegaConf

import growlm
from growlm.config import load_config, schema
from growlm.config.composing.config_layers import parse_overrides
from growlm.config.composing.inert_settings import find_inert_settings
from growlm.config.load import compose_run_config, to_valid_run_config
from growlm.config.schema import RunConfig
from growlm.model.config import ModelConfig
from growlm.planner.planned_devices import build_interconnect, resolve_calibration, resolve_machine
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from tests.training.tiny_run import TINY, used

PACKAGE = Path(growlm.__file__).parent
WALKERS = (
    "checkpoint/run_record.py",
    "config/load.py",
    "config/own_classes.py",
    "config/operator_schema.py",
    "config/validation.py",
    "config/starting_model.py",
    "runtime/field_limits.py",
    "training/resume/fingerprint.py",
    "training/resume/resume_from.py",
)
"""Modules that read settings only to check, compare or save them."""
WALKING_FUNCTIONS = (
    "__post_init__",
    "_check_layers",
    "_check_norms",
    "_complete_layers",
    "field_paths",
    "get_field",
    "validate",
)
"""Functions that do so in modules that also use them."""


def _prefixes():
    """The key of each dataclass of a run's config."""
    found = {
        ModelConfig: "model",
        schema.MixedSourceConfig: "data.sources.NAME",
        schema.PhaseConfig: "phases.NAME",
    }
    pending = [(RunConfig, "")]
    while pending:
        owner, prefix = pending.pop()
        found.setdefault(owner, prefix)
        for name, hint in get_type_hints(owner).items():
            if dataclasses.is_dataclass(hint):
                pending.append((hint, f"{prefix}.{name}" if prefix else name))
    return found


PREFIXES = _prefixes()
KEYS = sorted(
    {
        f"{prefix}.{field.name}" if prefix else field.name
        for owner, prefix in PREFIXES.items()
        for field in dataclasses.fields(owner)
        if not dataclasses.is_dataclass(get_type_hints(owner)[field.name])
    }
)


def _is_use(frame):
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(PACKAGE) or frame.f_code.co_name in WALKING_FUNCTIONS:
        return False  # dataclasses.asdict, ==
    return path.relative_to(PACKAGE).as_posix() not in WALKERS


@contextmanager
def recorded_reads():
    """The keys of all settings that are read meanwhile, by code that uses them."""
    read = set()
    with pytest.MonkeyPatch.context() as patch:
        for owner, prefix in PREFIXES.items():
            names = {field.name for field in dataclasses.fields(owner)}

            def get(self, name, _names=names, _prefix=prefix):
                if name in _names and _is_use(sys._getframe(1)):
                    read.add(f"{_prefix}.{name}" if _prefix else name)
                return object.__getattribute__(self, name)

            patch.setattr(owner, "__getattribute__", get)
        yield read


OWN_CLASS = "only a class of the user's own has it: tests/config/test_own_classes.py"
MIXTURE = "only data=mixture has sources: tests/training/test_real_data.py"
BY_PLANS = (
    "plans refer to it, and one that no phase refers to is refused: tests/config/test_own_plans.py"
)
EVALUATION = "only a text to evaluate on has them: tests/training/test_evaluation_sets.py"
NOT_READ_HERE = {
    **{
        f"{group}.{name}": OWN_CLASS
        for group in ("data", "tokenizer", "optimizer", "schedule", "logger")
        for name in ("_target_", "arguments")
    },
    **{key: MIXTURE for key in KEYS if key.startswith("data.sources.NAME.")},
    **{key: EVALUATION for key in KEYS if key.startswith("data.validation.")},
    **{key: BY_PLANS for key in KEYS if key.startswith("growth.")},
    "phases.NAME.grow": "validation makes operators of it, which are what is read",
    "phases.NAME.tokens": "in the place of steps; both at once are refused",
    "phases.NAME.flops": "in the place of steps; both at once are refused",
    "trainer.on_nonfinite": "read at a step that is not finite: tests/training/test_faults.py",
    "trust": "read where a file names classes: tests/training/test_resume_with_own_classes.py",
}
"""Settings that a run of the tiny plan does not read, and is not refused for, with the reason."""


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    """The settings that the tiny plan reads, and an estimate of it for other devices."""
    folder = tmp_path_factory.mktemp("reads")
    short = [setting.replace("steps=4", "steps=1") for setting in TINY]
    with recorded_reads() as read:
        config = load_config(*short, "logger=none", f"run_dir='{folder}/run'")
        run_plan(config)
        cluster = schema.ClusterConfig("gpu", 8, 80.0, 900.0, 0.4, 3000.0)
        config = dataclasses.replace(config, cluster=cluster)
        resolve_calibration(config, resolve_machine(config), lambda: None)
        build_interconnect(config.cluster, "gpu")
    return read


@pytest.fixture(scope="module")
def composed():
    return compose_run_config([*TINY, "logger=none"])


WRONG_TOGETHER = {
    "optimizer.momentum": 0.5,
    "optimizer.beta2_decay": -0.5,
    "data.sources": {"a": {"weight": 2}},
    "data.truncate": True,
    "tokenizer.eos_token": "x",
    "tokenizer.path": "x",
}
"""Settings that `find_inert_settings` leaves to validation, with a value that is right elsewhere."""


def is_refused(composed, key):
    """Whether a value for a setting is refused, since nothing would read it."""
    if key not in WRONG_TOGETHER:
        return bool(find_inert_settings(composed, parse_overrides([f"{key}=1"])))
    changed = copy.deepcopy(composed)
    OmegaConf.update(changed, key, WRONG_TOGETHER[key])
    with pytest.raises(UserError) as refused:
        to_valid_run_config(changed)
    return refused.value.key == key


def list_ignored(keys, reads, composed):
    return [
        key
        for key in keys
        if key not in reads and key not in NOT_READ_HERE and not is_refused(composed, key)
    ]


def test_no_setting_is_ignored(reads, composed):
    assert list_ignored(KEYS, reads, composed) == []
    unread = reads - {"trainer.max_time"}
    assert list_ignored(KEYS, unread, composed) == ["trainer.max_time"]


def test_what_is_said_to_be_unread_is(reads):
    assert sorted(reads & {*NOT_READ_HERE}) == []
    assert sorted({*NOT_READ_HERE} - {*KEYS}) == []


OTHER_VALUES = {
    "name": "other",
    "run_dir": "SELF",
    "resume": "auto",
    "sequence_length": 34,
    "callbacks.extra": "{t: {_target_: lightning.pytorch.callbacks.Timer}}",
    "callbacks.log_every": 3,
    "checkpoint.every_minutes": 0,
    "cluster.accelerator": "gpu",
    "data.path": "x.txt",
    "data.sources": "{a: {weight: 2}}",
    "data.cache": "SELF",
    "data.cache_gb": 1,
    "data.shuffle_window": 10,
    "growth.extra_layers": 2,
    "growth.noise_std": 1e-3,
    "growth.scale_factor": 2,
    "logger.extra": "{c: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: SELF}}",
    "logger.tags": "[a]",
    "model.attention.bias": "qkv",
    "model.attention.scale": 0.25,
    "model.attention.window": 8,
    "model.d_ff": 48,
    "model.d_model": 32,
    "model.expert_d_ff": 16,
    "model.layers.attention": "[window, full]",
    "model.layers.mixture": "[true, false]",
    "model.layers.rotary": "[true, false]",
    "model.n_heads": 8,
    "model.n_kv_heads": 2,
    "model.head_dim": 8,
    "model.norm.gain_offset": 1,
    "model.norm.kind": "rmsnorm",
    "model.num_experts": 4,
    "model.path": "nowhere",
    "model.rope.fraction": 0.5,
    "model.rope.scaling.long_factors": "[1, 2]",
    "model.rope.scaling.short_factors": "[1, 2]",
    "model.routing.balance_weight": 0.5,
    "model.vocab_size": 300,
    "optimizer.beta2_decay": -0.5,
    "optimizer.name": "sgd",
    "phases.NAME.batch_size": 2,
    "phases.NAME.flops": 2e6,
    "phases.NAME.grow": "[{upcycle: {num_experts: 4}}]",
    "phases.NAME.steps": 4,
    "phases.NAME.tokens": 100,
    "phases.NAME.warmup_steps": 3,
    "reuse.folder": "SELF",
    "schedule.name": "constant",
    "tokenizer.name": "embedded",
    "trainer.devices": 1,
    "trainer.extra": "{profiler: simple}",
    "trainer.max_time": "00:01:00:00",
    "trainer.memory_gb": 4,
    "trainer.precision": "32-true",
    "trainer.strategy": "fsdp",
    "trainer.validate_every": 1,
    "trainer.accelerator": "gpu",
    "verification.probe_length": 16,
    "trust": "[my_package]",
}
"""Values that are not simply the next number, the next choice or some text; `SELF` is a folder of the test."""
RUN_ELSEWHERE = (
    "data.sources.NAME.",  # MIXTURE
    "trainer.compile",  # torch's compiler warns, and warnings are errors here
)
SAME_RESULT = {
    "callbacks.extra": "this one only looks at the clock",
    "checkpoint.every_minutes": "too short a run for a state by time",
    "cluster.": "read by growlm.plan: tests/planner/test_planned_devices.py",
    "data.max_unknown_fraction": "bytes can encode every text",
    "data.streaming": "the samples are the same: tests/training/test_real_data.py",
    "data.cache": "where tokens are, not which",
    "logger.extra": "another logger writes its own files",
    "logger.name": "another logger writes its own files",
    "name": "the name of the plan",
    "model.max_seq_len": "a length that no sequence has",
    "optimizer.gradient_clip": "no gradient is that large",
    "reuse.": "no phase is in the cache",
    "resume": "there is no run to resume",
    "run_dir": "the folder itself",
    "trainer.activation_checkpointing": "the same numbers with less memory",
    "trainer.devices": "one device is one either way",
    "trainer.extra": "a profiler only looks",
    "trainer.keep_freed_memory": "the same numbers in less time",
    "trainer.max_time": "the run ends before",
    "trainer.memory_gb": "a limit that the plan keeps",
    "trainer.on_nonfinite": "every step is finite",
    "trainer.strategy": "one device has nothing to share",
    "trainer.timeout_minutes": "one process waits for no other",
    "trust": "no file names a class",
    "verification.require_symmetry_breaking": "copies part by themselves here",
    "verification.tolerance": "the checks are met under both",
}
"""Settings that are read in a run of the tiny plan and change none of its results, with the reason."""


def other_value(key):
    """A value that is not the tiny plan's."""
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    owner = next(o for o, prefix in PREFIXES.items() if prefix == key.rpartition(".")[0])
    field = owner.__dataclass_fields__[key.rpartition(".")[2]]
    default, hint = field.default, str(get_type_hints(owner)[field.name])
    if choices := field.metadata.get("limits", (None,))[-1]:
        return next(choice for choice in choices if choice != default)
    if "bool" in hint:
        return str(not default).lower()
    if "float" in hint:
        return 0.5 if default != 0.5 else 0.25
    if "int" in hint:
        return (0 if default is dataclasses.MISSING else default or 0) + 1
    return "other"


def results(run_dir):
    """What a run of the tiny plan has come to, without times and amounts of memory."""

    def without_times(value):
        if isinstance(value, dict):
            return {
                k: without_times(v)
                for k, v in value.items()
                if not re.search(r"second|time|memory|tokens_per|perf/|_s$|mfu|eta|created", k)
            }
        return [without_times(each) for each in value] if isinstance(value, list) else value

    texts = [
        (run_dir / name).read_text() for name in ("plan.json", "summary.json", "boundaries.json")
    ]
    history = (run_dir / "checkpoints" / "training_history.jsonl").read_text().splitlines()
    names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("checkpoints/*/*")}
    return [*map(without_times, map(json.loads, [*texts, *history])), names]


def run_with(folder, override=""):
    """Two phases of three steps each, with an override."""
    two_phases = ("~phases.wide", "~phases.deep")
    replaced = ("phases.dense.steps=",) * override.startswith(
        ("phases.dense.tokens", "phases.dense.flops")
    )
    short = [
        setting.replace("steps=4", "steps=3")
        for setting in used(TINY, two_phases)
        if not setting.startswith(("phases.wide", "phases.deep", *replaced))
    ]
    more = (
        "logger=none",
        "callbacks.log_every=1",
        f"data.cache='{folder.parent}/tokens'",
        f"run_dir='{folder}'",
    )
    config = load_config(*short, *two_phases, *more, *([override] if override else ()))
    return results(run_plan(config).run_dir)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return run_with(tmp_path_factory.mktemp("usual") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in KEYS if not key.startswith(RUN_ELSEWHERE)])
def test_each_setting_alone(key, usual, tmp_path):
    phase = "moe" if key.endswith(("grow", "optimizer_state")) else "dense"
    value = str(other_value(key)).replace("SELF", str(tmp_path / "self"))
    override = f"{key.replace('NAME', phase)}={value}"
    try:
        found = run_with(tmp_path / "run", override)
    except UserError as error:
        said = str(error)
        assert key.rpartition(".")[2] in said or key.rpartition(".")[0] in said
        return
    assert found != usual or key.startswith(tuple(SAME_RESULT)), f"{override} changes nothing"
