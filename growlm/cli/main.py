"""Run `growlm COMMAND ...`, the command line entry point; imports nothing heavy."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from typing import NoReturn

from growlm import __version__
from growlm.cli.completion import SHELLS, get_completion_script, list_completions
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_user_error, run_main_and_exit

COMMANDS = {
    "train": "run a plan, continue a stopped run, or sweep settings with -m",
    "plan": "estimate memory, time and FLOPs of a plan before training",
    "grow": "grow a checkpoint on disk, one tensor in memory at a time",
    "verify": "check that a grown checkpoint computes what the old one did",
    "generate": "generate text from a checkpoint",
    "evaluate": "measure loss, perplexity and bits per byte of a checkpoint",
    "convert": "convert between checkpoints and Hugging Face folders",
    "report": "write report.html of runs and sweeps",
}
"""Commands and their one-line descriptions; the module of a command is `growlm.<command>`."""

USAGE = """
usage: growlm COMMAND [arguments]

Train a language model and grow it as it trains, losing nothing it has learned.

{commands}

growlm COMMAND --help       arguments and examples of a command
growlm --version            print the version
growlm completion {shells}  print a script for tab completion, to be run as
                            eval "$(growlm completion bash)"

python -m growlm.COMMAND does the same.
"""


def main() -> None:
    """Run the command that the first argument names; exit with `sys.exit`."""
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(_format_usage())
        sys.exit(0)
    if first == "--version":
        print(f"growlm {__version__}")
        sys.exit(0)
    if first == "completion":
        sys.exit(_print_completion(arguments[1:]))
    if first not in COMMANDS:
        matches = difflib.get_close_matches(first, COMMANDS, n=1)
        hint = f"did you mean {matches[0]}?" if matches else f"known: {', '.join(COMMANDS)}"
        sys.exit(print_user_error(UserError("command", first, f"is not a command; {hint}")))
    sys.argv = [f"growlm {first}", *arguments[1:]]
    import_module(f"growlm.{first}").main()


def console_main() -> NoReturn:
    """Run `growlm` as a console script."""
    run_main_and_exit(main)


def deprecated_train_main() -> NoReturn:
    """Run `growlm-train`, the old name of `growlm train`."""

    def warned_main() -> None:
        print("warning: growlm-train is now `growlm train`", file=sys.stderr)
        sys.argv[1:1] = ["train"]
        main()

    run_main_and_exit(warned_main)


def _format_usage() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return USAGE.format(commands=commands, shells="|".join(SHELLS)).strip()


def _print_completion(arguments: list[str]) -> int:
    """Print the completion script of a shell, or with `--line TEXT` the completions of that command line."""
    if arguments[:1] == ["--line"] and len(arguments) == 2:
        print("\n".join(list_completions(arguments[1], COMMANDS)))
        return 0
    if len(arguments) == 1 and arguments[0] in SHELLS:
        print(get_completion_script(arguments[0]))
        return 0
    reason = f"must be one of {', '.join(SHELLS)}"
    return print_user_error(UserError("completion", " ".join(arguments), reason))
