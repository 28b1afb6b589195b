"""The model config, which describes the architecture completely."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache, reduce
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_type_hints

from growlm.model.config_parts import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    LayersConfig,
    NormConfig,
    RopeConfig,
    RoutingConfig,
)
from growlm.model.former_fields import (
    ATTRIBUTES_MOVED,
    is_former_field,
    translate_former_fields,
)
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits, limits

ConfigT = TypeVar("ConfigT")

if TYPE_CHECKING:
    DerivedInt = int
else:
    DerivedInt = int | None
"""A size that may be left out, or None, where a config is made, and is a number afterwards."""
_DERIVED: Any = None


MAX_LAYERS = 4096

PRESETS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "llama": {
        "tie_embeddings": False,
        "attention": {"bias": "none"},
        "norm": {"kind": "rmsnorm"},
        "feed_forward": {"kind": "swiglu", "bias": False},
    },
}
"""Fields that each preset of `ModelConfig.preset` changes; the others keep their defaults."""


class _ConfigType(type):
    """The type of `ModelConfig` and its subclasses: a call takes parts as mappings, too, and former fields."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        if any(is_former_field(name, value) for name, value in fields.items()):
            fields = translate_former_fields(fields)
        kinds = cls.part_types()  # type: ignore[attr-defined]
        for name, value in fields.items():
            if name in kinds and isinstance(value, Mapping):
                fields[name] = _make_part(kinds[name], value)
        return super().__call__(*args, **fields)


@dataclass(frozen=True)
class ModelConfig(metaclass=_ConfigType):
    """The architecture of a decoder-only transformer: sizes, which growth changes, and parts, which it keeps.

    A config is immutable and hashable: make changed copies with `dataclasses.replace`. Two equal
    configs make models that compute the same function of the same weights. A subclass may add fields; it must be a
    frozen dataclass, too.

    A part may be given as a mapping of its fields. The flat fields of growlm 0.1 (`norm="rmsnorm"`,
    `rope_theta=...`, `bias=False`) are accepted, too; see `former_fields.py`.
    """

    vocab_size: int = field(default=50257, metadata=limits(minimum=0, maximum=2**22))
    """Rows of the embedding. In a run's config, 0 means the size of the tokenizer's vocabulary."""
    d_model: int = field(default=512, metadata=limits(minimum=1, maximum=2**17))
    """Channels of the residual stream."""
    n_layers: int = field(default=12, metadata=limits(minimum=1, maximum=MAX_LAYERS))
    """Number of blocks."""
    n_heads: int = field(default=8, metadata=limits(minimum=1, maximum=4096))
    """Number of query heads."""
    n_kv_heads: DerivedInt = field(default=_DERIVED, metadata=limits(minimum=1, maximum=4096))
    """Number of key/value heads; each serves `n_heads / n_kv_heads` query heads. None: `n_heads`."""
    head_dim: DerivedInt = field(default=_DERIVED, metadata=limits(minimum=2, maximum=4096))
    """Channels of one head. Even, because RoPE rotates pairs of channels; growth never changes it. None:
    `d_model / n_heads`."""
    d_ff: int = field(default=2048, metadata=limits(minimum=1, maximum=2**19))
    """Hidden units of a feed-forward block, or of one expert."""
    max_seq_len: int = field(default=1024, metadata=limits(minimum=2, maximum=2**20))
    """Longest sequence the model can read, in tokens."""
    tie_embeddings: bool = True
    """Whether the head shares the embedding matrix."""
    num_experts: int = field(default=0, metadata=limits(minimum=0, maximum=4096))
    """Experts per block; 0 for a dense model."""
    top_k: int = field(default=2, metadata=limits(minimum=1, maximum=4096))
    """Experts that each token uses; ignored in a dense model."""
    expert_d_ff: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**19))
    """Hidden units of one expert, in a model that has dense blocks, too (`layers.mixture`); None for `d_ff`."""
    shared_d_ff: int = field(default=0, metadata=limits(minimum=0, maximum=2**19))
    """Hidden units of an expert that every token uses beside the chosen ones; 0 for none."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Attention."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """Rotary position embeddings."""
    norm: NormConfig = field(default_factory=NormConfig)
    """Normalization."""
    feed_forward: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    """Feed-forward blocks, dense or experts."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    """Routers, their losses and their balance."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    """Embeddings and logits."""
    layers: LayersConfig = field(default_factory=LayersConfig)
    """What differs between blocks."""

    def __post_init__(self) -> None:
        # What cannot be derived stays None, and `validate` says so.
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.head_dim is None and _divides(self.n_heads, self.d_model):
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        attention = self.attention
        eps = None if attention.qk_norm == "none" else attention.qk_norm_eps or self.norm.eps
        is_usual = attention.scale is not None and attention.scale == self._usual_scale
        scale = None if is_usual else attention.scale
        if (attention.qk_norm_eps, attention.scale) != (eps, scale):
            attention = replace(attention, qk_norm_eps=eps, scale=scale)
            object.__setattr__(self, "attention", attention)
        object.__setattr__(self, "layers", self._complete_layers())
        if self.expert_d_ff is not None and self.is_moe and not self.layers.mixture:
            object.__setattr__(self, "d_ff", self.expert_d_ff)
            object.__setattr__(self, "expert_d_ff", None)

    def _complete_layers(self) -> LayersConfig:
        """Return the lists of `layers` with one entry per block, and empty where all blocks are alike."""
        window = "full" if self.attention.window is None else "window"
        alike = {"attention": window, "rotary": True, "mixture": True}
        complete: dict[str, Any] = {}
        for name, usual in alike.items():
            entries = getattr(self.layers, name)
            if entries and type(self.n_layers) is int and 0 < self.n_layers <= MAX_LAYERS:
                if len(entries) < self.n_layers:
                    entries = (entries * -(-self.n_layers // len(entries)))[: self.n_layers]
                if entries == (usual,) * self.n_layers:
                    entries = ()
            complete[name] = entries
        return replace(self.layers, **complete)

    def __getattr__(self, name: str) -> Any:
        # Called for unknown names only: here, the flat fields of growlm 0.1.
        path = ATTRIBUTES_MOVED.get(name)
        if path is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        message = f"ModelConfig.{name} is now {path}; the old name will be removed in growlm 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return get_field(self, path)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Self:
        """Return a config with the parts of a family of models.

        Args:
            name: Name of the preset; see `PRESETS`.
            fields: Sizes, and parts or fields of parts (as mappings) that differ from the preset's.

        Raises:
            UserError: If there is no such preset.
        """
        if name not in PRESETS:
            raise UserError("preset", name, f"must be one of {', '.join(PRESETS)}")
        fields = translate_former_fields(fields)
        merged: dict[str, Any] = dict(PRESETS[name])
        for key, value in fields.items():
            both_parts = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = {**merged[key], **value} if both_parts else value
        return cls(**merged)

    @classmethod
    def part_types(cls) -> dict[str, type[Any]]:
        """Return the class of each part, by the field's name."""
        types = _field_types(cls).items()
        return {name: kind for name, kind in types if isinstance(kind, type) and is_dataclass(kind)}

    @property
    def is_moe(self) -> bool:
        """Whether feed-forward blocks are mixtures of experts: all, or those that `layers.mixture` names."""
        return self.num_experts > 0

    def is_mixture(self, block: int) -> bool:
        """Return whether the feed-forward block of a block is a mixture of experts."""
        return self.is_moe and (not self.layers.mixture or self.layers.mixture[block])

    @property
    def mixtures(self) -> list[int]:
        """The blocks whose feed-forward blocks are mixtures of experts."""
        return [block for block in range(self.n_layers) if self.is_mixture(block)]

    def with_blocks(self, sources: Sequence[int]) -> Self:
        """Return the config of a model made of some of the blocks, in the given order; a block may occur twice."""
        layers, attention, rope = self.layers.select(sources), self.attention, self.rope
        if layers.attention and "window" not in layers.attention:
            layers = replace(layers, attention=())
            attention, rope = replace(attention, window=None), replace(rope, window_theta=None)
        part = replace(self, n_layers=len(sources), layers=layers, attention=attention, rope=rope)
        if self.is_moe and not any(map(self.is_mixture, sources)):
            layers = replace(layers, mixture=())
            part = replace(part, num_experts=0, expert_d_ff=None, shared_d_ff=0, layers=layers)
        return part

    def block_window(self, block: int) -> int | None:
        """Return the number of positions that the block attends to; None for all earlier ones."""
        kinds = self.layers.attention
        return None if kinds and kinds[block] == "full" else self.attention.window

    def rotates(self, block: int) -> bool:
        """Return whether the block rotates queries and keys."""
        if self.embedding.positions == "learned":
            return False
        return not self.layers.rotary or self.layers.rotary[block]

    @property
    def _usual_scale(self) -> float | None:
        return self.head_dim**-0.5 if type(self.head_dim) is int and self.head_dim > 0 else None

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores."""
        return self.attention.scale or self.head_dim**-0.5

    @property
    def embedding_factor(self) -> float:
        """Factor of the token embeddings."""
        width = math.sqrt(self.d_model) if self.embedding.scale_by_width else 1.0
        return self.embedding.multiplier * width

    @property
    def _num_position_rows(self) -> int:
        if self.embedding.positions != "learned":
            return 0
        return self.max_seq_len + self.embedding.position_offset

    @property
    def rotary_dim(self) -> int:
        """Number of channels of each head that are rotated."""
        return int(self.head_dim * self.rope.fraction)

    def axis_sizes(self) -> dict[str, int]:
        """Return the number of channels of every axis that parameters write, read or are indexed by."""
        return {
            "vocabulary": self.vocab_size,
            "residual": self.d_model,
            "query_heads": self.n_heads * self.head_dim,
            "key_value_heads": self.n_kv_heads * self.head_dim,
            "head_channels": self.head_dim,
            "hidden": self.d_ff,
            "experts": self.num_experts,
            "expert_hidden": self.expert_d_ff or 0,
            "shared_hidden": self.shared_d_ff,
            "positions": self._num_position_rows,
        }

    @property
    def expert_axis(self) -> str:
        """The axis of an expert's hidden units."""
        return "hidden" if self.expert_d_ff is None else "expert_hidden"

    def axis_unit(self, axis: str) -> int:
        """Return how many channels of the axis form a unit: a head's channels, else 1."""
        return self.head_dim if axis in ("query_heads", "key_value_heads") else 1

    def validate(self) -> None:
        """Check all fields, each alone and together.

        Raises:
            UserError: If a field is invalid; it names the first such field.
        """
        check_limits(self)
        if self.head_dim is None:
            reason = (
                f"must be given where n_heads={self.n_heads} does not divide d_model={self.d_model}"
            )
            raise UserError("head_dim", "null", reason)
        if self.rotary_dim % 2 or not self.rotary_dim:
            reason = f"must give an even number of rotated channels, not {self.rotary_dim}: RoPE rotates pairs"
            name = "head_dim" if self.rope.fraction == 1 else "rope.fraction"
            raise UserError(name, get_field(self, name), reason)
        scaling = self.rope.scaling
        if scaling.kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
            reason = f"must be above low_freq_factor={scaling.low_freq_factor:g}"
            raise UserError("rope.scaling.high_freq_factor", scaling.high_freq_factor, reason)
        if scaling.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                if len(getattr(scaling, name)) != self.rotary_dim // 2:
                    reason = f"must have {self.rotary_dim // 2} numbers, one per frequency"
                    raise UserError(f"rope.scaling.{name}", len(getattr(scaling, name)), reason)
        if self.n_heads % self.n_kv_heads:
            raise UserError("n_kv_heads", self.n_kv_heads, f"must divide n_heads={self.n_heads}")
        if self.is_moe:
            check_routing(self.num_experts, self.top_k, self.routing.renormalize)
            if self.routing.shared_gate and not self.shared_d_ff:
                raise UserError("routing.shared_gate", True, "needs shared_d_ff, the expert's size")
        else:
            for name in ("shared_d_ff", "expert_d_ff", "layers.mixture"):
                if value := get_field(self, name):
                    reason = "needs num_experts: without them all blocks are dense"
                    raise UserError(name, value, reason)
        self._check_norms()
        self._check_layers()
        if self.embedding.position_offset and self.embedding.positions != "learned":
            reason = "has no effect without embedding.positions=learned"
            raise UserError("embedding.position_offset", self.embedding.position_offset, reason)

    def _check_norms(self) -> None:
        if self.norm.gain_offset not in (0.0, 1.0):
            raise UserError("norm.gain_offset", self.norm.gain_offset, "must be 0 or 1")
        if self.norm.shared:
            if not self.norm.parallel_residual:
                raise UserError("norm.shared", "true", "needs norm.parallel_residual=true")
            if self.norm.placement == "post":
                raise UserError("norm.shared", "true", "needs norm.placement=pre or both")
        if self.norm.kind == "rmsnorm":
            return
        reason = "needs norm.kind=rmsnorm"
        if self.norm.placement != "pre":
            raise UserError("norm.placement", self.norm.placement, reason)

    def _check_layers(self) -> None:
        for name in ("attention", "rotary", "mixture"):
            if (length := len(getattr(self.layers, name))) > self.n_layers:
                reason = f"must have at most n_layers={self.n_layers} entries"
                raise UserError(f"layers.{name}", f"{length} entries", reason)
        window, kinds = self.attention.window, self.layers.attention
        if window is None and "window" in kinds:
            raise UserError("layers.attention", "window", "needs attention.window, its length")
        if self.layers.mixture and True not in self.layers.mixture:
            reason = "has no effect: no block is a mixture in layers.mixture"
            raise UserError("num_experts", self.num_experts, reason)
        if window is not None and kinds and "window" not in kinds:
            reason = "has no effect: no block has a window in layers.attention"
            raise UserError("attention.window", window, reason)
        if window is None and self.rope.window_theta is not None:
            reason = "has no effect without attention.window"
            raise UserError("rope.window_theta", self.rope.window_theta, reason)


def check_routing(num_experts: int, top_k: int, renormalize: bool = True) -> None:
    """Check that a router choosing `top_k` of `num_experts` can be trained.

    Args:
        num_experts: Number of experts.
        top_k: Number of experts that each token uses.
        renormalize: Whether their gates sum to one.

    Raises:
        UserError: If it cannot, with the reason.
    """
    if num_experts < 2:
        raise UserError("num_experts", num_experts, "must be at least 2")
    if top_k > num_experts:
        raise UserError("top_k", top_k, f"must be at most num_experts={num_experts}")
    if top_k < 2 and renormalize:
        raise UserError(
            "top_k",
            top_k,
            "must be at least 2: gates are renormalized to sum to one, so a single chosen expert always "
            "has gate 1 and the router gets no gradient",
        )


def _make_part(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Return a part, and the parts inside it, from mappings."""
    types = _field_types(kind)  # type: ignore[arg-type]
    nested = {
        name: _make_part(types[name], value)
        for name, value in values.items()
        if isinstance(value, Mapping) and is_dataclass(types.get(name))
    }
    return kind(**{**values, **nested})


def _divides(divisor: Any, number: Any) -> bool:
    # Values that are read from files have not been checked yet.
    return type(divisor) is int and type(number) is int and divisor > 0 and number % divisor == 0


@cache
def _field_types(config_class: Any) -> dict[str, Any]:
    return get_type_hints(config_class)


def get_field(config: Any, path: str) -> Any:
    """Return a field of a config, or of one of its parts: `d_model`, `norm.eps`."""
    return reduce(getattr, path.split("."), config)


def get_field_type(config_class: type[Any], path: str) -> Any:
    """Return the declared type of a field of a config, or of one of its parts."""
    return reduce(lambda kind, name: _field_types(kind)[name], path.split("."), config_class)  # type: ignore[arg-type]


def replace_fields(config: ConfigT, values: Mapping[str, Any]) -> ConfigT:
    """Return a config with changed fields, by their paths: `{"d_model": 64, "norm.eps": 1e-6}`."""
    changes: dict[str, Any] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        part = changes.get(name, getattr(config, name))
        changes[name] = replace_fields(part, {rest: value}) if rest else value
    return replace(config, **changes)  # type: ignore[type-var]


def nest_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields by path as nested mappings: `{"norm.eps": 1e-6}` becomes `{"norm": {"eps": 1e-6}}`."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *parts, name = path.split(".")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        place[name] = value
    return nested


def field_paths(config: Any, prefix: str = "") -> list[str]:
    """Return the paths of all fields of a config and of its parts, in order."""
    paths: list[str] = []
    for each in fields(config):
        value = getattr(config, each.name)
        nested = is_dataclass(value)
        paths += field_paths(value, f"{prefix}{each.name}.") if nested else [prefix + each.name]
    return paths
