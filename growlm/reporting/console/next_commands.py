"""List the commands that may follow a run, ready for a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from growlm.config.composing.phase_overrides import LENGTH_KEYS
from growlm.config.literal import quote_for_hydra
from growlm.config.own_classes import find_targets
from growlm.config.schema import OWN, DataConfig, MixedSourceConfig, RunConfig
from growlm.config.trusted_targets import list_packages_to_trust
from growlm.reporting.console.console_layout import print_heading
from growlm.reporting.html.shell_commands import format_reproduce_command
from growlm.reporting.reading.failed_growth import find_failed_growth
from growlm.reporting.reading.run_files import read_run
from growlm.runtime.errors import UserError
from growlm.storage.unique_path import iter_unique_paths

NOT_SELECTING = (
    *("data.source", "data.sources", "data.evaluation_sets", "data.shuffle_window"),
    *("data.cache", "data.cache_gb", "data._target_", "data.arguments"),
)
"""Settings that do not say which documents `growlm.evaluate` reads, or are given in another way."""
SHIPPED_SOURCES = {"stories": "embedded", "mine": "text"}
"""Sources that `data=mixture` has of itself, and their kinds."""
_DICT_KEY = re.compile(r"[A-Za-z_][\w.-]*")
"""Keys that need no quotes, which Hydra's grammar does not have for keys."""


def print_next_commands(console: Console, run_dir: Path, config: RunConfig) -> None:
    """Print what may be done with a finished run.

    Args:
        console: Console to print to.
        run_dir: Folder of the run.
        config: Config of the run.
    """
    commands = list_next_commands(run_dir, config)
    if not commands:
        return
    console.print()
    print_heading(console, "Next")
    width = max(map(len, commands))
    for title, command in commands.items():
        line = f"  {title:<{width}}  {command}"
        console.print(line, markup=False, soft_wrap=True)  # a command is never broken


def list_next_commands(run_dir: Path, config: RunConfig) -> dict[str, str]:
    """Return the commands that use what a finished run has left: generate, evaluate, convert and resume.

    Args:
        run_dir: Folder of the run.
        config: Config of the run.
    """
    commands = {}
    checkpoint = _find_last_checkpoint(run_dir, config)
    # No command knows a tokenizer of the user's own.
    if checkpoint is not None and config.tokenizer.name != OWN:
        prompt = f"prompt={config.callbacks.sample_prompt}"
        commands["generate"] = _format_command("generate", f"checkpoint={checkpoint}", prompt)
        data = list_data_arguments(config)
        if data is not None:
            commands["evaluate"] = _format_command("evaluate", f"checkpoint={checkpoint}", *data)
        own_class = ["architecture=growlm"] if config.model.routing.tie_breaking else []
        paths = iter_unique_paths(run_dir / "huggingface")
        out = f"out={next(path for path in paths if not path.exists())}"
        source = f"source={checkpoint}"
        commands["convert"] = _format_command("convert", source, out, "to=huggingface", *own_class)
    if more := _format_more_training(run_dir, config):
        commands["resume"] = more
    return commands


def list_ways_on(run_dir: Path, resume: str) -> list[str]:
    """Return the lines that say how to go on after a failed growth.

    Args:
        run_dir: Folder of the run.
        resume: Line that says how to resume it.
    """
    try:
        failed = find_failed_growth(read_run(run_dir))
    except UserError:  # a file is damaged; the run itself has said so
        return [resume]
    if failed is None:
        return [resume]
    if not failed.overrides:
        return [failed.advice, resume]
    return [failed.advice, f"To run again: {format_reproduce_command(run_dir, *failed.overrides)}"]


def format_resume_command(run_dir: Path, config: RunConfig, *overrides: str) -> str:
    """Return the command that resumes a run, which trusts the packages of the user's own classes.

    Args:
        run_dir: Folder of the run.
        config: Config of the run.
        overrides: Settings to change.
    """
    arguments = [f"resume={run_dir}", *overrides]
    if packages := list_packages_to_trust(find_targets(asdict(config))):
        arguments.append(f"trust=[{','.join(packages)}]")
    return _format_command("train", *arguments)


def list_data_arguments(config: RunConfig) -> list[str] | None:
    """Return the arguments with which `growlm.evaluate` reads the run's data; None if it cannot."""
    data = config.data
    if data.source == OWN or not data.sources.keys() <= SHIPPED_SOURCES.keys():
        return None  # entries with other names are in a file of the user's own
    arguments = [] if data.source == DataConfig().source else [f"data={data.source}"]
    try:
        arguments += _list_changes("data", data, DataConfig())
        for name, source in data.sources.items():
            shipped = MixedSourceConfig(source=SHIPPED_SOURCES[name])
            arguments += _list_changes(f"data.sources.{name}", source, shipped)
    except ValueError:
        return None
    if data.sources:
        arguments += [
            f"~data.sources.{name}" for name in SHIPPED_SOURCES if name not in data.sources
        ]
    sources = {data.source, *(source.source for source in data.sources.values())}
    if config.seed and sources & {"embedded", "mixture"}:
        arguments.append(f"seed={config.seed}")
    return arguments


def _list_changes(prefix: str, settings: Any, default: Any) -> Iterator[str]:
    """Yield the overrides that make default settings into given ones."""
    for name, value in vars(settings).items():
        key, former = f"{prefix}.{name}", getattr(default, name)
        if value == former or key in NOT_SELECTING:
            continue
        if is_dataclass(value):
            yield from _list_changes(key, value, former)
        else:
            yield f"{key}={value if isinstance(value, str) else _format_value(value)}"


def _format_value(value: Any) -> str:
    """Return a value as Hydra's grammar has it.

    Raises:
        ValueError: If the grammar has no form for it.
    """
    if isinstance(value, dict):
        if any(_DICT_KEY.fullmatch(str(key)) is None for key in value):
            raise ValueError(value)
        return f"{{{', '.join(f'{key}: {_format_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    return quote_for_hydra(value) if isinstance(value, str) else json.dumps(value)


def _find_last_checkpoint(run_dir: Path, config: RunConfig) -> Path | None:
    names = [phase.save_as for phase in reversed(config.phases.values()) if phase.save_as]
    folders = [run_dir / "checkpoints" / name for name in names]
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _format_more_training(run_dir: Path, config: RunConfig) -> str | None:
    """Return the command that trains the last phase as long again; None if the run has left no state for it."""
    name, phase = list(config.phases.items())[-1]
    (length,) = (key for key in LENGTH_KEYS if getattr(phase, key) is not None)
    value = getattr(phase, length)
    if not value or not config.checkpoint.keep_final_state or not (run_dir / "resume").is_dir():
        return None
    return format_resume_command(run_dir, config, f"phases.{name}.{length}=+{value:g}")


def _format_command(name: str, *arguments: str) -> str:
    return shlex.join(["python", "-m", f"growlm.{name}", *arguments])
