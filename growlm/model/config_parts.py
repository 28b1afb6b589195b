"""The parts of a `ModelConfig`: what a model computes, apart from its sizes. Growth keeps them.

Each part is read by the module of the same name in `growlm/model/layers/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from growlm.runtime.field_limits import limits

SCALING_KINDS = ("none", "linear", "llama3", "yarn", "longrope")


def _make_tuples(part: Any) -> None:
    """Replace the lists of a part, which come from files, by tuples, which are hashable."""
    for each in fields(part):
        if isinstance(value := getattr(part, each.name), list):
            object.__setattr__(part, each.name, tuple(value))


@dataclass(frozen=True)
class AttentionConfig:
    """Part `attention` of a model config."""

    bias: str = field(default="all", metadata=limits(choices=("none", "qkv", "all")))
    """Which projections have biases: none, those of queries, keys and values, or the output projection too.
    `true` means all, `false` none."""
    qk_norm: str = field(default="none", metadata=limits(choices=("none", "head", "full")))
    """Normalization of queries and keys before the rotation: `head` is an RMSNorm over the channels of each head,
    with one gain for all heads (Henry et al. 2020, arXiv 2010.04245; as in Qwen3); `full` is one over the channels
    of all heads together (as in OLMo 2)."""
    qk_norm_eps: float | None = field(default=None, metadata=limits(above=0.0, maximum=1.0))
    """Constant added to the variance of `qk_norm`; None for `norm.eps`. Growth keeps it."""
    scale: float | None = field(default=None, metadata=limits(above=0.0))
    """Factor of the scores; None for 1 / sqrt(head_dim)."""
    softcap: float | None = field(default=None, metadata=limits(above=0.0))
    """Bound on the scores: they become softcap · tanh(score / softcap) (Gemma 2). None for no bound."""
    window: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**20))
    """Number of positions, its own included, that a token attends to in the blocks with a window (all blocks,
    unless `layers.attention` says otherwise); None for all positions before it."""

    def __post_init__(self) -> None:
        bias = {"true": "all", "false": "none"}.get(str(self.bias).lower(), self.bias)
        object.__setattr__(self, "bias", bias)


@dataclass(frozen=True)
class RopeScalingConfig:
    """Part `rope.scaling` of a model config: for sequences longer than those of the first training."""

    kind: str = field(default="none", metadata=limits(choices=SCALING_KINDS))
    """`linear`: all frequencies are divided by `factor` (Chen et al. 2023, arXiv 2306.15595); `llama3` (Llama 3.1)
    and `yarn` (Peng et al. 2023, arXiv 2309.00071): only low ones are; `longrope` (Ding et al. 2024, arXiv
    2402.13753): each has a divisor of its own."""
    factor: float = field(default=1.0, metadata=limits(minimum=1.0))
    """Divisor of the frequencies; `longrope`: ratio of the new length to the original one."""
    original_max_seq_len: int = field(default=8192, metadata=limits(minimum=1, maximum=2**30))
    """`llama3`, `yarn`, `longrope`: length of the sequences of the first training."""
    low_freq_factor: float = field(default=1.0, metadata=limits(minimum=0.0))
    """`llama3`: number of turns over the original length below which a frequency is divided in full."""
    high_freq_factor: float = field(default=4.0, metadata=limits(minimum=0.0))
    """`llama3`: number of turns from which a frequency is kept."""
    beta_fast: float = field(default=32.0, metadata=limits(above=0.0))
    """`yarn`: number of turns from which a frequency is kept."""
    beta_slow: float = field(default=1.0, metadata=limits(above=0.0))
    """`yarn`: number of turns below which a frequency is divided in full."""
    truncate: bool = True
    """`yarn`: whether the ends of the ramp between them are rounded to whole indices."""
    attention_factor: float | None = field(default=None, metadata=limits(above=0.0))
    """Factor of the cosines and sines; None for 0.1 · ln(factor) + 1 (`yarn`) or sqrt(1 + ln(factor) /
    ln(original_max_seq_len)) (`longrope`)."""
    short_factors: tuple[float, ...] = field(default=(), metadata=limits(above=0.0))
    """`longrope`: divisor of each frequency in sequences up to the original length, the highest first."""
    long_factors: tuple[float, ...] = field(default=(), metadata=limits(above=0.0))
    """`longrope`: likewise in longer sequences."""

    def __post_init__(self) -> None:
        _make_tuples(self)

    def is_long(self, length: int) -> bool:
        """Return whether a sequence of this length has other frequencies than a short one."""
        return self.kind == "longrope" and length > self.original_max_seq_len


@dataclass(frozen=True)
class RopeConfig:
    """Part `rope` of a model config: rotary position embeddings (Su et al. 2021, arXiv 2104.09864)."""

    theta: float = field(default=10000.0, metadata=limits(above=1.0))
    """Base of the rotary frequencies."""
    fraction: float = field(default=1.0, metadata=limits(above=0.0, maximum=1.0))
    """Fraction of a head's channels, the first ones, that is rotated; the other channels carry no position."""
    scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Scaling of the frequencies."""
    window_theta: float | None = field(default=None, metadata=limits(above=1.0))
    """Base of the frequencies in blocks with a window, where they are not scaled (Gemma 3, OLMo 3); None for
    those of the other blocks."""
    interleaved: bool = False
    """Whether the channels 2i and 2i + 1 of a head are rotated together (as in GLM-4), not i and i + n/2, where n
    is the number of rotated channels."""


@dataclass(frozen=True)
class NormConfig:
    """Part `norm` of a model config."""

    kind: str = field(default="layernorm", metadata=limits(choices=("layernorm", "rmsnorm")))
    """Normalization of each sub-block and before the head."""
    eps: float = field(default=1e-5, metadata=limits(above=0.0, maximum=1.0))
    """Constant added to the variance. Growth to a width that is not a multiple scales it (see
    `growth/operators/widen.py`)."""
    bias: bool = True
    """Whether LayerNorm has a bias. RMSNorm has none; there it is always false."""
    parallel_residual: bool = False
    """Whether attention and feed-forward block both read the stream before the block (as in GPT-NeoX), not one
    after the other."""
    shared: bool = False
    """Whether both read it through the same norm (as in Phi-2, Falcon-7B and Command-R); needs
    `parallel_residual`."""
    placement: str = field(default="pre", metadata=limits(choices=("pre", "post", "both")))
    """Where each sub-block (attention, feed-forward) is normalized: its input, its output before that is added to
    the residual stream (as in OLMo 2), or both (as in Gemma 2). `post` and `both` need `rmsnorm`."""
    gain_offset: float = field(default=0.0, metadata=limits(minimum=0.0, maximum=1.0))
    """Constant added to the weights of norms, `qk_norm` included: 0, or 1 where gains are stored as 1 + weight
    (as in Gemma, and in Nemotron's LayerNorm)."""
    residual_multiplier: float = field(default=1.0, metadata=limits(above=0.0))
    """Factor of the output of each sub-block when it is added to the residual stream (as in Granite)."""

    def __post_init__(self) -> None:
        if self.kind == "rmsnorm":
            object.__setattr__(self, "bias", False)


ACTIVATIONS = {
    "gelu": False,
    "gelu_tanh": False,
    "relu": False,
    "relu2": False,
    "swiglu": True,
    "geglu": True,
    "geglu_tanh": True,
}
"""The kinds of feed-forward block, and whether each has a gate projection."""


@dataclass(frozen=True)
class FeedForwardConfig:
    """Part `feed_forward` of a model config."""

    kind: str = field(default="gelu", metadata=limits(choices=tuple(ACTIVATIONS)))
    """Activation. `gelu_tanh` is GELU's approximation by a tanh, `relu2` the squared ReLU (So et al. 2021, arXiv
    2109.08668). `swiglu`, `geglu` and `geglu_tanh` (Shazeer 2020, arXiv 2002.05202) add a gate projection beside
    `up`."""
    bias: bool = True
    """Whether the projections have biases. The router has none."""

    @property
    def is_gated(self) -> bool:
        """Whether there is a gate projection."""
        return ACTIVATIONS[self.kind]


@dataclass(frozen=True)
class RoutingConfig:
    """Part `routing` of a model config; without effect in a dense model."""

    balance_weight: float = field(default=1e-2, metadata=limits(minimum=0.0))
    """Weight of the load-balancing loss (Fedus et al. 2021, arXiv 2101.03961, eq. 4) in the training loss."""
    z_weight: float = field(default=0.0, metadata=limits(minimum=0.0))
    """Weight of the router z-loss (Zoph et al. 2022, arXiv 2202.08906, eq. 5) in the training loss."""
    bias_step: float = field(default=0.0, metadata=limits(minimum=0.0, maximum=1.0))
    """Step of loss-free balancing (Wang et al. 2024, arXiv 2408.15664); 0 turns it off.

    After each step, every expert's selection bias moves by this much: up if the expert got fewer tokens than the
    mean, down if more. The bias is added to the logits for selection only. On logits, 1e-2 has about the effect of
    the paper's 1e-3 on probabilities. Use it instead of the balancing loss (set that weight to 0) or together with
    it."""
    tie_breaking: bool = False
    """Whether equal router logits are ordered by a fixed pseudo-random order, for expert selection only."""
    renormalize: bool = True
    """Whether the gates of the chosen experts are divided by their sum. If not, they are the experts'
    probabilities among all experts, and a dense model cannot be upcycled without a change of its function."""
    shared_gate: bool = False
    """Whether the output of the shared expert (`shared_d_ff`) is multiplied by a sigmoid of the token's own (as in
    Qwen2-MoE)."""


@dataclass(frozen=True)
class EmbeddingConfig:
    """Part `embedding` of a model config: what comes before the first block and after the last norm."""

    positions: str = field(default="none", metadata=limits(choices=("none", "learned")))
    """`learned`: a trained vector for each position is added to the token's embedding (as in GPT-2), and nothing
    is rotated. `none`: positions come from `rope` alone."""
    position_offset: int = field(default=0, metadata=limits(minimum=0, maximum=1024))
    """Rows of the table of learned positions before that of the first position, which nothing reads (2 in OPT)."""
    multiplier: float = field(default=1.0, metadata=limits(above=0.0))
    """Factor of the token embeddings (as in Granite)."""
    scale_by_width: bool = False
    """Whether the token embeddings are multiplied by sqrt(d_model), too (as in Gemma)."""
    logit_multiplier: float = field(default=1.0, metadata=limits(above=0.0))
    """Factor of the logits (as in Granite)."""
    logit_softcap: float | None = field(default=None, metadata=limits(above=0.0))
    """Bound on the logits: they become softcap · tanh(logit / softcap) (Gemma 2). None for no bound."""
    head_bias: bool = False
    """Whether the head has a bias (as in Phi-2), one number for each token of the vocabulary. `logit_multiplier`
    does not multiply it."""


@dataclass(frozen=True)
class LayersConfig:
    """Part `layers` of a model config: what differs between blocks.

    Each list has one entry per block, the first block first. A shorter list is a pattern that is repeated; an
    empty one means that all blocks are alike. A block that growth adds has the entries of the block it comes from.
    """

    attention: tuple[str, ...] = field(default=(), metadata=limits(choices=("full", "window")))
    """Whether each block attends to all earlier positions, or to the `attention.window` last ones."""
    rotary: tuple[bool, ...] = ()
    """Whether each block rotates queries and keys; one that does not has no positions (NoPE, as in SmolLM3)."""
    mixture: tuple[bool, ...] = ()
    """With `num_experts`: whether each block is a mixture of experts, or dense with `d_ff` hidden units."""

    def __post_init__(self) -> None:
        _make_tuples(self)

    def select(self, blocks: Sequence[int]) -> LayersConfig:
        """Return the entries of some blocks, which must exist in every list that is not empty."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return LayersConfig(
            **{name: tuple(v[i] for i in blocks) if v else () for name, v in values.items()}
        )
