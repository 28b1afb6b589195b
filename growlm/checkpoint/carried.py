"""Files that go along with a model as they are: its tokenizer's."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from growlm.errors import UserError


def copy_files(files: Iterable[Path], folder: Path) -> None:
    """Copy files as they are; a link is followed, see `check_links`.

    Raises:
        UserError: For a link that leads elsewhere.
    """
    files = list(files)
    check_links(files)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def check_links(files: Iterable[Path], key: str = "checkpoint") -> None:
    """Check that files are their folder's own: a folder from elsewhere must not have another file copied.

    A link may lead to a file of the folder itself, or, where the folder is a snapshot in the Hugging Face cache
    (`models--.../snapshots/REVISION`), of the `blobs` beside the snapshots.

    Args:
        files: To be copied.
        key: What the user calls their folder, for messages.

    Raises:
        UserError: Naming the first link that leads elsewhere.
    """
    for file in files:
        folder, target = file.parent.resolve(), file.resolve()
        allowed = [folder]
        if folder.parent.name == "snapshots":
            allowed.append(folder.parents[1] / "blobs")
        if not any(target.is_relative_to(each) for each in allowed):
            raise UserError(key, file, "is a link to a file of another folder, which is not copied")
