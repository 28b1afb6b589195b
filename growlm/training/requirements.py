"""Check that the packages and compilers a plan needs are installed, before anything is read or written."""

from __future__ import annotations

from growlm.config.schema import RunConfig
from growlm.optim import adamw_8bit
from growlm.runtime.errors import UserError
from growlm.runtime.optional_packages import explain_missing_compiler, explain_missing_package


def check_requirements(config: RunConfig, accelerator: str) -> None:
    """Check that every package and compiler that the config needs is installed.

    Args:
        config: Config of the run.
        accelerator: `cpu` or `gpu`.

    Raises:
        UserError: If one is missing; names the setting that needs it.
    """
    name = config.optimizer.name
    if name == adamw_8bit.OPTIMIZER_NAME and (
        reason := adamw_8bit.get_unavailable_reason(accelerator)
    ):
        raise UserError("optimizer.name", name, reason)
    if config.trainer.compile and (reason := explain_missing_compiler(accelerator)):
        raise UserError(
            "trainer.compile", "true", f"{reason}; install it, or use trainer.compile=false"
        )
    for name in ("tensorboard", "trackio"):
        if config.logger.name == name and (reason := explain_missing_package(name, name)):
            raise UserError("logger", name, reason)
