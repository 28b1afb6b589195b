"""Explain config files that Hydra does not find, or cannot read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from yaml import MarkedYAMLError, YAMLError
from yaml.reader import ReaderError

from growlm.config.composing.config_layers import list_config_folders
from growlm.config.config_dir import OPTION, get_config_folder
from growlm.runtime.errors import UserError

LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Hydra launchers that are separate packages, and the growlm extra that installs each."""
UNREADABLE = (YAMLError, UnicodeDecodeError)
"""What Hydra raises, besides errors of its own, for a file that it cannot read."""
OPTIONAL_GROUPS = ("experiment",)
"""Groups that `train.yaml` marks as optional: Hydra composes without a file of theirs that does not exist."""
_LISTED_IN = re.compile(r"In '([^']+)': ")


def explain_unread_file(error: BaseException, folders: Sequence[Path] = ()) -> UserError | None:
    """Return which file an error of Hydra or of its YAML parser is about; None if it is about no file.

    Args:
        error: The error.
        folders: Folders in which Hydra looks for files, growlm's own first.
    """
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is None:
            return None
        return _explain_syntax(
            Path(mark.name), f", line {mark.line + 1}: {error.problem or error.context}"
        )
    if isinstance(error, ReaderError):
        return _explain_syntax(
            Path(str(error.name)), f": character {error.position}: {error.reason}"
        )
    if isinstance(error, UnicodeDecodeError):
        files = [file for folder in folders for file in folder.glob("**/*.yaml") if file.is_file()]
        found = (file for file in files if error.object in file.read_bytes())
        return next((_explain_syntax(file, ": is not UTF-8 text") for file in found), None)
    if not isinstance(error, MissingConfigException) or error.missing_cfg_file is None:
        return None
    group, _, option = error.missing_cfg_file.rpartition("/")
    if not group:
        return UserError("--config-name", option, "there is no such file")
    lister = _LISTED_IN.match(str(error))
    # A primary config lies in no group; what it lists is what the command line chooses among.
    is_chosen = lister is None or "/" not in lister[1] or lister[1] == "hydra/config"
    where = "" if lister is None or is_chosen else f" (listed in {lister[1]}.yaml)"
    return _explain_missing(group, option, folders, error.options or (), where)


def check_optional_groups(overrides: Sequence[Override]) -> None:
    """Check that the files that overrides choose in optional groups exist.

    Hydra must be initialized.

    Raises:
        UserError: For the first one that does not.
    """
    for override in overrides:
        group, value = override.key_or_group, override.value()
        if (
            group in OPTIONAL_GROUPS
            and not override.is_add()  # for which Hydra needs a file
            and not override.is_delete()
            and not override.is_sweep_override()
        ):
            folders = list_config_folders(overrides)
            if not all(folder.is_dir() for folder in folders):
                return  # files of a package (pkg://), too
            for option in value if isinstance(value, list) else [value]:
                name = f"{group}/{str(option).removesuffix('.yaml')}.yaml"
                if option is not None and not any((folder / name).is_file() for folder in folders):
                    raise _explain_missing(group, str(option), folders)


def _explain_missing(
    group: str, option: str, folders: Sequence[Path], options: Sequence[str] = (), where: str = ""
) -> UserError:
    if group == "hydra/launcher" and option in LAUNCHER_EXTRAS:
        extra = LAUNCHER_EXTRAS[option]
        reason = (
            f"needs hydra-{extra}-launcher, which is not installed: pip install 'growlm[{extra}]'"
        )
        return UserError(group, option, reason)
    for folder in folders:
        if (folder / f"{option}.yaml").is_file():
            reason = (
                f"{OPTION} takes the folder above {group}/; {folder} holds {option}.yaml itself"
            )
            return UserError(group, option, reason)
    files = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    known = sorted({*options, *files})
    near = difflib.get_close_matches(option, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    reason = f"there is no such file{where}; {hint}known: {', '.join(known)}"
    return UserError(group, option, reason)


def _explain_syntax(path: Path, problem: str) -> UserError:
    shipped = get_config_folder()
    groups = [folder.relative_to(shipped) for folder in shipped.rglob("*") if folder.is_dir()]
    for group in sorted(groups, key=lambda each: -len(each.parts)):
        if path.parent.parts[-len(group.parts) :] == group.parts:
            return UserError(group.as_posix(), path.stem, f"{path}{problem}")
    return UserError("config file", path, problem.lstrip(":, "))
