"""What folders that were exported before growlm 0.2 import; they load without a warning."""

from growlm.huggingface.transformers_model import GrowLMConfig, GrowLMForCausalLM

__all__ = ["GrowLMConfig", "GrowLMForCausalLM"]
