"""Quote the values of text settings for Hydra's parser, so that they arrive as the user typed them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from growlm.config.literal import escape_interpolations, quote_for_hydra
from growlm.config.own_classes import GROUP_TYPES, KEPT_SETTINGS, TARGET
from growlm.config.schema import OWN, RunConfig
from growlm.reporting.reading.override_text import PROMPT_KEYS, QUOTED_STRING
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_error

HYDRA_TEXT_KEYS = ("hydra.run.dir", "hydra.sweep.dir")
"""Text settings of Hydra itself that growlm documents."""
NEVER_SPLIT_KEYS = re.compile(
    r"callbacks\.sample_prompt|data\.(cache|delimiter|name|path)|hydra\.(run|sweep)\.dir|model\.path|resume|run_dir"
    r"|data\.sources\.[\w-]+\.(delimiter|name|path)|tokenizer\.(eos_token|path)"
)
"""Text settings that are always literal: growlm 0.1 swept the others at their commas."""
_CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)
_CHOICE_ITEM = re.compile(
    rf"\s*(?:(?P<quoted>{QUOTED_STRING.pattern})\s*|(?P<plain>[^,]*?)\s*)(?P<end>,|\Z)", re.DOTALL
)
_MAY_HOLD_OWN = ("--config-dir", "-cd", "--config-name", "-cn", "hydra.searchpath", "resume")
"""Arguments with which files that growlm does not ship may choose a class of the user's own for a group."""


def quote_free_texts(
    arguments: Sequence[str], schema: type[Any] = RunConfig, is_sweep: bool = False
) -> list[str]:
    """Quote the values of text settings among a command's arguments; return the others unchanged.

    `data.split=train[:10%]` becomes `data.split='train[:10%]'`. In a prompt no character has a special meaning. In
    other texts some Hydra syntax keeps its meaning: a value in quotes is unquoted, `null` means None, and `${key}`
    is interpolated. In a sweep, `key=choice(a, b)` lists the values to sweep over.

    Args:
        arguments: Arguments of the command.
        schema: Dataclass of the command's settings.
        is_sweep: Whether the command is a sweep.

    Raises:
        UserError: If a value is missing in `choice(...)`.
    """
    doubtful = {group for group in GROUP_TYPES if _may_be_own(group, arguments)}
    return [_quote(argument, schema, is_sweep, doubtful) for argument in arguments]


def quote_free_text(argument: str, schema: type[Any] = RunConfig) -> str:
    """Quote the value of one argument that is not part of a sweep, see `quote_free_texts`."""
    return quote_free_texts([argument], schema)[0]


@cache
def get_text_key_pattern(schema: Any) -> re.Pattern[str]:
    """Return a pattern of the keys whose values are text: strings without a list of allowed values."""
    keys = [*_iter_text_keys(schema), *map(re.escape, HYDRA_TEXT_KEYS)]
    return re.compile("|".join(keys))


def _iter_text_keys(schema: type[Any], prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, hint = prefix + re.escape(field.name), hints[field.name]
        choices = field.metadata.get("limits", (None,))[-1]
        if dataclasses.is_dataclass(hint):
            yield from _iter_text_keys(hint, rf"{key}\.")  # type: ignore[arg-type]
        elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            yield from _iter_text_keys(get_args(hint)[1], rf"{key}\.[^.=]+\.")
        elif choices is None and (hint is str or set(get_args(hint)) == {str, NoneType}):
            yield key


def _may_be_own(group: str, arguments: Sequence[str]) -> bool:
    """Return whether a group may hold a class of the user's own, whose arguments may be of any type."""
    return any(
        argument == f"{group}={OWN}"
        or argument.partition("=")[0].lstrip("+") in (f"{group}.{TARGET}", *_MAY_HOLD_OWN)
        for argument in arguments
    )


def _quote(argument: str, schema: Any, is_sweep: bool, doubtful: set[str]) -> str:
    key, equals, value = argument.partition("=")
    plain = key.lstrip("+")
    if not equals or not value or not get_text_key_pattern(schema).fullmatch(plain):
        return argument
    if is_sweep:
        if (items := _CHOICE.fullmatch(value.strip())) is not None:
            # Hydra's own choice() would take the quotes off and parse the text once more.
            return f"{key}={','.join(_iter_choices(plain, items[1], value))}"
        parsed = None if NEVER_SPLIT_KEYS.fullmatch(plain) else _parse(argument)
        if parsed is not None and parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP:
            print_error(
                f"warning: {argument} is swept at its commas, which growlm 0.3 will take literally; "
                f"write {key}=choice({value})"
            )
            return argument
    if plain in PROMPT_KEYS:
        return f"{key}={quote_for_hydra(escape_interpolations(value))}"
    if value == "null" or QUOTED_STRING.fullmatch(value):
        return argument
    group, _, setting = plain.partition(".")
    if (
        group in doubtful
        and setting not in (*KEPT_SETTINGS[group], TARGET)
        and not NEVER_SPLIT_KEYS.fullmatch(plain)
        and (parsed := _parse(argument)) is not None
        and not parsed.is_sweep_override()
        and not isinstance(parsed.value(), str)
    ):
        return argument  # a number, a list or a mapping for a class of the user's own
    return f"{key}={quote_for_hydra(value)}"


def _iter_choices(key: str, items: str, value: str) -> Iterator[str]:
    """Yield the items of `choice(...)`, quoted; a comma inside an item needs quotes.

    Raises:
        UserError: If an item is empty.
    """
    start = 0
    while True:
        found = _CHOICE_ITEM.match(items, start)
        assert found is not None, "the plain alternative matches any text"
        item = found["quoted"] or found["plain"]
        if not item:
            reason = "needs a value before and after each comma ('' for an empty text)"
            raise UserError(key, value, reason)
        if key in PROMPT_KEYS:
            item = escape_interpolations(item)
        yield item if found["quoted"] or item == "null" else quote_for_hydra(item)
        if not found["end"]:
            return
        start = found.end()


def _parse(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
