"""Folders whose names collide with nothing, however many processes make some at once."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path


def make_free(wanted: Path) -> Path:
    """Make a folder of this name, or where it is taken of this name and a suffix.

    Args:
        wanted: Its parent exists.

    Raises:
        OSError: If it cannot be made.
    """
    if not wanted.name:
        raise OSError(errno.EEXIST, "it is the root of the file system")
    for suffix in itertools.count(1):
        path = wanted if suffix == 1 else wanted.with_name(f"{wanted.name}_{suffix}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the suffixes do not end")
