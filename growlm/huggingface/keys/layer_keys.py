"""Read and write the config keys of what differs between blocks: windows, and blocks without rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from growlm.huggingface.keys.config_keys import ConfigReader
from growlm.model.config import ModelConfig

TYPES_KEY = "layer_types"
WINDOW, FULL = "sliding_attention", "full_attention"
KINDS = {WINDOW: "window", FULL: "full"}
"""The kind of block in `ModelConfig.layers.attention` for each type that transformers knows and growlm has."""


@dataclass(frozen=True)
class LayerKeys:
    """Config keys of an architecture whose blocks can have windows, or differ.

    Attributes:
        types: Types of the blocks where `layer_types` is absent: a pattern that is repeated.
        period_key: Key of a period that replaces the pattern: all blocks but every n-th have a window.
        window_key: Key of the window's length.
        default_window: Its value where the key is absent.
        enabled_key: Key that turns windows on; without it they always are.
        first_key: Key of the first block with a window, where `layer_types` is absent.
        writes_types: Whether its class reads `layer_types`.
        needs_window: Whether its class needs a length even if no block has a window.
        rotary_key: Key of the list that says which blocks rotate; None where all do.
        rotates_windows_only: Whether only blocks with a window rotate.
        rotates_without_length: Whether all blocks rotate nevertheless if the window's length is null.
        rotary_period_key: Key of the period that replaces that list: all blocks but every n-th rotate.
        dense_key: In a mixture of experts: key of the list of blocks that are dense; None where none can be.
        mixture_period_key: Key of a period: of the other blocks, only every n-th is a mixture.
        dense_size_key: Key of the dense blocks' hidden units.
        expert_size_key: Key of an expert's hidden units.
    """

    types: tuple[str, ...] = (WINDOW,)
    period_key: str | None = None
    window_key: str = "sliding_window"
    default_window: int | None = None
    enabled_key: str | None = None
    first_key: str | None = None
    writes_types: bool = True
    needs_window: bool = False
    rotary_key: str | None = None
    rotates_windows_only: bool = False
    rotates_without_length: bool = False
    rotary_period_key: str = "no_rope_layer_interval"
    dense_key: str | None = None
    mixture_period_key: str = "decoder_sparse_step"
    dense_size_key: str = "intermediate_size"
    expert_size_key: str = "moe_intermediate_size"

    @property
    def has_windows(self) -> bool:
        """Whether its class reads the window's length."""
        return self.writes_types or WINDOW in self.types

    @property
    def names(self) -> set[str]:
        """The keys that are read here."""
        keys = (self.window_key, self.enabled_key, self.rotary_key, self.period_key, self.first_key)
        mixture = () if self.dense_key is None else (self.dense_key, self.mixture_period_key)
        return {TYPES_KEY, *(key for key in keys if key is not None), *mixture}


NO_WINDOWS = LayerKeys(types=(FULL,), writes_types=False)
"""The keys of an architecture whose blocks are all alike and attend to all earlier positions."""


def read_layers(layers: LayerKeys, keys: ConfigReader) -> dict[str, Any]:
    """Return the fields that say what differs between blocks, by path.

    Raises:
        UserError: If the keys contradict each other, or a type of block is unknown.
    """
    depth, longest = keys.get("num_hidden_layers"), keys.get("max_position_embeddings")
    if type(depth) is not int or depth < 1:  # the check of types reports it
        return {}
    window = None
    if layers.has_windows:
        window = keys.content.get(layers.window_key, layers.default_window)
    if layers.enabled_key is not None:
        keys.check_allowed(layers.enabled_key, (True, False, None))
        window = window if keys.get(layers.enabled_key) else None
    if window is not None and (type(window) is not int or window < 1):
        keys.raise_error(layers.window_key, window, "must be null or a number above 0")
    types = _read_types(layers, keys, depth, window)
    if WINDOW not in types:
        window = None
    elif window is None:
        keys.raise_error(layers.window_key, None, f"must be given: {TYPES_KEY} has {WINDOW}")
    is_idle = type(longest) is int and window is not None and window >= longest
    if is_idle and FULL not in types and not layers.needs_window:
        window = None
    fields: dict[str, Any] = {"attention.window": window}
    if window is not None:
        fields["layers.attention"] = [KINDS[each] for each in types]
    if layers.rotary_key is not None:
        fields["layers.rotary"] = _read_rotary(layers, keys, depth)
    length = keys.content.get(layers.window_key, layers.default_window)
    if layers.rotates_windows_only and not (layers.rotates_without_length and length is None):
        fields["layers.rotary"] = [each == WINDOW for each in types]
    if layers.dense_key is not None:
        fields |= _read_mixture(layers, layers.dense_key, keys, depth)
    return fields


def _read_types(layers: LayerKeys, keys: ConfigReader, depth: int, window: int | None) -> list[str]:
    types = keys.get(TYPES_KEY)
    if types is None:
        if window is None:
            return [FULL] * depth
        return _default_types(layers, keys, depth)
    if not isinstance(types, list) or len(types) != depth:
        keys.raise_error(TYPES_KEY, types, f"must be null or a list of {depth} types")
    for index, each in enumerate(types):
        if each not in KINDS:
            reason = f"must be {' or '.join(KINDS)}: no other type of block is supported"
            keys.raise_error(f"{TYPES_KEY}[{index}]", each, reason)
    alike = layers.types[0] if window is not None else FULL
    if not layers.writes_types and types != [alike] * depth:
        reason = f"must be null or {alike} in every layer: its class makes all blocks alike"
        keys.raise_error(TYPES_KEY, "...", reason)
    return list(types)


def _default_types(layers: LayerKeys, keys: ConfigReader, depth: int) -> list[str]:
    period = None if layers.period_key is None else keys.get(layers.period_key)
    if period is not None:
        if type(period) is not int or period < 1:
            keys.raise_error(str(layers.period_key), period, "must be a number above 0")
        return [WINDOW if (i + 1) % period else FULL for i in range(depth)]
    if layers.first_key is not None:
        first = keys.get(layers.first_key)
        if type(first) is not int:
            keys.raise_error(layers.first_key, first, "must be a number")
        return [WINDOW if i >= first else FULL for i in range(depth)]
    return (list(layers.types) * depth)[:depth]


def _read_rotary(layers: LayerKeys, keys: ConfigReader, depth: int) -> list[bool]:
    assert layers.rotary_key is not None
    flags = keys.get(layers.rotary_key)
    if flags is None:
        period = keys.get(layers.rotary_period_key)
        if type(period) is not int or period < 1:
            keys.raise_error(layers.rotary_period_key, period, "must be a number above 0")
        return [(i + 1) % period != 0 for i in range(depth)]
    if not isinstance(flags, list) or len(flags) != depth or not {*flags} <= {0, 1}:
        keys.raise_error(
            layers.rotary_key, flags, f"must be null or a list of {depth} ones and zeros"
        )
    return [bool(flag) for flag in flags]


def _read_mixture(
    layers: LayerKeys, dense_key: str, keys: ConfigReader, depth: int
) -> dict[str, Any]:
    """Return which blocks are mixtures and the sizes of both kinds; nothing if all blocks are mixtures."""
    period, dense = keys.get(layers.mixture_period_key), keys.get(dense_key) or []
    if type(period) is not int or period < 1:
        keys.raise_error(layers.mixture_period_key, period, "must be a number above 0")
    if not isinstance(dense, list) or any(type(each) is not int for each in dense):
        keys.raise_error(dense_key, dense, "must be null or a list of blocks")
    mixture = [i not in dense and (i + 1) % period == 0 for i in range(depth)]
    if all(mixture):
        return {}
    size, expert_size = keys.get(layers.dense_size_key), keys.get(layers.expert_size_key)
    expert_d_ff = None if size == expert_size else expert_size
    return {"layers.mixture": mixture, "d_ff": size, "expert_d_ff": expert_d_ff}


def write_layers(layers: LayerKeys, config: ModelConfig) -> dict[str, Any]:
    """Return the keys of what differs between a config's blocks."""
    windows = [config.block_window(block) for block in range(config.n_layers)]
    length = config.attention.window
    content: dict[str, Any] = {}
    if layers.has_windows:
        content[layers.window_key] = length
        needs_length = layers.needs_window or (
            layers.rotates_without_length and not config.rotates(0)
        )
        if length is None and needs_length:
            content[layers.window_key] = config.max_seq_len
    if layers.enabled_key is not None:
        content[layers.enabled_key] = length is not None
    if layers.writes_types:
        content[TYPES_KEY] = [FULL if window is None else WINDOW for window in windows]
    if layers.rotary_key is not None:
        content[layers.rotary_key] = [int(config.rotates(i)) for i in range(config.n_layers)]
    if layers.dense_key is not None:
        dense = [i for i in range(config.n_layers) if not config.is_mixture(i)]
        content |= {layers.dense_key: dense, layers.mixture_period_key: 1}
        if dense:
            content[layers.dense_size_key] = config.d_ff
            content[layers.expert_size_key] = config.expert_d_ff or config.d_ff
    return content
