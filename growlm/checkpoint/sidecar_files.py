"""Copy the files that accompany a model unchanged, such as those of its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from growlm.storage.input_files import copy_file, resolve_regular_file


def copy_sidecar_files(files: Iterable[Path], folder: Path) -> None:
    """Copy files unchanged; links are checked by `check_sidecar_files` and followed.

    Raises:
        UserError: For a link that leads out of its folder, or anything that is not a regular file.
    """
    files = list(files)
    check_sidecar_files(files)
    for file in files:
        copy_file(file, folder / file.name, "checkpoint", file.parent)


def check_sidecar_files(files: Iterable[Path], key: str = "checkpoint") -> None:
    """Check that no file is a link out of its folder: a downloaded folder must not pull in other files.

    Args:
        files: Files to copy.
        key: Setting that named their folder, for messages.

    Raises:
        UserError: For the first link that leads out of its folder, or anything that is not a regular file.
    """
    for file in files:
        resolve_regular_file(file, key, file.parent)
