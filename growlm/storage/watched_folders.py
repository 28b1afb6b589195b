"""Detect that a folder was removed while a run writes to it, before the run creates it again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from growlm.runtime.errors import RunError


class FolderRemovedError(RunError):
    """A folder was removed, moved or replaced while a run was writing to it.

    Args:
        path: Folder that is missing or was replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} was removed or moved while the run was writing to it")

    def __reduce__(self) -> tuple[type[FolderRemovedError], tuple[Path]]:
        return FolderRemovedError, (self.path,)


class WatchedFolders:
    """The identity of folders and files at creation time, to detect later that one was replaced.

    Args:
        paths: Existing folders and files, outermost first.
        marker: File inside them with unique content. It decides if inodes have changed, because some file systems
            renumber them.

    Raises:
        OSError: If one of them does not exist.
    """

    def __init__(self, paths: Sequence[Path], marker: Path) -> None:
        self._stats = {path: path.stat() for path in paths}
        self._marker, self._marker_content = marker, marker.read_bytes()

    def check(self) -> None:
        """Check that every path still exists and was not replaced.

        Raises:
            FolderRemovedError: For the first path that was removed or replaced.
        """
        for path, before in self._stats.items():
            try:
                is_same = os.path.samestat(path.stat(), before)
                if not is_same:
                    is_same = self._marker.read_bytes() == self._marker_content
            except (FileNotFoundError, NotADirectoryError):
                is_same = False
            if not is_same:
                raise FolderRemovedError(path)
