"""The folder of a run: made once, by one run."""

from __future__ import annotations

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
        wanted = Path(config.run_dir)
    else:
        now = datetime.now()
        wanted = Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}_{config.name}_{config.seed}")
    suffix = 1
    path = wanted
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            return path
        except FileExistsError:
            suffix += 1
            path = wanted.with_name(f"{wanted.name}_{suffix}")
        except OSError as error:
            raise UserError("run_dir", wanted, f"cannot be made: {error.strerror}") from error
