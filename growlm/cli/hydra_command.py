"""What the commands with a Hydra config share: free text before Hydra parses it, Hydra's errors in words."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from growlm import __version__
from growlm.config.literal import escape_interpolations
from growlm.config.load import translate_hydra_error
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_user_error, run_and_get_exit_code

FREE_TEXT_KEYS = (
    "callbacks.sample_prompt",
    "checkpoint",
    "data.cache",
    "data.name",
    "data.path",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "model.path",
    "new",
    "old",
    "out",
    "prompt",
    "prompts_file",
    "resume",
    "run_dir",
    "source",
    "tokenizer.path",
)
"""Keys whose value is taken literally: commas, colons and apostrophes are ordinary text there."""
PROMPT_KEYS = ("callbacks.sample_prompt", "prompt")
"""Those of them that are no place in a file system: nothing at all has a meaning of its own there."""
FREE_TEXT_SOURCE_KEY = re.compile(r"data\.sources\.[\w-]+\.(name|path)")
"""Likewise, of a mixture's sources."""

QUOTED_STRING = re.compile(r"""('|")((?!\1)[^\\]|\\.)*\1""", re.DOTALL)
"""A value that is one quoted string in Hydra's grammar."""


def quote_free_text(argument: str) -> str:
    """`data.path=a, b.txt` -> `data.path='a, b.txt'`; an argument of another key as it is.

    A prompt arrives as it was typed, but for `???` alone, which Hydra refuses as missing. In a path some things
    mean what they mean to Hydra: a value that is quoted as a whole is what stands between the quotes, `null` is
    none, and `${key}` is looked up.
    """
    key, equals, value = argument.partition("=")
    plain = key.lstrip("+")
    is_free = plain in FREE_TEXT_KEYS or FREE_TEXT_SOURCE_KEY.fullmatch(plain)
    if not is_free or not equals or not value:
        return argument
    if plain in PROMPT_KEYS:
        value = escape_interpolations(value)
    elif value == "null" or QUOTED_STRING.fullmatch(value):
        return argument
    # Hydra takes a backslash for an escape only where a quote follows, the closing one among them.
    escaped = re.sub(
        r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value
    )
    return f"{key}='{escaped}'"


def run_command(
    body: Callable[[], int], on_error: Callable[[str], object] = lambda message: None
) -> int:
    """`exit_code_of`, with Hydra's own errors in words too."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting with 1

    def explained() -> int:
        try:
            return body()
        except (HydraException, OmegaConfBaseException) as error:
            raise translate_hydra_error(error) from error

    return run_and_get_exit_code(explained, on_error)


def run_key_value_command(
    usage: str, body: Callable[[list[str]], int], compose: Callable[[list[str]], DictConfig]
) -> int:
    """A command that takes `key=value` arguments and no sweeps.

    Args:
        usage: Printed for `--help`.
        body: Takes the arguments, free text quoted; returns the exit code.
        compose: Takes them too; returns the composed config, which `--cfg job` prints.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(usage.strip())
        return 0
    if "--version" in arguments:
        print(f"growlm {__version__}")
        return 0
    if {"-c", "--cfg"} & set(arguments):
        return run_command(lambda: _print_config(arguments, compose))
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            return print_user_error(
                UserError("argument", argument, "must be key=value; see --help")
            )
    quoted = [quote_free_text(argument) for argument in arguments]
    ended: list[int] = []

    def end(*_: object) -> None:
        ended.append(143)
        sys.exit(143)  # an exception, so that files are cleaned up

    def told() -> int:
        try:
            return body(quoted)
        except Exception:
            if ended:  # a library in the middle of its work made something else of the exception
                sys.exit(ended[0])
            raise

    signal.signal(signal.SIGTERM, end)
    return run_command(told)


def _print_config(arguments: list[str], compose: Callable[[list[str]], DictConfig]) -> int:
    """Print the composed config, as Hydra's `--cfg job` does."""
    at = next(i for i, argument in enumerate(arguments) if argument in ("-c", "--cfg"))
    kind, overrides = arguments[at + 1 : at + 2], arguments[:at] + arguments[at + 2 :]
    if kind != ["job"]:
        raise UserError("--cfg", " ".join(kind), "must be job: the config of this command")
    print(OmegaConf.to_yaml(compose([quote_free_text(each) for each in overrides])).rstrip())
    return 0
