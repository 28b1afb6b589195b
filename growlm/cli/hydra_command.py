"""Run commands that have a Hydra config, and translate Hydra's errors."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from growlm import __version__
from growlm.cli.free_text import quote_free_texts
from growlm.cli.train_options import is_multirun
from growlm.config.config_dir import (
    ROOT_CONFIG_NAME,
    SEARCH_PATH_KEY,
    add_search_path,
    check_config_dir,
    split_config_dir,
)
from growlm.config.load import translate_hydra_error
from growlm.config.schema import RunConfig
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_user_error, run_and_get_exit_code
from growlm.runtime.output_streams import output_may_be_lost
from growlm.runtime.signals import HANGUP_SIGNAL

COMMON_OPTIONS = """

Options:
  --config-dir DIR  folder with config files of your own, laid out like conf/
  --cfg job         print the composed config
  --version, --help
"""
"""Help on the options of all commands."""


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
    schema: type[Any] = RunConfig,
) -> int:
    """Run a command that takes `key=value` arguments and no sweeps; return its exit code.

    Args:
        usage: Text printed for `--help`.
        body: Function that takes the arguments, free text quoted, and returns the exit code.
        compose: Function that takes the same arguments and returns the config that `--cfg job` prints.
        composes_run: Whether the arguments compose a run's config, of which `~key` removes an entry.
        writes_files: Whether the result are files, so that the command goes on without standard output.
        schema: Dataclass of the command's settings.
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
    if any(argument.partition("=")[0] in ("-c", "--cfg") for argument in arguments):
        return run_command(lambda: _print_config(arguments, compose, schema))
    for argument in arguments:
        if (wrong := _find_argument_error(argument, composes_run)) is not None:
            return print_user_error(wrong)
    quoted = quote_free_texts(arguments, schema)
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


def _find_argument_error(argument: str, composes_run: bool) -> UserError | None:
    """Return what is wrong with an argument of a command that runs no sweeps; None if nothing is."""
    key, equals, value = argument.partition("=")
    if argument in ("-m", "--multirun") or (key == "hydra.mode" and is_multirun(value)):
        return UserError("argument", argument, "only growlm train runs sweeps")
    if composes_run and argument.startswith("~"):
        return None
    if argument.startswith("-") or not equals or not key:
        return UserError("argument", argument, "must be key=value; see --help")
    if not composes_run and key.startswith(("hydra.", "hydra/")) and key != SEARCH_PATH_KEY:
        return UserError(key, value, "only growlm train reads Hydra's settings")
    return None


def _interruption(number: int) -> BaseException:
    """Return what a signal's handler raises, so that temporary files are removed on the way out."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _print_config(
    arguments: list[str], compose: Callable[[list[str]], DictConfig], schema: type[Any]
) -> int:
    """Print the composed config, as Hydra's `--cfg job` does."""
    at = next(i for i, a in enumerate(arguments) if a.partition("=")[0] in ("-c", "--cfg"))
    if "=" in arguments[at]:  # --cfg=job
        arguments = [*arguments[:at], *arguments[at].split("=", 1), *arguments[at + 1 :]]
    kind, overrides = arguments[at + 1 : at + 2], arguments[:at] + arguments[at + 2 :]
    if kind != ["job"]:
        raise UserError(
            "--cfg", " ".join(kind), "must be job, which prints the config of this command"
        )
    print(OmegaConf.to_yaml(compose(quote_free_texts(overrides, schema))).rstrip())
    return 0
