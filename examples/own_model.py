"""Grow a decoder of your own, whose config is like Hugging Face's; docs/own_models.md explains it."""

from types import SimpleNamespace as Config

import torch
from torch import Tensor, nn

from growlm.growth import Deepen, Widen, grow
from growlm.model import ModelConfig, label_blocks, label_embedding, label_linear, label_norm
from growlm.verification import verify_functional_equivalence

SIZES = {"vocab_size": "vocab_size", "d_model": "hidden_size", "d_ff": "intermediate_size"}
SIZES |= {"n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}


class _Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width, hidden, self.heads = c.hidden_size, c.intermediate_size, c.num_attention_heads
        self.norm = label_norm(nn.RMSNorm(width, c.rms_norm_eps))
        self.q = label_linear(nn.Linear(width, width), read="residual", write="query_heads")
        self.kv = label_linear(nn.Linear(width, width), read="residual", write="key_value_heads")
        self.o = label_linear(nn.Linear(width, width), read="query_heads", write="residual")
        self.up = label_linear(nn.Linear(width, hidden), read="residual", write="hidden")
        self.down = label_linear(nn.Linear(hidden, width), read="hidden", write="residual")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, kv = (p(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.kv))
        mixed = nn.functional.scaled_dot_product_attention(q, kv, kv, is_causal=True)
        return x + self.o(mixed.transpose(1, 2).flatten(2)) + self.down(self.up(y).relu())


class _Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, width, vocabulary = config, config.hidden_size, config.vocab_size
        self.embed = label_embedding(nn.Embedding(vocabulary, width))
        self.layers = label_blocks(nn.Sequential(*map(_Layer, [config] * config.num_hidden_layers)))
        self.norm = label_norm(nn.RMSNorm(width, config.rms_norm_eps))
        self.head = label_linear(nn.Linear(width, vocabulary), read="residual", write="vocabulary")

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embed(tokens))))

    def growth_config(self) -> ModelConfig:  # the sizes as growlm's operators read them
        sizes = {ours: getattr(self.config, own) for ours, own in SIZES.items()}
        return ModelConfig.preset("llama", **sizes, norm={"eps": self.config.rms_norm_eps})

    def with_growth_config(self, config: ModelConfig) -> nn.Module:  # a new decoder of these sizes
        sizes = {own: getattr(config, ours) for ours, own in SIZES.items()}
        return _Decoder(Config(**vars(self.config) | sizes | {"rms_norm_eps": config.norm.eps}))


if __name__ == "__main__":
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    model = _Decoder(Config(**sizes, num_attention_heads=4, rms_norm_eps=1e-6))
    grown = grow(model, [Widen(scale_factor=1.5), Deepen(extra_layers=2)])
    report = verify_functional_equivalence(model, grown, torch.randint(50, (4, 16)), "cpu")
    print(f"grown to {grown.config}; logits differ by {report.max_difference:.1e}")
