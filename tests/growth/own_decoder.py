"""A decoder that has nothing of growlm's but labels: its own config, names of modules and names of axes."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from growlm.model import (
    Label,
    ModelConfig,
    index,
    label,
    label_blocks,
    label_embedding,
    label_linear,
    label_norm,
    reads,
    writes,
)


class DecoderConfig:
    """A mutable config in the style of Hugging Face."""

    def __init__(self, **settings):
        self.vocab_size = 31
        self.hidden_size, self.intermediate_size = 16, 24
        self.num_hidden_layers = 2
        self.num_attention_heads, self.num_key_value_heads, self.head_dim = 4, 2, 4
        self.num_local_experts, self.num_experts_per_tok = 0, 2
        self.rms_norm_eps = 1e-5
        self.adapter_rank = 3
        self.architectures = ["Decoder"]
        for name, value in settings.items():
            setattr(self, name, value)


def linear(rows, columns, read, write, bias=False):
    return label_linear(nn.Linear(rows, columns, bias=bias), read=read, write=write)


def norm(config):
    return label_norm(nn.RMSNorm(config.hidden_size, config.rms_norm_eps), "width")


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, self.dim = config.hidden_size, config.head_dim
        heads, kv = config.num_attention_heads * self.dim, config.num_key_value_heads * self.dim
        self.q_proj = linear(width, heads, "width", "heads", bias=True)
        self.k_proj = linear(width, kv, "width", "kv_heads")
        self.v_proj = linear(width, kv, "width", "kv_heads")
        self.o_proj = linear(heads, width, "heads", "width")
        frequencies = 100.0 ** (-torch.arange(0, self.dim, 2) / self.dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def rotated(self, x):
        x = x.unflatten(-1, (-1, self.dim)).transpose(1, 2)
        angle = torch.arange(x.shape[2]).unsqueeze(-1) * self.frequencies
        one, two = x.chunk(2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)

    def forward(self, x):
        q, k = self.rotated(self.q_proj(x)), self.rotated(self.k_proj(x))
        v = self.v_proj(x).unflatten(-1, (-1, self.dim)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = linear(width, hidden, "width", "ffn")
        self.up_proj = linear(width, hidden, "width", "ffn")
        self.down_proj = linear(hidden, width, "ffn", "width")

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SparseMLP(nn.Module):
    """What the MLP becomes: its matrices stacked, and a router."""

    def __init__(self, config):
        super().__init__()
        width, hidden, self.top_k = (
            config.hidden_size,
            config.intermediate_size,
            config.num_experts_per_tok,
        )
        count = config.num_local_experts
        self.router = label_linear(
            nn.Linear(width, count, bias=False), read="width", write="experts"
        )
        label(self.router, weight=Label((index("experts"), reads("width"))))
        for name in ("gate_proj", "up_proj"):
            self.stack(name, (count, hidden, width), (writes("ffn"), reads("width")))
        self.stack("down_proj", (count, width, hidden), (writes("width"), reads("ffn")))

    def stack(self, name, shape, dims):
        setattr(self, name, nn.Parameter(torch.empty(shape).normal_(std=0.02)))
        stacked_from = f"mlp.{name}.weight"
        label(self, **{name: Label((index("experts"), *dims), stacked_from=stacked_from)})

    def forward(self, x):
        gates, chosen = self.router(x).topk(self.top_k, dim=-1)
        gates = torch.zeros_like(self.router(x)).scatter(-1, chosen, gates.softmax(-1))
        hidden = F.silu(torch.einsum("btd,efd->btef", x, self.gate_proj))
        hidden = hidden * torch.einsum("btd,efd->btef", x, self.up_proj)
        return torch.einsum("btef,edf,bte->btd", hidden, self.down_proj, gates)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_norm, self.self_attn = norm(config), SelfAttention(config)
        self.post_norm = norm(config)
        self.mlp = SparseMLP(config) if config.num_local_experts else MLP(config)
        self.adapter_in = linear(config.hidden_size, config.adapter_rank, "width", "rank")
        self.adapter_out = linear(config.adapter_rank, config.hidden_size, "rank", "width")

    def forward(self, hidden_states):
        x = hidden_states + self.self_attn(self.input_norm(hidden_states))
        normed = self.post_norm(x)
        x = x + self.mlp(normed) + self.adapter_out(torch.tanh(self.adapter_in(normed)))
        return (x, None)


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        label_embedding(self.embed_tokens, write="width")
        self.layers = label_blocks(
            nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        )
        self.norm = norm(config)


@dataclass
class Output:
    """Like a `ModelOutput`."""

    logits: torch.Tensor


class Decoder(nn.Module):
    growth_axes: ClassVar = {
        "width": "residual",
        "heads": "query_heads",
        "kv_heads": "key_value_heads",
        "ffn": "hidden",
        "rank": "rank",
    }

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = linear(config.hidden_size, config.vocab_size, "width", "vocabulary")

    def growth_config(self):
        c = self.config
        return ModelConfig(
            vocab_size=c.vocab_size,
            d_model=c.hidden_size,
            n_layers=c.num_hidden_layers,
            n_heads=c.num_attention_heads,
            n_kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            d_ff=c.intermediate_size,
            num_experts=c.num_local_experts,
            top_k=c.num_experts_per_tok,
            tie_embeddings=False,
            norm={"kind": "rmsnorm", "eps": c.rms_norm_eps},
        )

    def with_growth_config(self, config):
        own = copy.copy(self.config)
        own.hidden_size, own.intermediate_size = config.d_model, config.d_ff
        own.num_hidden_layers = config.n_layers
        own.num_attention_heads, own.num_key_value_heads = config.n_heads, config.n_kv_heads
        own.num_local_experts, own.num_experts_per_tok = config.num_experts, config.top_k
        own.rms_norm_eps = config.norm.eps
        return type(self)(own)

    def forward(self, input_ids):
        x = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            (x, _) = layer(hidden_states=x)
        return Output(self.lm_head(self.model.norm(x)))


def decoder(dtype=torch.float64, model_class=Decoder, **settings):
    """A decoder with every parameter away from its initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(DecoderConfig(**settings)).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def tokens(seed=0, batch=4, length=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(31, (batch, length), generator=generator)


def train(model, optimizer, steps, start=0):
    """Steps on one stream of batches; the same ones for every model."""
    for step in range(start, start + steps):
        batch = tokens(100 + step)
        logits = model(batch[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def difference(one, other):
    """The largest difference of logits."""
    return float((one(tokens()).logits - other(tokens()).logits).abs().max())
