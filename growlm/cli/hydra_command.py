"""Run commands that have a Hydra config: quote free text for Hydra's parser and translate its errors."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from growlm import __version__
from growlm.config.config_dir import (
    ROOT_CONFIG_NAME,
    add_search_path,
    check_config_dir,
    split_config_dir,
)
from growlm.config.literal import escape_interpolations, quote_for_hydra
from growlm.config.load import translate_hydra_error
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_user_error, run_and_get_exit_code
from growlm.runtime.output_streams import output_may_be_lost
from growlm.runtime.signals import HANGUP_SIGNAL

FREE_TEXT_KEYS = (
    "callbacks.sample_prompt",
    "checkpoint",
    "data.cache",
    "data.delimiter",
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
    "tokenizer.eos_token",
    "tokenizer.path",
)
"""Keys whose value is taken literally: commas, colons and apostrophes have no special meaning."""
PROMPT_KEYS = ("callbacks.sample_prompt", "prompt")
"""Free-text keys that are not paths: no character has a special meaning in their values."""
FREE_TEXT_SOURCE_KEY = re.compile(
    r"data\.(sources\.[\w-]+|validation|evaluation_sets\.[\w-]+)\.(delimiter|name|path)"
)
"""Pattern of the free-text keys of a mixture's sources, and of the texts to evaluate on."""

COMMON_OPTIONS = """

Options:
  --config-dir DIR  folder with config files of your own, laid out like conf/
  --cfg job         print the composed config
  --version, --help
"""
"""Help on the options of all commands."""

QUOTED_STRING = re.compile(r"""('|")((?!\1)[^\\]|\\.)*\1""", re.DOTALL)
"""Pattern of a value that is a single quoted string in Hydra's grammar."""


def quote_free_text(argument: str) -> str:
    """Quote a free-text value for Hydra: `data.path=a, b.txt` becomes `data.path='a, b.txt'`.

    Arguments with other keys are returned unchanged. A prompt arrives as typed, except for a bare `???`, which
    Hydra rejects as missing. In a path some Hydra syntax keeps its meaning: a value in quotes is unquoted, `null`
    means None, and `${key}` is interpolated.
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
    return f"{key}={quote_for_hydra(value)}"


def run_command(
    body: Callable[[], int], on_error: Callable[[str], object] = lambda message: None
) -> int:
    """Run the body of a command like `run_and_get_exit_code`, and translate Hydra's errors too.

    Args:
        body: Function that runs the command and returns its exit code.
        on_error: Function that also receives the error message.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting with 1

    def translated_body() -> int:
        try:
            return body()
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise translate_hydra_error(error) from error

    return run_and_get_exit_code(translated_body, on_error)


def split_hydra_options(arguments: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Split arguments of `growlm.train` into the folder of `--config-dir`, the config's name and the overrides."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default=ROOT_CONFIG_NAME)
    parser.add_argument("--cfg", "-c")
    parser.add_argument("overrides", nargs="*")
    options, _ = parser.parse_known_args(list(arguments))
    return options.config_dir, options.config_name, options.overrides


def run_key_value_command(
    usage: str,
    body: Callable[[list[str]], int],
    compose: Callable[[list[str]], DictConfig],
    composes_run: bool = False,
    writes_files: bool = False,
) -> int:
    """Run a command that takes `key=value` arguments and no sweeps; return its exit code.

    Args:
        usage: Text printed for `--help`.
        body: Function that takes the arguments, free text quoted, and returns the exit code.
        compose: Function that takes the same arguments and returns the config that `--cfg job` prints.
        composes_run: Whether the arguments compose a run's config, of which `~key` removes an entry.
        writes_files: Whether the result are files, so that the command goes on without standard output.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(usage.strip() + COMMON_OPTIONS.rstrip())
        return 0
    if "--version" in arguments:
        print(f"growlm {__version__}")
        return 0
    try:
        config_dir, arguments = split_config_dir(arguments)
        if config_dir is not None:
            check_config_dir(config_dir)
            arguments = add_search_path(arguments, config_dir)
    except UserError as error:
        return print_user_error(error)
    if {"-c", "--cfg"} & set(arguments):
        return run_command(lambda: _print_config(arguments, compose))
    for argument in arguments:
        if composes_run and argument.startswith("~"):
            continue
        if argument.startswith("-") or "=" not in argument:
            return print_user_error(
                UserError("argument", argument, "must be key=value; see --help")
            )
    quoted = [quote_free_text(argument) for argument in arguments]
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        received.append(number)
        raise _interruption(number)

    def interruptible_body() -> int:
        try:
            with output_may_be_lost() if writes_files else nullcontext():
                return body(quoted)
        except Exception as error:
            if received:  # a library has replaced the handler's exception by its own
                raise _interruption(received[0]) from error
            raise

    numbers = [signal.SIGTERM]
    for number in (signal.SIGINT, HANGUP_SIGNAL):
        # A shell has SIGINT ignored in the background, nohup SIGHUP.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            numbers.append(number)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        return run_command(interruptible_body)
    finally:
        for number, handler in previous.items():
            if handler is not None:  # None: not one of Python's
                signal.signal(number, handler)


def _interruption(number: int) -> BaseException:
    """Return what a signal's handler raises, so that temporary files are removed on the way out."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _print_config(arguments: list[str], compose: Callable[[list[str]], DictConfig]) -> int:
    """Print the composed config, as Hydra's `--cfg job` does."""
    at = next(i for i, argument in enumerate(arguments) if argument in ("-c", "--cfg"))
    kind, overrides = arguments[at + 1 : at + 2], arguments[:at] + arguments[at + 2 :]
    if kind != ["job"]:
        raise UserError(
            "--cfg", " ".join(kind), "must be job, which prints the config of this command"
        )
    print(
        OmegaConf.to_yaml(compose([quote_free_text(override) for override in overrides])).rstrip()
    )
    return 0
