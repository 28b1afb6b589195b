"""A four-phase run of a second or two."""

import copy
import dataclasses
import json
from functools import lru_cache

from growlm.config import load_config
from growlm.training import run_plan

TINY_MODEL = ("model.d_model=16", "model.head_dim=4", "model.d_ff=32", "model.n_layers=2")
TINY_PLAN = (
    "sequence_length=32",
    "tokenizer=bytes",
    "data.documents=200",
    "growth.extra_layers=1",
    "verification.probe_length=32",
    "trainer.validation_sequences=4",
    "callbacks.sample_tokens=4",
    "callbacks.log_every=2",
    *(f"phases.{name}.steps=4" for name in ("dense", "moe", "wide", "deep")),
    *(f"phases.{name}.batch_size=4" for name in ("dense", "moe", "wide", "deep")),
)


TINY = TINY_MODEL + TINY_PLAN


def tiny_config(run_dir, *overrides):
    if any(
        override.startswith("resume") for override in overrides
    ):  # what it gives depends on files
        return load_config(
            *used(TINY, overrides), "logger=none", f"run_dir='{run_dir}'", *overrides
        )
    config = copy.deepcopy(compose_tiny_config(*map(str, overrides)))
    return dataclasses.replace(config, run_dir=str(run_dir))


@lru_cache(maxsize=64)
def compose_tiny_config(*overrides):
    """The config without its folder; Hydra takes a fifth of a second to compose it."""
    return load_config(*used(TINY, overrides), "logger=none", "run_dir=RUN_DIR", *overrides)


def used(settings, overrides):
    """The settings without those that nothing reads with these overrides, which would be refused."""
    unread = {"growth.extra_layers=1"} if "~phases.deep" in overrides else set()
    if any(str(override).startswith("data=") for override in overrides):
        unread.add("data.documents=200")
    if "sequence_length=16" in overrides:
        unread.add("verification.probe_length=32")
    return [setting for setting in settings if setting not in unread]


def config_from(folder, run_dir, *overrides):
    """The tiny plan on a trained model."""
    model = ("model=pretrained", f"model.path='{folder}'")
    plan = used(TINY_PLAN, overrides)
    return load_config(*plan, *model, "logger=none", f"run_dir='{run_dir}'", *overrides)


def tiny_run(run_dir, *overrides):
    return run_plan(tiny_config(run_dir, *overrides))


def rows(run_dir):
    lines = (run_dir / "checkpoints" / "training_history.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "event" not in row]


def events(run_dir, name):
    lines = (run_dir / "checkpoints" / "training_history.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row.get("event") == name]
