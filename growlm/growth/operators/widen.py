"""Widen a model: more channels, heads and hidden units, each a copy of an existing one or fresh.

The method combines HyperCloning (Samragh et al. 2024, arXiv 2409.12903) and LEMON (Wang et al. 2023, arXiv
2310.07999) for any width: the residual stream takes whole copies and then filler channels that its norms make
exactly zero. docs/growth.md has the derivation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_map import MAX_NOISE_STD, AxisGrowth, GrowthSpec, NoiseLevel
from growlm.growth.operators.registry import register_operator
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits, limits

D_FF_MULTIPLE = 8
"""Hidden widths are rounded up to a multiple of this, which grouped matrix products need."""
NEW_CHANNEL_KINDS = ("copies", "fresh", "auto")
DEFAULT_COPY_NOISE_STD = 1e-2


@register_operator("widen", order=30)
@dataclass
class Widen:
    """Add channels, heads and hidden units: to everything (`scale_factor`) or to single sizes; lossless."""

    scale_factor: float | None = field(default=None, metadata=limits(minimum=1.0, maximum=64.0))
    """Growth of `d_model`, `n_heads` and `d_ff`; need not be an integer, but heads must stay whole."""
    d_model: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**17))
    """New residual width, instead of the scaled one."""
    n_heads: int | None = field(default=None, metadata=limits(minimum=1, maximum=4096))
    """New number of query heads, instead of the scaled one."""
    d_ff: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**19))
    """New number of hidden units, instead of the scaled one."""
    noise_std: float | None = field(default=None, metadata=limits(minimum=0.0, maximum=10.0))
    """Standard deviation of the zero-sum noise, which makes copies differ without changing the function;
    capped, for each matrix, at the standard deviation of its own entries. Copies take 1e-2 unless it is
    set."""
    noise_snr_db: float | None = field(default=None, metadata=limits(minimum=-6.0, maximum=200.0))
    """Signal-to-noise ratio of each matrix in decibels, instead of `noise_std`."""
    filler: str = field(default="random", metadata=limits(choices=("random", "zeros")))
    """Content of columns that read a filler channel: random numbers, which add free directions, or zeros."""
    split: str = field(default="equal", metadata=limits(choices=("equal", "1:2")))
    """How the columns of a channel's copies share its old column: in equal parts, or the first copy one part,
    the second two (the third three, ...), which makes copies diverge without any noise (SPARKLING, Yu et al.
    2026, arXiv 2602.02472, table 7)."""

    new_channels: str = field(default="auto", metadata=limits(choices=NEW_CHANNEL_KINDS))
    """What new channels are: `fresh`: random heads and hidden units that nothing reads yet, and only fillers in
    the residual stream; or `copies` of existing ones, which noise makes diverge. `auto` means `fresh`, unless
    `noise_std`, `noise_snr_db` or `split` is set, which apply to copies only."""
    shared_d_ff: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**19))
    """New number of hidden units of a mixture's shared expert, instead of the scaled one."""
    expert_d_ff: int | None = field(default=None, metadata=limits(minimum=1, maximum=2**19))
    """New number of hidden units of each expert, instead of the scaled one, where the model has dense blocks of
    another size (else `d_ff`)."""

    def change(self, config: ModelConfig) -> GrowthSpec:
        """Return the growth of a model of this config, and the config after it.

        Raises:
            UserError: If a setting is out of bounds, nothing grows, something shrinks, or a size is not whole
                after scaling.
        """
        check_limits(self)
        self._check_copy_only_settings()
        try:
            return self._growth(config)
        except UserError as refusal:
            if refusal.key != "scale_factor" or not (self.scale_factor or 1.0) > 1:
                raise
            reason = f"{refusal.reason}; {self._suggest_factors(config)}"
            raise UserError(refusal.key, refusal.value, reason) from None

    def _growth(self, config: ModelConfig) -> GrowthSpec:
        new = self._grown_config(config)
        query_heads, kv_heads = map_heads(config, new.n_heads, self._heads_setting())
        new = replace(new, n_kv_heads=kv_heads.new_size)
        residual = self._apply_split(ChannelMap.tiled(config.d_model, new.d_model))
        full_copies = residual.copy_counts().max().item()
        ratio = full_copies * config.d_model / new.d_model
        axes = {
            "residual": AxisGrowth(
                residual,
                # LayerNorm subtracts the mean, so a channel that holds the mean is exactly zero after the norm.
                filler_write_init="mean" if config.norm.kind == "layernorm" else "zero",
                filler_read_init="zero" if self.filler == "zeros" else "random",
                gain_factor=math.sqrt(ratio),
                embedding_factor=config.embedding_factor / new.embedding_factor,
            ),
            "query_heads": self._inner_axis_growth(query_heads, config.head_dim),
            "key_value_heads": self._inner_axis_growth(kv_heads, config.head_dim),
            "hidden": self._inner_axis_growth(ChannelMap.round_robin(config.d_ff, new.d_ff)),
            "shared_hidden": self._inner_axis_growth(
                ChannelMap.round_robin(config.shared_d_ff, new.shared_d_ff)
            ),
        }
        if config.expert_d_ff is not None and new.expert_d_ff is not None:
            channels = ChannelMap.round_robin(config.expert_d_ff, new.expert_d_ff)
            axes["expert_hidden"] = self._inner_axis_growth(channels)
        if config.attention.qk_norm == "full":
            self._check_equal_copies(axes["query_heads"].channels, axes["key_value_heads"].channels)
        return GrowthSpec(
            config=replace(new, norm=replace(config.norm, eps=config.norm.eps * ratio)),
            description=self._describe(config, new),
            axes={
                axis: g for axis, g in axes.items() if g.channels.new_size != g.channels.old_size
            },
            noise=self._noise_level(),
        )

    def summarize(self) -> str:
        """Return a few words for tables."""
        if self.scale_factor is not None:
            return f"×{self.scale_factor:g} wider"
        sizes = {"d_model": self.d_model, "n_heads": self.n_heads, "d_ff": self.d_ff}
        return ", ".join(f"{name} {size}" for name, size in sizes.items() if size) or "wider"

    def smaller(self) -> Iterator[Widen]:
        """Yield the same growth with smaller scale factors, in steps of an eighth, the largest first."""
        for eighths in range(round((self.scale_factor or 1.0) * 8) - 1, 8, -1):
            yield replace(self, scale_factor=eighths / 8)

    @classmethod
    def infer(cls, old: ModelConfig, new: ModelConfig) -> list[Widen]:
        """Return the ways in which channels may have been added; the check is the same with noise and without."""
        names = ["d_model", "n_heads", "d_ff"]
        names += [n for n in ("shared_d_ff", "expert_d_ff") if getattr(old, n) and getattr(new, n)]
        sizes: dict[str, Any] = {name: getattr(new, name) for name in names}
        if all(getattr(old, name) == size for name, size in sizes.items()):
            return []
        return [
            cls(**sizes, new_channels="copies", noise_std=MAX_NOISE_STD),
            cls(**sizes, new_channels="fresh"),
            cls(**sizes, new_channels="copies", noise_std=MAX_NOISE_STD, split="1:2"),
        ]

    def _copy_only_settings(self) -> dict[str, float | str]:
        """Return the settings that were given although they apply to copies only."""
        values = {"noise_std": self.noise_std, "noise_snr_db": self.noise_snr_db}
        found: dict[str, float | str] = {k: v for k, v in values.items() if v is not None}
        return found if self.split == "equal" else found | {"split": self.split}

    def _check_copy_only_settings(self) -> None:
        if self.new_channels == "fresh":
            for name, value in self._copy_only_settings().items():
                raise UserError(
                    name,
                    value,
                    "applies to copies, and new_channels=fresh makes none; set new_channels=copies",
                )

    def _makes_fresh_channels(self) -> bool:
        return self.new_channels != "copies" and not self._copy_only_settings()

    def _noise_level(self) -> NoiseLevel | None:
        std = DEFAULT_COPY_NOISE_STD if self.noise_std is None else self.noise_std
        no_noise = self.noise_snr_db is None and std == 0
        return (
            None if no_noise or self._makes_fresh_channels() else NoiseLevel(std, self.noise_snr_db)
        )

    def _inner_axis_growth(self, channels: ChannelMap, unit_size: int = 1) -> AxisGrowth:
        """Return the growth of heads or hidden units; no norm follows, so fillers are random and read as zero."""
        channels = self._apply_split(channels).expand_units(unit_size)
        return AxisGrowth(channels, filler_write_init="random", filler_read_init="zero")

    def _check_equal_copies(self, *heads: ChannelMap) -> None:
        """Check that a norm over all heads keeps its value: every head must have as many copies as the others."""
        if any(
            len(channels.copy_counts().unique()) > 1 or channels.has_fillers for channels in heads
        ):
            fresh = self._makes_fresh_channels()
            name, value = ("new_channels", self.new_channels) if fresh else self._heads_setting()
            raise UserError(
                name,
                value,
                "a norm over all heads (attention.qk_norm=full) keeps its value only if every head gets the same "
                "number of copies: set new_channels=copies and a whole scale_factor",
            )

    def _apply_split(self, channels: ChannelMap) -> ChannelMap:
        if self._makes_fresh_channels():
            return channels.without_copies()
        if self.split == "equal":
            return channels
        return ChannelMap.with_rising_shares(channels.old_size, channels.source)

    def _grown_config(self, config: ModelConfig) -> ModelConfig:
        factor = self.scale_factor or 1.0
        if self.shared_d_ff is not None and not config.shared_d_ff:
            raise UserError("shared_d_ff", self.shared_d_ff, "the model has no shared expert")
        if self.expert_d_ff is not None and not config.expert_d_ff:
            reason = "the model's experts have no size of their own; set d_ff"
            raise UserError("expert_d_ff", self.expert_d_ff, reason)
        new = replace(
            config,
            n_heads=self._scaled_size("n_heads", self.n_heads, config),
            d_model=self._scaled_size("d_model", self.d_model, config),
            d_ff=self.d_ff or _scaled_hidden_units(config.d_ff, factor),
            shared_d_ff=self.shared_d_ff or _scaled_hidden_units(config.shared_d_ff, factor),
        )
        widths = ["d_model", "n_heads", "d_ff", "shared_d_ff"]
        if config.expert_d_ff is not None:
            expert_d_ff = self.expert_d_ff or _scaled_hidden_units(config.expert_d_ff, factor)
            new, widths = replace(new, expert_d_ff=expert_d_ff), [*widths, "expert_d_ff"]
        for width in widths:
            if getattr(new, width) < getattr(config, width):
                reason = f"must be at least {getattr(config, width)}, the model's present value"
                raise UserError(width, getattr(new, width), reason)
        if all(getattr(new, width) == getattr(config, width) for width in widths):
            reason = "nothing would grow: set a scale_factor above 1, or d_model, n_heads or d_ff"
            raise UserError("scale_factor", self.scale_factor, reason)
        return new

    def _scaled_size(self, name: str, wanted: int | None, config: ModelConfig) -> int:
        size: int = getattr(config, name)
        factor = self.scale_factor or 1.0
        if wanted is None and abs(size * factor - round(size * factor)) > 1e-6:
            raise UserError(
                "scale_factor",
                factor,
                f"{name}={size} times {factor:g} is {size * factor:g}, not a whole number",
            )
        return wanted or round(size * factor)

    def _suggest_factors(self, config: ModelConfig) -> str:
        """Say which scale factors on either side give whole sizes, and heads that fit on the key/value heads."""
        scaled = {"n_heads": self.n_heads, "d_model": self.d_model}
        parts = math.gcd(*(getattr(config, name) for name, size in scaled.items() if size is None))
        wanted = (self.scale_factor or 1.0) * parts
        below = (n / parts for n in range(math.floor(wanted), parts, -1))
        above = (n / parts for n in range(math.ceil(wanted), 64 * parts + 1))
        near = [next(filter(partial(self._accepts, config), side), None) for side in (below, above)]
        # With as many digits as it takes to be accepted: 4/3 is not 1.33333.
        working = [f"{factor:.10g}" for factor in near if factor]
        if not working:
            return "no scale_factor works: set d_model, n_heads and d_ff"
        return f"nearby, {' and '.join(working)} work{'s' if len(working) == 1 else ''}"

    def _accepts(self, config: ModelConfig, scale_factor: float) -> bool:
        try:
            replace(self, scale_factor=scale_factor)._growth(config)
        except UserError:
            return False
        return True

    def _heads_setting(self) -> tuple[str, float | int | None]:
        return (
            ("scale_factor", self.scale_factor)
            if self.n_heads is None
            else ("n_heads", self.n_heads)
        )

    def _describe(self, old: ModelConfig, new: ModelConfig) -> list[str]:
        groups = f" on {new.n_kv_heads} key/value heads" if new.n_kv_heads != new.n_heads else ""
        return [
            f"Width {old.d_model} → {new.d_model}, heads {old.n_heads} → {new.n_heads}{groups}, "
            f"hidden units {old.d_ff} → {new.d_ff}"
            + (
                f" ({old.expert_d_ff} → {new.expert_d_ff} of each expert)"
                if old.expert_d_ff
                else ""
            ),
            self._describe_new_channels(),
        ]

    def _describe_new_channels(self) -> str:
        if self._makes_fresh_channels():
            return "New channels are random, and read or added with weight zero"
        level = self._noise_level()
        if level is None:
            noise = "none"
        elif level.snr_db is not None:
            noise = f"{level.snr_db:g} dB below each matrix"
        else:
            noise = f"standard deviation {level.std:g}, capped at each matrix's own"
        split = "" if self.split == "equal" else f"; columns split {self.split}"
        return f"New channels are copies; zero-sum noise: {noise}{split}"


def _scaled_hidden_units(size: int, factor: float) -> int:
    if factor == 1:
        return size
    return math.ceil(size * factor / D_FF_MULTIPLE - 1e-6) * D_FF_MULTIPLE


def map_heads(
    config: ModelConfig, new_heads: int, setting: tuple[str, float | int | None]
) -> tuple[ChannelMap, ChannelMap]:
    """Return the query head and the key/value head that each new one copies.

    Each copy of a query head must read a copy of the key/value head its source reads: either whole groups are
    copied, or query heads are copied inside their group.

    Args:
        config: Config of the old model.
        new_heads: Wanted number of query heads.
        setting: Setting and value to name in the error.

    Raises:
        UserError: If neither way gives groups of equal size.
    """
    old_heads, old_kv = config.n_heads, config.n_kv_heads
    group = old_heads // old_kv
    if new_heads % group == 0 and (old_kv > 1 or new_heads == old_heads):
        return (
            ChannelMap.round_robin(old_heads, new_heads),
            ChannelMap.round_robin(old_kv, new_heads // group),
        )
    if new_heads % old_kv == 0:
        new_group = new_heads // old_kv
        first = torch.arange(old_kv).unsqueeze(1) * group
        source = (first + torch.arange(new_group) % group).flatten()
        return ChannelMap.with_equal_shares(old_heads, source), ChannelMap.identity(old_kv)
    raise UserError(
        *setting,
        f"{new_heads} query heads do not fit on {old_kv} key/value heads: to copy whole groups, their number must "
        f"be a multiple of {group} (the query heads per key/value head); to copy query heads inside their "
        f"groups, a multiple of {old_kv} (the key/value heads)",
    )
