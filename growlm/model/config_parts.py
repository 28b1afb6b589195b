"""The parts of a `ModelConfig`: what a model computes, apart from its sizes. Growth keeps them.

Each part is read by the module of the same name in `growlm/model/layers/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from growlm.runtime.field_limits import limits


@dataclass(frozen=True)
class AttentionConfig:
    """Part `attention` of a model config."""

    bias: str = field(default="all", metadata=limits(choices=("none", "qkv", "all")))
    """Which projections have biases: none, those of queries, keys and values, or the output projection too.
    `true` means all, `false` none."""
    qk_norm: str = field(default="none", metadata=limits(choices=("none", "head")))
    """Normalization of queries and keys before the rotation: `head` is an RMSNorm over the channels of each head,
    with one gain for all heads (Henry et al. 2020, arXiv 2010.04245; as in Qwen3)."""
    qk_norm_eps: float | None = field(default=None, metadata=limits(above=0.0, below=1.0))
    """Constant added to the variance of `qk_norm`; None for `norm.eps`. Growth keeps it."""

    def __post_init__(self) -> None:
        bias = {"true": "all", "false": "none"}.get(str(self.bias).lower(), self.bias)
        object.__setattr__(self, "bias", bias)


@dataclass(frozen=True)
class RopeScalingConfig:
    """Part `rope.scaling` of a model config: for sequences longer than those of the first training."""

    kind: str = field(default="none", metadata=limits(choices=("none", "linear", "llama3", "yarn")))
    """`linear`: all frequencies are divided by `factor` (Chen et al. 2023, arXiv 2306.15595); `llama3` (Llama 3.1)
    and `yarn` (Peng et al. 2023, arXiv 2309.00071): only low ones are."""
    factor: float = field(default=1.0, metadata=limits(minimum=1.0))
    """Divisor of the frequencies."""
    original_max_seq_len: int = field(default=8192, metadata=limits(minimum=1, maximum=2**30))
    """`llama3`, `yarn`: length of the sequences of the first training."""
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
    """`yarn`: factor of the cosines and sines; None for 0.1 · ln(factor) + 1."""


@dataclass(frozen=True)
class RopeConfig:
    """Part `rope` of a model config: rotary position embeddings (Su et al. 2021, arXiv 2104.09864)."""

    theta: float = field(default=10000.0, metadata=limits(above=1.0))
    """Base of the rotary frequencies."""
    fraction: float = field(default=1.0, metadata=limits(above=0.0, maximum=1.0))
    """Fraction of a head's channels, the first ones, that is rotated; the other channels carry no position."""
    scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Scaling of the frequencies."""


@dataclass(frozen=True)
class NormConfig:
    """Part `norm` of a model config."""

    kind: str = field(default="layernorm", metadata=limits(choices=("layernorm", "rmsnorm")))
    """Normalization before each sub-block and before the head."""
    eps: float = field(default=1e-5, metadata=limits(above=0.0, below=1.0))
    """Constant added to the variance. Growth to a width that is not a multiple scales it (see
    `growth/operators/widen.py`)."""
    bias: bool = True
    """Whether LayerNorm has a bias. RMSNorm has none; there it is always false."""
    parallel_residual: bool = False
    """Whether attention and feed-forward block both read the stream before the block (as in GPT-NeoX), not one
    after the other."""

    def __post_init__(self) -> None:
        if self.kind == "rmsnorm":
            object.__setattr__(self, "bias", False)


@dataclass(frozen=True)
class FeedForwardConfig:
    """Part `feed_forward` of a model config."""

    kind: str = field(default="gelu", metadata=limits(choices=("gelu", "swiglu")))
    """Activation; `swiglu` (Shazeer 2020, arXiv 2002.05202) adds a gate projection beside `up`."""
    bias: bool = True
    """Whether the projections have biases. The router has none."""


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
