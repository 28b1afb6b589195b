"""Folders whose names collide with nothing, however many processes make some at once."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from pathlib import Path


def iter_unique_paths(preferred: Path) -> Iterator[Path]:
    """This name, and then it with one suffix after another, without end.

    Raises:
        OSError: If it has no name.
    """
    if not preferred.name:
        raise OSError(errno.EEXIST, "it is the root of the file system")
    yield preferred
    for suffix in itertools.count(2):
        yield preferred.with_name(f"{preferred.name}_{suffix}")


def make_unique_folder(preferred: Path) -> Path:
    """Make a folder of this name, or where it is taken of this name and a suffix.

    Args:
        wanted: Its parent exists.

    Raises:
        OSError: If it cannot be made.
    """
    for path in iter_unique_paths(preferred):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the suffixes do not end")
