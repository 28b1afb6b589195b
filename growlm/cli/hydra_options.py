"""Refuse options and settings of Hydra's own that would end in a traceback, or that nothing would read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from growlm.runtime.errors import UserError

SWEEP_KEYS = ("hydra.sweep", "hydra.sweeper", "hydra.launcher", "hydra/sweeper", "hydra/launcher")
"""What only sweeps read."""
RUN_KEYS = ("hydra.run",)
"""What only single runs read."""
PARAMS_KEY = "hydra.sweeper.params"
_COMPLETION_ACTIONS = ("install=", "uninstall=", "query=")
_RERUN = "--experimental-rerun"


def check_hydra_options(arguments: Sequence[str]) -> None:
    """Check options that Hydra takes only together with others, and settings that it cannot merge.

    Args:
        arguments: Arguments of `growlm.train`.

    Raises:
        UserError: For the first one that is wrong.
    """
    given = {argument.partition("=")[0] for argument in arguments}
    if given & {"-sc", "--shell-completion"} and not any(
        argument.startswith(_COMPLETION_ACTIONS) for argument in arguments
    ):
        reason = (
            "needs install=SHELL, uninstall=SHELL or query=SHELL; growlm has a completion of its own: "
            'eval "$(growlm completion bash)"'
        )
        raise UserError("--shell-completion", "", reason)
    for option in ("--resolve", "--package"):
        if option in given and not given & {"-c", "--cfg", "-h", "--help"}:
            raise UserError(option, "", "only changes what --cfg job prints; add --cfg job")
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == _RERUN:
            value = value if equals else " ".join(arguments[index + 1 : index + 2])
            if not Path(value).is_file():
                raise UserError(_RERUN, value, "there is no such file; to resume a run: resume=RUN")
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == PARAMS_KEY or key.startswith(f"{PARAMS_KEY}."):
            reason = (
                "cannot be given on the command line; sweep with -m KEY=1,2, or set it in a config file "
                "(--config-dir)"
            )
            raise UserError(key, value, reason)


def check_hydra_settings(overrides: Sequence[str], is_sweep: bool) -> None:
    """Check that no override sets what only a sweep, or only a single run, reads.

    Args:
        overrides: Overrides of the command line.
        is_sweep: Whether the command runs a sweep.

    Raises:
        UserError: For the first one that does.
    """
    keys = RUN_KEYS if is_sweep else SWEEP_KEYS
    instead = (
        "a sweep's folder is hydra.sweep.dir; leave this out"
        if is_sweep
        else "only a sweep reads this; add -m, or leave it out"
    )
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in keys or key.startswith(tuple(f"{each}." for each in keys)):
            raise UserError(key, value, instead)
