"""Notice that somebody removed a folder that a run writes to, before anything is made there again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from growlm.runtime.errors import RunError


class FolderRemovedError(RunError):
    """A folder was removed, moved or replaced while a run was writing to it.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"{path} was removed or moved while it was written to; nothing is written there any more"
        )

    def __reduce__(self) -> tuple[type[FolderRemovedError], tuple[Path]]:
        return FolderRemovedError, (self.path,)


class WatchedFolders:
    """Folders and files as they are now, outermost first.

    Args:
        paths: Those that exist.
        marker: A file in them whose contents no other has. It decides where inodes are not what they were, as they
            may be on file systems that number them anew.

    Raises:
        OSError: If one of them does not exist.
    """

    def __init__(self, paths: Sequence[Path], marker: Path) -> None:
        self._stats = {path: path.stat() for path in paths}
        self._marker, self._marker_content = marker, marker.read_bytes()

    def check(self) -> None:
        """Check that each is still there, and none is another run's by now.

        Raises:
            RemovedError: Naming the first that is not.
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
