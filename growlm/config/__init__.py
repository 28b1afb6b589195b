"""Typed configuration: schema, checks, and the way there from Hydra."""

from growlm.config.load import load_config
from growlm.config.schema import RunConfig

__all__ = ["RunConfig", "load_config"]
