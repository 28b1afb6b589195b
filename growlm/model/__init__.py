"""The transformer and the labels of its axes (imports torch, but not Lightning, Hydra or W&B)."""

from growlm.model.config import ModelConfig
from growlm.model.layers.routing import Routing
from growlm.model.model_size import ParameterReport, parameter_report, training_flops_per_token
from growlm.model.transformer import TransformerLM

__all__ = [
    "ModelConfig",
    "ParameterReport",
    "Routing",
    "TransformerLM",
    "parameter_report",
    "training_flops_per_token",
]
