"""Files that go along with a model as they are: its tokenizer's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from growlm.storage.input_files import copy_file, resolve_regular_file


def copy_sidecar_files(files: Iterable[Path], folder: Path) -> None:
    """Copy files as they are; a link is followed, see `check_links`.

    Raises:
        UserError: For a link that leads elsewhere, and for what is no regular file.
    """
    files = list(files)
    check_sidecar_files(files)
    for file in files:
        copy_file(file, folder / file.name, "checkpoint", file.parent)


def check_sidecar_files(files: Iterable[Path], key: str = "checkpoint") -> None:
    """Check that files are their folder's own: a folder from elsewhere must not have another file copied.

    Args:
        files: To be copied.
        key: What the user calls their folder, for messages.

    Raises:
        UserError: Naming the first that is a link that leads elsewhere, or no regular file.
    """
    for file in files:
        resolve_regular_file(file, key, file.parent)
