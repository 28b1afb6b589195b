"""Define the typed configuration of runs and commands, and load and validate it through Hydra."""

from growlm.config.load import load_config
from growlm.config.schema import RunConfig

__all__ = ["RunConfig", "load_config"]
