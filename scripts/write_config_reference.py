"""Write docs/configuration.md: every group, key and command setting, from the docstrings of the config classes.

    python scripts/write_config_reference.py            writes the page
    python scripts/write_config_reference.py --check    exits with 1 if the page is not what it would write

Types, defaults and limits are those of the dataclasses in `growlm/config`, `growlm/model` and
`growlm/growth/operators`; the entries of a group are the files of `conf/`, described by their first comment.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from growlm.config import load_config
from growlm.config import schema as run_schema
from growlm.config.command_schema import (
    ConvertCommand,
    EvaluateCommand,
    GenerateCommand,
    GrowCommand,
    VerifyCommand,
)
from growlm.growth.operators.registry import available_operators
from growlm.runtime.exit_codes import run_main_and_exit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration reference

Look up any setting here: what it means, its unit, its default and what it may be. Settings go on the command line
as `key=value`:

```sh
python -m growlm.train model=small_llama optimizer.weight_decay=0.05 phases.dense.steps=20 --cfg job
```

`model=small_llama` chooses an *entry* of a group, a file in `conf/model/`. `optimizer.weight_decay=0.05` sets a
single key. `--cfg job` prints the config that results, instead of running it. [Plans](plans.md) says how files of
your own take part, and `python -m growlm.train --help` lists groups and entries.

The defaults below are those of `python -m growlm.train` without any override. Other entries of a group may have
other defaults, and a plan sets its own phases. *null* means that nothing is set. This page is written by
`python scripts/write_config_reference.py`.
"""
COMMANDS = {
    "grow": GrowCommand,
    "verify": VerifyCommand,
    "generate": GenerateCommand,
    "evaluate": EvaluateCommand,
    "convert": ConvertCommand,
}
PLACEHOLDERS = {
    "evaluation_sets": "NAME",
    "sources": "NAME",
    "phases": "NAME",
}
"""Placeholder for the name of an entry, by mapping."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of a table."""

    key: str
    type: str
    default: str
    meaning: str


@cache
def field_docstrings(owner: type) -> dict[str, str]:
    """Return the text below each field of a class, those of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        if not dataclasses.is_dataclass(each) or each.__module__ == "types":
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for statement, after in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = _string(after)
                if text:
                    found[statement.target.id] = text
    return found


def _string(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        value = node.value.value
        return " ".join(value.split()) if isinstance(value, str) else None
    return None


def settings_of(owner: type, prefix: str, values: Any = None) -> Iterator[Setting]:
    """Yield the settings of a dataclass and of the dataclasses in it.

    Args:
        owner: The class.
        prefix: Key of the class, with a dot behind it if it is not empty.
        values: A config whose values are the defaults shown; None for those of the class.
    """
    hints = typing.get_type_hints(owner)
    texts = field_docstrings(owner)
    for field in dataclasses.fields(owner):
        key = f"{prefix}{field.name}"
        value = _default(field) if values is None else getattr(values, field.name)
        inner = _inner_class(hints[field.name])
        if inner is None or field.name == "data":  # the group has its own section
            yield Setting(
                key, _type_words(hints[field.name], field), _show(value), _meaning(texts, field)
            )
        elif typing.get_origin(hints[field.name]) is dict:
            yield Setting(key, "mapping", _show({}), _meaning(texts, field))
            yield from settings_of(inner, f"{key}.{PLACEHOLDERS[field.name]}.")
        else:
            yield from settings_of(inner, f"{key}.", value)


def _inner_class(hint: Any) -> type | None:
    """Return the dataclass that a field holds, or a mapping's values are; None if it holds none."""
    inside = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else hint
    return inside if dataclasses.is_dataclass(inside) and isinstance(inside, type) else None


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def _meaning(texts: dict[str, str], field: dataclasses.Field[Any]) -> str:
    if field.name not in texts:
        raise LookupError(f"{field.name} has no docstring: write one below it")
    return _escape(texts[field.name].replace("None for", "null for").replace("None: ", "null: "))


def _escape(text: str) -> str:
    """Return text for a cell of a table: outside of code, `<` would begin a tag."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [
        re.sub(r"\bdocs/([\w/]+\.md)", r"[\1](\1)", part.replace("<", "&lt;"))
        for part in parts[::2]
    ]
    return "`".join(parts)


def _show(value: Any) -> str:
    if value == MISSING:
        return "required"
    if value is None:
        return "null"
    if value in ("", [], (), {}):
        return {str: '""', dict: "{}"}.get(type(value), "[]")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show, value))}]"
    return str(value)


WORDS = {int: "integer", float: "number", str: "text", bool: "true, false", Any: "anything"}


def _type_words(hint: Any, field: dataclasses.Field[Any]) -> str:
    choices = field.metadata.get("limits", (None,) * 5)[4]
    if choices:
        words = ", ".join(f"`{choice}`" for choice in choices)
    else:
        words = ", ".join(dict.fromkeys(_plain_words(hint))) + _bounds(field)
    return f"{words}, null" if type(None) in typing.get_args(hint) else words


def _plain_words(hint: Any) -> Iterator[str]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from () if part is type(None) else _plain_words(part)
    elif origin is typing.Annotated:
        yield from _plain_words(typing.get_args(hint)[0])
    elif origin in (list, tuple):
        yield "list"
    elif origin is dict or hint is dict or dataclasses.is_dataclass(hint):
        yield "mapping"
    else:
        yield WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _bounds(field: dataclasses.Field[Any]) -> str:
    minimum, maximum, above, below, _ = field.metadata.get("limits", (None,) * 5)
    pairs = (("≥", minimum), (">", above), ("≤", maximum), ("<", below))
    words = [f"{sign} {bound:,}" for sign, bound in pairs if bound is not None]
    return f", {', '.join(words)}" if words else ""


def write_table(settings: list[Setting]) -> str:
    """Return the table of some settings."""
    rows = [
        f"| `{each.key}` | {each.type} | `{each.default}` | {each.meaning} |" for each in settings
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def describe_entry(path: Path) -> str:
    """Return the first sentence of a config file's comment.

    Raises:
        LookupError: If the file does not begin with one.
    """
    words: list[str] = []
    for line in path.read_text().splitlines():
        if not line.startswith("#") or line.startswith(("#   ", "# ...")):
            break
        if not line.startswith("# @package"):
            words.append(line.removeprefix("#").strip())
    if not words:
        raise LookupError(f"{path}: begin it with a comment that says what it is")
    text = " ".join(words).removeprefix(f"{path.stem}: ")
    return _escape(text[:1].upper() + text[1:])


def write_entries(group: str) -> str:
    """Return the table of a group's entries."""
    paths = sorted((ROOT / "conf" / group).glob("*.yaml"))
    rows = [f"| `{group}={path.stem}` | {describe_entry(path)} |" for path in paths]
    return "\n".join(["| entry | |", "|---|---|", *rows]) + "\n"


def class_words(owner: type) -> str:
    """Return a class's docstring, without the words that name its group."""
    text = inspect.getdoc(owner) or ""
    _, colon, rest = text.partition(": ")
    starts = ("Group", "Root key", "Entry of", "Part")
    return (rest[:1].upper() + rest[1:]) if colon and text.startswith(starts) else text


def write_page() -> str:
    """Return the page."""
    config = load_config()
    parts = [INTRODUCTION]
    fields = {field.name: field for field in dataclasses.fields(run_schema.RunConfig)}
    hints = typing.get_type_hints(run_schema.RunConfig)
    texts = field_docstrings(run_schema.RunConfig)
    own = [name for name in fields if _inner_class(hints[name]) is None]
    parts.append("## Settings of the whole run\n")
    parts.append(
        write_table(
            [
                Setting(
                    name,
                    _type_words(hints[name], fields[name]),
                    _show(getattr(config, name)),
                    _meaning(texts, fields[name]),
                )
                for name in own
            ]
        )
    )
    parts.append("## `phase_plan`: plans\n")
    parts.append(
        "A plan has a name, a first model and phases. [Plans](plans.md) says how to write one.\n"
    )
    parts.append(write_entries("phase_plan"))
    parts.append("### A phase\n\n" + class_words(run_schema.PhaseConfig) + "\n")
    parts.append(write_table(list(settings_of(run_schema.PhaseConfig, "phases.NAME."))))
    parts.append(_write_operators())
    for name in fields:
        inner = _inner_class(hints[name])
        if inner is None or name == "phases":
            continue
        is_group = (ROOT / "conf" / name).is_dir()
        parts.append(f"## `{name}`\n\n{class_words(inner)}\n")
        if is_group:
            parts.append(write_entries(name))
        parts.append(write_table(list(settings_of(inner, f"{name}.", getattr(config, name)))))
    parts.append("## `recipe`\n\nWhat the operators of a plan put into new channels and blocks.\n")
    parts.append(write_entries("recipe"))
    parts.append("## `experiment`\n\nWhole runs, each a plan and what differs from it.\n")
    parts.append(write_entries("experiment"))
    for command, owner in COMMANDS.items():
        parts.append(f"## Settings of `growlm {command}`\n\n{class_words(owner)}\n")
        parts.append(write_table(list(settings_of(owner, ""))))
    return "\n".join(parts)


def _write_operators() -> str:
    parts = [
        "### Operators\n",
        "Entries of `phases.NAME.grow`, and of `grow` in `growlm grow`: `{NAME: {SETTING: VALUE}}`. "
        "[Choose a growth](choose_growth.md) says when each helps.\n",
    ]
    for operator in available_operators().values():
        if not operator.operator_class.__module__.startswith("growlm."):
            continue
        summary = (inspect.getdoc(operator.operator_class) or "").partition("\n\n")[0]
        parts.append(f"#### `{operator.name}`\n\n{' '.join(summary.split())}\n")
        parts.append(write_table(list(settings_of(operator.operator_class, ""))))
    return "\n".join(parts)


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if it differs"
    )
    text = write_page()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text() != text:
            print(f"{PAGE.name} is not what the code says: run it without --check", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
