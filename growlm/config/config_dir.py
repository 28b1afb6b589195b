"""Find config files: the folder that growlm ships, and the user's own, `--config-dir`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from growlm.config.literal import quote_for_hydra
from growlm.runtime.errors import UserError

ROOT_CONFIG_NAME = "train"
OPTION = "--config-dir"
SPELLINGS = (OPTION, "-cd")
SEARCH_PATH_KEY = "hydra.searchpath"


def get_config_folder() -> Path:
    """Return the folder of `train.yaml`: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "conf", package.parent / "conf"]
    for folder in candidates:
        if (folder / f"{ROOT_CONFIG_NAME}.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no {ROOT_CONFIG_NAME}.yaml in {' or '.join(map(str, candidates))}")


@contextmanager
def initialize_hydra(own: Path | None = None) -> Iterator[None]:
    """Initialize Hydra with growlm's config files and those of the user's own folder, as its command line does.

    Args:
        own: Folder of `--config-dir`; unlike one of `hydra.searchpath`, it may also hold the primary config.
    """
    with initialize_config_dir(str(get_config_folder()), version_base="1.3"):
        if own is not None:
            loader = GlobalHydra.instance().config_loader()
            folders = loader.get_search_path()
            folders.prepend("command-line", f"file://{own}", SearchPathQuery(provider="schema"))
            loader.repository.initialize_sources(folders)  # type: ignore[attr-defined]
        yield


def split_config_dir(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split a command's arguments into the folder of `--config-dir`, if it is given, and all others.

    Raises:
        UserError: If the option has no value.
    """
    folder, others, rest = None, [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in SPELLINGS:
            others.append(argument)
            continue
        if not equals:
            value = next(rest, "")
        if not value:
            raise UserError(OPTION, value, "needs a folder with config files")
        folder = Path(value).expanduser().absolute()
    return folder, others


def check_config_dir(folder: Path) -> None:
    """Check that a folder exists, and that growlm's own config files hide none of its files.

    Raises:
        UserError: If the folder does not exist, or one of its files has the name of a shipped one and differs.
    """
    if not folder.is_dir():
        raise UserError(OPTION, folder, "there is no such folder")
    shipped = get_config_folder()
    for path in sorted(shipped.rglob("*.yaml")):
        name = path.relative_to(shipped)
        if (folder / name).is_file() and (folder / name).read_bytes() != path.read_bytes():
            reason = (
                f"{name} has the name of a shipped file, which would be read instead; rename it"
            )
            raise UserError(OPTION, folder, reason)


def add_search_path(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return overrides with which Hydra also finds the config files in `folder`."""
    folders, others = [f"file://{folder}"], []
    for override in overrides:
        if override.partition("=")[0] == SEARCH_PATH_KEY:
            parsed = OverridesParser.create().parse_override(override).value()
            folders += [str(each) for each in parsed] if isinstance(parsed, list) else [str(parsed)]
        else:
            others.append(override)
    listed = ",".join(quote_for_hydra(each) for each in folders)
    return [*others, f"{SEARCH_PATH_KEY}=[{listed}]"]
