"""Grow a transformers model in memory: read as growlm's, grown, and built in the class that fits.

Each tensor of the grown model is computed from those of the old one when its turn comes, so nothing is in memory
but the old model, the grown one and a few tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import partial

import torch
import transformers
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from growlm.checkpoint.grown_tensors import GrownTensors
from growlm.checkpoint.safetensors_io import TensorSource
from growlm.checkpoint.weight_validation import get_state_dict_shapes
from growlm.growth.grow_model import LARGE_TENSOR_ENTRIES, Operator, build_growth_map, resolve_ties
from growlm.growth.growth_map import GrowthMap
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.optimizer_growth import check_optimizers
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import GROWLM
from growlm.huggingface.config_reading import TOKEN_ID_KEYS
from growlm.huggingface.config_writing import build_hf_config
from growlm.huggingface.folder_conversion import choose_architecture
from growlm.huggingface.live.class_building import assign_weights, build_without_weights
from growlm.huggingface.live.live_model import LiveModel, get_model_class, read_live_model
from growlm.huggingface.live.live_optimizers import check_states, grow_live_optimizers
from growlm.huggingface.mapping_rules import MappingRule, ResolvedRule, resolve_rules
from growlm.huggingface.tensor_conversion import MappedTensors, map_to_huggingface
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import UserError

BLOCK_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def grow_live_model(
    model: nn.Module,
    operators: Sequence[Operator],
    rng: GrowthRng,
    optimizers: Sequence[Optimizer],
    mode: str,
) -> tuple[PreTrainedModel, list[Optimizer]]:
    """Return the grown model, and the grown optimizers; the arguments are those of `ModelAdapter.grow_model`.

    Raises:
        UserError: If growlm cannot represent the model, or an operator or optimizer does not allow the growth.
    """
    live = read_live_model(model)
    check_optimizers(optimizers, live.model, mode)
    check_states(optimizers, live, mode)
    growth_map = build_growth_map(live.config, operators)
    config = growth_map.new_config
    with torch.device("meta"):
        skeleton = TransformerLM(config)
    weights = GrownTensors(live.tensors, growth_map, rng, resolve_ties(skeleton, growth_map))
    with torch.no_grad(), rng:
        architecture = _choose_architecture(config, live, weights)
    dtype = live.model.dtype
    token_ids = {key: getattr(live.model.config, key, None) for key in TOKEN_ID_KEYS}
    content = build_hf_config(architecture, config, dtype, token_ids, live.record)
    content = json.loads(json.dumps(content))  # as if it came from a file
    grown = build_without_weights(get_model_class(architecture), content, live.model, dtype)
    layout, rules = _find_layout(architecture, config, grown)
    with torch.no_grad(), rng:
        mapped = map_to_huggingface(weights, config, architecture, layout=layout)
        tensors = _read_all(mapped, rng)
    assign_weights(grown, tensors, live.model, partial(_source_name, growth_map))
    _keep_frozen(grown, rules, growth_map, live)
    return grown, grow_live_optimizers(optimizers, live, grown, rules, growth_map, skeleton, mode)


def _choose_architecture(
    config: ModelConfig, live: LiveModel, weights: TensorSource
) -> Architecture:
    if config.is_moe and config.routing.tie_breaking:  # transformers' classes have no such router
        return GROWLM
    origin = {"huggingface": {"model_type": live.architecture.model_type}}
    return choose_architecture(config, origin, weights)


def _find_layout(
    architecture: Architecture, config: ModelConfig, model: PreTrainedModel
) -> tuple[tuple[MappingRule, ...], tuple[ResolvedRule, ...]]:
    """Return the layout in which a class holds its tensors in memory, and its rules for this model.

    Raises:
        UserError: If none of the architecture's layouts has the tensors that the class has.
    """
    tensors = model.state_dict(keep_vars=True)
    shapes = get_state_dict_shapes(config)
    for layout in architecture.tensor_layouts:
        rules = resolve_rules(layout, config, shapes)
        found = {name for rule in rules for name in rule.hf_names}
        values = {id(tensors[name]) for name in found if name in tensors}
        if found <= tensors.keys() and all(id(tensor) in values for tensor in tensors.values()):
            return layout, rules
    reason = f"has tensors of other names in transformers {transformers.__version__}"
    raise UserError("model", type(model).__name__, f"{reason} than growlm knows")


def _read_all(mapped: MappedTensors, rng: GrowthRng) -> dict[str, Tensor]:
    """Compute all tensors: large ones one after another on all cores, small ones in parallel."""

    def read(name: str) -> tuple[str, Tensor]:
        return name, mapped.read(name).contiguous()

    sizes = {name: math.prod(mapped.info(name).shape) for name in mapped.names}
    tensors = dict(map(read, (name for name in sizes if sizes[name] >= LARGE_TENSOR_ENTRIES)))
    small = [name for name in sizes if name not in tensors]
    return tensors | dict(rng.threads.map(read, small))


def _source_name(growth_map: GrowthMap, name: str) -> str:
    """Return the name, in the old model, of a module or buffer: the first number in it is the block's."""
    return BLOCK_INDEX.sub(lambda n: str(growth_map.blocks[int(n[0])].source), name, count=1)


def _keep_frozen(
    grown: PreTrainedModel,
    rules: Sequence[ResolvedRule],
    growth_map: GrowthMap,
    live: LiveModel,
) -> None:
    """Freeze what was frozen before the growth, and zeros that a class needs and that have no effect."""
    frozen = {
        name for name, parameter in live.model.named_parameters() if not parameter.requires_grad
    }
    parameters = dict(grown.named_parameters())
    for rule in rules:
        sources = [growth_map.tensors[name].source for name in rule.growlm_names]
        known = [each for name in sources if name for each in live.tensors.sources(name)]
        if not rule.growlm_names or (known and frozen.issuperset(known)):
            for name in rule.hf_names:
                if name in parameters:
                    parameters[name].requires_grad_(False)
