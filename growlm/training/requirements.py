"""Check that the packages and compilers which a plan needs are there, before anything is read or written."""

from __future__ import annotations

from growlm.config.schema import RunConfig
from growlm.optim import adamw_8bit
from growlm.runtime.compilers import explain_missing_compiler
from growlm.runtime.errors import UserError
from growlm.runtime.optional_packages import explain_missing_package


def check_requirements(config: RunConfig, accelerator: str) -> None:
    """Refuse a plan that cannot run here for want of a package or a compiler.

    Args:
        config: The run.
        accelerator: `cpu` or `gpu`.

    Raises:
        UserError: Naming the setting that needs what is missing.
    """
    name = config.optimizer.name
    if name == adamw_8bit.OPTIMIZER_NAME and (
        reason := adamw_8bit.get_unavailable_reason(accelerator)
    ):
        raise UserError("optimizer.name", name, reason)
    if config.trainer.compile and (reason := explain_missing_compiler(accelerator)):
        allowed = f"{reason}; install it, or use trainer.compile=false"
        raise UserError("trainer.compile", "true", allowed)
    if config.logger.name == "tensorboard" and (
        reason := explain_missing_package("tensorboard", "tensorboard")
    ):
        raise UserError("logger", "tensorboard", reason)
