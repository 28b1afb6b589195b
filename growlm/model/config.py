"""The model config, which describes the architecture completely."""

from __future__ import annotations

from dataclasses import dataclass, field

from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits, limits


@dataclass
class ModelConfig:
    """The architecture of a decoder-only transformer.

    Growth returns a new config (`dataclasses.replace`) and never edits one.
    """

    vocab_size: int = field(default=50257, metadata=limits(minimum=0, maximum=2**22))
    """Rows of the embedding. In a run's config, 0 means the size of the tokenizer's vocabulary."""
    d_model: int = field(default=512, metadata=limits(minimum=1, maximum=2**17))
    """Channels of the residual stream."""
    n_layers: int = field(default=12, metadata=limits(minimum=1, maximum=4096))
    """Number of blocks."""
    n_heads: int = field(default=8, metadata=limits(minimum=1, maximum=4096))
    """Number of query heads."""
    n_kv_heads: int = field(default=8, metadata=limits(minimum=1, maximum=4096))
    """Number of key/value heads; each serves `n_heads / n_kv_heads` query heads."""
    head_dim: int = field(default=64, metadata=limits(minimum=2, maximum=4096))
    """Channels of one head. Even, because RoPE rotates pairs of channels; growth never changes it."""
    d_ff: int = field(default=2048, metadata=limits(minimum=1, maximum=2**19))
    """Hidden units of a feed-forward block, or of one expert."""
    max_seq_len: int = field(default=1024, metadata=limits(minimum=2, maximum=2**20))
    """Longest sequence the model can read, in tokens."""
    norm: str = field(default="layernorm", metadata=limits(choices=("layernorm", "rmsnorm")))
    """Normalization before each sub-block and before the head."""
    feed_forward: str = field(default="gelu", metadata=limits(choices=("gelu", "swiglu")))
    """Activation; `swiglu` adds a gate projection beside `up`."""
    bias: bool = True
    """Whether linear layers (except the router and the head) and LayerNorm have biases."""
    tie_embeddings: bool = True
    """Whether the head shares the embedding matrix."""
    norm_eps: float = field(default=1e-5, metadata=limits(above=0.0, below=1.0))
    """Constant added to the variance. Growth to a width that is not a multiple scales it (see
    `growth/widen.py`)."""
    rope_theta: float = field(default=10000.0, metadata=limits(above=1.0))
    """Base of the rotary frequencies."""
    num_experts: int = field(default=0, metadata=limits(minimum=0, maximum=4096))
    """Experts per block; 0 for a dense model."""
    top_k: int = field(default=2, metadata=limits(minimum=1, maximum=4096))
    """Experts that each token uses; ignored in a dense model."""
    router_balance_weight: float = field(default=1e-2, metadata=limits(minimum=0.0))
    """Weight of the load-balancing loss (Fedus et al. 2021, arXiv 2101.03961, eq. 4) in the training loss."""
    router_z_weight: float = field(default=0.0, metadata=limits(minimum=0.0))
    """Weight of the router z-loss (Zoph et al. 2022, arXiv 2202.08906, eq. 5) in the training loss."""
    router_bias_step: float = field(default=0.0, metadata=limits(minimum=0.0, maximum=1.0))
    """Step of loss-free balancing (Wang et al. 2024, arXiv 2408.15664); 0 turns it off.

    After each step, every expert's selection bias moves by this much: up if the expert got fewer tokens than the
    mean, down if more. The bias is added to the logits for selection only. On logits, 1e-2 has about the effect of
    the paper's 1e-3 on probabilities. Use it instead of the balancing loss (set that weight to 0) or together with
    it."""
    router_tie_breaking: bool = False
    """Whether equal router logits are ordered by a fixed pseudo-random order, for expert selection only."""

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forward blocks are mixtures of experts."""
        return self.num_experts > 0

    def axis_sizes(self) -> dict[str, int]:
        """Return the number of channels of every axis that parameters write, read or are indexed by."""
        return {
            "vocabulary": self.vocab_size,
            "residual": self.d_model,
            "query_heads": self.n_heads * self.head_dim,
            "key_value_heads": self.n_kv_heads * self.head_dim,
            "hidden": self.d_ff,
            "experts": self.num_experts,
        }

    def axis_unit(self, axis: str) -> int:
        """Return how many channels of the axis form a unit: a head's channels, else 1."""
        return self.head_dim if axis in ("query_heads", "key_value_heads") else 1

    def validate(self) -> None:
        """Check all fields, each alone and together.

        Raises:
            UserError: If a field is invalid; it names the first such field.
        """
        check_limits(self)
        if self.head_dim % 2:
            raise UserError(
                "head_dim", self.head_dim, "must be even: RoPE rotates pairs of channels"
            )
        if self.n_heads % self.n_kv_heads:
            raise UserError("n_kv_heads", self.n_kv_heads, f"must divide n_heads={self.n_heads}")
        if self.is_moe:
            check_routing(self.num_experts, self.top_k)


def check_routing(num_experts: int, top_k: int) -> None:
    """Check that a router choosing `top_k` of `num_experts` can be trained.

    Raises:
        UserError: If it cannot, with the reason.
    """
    if num_experts < 2:
        raise UserError("num_experts", num_experts, "must be at least 2")
    if top_k > num_experts:
        raise UserError("top_k", top_k, f"must be at most num_experts={num_experts}")
    if top_k < 2:
        raise UserError(
            "top_k",
            top_k,
            "must be at least 2: gates are renormalized to sum to one, so a single chosen expert always "
            "has gate 1 and the router gets no gradient",
        )
