"""Copy the files that accompany a model unchanged, such as those of its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from growlm.storage.input_files import copy_file, resolve_regular_file

CHAT_TEMPLATE_FOLDER = "additional_chat_templates"
"""Folder in which transformers keeps a tokenizer's chat templates besides the default one."""


def copy_sidecar_files(files: Iterable[Path], folder: Path) -> None:
    """Copy files unchanged; links are checked by `check_sidecar_files` and followed.

    Args:
        files: Files to copy; a folder of chat templates is copied with the files in it.
        folder: Folder to copy them to.

    Raises:
        UserError: For a link that leads out of its folder, or anything that is not a regular file.
    """
    files = list(files)
    check_sidecar_files(files)
    for file, place in _with_contents(files):
        (folder / place).parent.mkdir(exist_ok=True)
        copy_file(file, folder / place, "checkpoint", _root_of(file, place))


def check_sidecar_files(files: Iterable[Path], key: str = "checkpoint") -> None:
    """Check that no file is a link out of its folder: a downloaded folder must not pull in other files.

    Args:
        files: Files to copy.
        key: Setting that named their folder, for messages.

    Raises:
        UserError: For the first link that leads out of its folder, or anything that is not a regular file.
    """
    for file, place in _with_contents(files):
        resolve_regular_file(file, key, _root_of(file, place))


def sidecar_bytes(files: Iterable[Path]) -> int:
    """Return the size of files in bytes."""
    return sum(file.stat().st_size for file, _ in _with_contents(files))


def _with_contents(files: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield each file with its path in the new folder; of a folder of chat templates, the files in it."""
    for path in files:
        if path.name == CHAT_TEMPLATE_FOLDER and path.is_dir():
            yield from ((file, Path(path.name, file.name)) for file in sorted(path.iterdir()))
        else:
            yield path, Path(path.name)


def _root_of(file: Path, place: Path) -> Path:
    """Return the model's folder, which links must not lead out of."""
    return file.parents[len(place.parts) - 1]
