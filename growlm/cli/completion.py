"""Complete commands, Hydra groups, config keys and their choices in a shell.

The config schema loads torch, so it is imported only when keys are completed.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, get_args, get_type_hints

SHELLS = ("bash", "zsh")
OPTIONS = ("--help", "--version", "--cfg", "--config-dir")
HYDRA_OPTIONS = (*OPTIONS, "--multirun", "--config-name", "--info", "--verbose")
PLAN_KEYS = {"format": ("table", "json"), "calibrate": ("true", "false"), "devices": ()}

_BASH = """_growlm() {
    local line="${COMP_LINE:0:COMP_POINT}" word prefix
    word="${line##*[[:space:]]}"
    prefix="${word%"${word##*[=:]}"}"
    local IFS=$'\\n'
    COMPREPLY=( $("${COMP_WORDS[0]}" completion --line "$line" 2>/dev/null) )
    COMPREPLY=( "${COMPREPLY[@]#"$prefix"}" )
}
complete -o nospace -o default -F _growlm growlm"""


def get_completion_script(shell: str) -> str:
    """Return the script that enables completion of `growlm` in a shell, one of `SHELLS`."""
    if shell == "zsh":
        return f"autoload -Uz bashcompinit && bashcompinit\n{_BASH}"
    return _BASH


def list_completions(line: str, commands: Collection[str]) -> list[str]:
    """Return the possible completions of the last word of a command line; complete words end with a space.

    Args:
        line: Command line up to the cursor, starting with `growlm`.
        commands: Names of the commands.
    """
    before = _split_words(line)
    word = "" if line[-1:].isspace() or len(before) < 2 else before.pop()
    if len(before) < 2:
        found: Iterable[str] = (f"{name} " for name in (*commands, "completion"))
        options: Iterable[str] = ("--help", "--version")
    elif before[1] == "completion":
        found, options = (f"{shell} " for shell in SHELLS), ()
    elif before[1] == "report":
        found, options = ("out=",), ("--help", "--version", "--config-dir")
    elif before[1] in commands:
        found = _complete_keys(before[1], word, before[2:])
        options = HYDRA_OPTIONS if before[1] == "train" else OPTIONS
    else:
        return []
    words = (f"{option} " for option in options) if word.startswith("-") else found
    # Values are offered only once the key's `=` has been typed.
    typed = word.partition("=")[0] + "=" if "=" in word else ""
    return sorted(
        {c for c in words if c.startswith(word) and c != word and _is_next_step(c, typed)}
    )


def _is_next_step(candidate: str, typed: str) -> bool:
    return candidate.partition("=")[2] in ("", " ") or (typed != "" and candidate.startswith(typed))


def _split_words(line: str) -> list[str]:
    with suppress(ValueError):
        return shlex.split(line)
    return line.split()  # a quote is still open


def _complete_keys(command: str, word: str, arguments: Sequence[str]) -> Iterator[str]:
    """Yield `key=` for every key at the level that the word has reached, and `key=value` for known values.

    Args:
        command: Name of the command.
        word: Word to complete.
        arguments: Words between both; the options of a folder given by `--config-dir` are known too.
    """
    from growlm.config import command_schema, schema
    from growlm.config.config_dir import get_config_folder, split_config_dir

    is_run = command in ("train", "plan")
    config_class = (
        schema.RunConfig if is_run else getattr(command_schema, f"{command.title()}Command")
    )
    if is_run or command == "evaluate":
        own, _ = split_config_dir(arguments)
        folders = [get_config_folder(), *([own] if own is not None and own.is_dir() else [])]
        groups = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
        for group in sorted(groups):
            if (is_run and group != "hydra") or group == "data":
                files = [file for folder in folders for file in (folder / group).glob("*.yaml")]
                yield from _iter_assignments(group, sorted({file.stem for file in files}))
    if command == "plan":
        for key, values in PLAN_KEYS.items():
            yield from _iter_assignments(key, values)
    yield from _iter_keys(config_class, "", word)


def _iter_keys(config_class: Any, prefix: str, word: str) -> Iterator[str]:
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            if word.startswith(f"{key}."):
                yield from _iter_keys(hint, f"{key}.", word)
            else:
                yield f"{key}."
        elif hint is bool or bool in get_args(hint):
            yield from _iter_assignments(key, ("true", "false"))
        else:
            yield from _iter_assignments(key, field.metadata.get("limits", (None,))[-1] or ())


def _iter_assignments(key: str, values: Collection[str]) -> Iterator[str]:
    yield f"{key}="
    for value in values:
        yield f"{key}={value} "
