"""The folder of a run: made once, by one run."""

from __future__ import annotations

import contextlib
import itertools
from datetime import datetime
from pathlib import Path

from growlm.config.schema import RunConfig
from growlm.errors import UserError


def make_run_dir(config: RunConfig) -> Path:
    """Make the folder that the config names, or the default one; a taken name gets a suffix.

    Raises:
        UserError: If it cannot be made.
    """
    if config.run_dir is not None:
        wanted = Path(config.run_dir).expanduser().absolute()
    else:
        now = datetime.now()
        wanted = Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}_{config.name}_{config.seed}")
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for suffix in itertools.count(1):
            path = wanted if suffix == 1 else wanted.with_name(f"{wanted.name}_{suffix}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: the root of the file system has no name to suffix
        reason = getattr(error, "strerror", None) or error
        raise UserError("run_dir", wanted, f"cannot be made: {reason}") from error
    raise AssertionError("unreachable: the suffixes do not end")
