"""The transformer and the labels of its axes (imports torch, but not Lightning, Hydra or W&B)."""

from growlm.model.axes import Label, gain, index, label, label_blocks, reads, shift, writes
from growlm.model.config import ModelConfig
from growlm.model.layers.document_masks import document_positions
from growlm.model.layers.experts import MixtureOfExperts
from growlm.model.layers.feed_forward import FeedForward
from growlm.model.layers.labeled_layers import label_embedding, label_linear, label_norm
from growlm.model.layers.routing import Routing
from growlm.model.model_size import ParameterReport, parameter_report, training_flops_per_token
from growlm.model.transformer import TransformerLM

__all__ = [
    "FeedForward",
    "Label",
    "MixtureOfExperts",
    "ModelConfig",
    "ParameterReport",
    "Routing",
    "TransformerLM",
    "document_positions",
    "gain",
    "index",
    "label",
    "label_blocks",
    "label_embedding",
    "label_linear",
    "label_norm",
    "parameter_report",
    "reads",
    "shift",
    "training_flops_per_token",
    "writes",
]
