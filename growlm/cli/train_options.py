"""Read the options of `growlm train`, most of which are Hydra's, and reject what growlm cannot follow."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from growlm.reporting.reading.override_text import unquote
from growlm.runtime.errors import UserError


@dataclass(frozen=True)
class Option:
    """Option of the command line.

    Attributes:
        name: Full name.
        short: Short name; empty for none.
        value: What its value is, for messages; empty if it takes none.
        choices: Allowed values; empty for any.
        default: Value if none is given; empty if one must be.
    """

    name: str
    short: str = ""
    value: str = ""
    choices: tuple[str, ...] = ()
    default: str = ""


MULTIRUN = "--multirun"
VERBOSE = "--verbose"
OPTIONS = (
    Option("--help", "-h"),
    Option("--version"),
    Option(VERBOSE, "-v"),
    Option("--hydra-help"),
    Option("--config-dir", "-cd", "a folder with config files"),
    Option("--config-name", "-cn", "the name of a config file"),
    Option("--cfg", "-c", "what to print", ("job", "hydra", "all")),
    Option("--resolve"),
    Option("--package", "-p", "a config key"),
    Option(
        "--info",
        "-i",
        "what to print",
        ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        "all",
    ),
    Option("--run", "-r"),
    Option(MULTIRUN, "-m"),
    Option("--shell-completion", "-sc"),
)
"""Options that `growlm train` follows."""
REJECTED = {
    "--config-path": "is not used by growlm; --config-dir adds a folder with config files of your own",
    "-cp": "is not used by growlm; --config-dir adds a folder with config files of your own",
    "--experimental-rerun": "is not supported; report.html of a run has the command that repeats it",
}
"""Options of Hydra that growlm does not follow, with what to do instead."""
_ACTIONS = ("--run", MULTIRUN, "--cfg", "--info", "--shell-completion")
_RUN_MODES = {"RUN": False, "1": False, "MULTIRUN": True, "2": True}
_COMPLETION_ACTIONS = ("install=", "uninstall=", "query=")
_PARAMS_KEY = "hydra.sweeper.params"
_SWEEP_KEYS = ("hydra.sweep", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")


@dataclass(frozen=True)
class TrainOptions:
    """Parsed arguments of `growlm train`."""

    given: dict[str, str]
    """Options by full name, with their values."""
    overrides: list[str]
    """All other arguments."""

    @property
    def is_sweep(self) -> bool:
        """Whether the command asks for a sweep."""
        return MULTIRUN in self.given

    @property
    def is_verbose(self) -> bool:
        """Whether the command asks for more detail on the console."""
        return VERBOSE in self.given

    @property
    def runs(self) -> bool:
        """Whether the command trains, instead of printing something."""
        printing = {"--help", "--hydra-help", "--cfg", "--info", "--shell-completion"}
        return not printing & self.given.keys()

    def to_arguments(self) -> list[str]:
        """Return the arguments as Hydra's parser takes them: options with full names, then overrides.

        Without `--verbose`, which is growlm's own.
        """
        given = {name: value for name, value in self.given.items() if name != VERBOSE}
        options = [f"{name}={value}" if value else name for name, value in given.items()]
        return [*options, *self.overrides]


def parse_train_options(arguments: Sequence[str]) -> TrainOptions:
    """Parse the arguments of `growlm train`; options may stand anywhere and be abbreviated.

    `hydra.mode=MULTIRUN` is the same as `--multirun`.

    Raises:
        UserError: If an option does not exist, lacks its value, or contradicts another.
    """
    given: dict[str, str] = {}
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            _check_override(argument)
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        option = _find_option(name)
        if option.value:
            given[option.name] = _take_value(option, value if equals else None, rest)
        elif equals:
            raise UserError("option", argument, f"{option.name} takes no value")
        else:
            given[option.name] = ""
    overrides = _apply_run_mode(given, overrides)
    _check_combination(given)
    actions = any(override.startswith(_COMPLETION_ACTIONS) for override in overrides)
    if "--shell-completion" in given and not actions:
        reason = (
            "needs install=SHELL, uninstall=SHELL or query=SHELL; growlm has a completion of its own: "
            'eval "$(growlm completion bash)"'
        )
        raise UserError("--shell-completion", "", reason)
    return TrainOptions(given, overrides)


def check_hydra_overrides(options: TrainOptions) -> None:
    """Check that the command line sets nothing of Hydra that growlm would not follow.

    Raises:
        UserError: For the first such setting.
    """
    if not options.runs:
        return
    for override in options.overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        if key == "hydra.sweep.subdir":
            raise UserError(key, value, "growlm names the folders of a sweep's jobs itself")
        if key == "hydra.output_subdir" and value not in ("null", ""):
            raise UserError(key, value, "growlm writes config.yaml into the run's folder itself")
        if key == "hydra.job.chdir" and value.lower() not in ("false", "null", ""):
            raise UserError(key, value, "growlm runs in the folder that it was started in")
        if key == _PARAMS_KEY or key.startswith(f"{_PARAMS_KEY}."):
            reason = (
                "cannot be given on the command line; sweep with -m KEY=1,2, or set it in a config file "
                "(--config-dir)"
            )
            raise UserError(key, value, reason)
        if key == "hydra.run.dir" and options.is_sweep:
            raise UserError(key, value, "is for a single run; set hydra.sweep.dir instead")


def check_sweep_overrides(overrides: Sequence[str]) -> None:
    """Check that the overrides of a single run set nothing that only a sweep reads.

    Raises:
        UserError: For the first such setting.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if any(key == each or key.startswith(f"{each}.") for each in _SWEEP_KEYS):
            reason = "only a sweep reads it; add -m, or leave it out"
            raise UserError(key, unquote(value), reason)


def is_multirun(mode: Any) -> bool | None:
    """Return whether a value of `hydra.mode` asks for a sweep; None if it is not a mode."""
    return _RUN_MODES.get(str(mode).strip("'\"").rpartition(".")[2])


def _check_override(argument: str) -> None:
    key, equals, _ = argument.partition("=")
    if not key.strip("+~") or not (equals or argument.startswith("~")):
        raise UserError("argument", argument, "must be key=value; see --help")


def _find_option(name: str) -> Option:
    for option in OPTIONS:
        if name in (option.name, option.short):
            return option
    rejected = [each for each in REJECTED if each == name or _abbreviates(name, each)]
    found = [option for option in OPTIONS if _abbreviates(name, option.name)]
    if len(found) == 1 and not rejected:
        return found[0]
    if rejected and not found:
        raise UserError("option", name, REJECTED[rejected[0]])
    if found:
        names = " or ".join(option.name for option in found)
        raise UserError("option", name, f"is ambiguous: write {names}")
    names_known = [each for option in OPTIONS for each in (option.name, option.short) if each]
    near = difflib.get_close_matches(name, names_known, n=1)
    hint = f"did you mean {near[0]}?" if near else "see --help"
    raise UserError("option", name, f"there is no such option; {hint}")


def _abbreviates(name: str, full: str) -> bool:
    return name.startswith("--") and len(name) > 2 and full.startswith(name)


def _take_value(option: Option, value: str | None, rest: list[str]) -> str:
    """Return an option's value: the one after its `=`, or the next argument, which is removed from `rest`."""
    if value is None and rest and not rest[0].startswith("-"):
        is_value = not option.default or rest[0] in option.choices or "=" not in rest[0]
        value = rest.pop(0) if is_value else None
    value = value or option.default
    if option.choices and value not in option.choices:
        raise UserError(option.name, value, f"must be one of {', '.join(option.choices)}")
    if not value:
        raise UserError(option.name, value, f"needs {option.value}")
    return value


def _apply_run_mode(given: dict[str, str], overrides: list[str]) -> list[str]:
    """Return the overrides without `hydra.mode=MULTIRUN`, for which `--multirun` is added to the options.

    Raises:
        UserError: If `hydra.mode=RUN` contradicts `--multirun`.
    """
    others = []
    for override in overrides:
        key, _, value = override.partition("=")
        mode = is_multirun(value) if key.lstrip("+") == "hydra.mode" else None
        if mode is False and MULTIRUN in given:
            raise UserError("hydra.mode", value, "-m asks for a sweep; leave out one of the two")
        if mode:
            given.setdefault(MULTIRUN, "")
        else:
            others.append(override)
    return others


def _check_combination(given: dict[str, str]) -> None:
    if {"--help", "--version", "--hydra-help"} & given.keys():
        return
    actions = [name for name in _ACTIONS if name in given]
    if len(actions) > 1:
        raise UserError("option", actions[1], f"cannot be given together with {actions[0]}")
    printing = [name for name in ("--cfg", "--info", "--shell-completion") if name in given]
    if VERBOSE in given and printing:
        raise UserError("option", VERBOSE, f"has no effect on {printing[0]}; leave it out")
    for name in ("--resolve", "--package"):
        if name in given and "--cfg" not in given:
            raise UserError("option", name, "can only be given together with --cfg")
