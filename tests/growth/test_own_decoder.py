"""A decoder of one's own, with its own config, names and axes, grows as growlm's does; mistakes are named."""

import copy
import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, grow
from growlm.growth.channel_map import ChannelMap
from growlm.growth.growth_map import AxisGrowth, GrowthSpec
from growlm.model import (
    FeedForward,
    Label,
    MixtureOfExperts,
    ModelConfig,
    index,
    label,
    label_blocks,
    label_embedding,
    label_linear,
    label_norm,
    parameter_report,
    reads,
    writes,
)
from growlm.runtime.errors import UserError
from growlm.verification import (
    Status,
    check_router_collapse,
    detailed_growth_check,
    quick_sanity_check,
    verify_functional_equivalence,
)
from tests.growth.own_decoder import (
    MLP,
    Decoder,
    DecoderConfig,
    Layer,
    decoder,
    difference,
    linear,
    tokens,
    train,
)

WIDEN = Widen(scale_factor=2, noise_std=1e-2)
GROWTHS = {
    "x2": [WIDEN],
    "x1.5": [Widen(scale_factor=1.5, noise_std=1e-2)],
    "x1.5 fresh": [Widen(scale_factor=1.5, new_channels="fresh")],
    "deeper": [Deepen(extra_layers=2, placement="interleave")],
    "experts": [Upcycle(num_experts=4)],
    "finer experts": [Upcycle(num_experts=4, granularity=2)],
    "all": [Upcycle(num_experts=4), WIDEN, Deepen(extra_layers=1), MultiplyExperts(factor=2)],
}


@pytest.mark.parametrize("operators", GROWTHS.values(), ids=GROWTHS)
def test_the_function_is_kept(operators):
    model = decoder()
    before = copy.deepcopy(vars(model.config)), torch.random.get_rng_state()
    grown = grow(model, operators)
    assert type(grown) is Decoder
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())
    assert grown.config.adapter_rank == model.config.adapter_rank
    assert difference(model, grown) <= 1e-10
    assert vars(model.config) == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_exact_moments_train_as_the_old_model_would_have(optimizer_class):
    models = [decoder(), decoder()]
    optimizers = [optimizer_class(model.parameters(), lr=1e-2) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 4)
    grown, new = models[1], optimizers[1]
    for start in (4, 14):
        doubled = [Widen(scale_factor=2, noise_std=0.0)]
        grown, new = grow(grown, doubled, optimizer=new, optimizer_state="exact")
        train(grown, new, 10, start)
    train(models[0], optimizers[0], 20, start=4)
    assert difference(models[0], grown) <= 1e-8
    assert difference(models[0], decoder()) > 1e-2


def test_a_new_router_joins_its_blocks_group():
    model = decoder()
    layers = [
        {"params": layer.parameters(), "lr": 10.0**-i} for i, layer in enumerate(model.model.layers)
    ]
    optimizer = torch.optim.AdamW(layers)
    grown, new = grow(model, [Upcycle(num_experts=4)], optimizer=optimizer)
    for layer, group in zip(grown.model.layers, new.param_groups, strict=True):
        assert any(layer.mlp.router.weight is parameter for parameter in group["params"])


@pytest.mark.parametrize("operators", GROWTHS.values(), ids=GROWTHS)
def test_the_checks_work(operators):
    model = decoder(torch.float32)
    grown = grow(model, operators)
    assert verify_functional_equivalence(model, grown, tokens(), "cpu")
    report = detailed_growth_check(
        old_model=model, new_model=grown, probe=tokens(), device="cpu", scale_factor=None
    )
    assert report or operators is GROWTHS["all"]  # of which the order cannot be inferred
    assert report.checks["router"].status is Status.NOT_APPLICABLE
    assert report.checks["rope"].status is Status.PASSED
    assert quick_sanity_check(grown, tokens(), "cpu")
    assert check_router_collapse(grown, tokens()).status is Status.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("name", "check"),
    [("model.layers.1.self_attn.o_proj.weight", "functional"), ("lm_head.weight", "weights")],
)
def test_the_checks_notice(name, check):
    model = decoder(torch.float32)
    grown = grow(model, GROWTHS["x2"])
    with torch.no_grad():
        grown.get_parameter(name).mul_(1.1)
    assert not verify_functional_equivalence(model, grown, tokens(), "cpu")
    report = detailed_growth_check(old_model=model, new_model=grown, probe=tokens(), device="cpu")
    assert report.checks[check].status is Status.FAILED


class Tied(Decoder):
    """Its head is its table, and a name of the table."""

    ties_norm = True

    def __init__(self, config):
        super().__init__(config)
        self.lm_head.weight = self.model.embed_tokens.weight
        label(self.lm_head, weight=Label((index("vocabulary"), writes("width"))))
        label_norm(self.model.norm, "width", feeds_tied_head=self.ties_norm)

    def growth_config(self):
        return dataclasses.replace(super().growth_config(), tie_embeddings=True)


def test_a_tied_head_stays_tied():
    model = decoder(model_class=Tied)
    grown = grow(model, [Widen(scale_factor=1.5, noise_std=1e-2)])
    assert grown.lm_head.weight is grown.model.embed_tokens.weight
    assert difference(model, grown) <= 1e-10
    unlabeled = decoder(model_class=type("Unlabeled", (Tied,), {"ties_norm": False}))
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is the head's .*feeds_tied_head=T"):
        grow(unlabeled, [WIDEN])


class Tower(nn.Module):
    """A block of growlm's feed-forward layers, without attention."""

    def __init__(self, config):
        super().__init__()
        self.norm = label_norm(nn.LayerNorm(config.d_model, config.norm.eps))
        self.ff = MixtureOfExperts(config, replaces="ff") if config.is_moe else FeedForward(config)
        self.is_moe = config.is_moe

    def forward(self, x, routings):
        y = self.norm(x)
        mean = y.cumsum(1) / torch.arange(1, y.shape[1] + 1).unsqueeze(-1).to(y)
        return x + (self.ff(mean, routings) if self.is_moe else self.ff(mean))


class Mixed(nn.Module):
    """A model that reports its routings."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = label_embedding(nn.Embedding(config.vocab_size, config.d_model))
        self.towers = label_blocks(nn.ModuleList(Tower(config) for _ in range(config.n_layers)))
        self.norm = label_norm(nn.LayerNorm(config.d_model, config.norm.eps))
        head = nn.Linear(config.d_model, config.vocab_size)
        self.head = label_linear(head, read="residual", write="vocabulary")

    def forward(self, tokens, routings=None):
        x = self.table(tokens)
        for tower in self.towers:
            x = self.run(tower, x, routings)
        return self.head(self.norm(x))

    def run(self, tower, x, routings):
        return tower(x, routings)


def mixed(model_class=Mixed):
    sizes = {
        "vocab_size": 31,
        "d_model": 12,
        "n_heads": 6,
        "head_dim": 2,
        "n_layers": 2,
        "d_ff": 16,
    }
    torch.manual_seed(0)
    model = model_class(ModelConfig(**sizes, tie_embeddings=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def test_growlms_own_layers_in_another_model():
    model = mixed()
    mixture = grow(model, [Upcycle(num_experts=4, router_std=1.0)])
    large = grow(mixture, [MultiplyExperts(factor=2), Widen(scale_factor=1.5, noise_std=1e-2)])
    with torch.no_grad():
        logits = [each(tokens()) for each in (model, mixture, large)]
    assert (logits[1] - logits[0]).abs().max() <= 1e-10
    assert (logits[2] - logits[0]).abs().max() <= 1e-10
    assert large.norm.weight.shape == (18,)
    assert check_router_collapse(mixture, tokens()).status is Status.PASSED
    report = detailed_growth_check(old_model=mixture, new_model=large, probe=tokens(), device="cpu")
    assert report
    assert report.checks["router"].status is Status.PASSED
    assert report.checks["rope"].status is Status.NOT_APPLICABLE
    with torch.no_grad():
        large.towers[1].ff.router.weight.mul_(3.0)
    report = detailed_growth_check(old_model=mixture, new_model=large, probe=tokens(), device="cpu")
    assert report.checks["router"].status is Status.FAILED


class Bypassed(Mixed):
    """It does not call its blocks."""

    def run(self, tower, x, routings):
        return tower.forward(x, routings)


class Silent(Mixed):
    """It does not return logits."""

    def forward(self, tokens):
        return None


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (Bypassed, "model=Bypassed: called its 2 blocks 0 times in one run; the checks need"),
        (Silent, r"model=Silent: returns NoneType for tokens \(4, 9\); the checks need logits"),
    ],
)
def test_what_the_checks_cannot_run(model_class, message):
    model = mixed(model_class)
    with pytest.raises(UserError, match=message):
        verify_functional_equivalence(model, grow(model, [WIDEN]), tokens(), "cpu")


@dataclasses.dataclass(frozen=True)
class RankConfig(ModelConfig):
    """Sizes with one that an operator of one's own grows."""

    rank: int = 3


@dataclasses.dataclass
class WidenAdapters:
    """An operator of one's own, over an axis of one's own."""

    rank: int = 6

    def change(self, config):
        channels = ChannelMap.round_robin(config.rank, self.rank)
        growth = AxisGrowth(channels, filler_write_init="random", filler_read_init="zero")
        return GrowthSpec(
            config=dataclasses.replace(config, rank=self.rank),
            description=[f"Adapters {config.rank} → {self.rank}"],
            axes={"rank": growth},
        )


class Ranked(Decoder):
    """A decoder whose adapters can grow."""

    def growth_config(self):
        config = super().growth_config()
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return RankConfig(**values, rank=self.config.adapter_rank)

    def with_growth_config(self, config):
        grown = super().with_growth_config(config)
        grown.config.adapter_rank = config.rank
        return type(self)(grown.config)


def test_an_operator_and_an_axis_of_ones_own():
    model = decoder(model_class=Ranked)
    grown = grow(model, [WidenAdapters(), Widen(scale_factor=1.5, noise_std=1e-2)])
    assert grown.model.layers[1].adapter_out.weight.shape == (24, 6)
    assert difference(model, grown) <= 1e-10
    report = detailed_growth_check(
        old_model=model, new_model=grow(model, [WIDEN]), probe=tokens(), device="cpu"
    )
    assert report.checks["functional"].status is Status.PASSED


def with_layer(change, model_class=Decoder):
    """A decoder whose layers are changed by a function when they are made."""

    class Changed(Layer):
        def __init__(self, config):
            super().__init__(config)
            change(self, config)

    class Model(model_class):
        def __init__(self, config):
            super().__init__(config)
            layers = [Changed(config) for _ in range(config.num_hidden_layers)]
            self.model.layers = label_blocks(nn.ModuleList(layers))

    return Model


def unlabeled(layer, config):
    layer.extra = nn.Linear(config.hidden_size, 3)


def misnamed(layer, config):
    layer.adapter_in = linear(config.hidden_size, config.adapter_rank, "width", "rnak")


def misnamed_standard(layer, config):
    layer.mlp.up_proj = linear(config.hidden_size, config.intermediate_size, "residul", "ffn")


def too_wide(layer, config):
    layer.mlp.down_proj = linear(config.intermediate_size + 1, config.hidden_size, "ffn", "width")


def two_ranks(layer, config):
    layer.adapter_out = linear(config.adapter_rank + 1, config.hidden_size, "rank", "width")


def two_labels(layer, config):
    layer.self_attn.v_proj.weight = layer.self_attn.k_proj.weight
    label(layer.self_attn.v_proj, weight=Label((writes("kv_heads"), reads("ffn"))))


def growing_by_itself(layer, config):
    rows = config.hidden_size // 4
    layer.adapter_in = linear(config.hidden_size, rows, "width", "rank")
    layer.adapter_out = linear(rows, config.hidden_size, "rank", "width")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unlabeled, r"model\.layers\.0\.extra\.weight has no axis label: declare it with growlm"),
        (misnamed, r"layers\.0\.adapter_in\.weight is labeled with axis rnak, .*mean rank\?"),
        (misnamed_standard, r"layers\.0\.mlp\.up_proj\.weight .* axis residul, .*mean residual\?"),
        (too_wide, r"layers\.0\.mlp\.down_proj\.weight has 25 channels on axis hidden, .* has 24"),
        (
            two_ranks,
            r"0\.adapter_out\.weight has 4 channels on axis rank, but .*\.adapter_in\.weight has 3",
        ),
        (two_labels, r"k_proj\.weight and .*v_proj\.weight are one parameter, but have two diff"),
        (
            growing_by_itself,
            r"layers\.0\.adapter_in\.weight has 8 channels on axis rank in the grown model and 4 b",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_mistake_is_named_with_its_parameter(change, message):
    model = decoder(model_class=with_layer(change))
    with pytest.raises(ValueError, match=message):
        grow(model, [WIDEN])


class Headless(nn.Module):
    """No parameter of it has what `Upcycle` looks for."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = label_embedding(nn.Embedding(config.vocab_size, config.d_model))


@pytest.mark.parametrize(
    ("operator", "wanted"),
    [
        (Upcycle(num_experts=4), r"the axes experts and stacks of experts \(stacked_from\)"),
        (Deepen(extra_layers=1), r"blocks \(label_blocks\)"),
        (Widen(d_ff=4096), "the axes hidden"),
    ],
)
def test_nothing_to_do_names_what_is_looked_for_and_what_is_there(operator, wanted):
    model = Headless(ModelConfig(vocab_size=31, tie_embeddings=False))
    match = rf"operators={type(operator).__name__}: finds nothing to grow in Headless: it changes "
    match += rf"{wanted}, and no parameter \(table\.weight\).*axes are vocabulary, residual"
    with pytest.raises(UserError, match=match):
        grow(model, [operator])


def without(*names):
    """A decoder whose `with_growth_config` does not take over some fields."""

    class Forgetful(Decoder):
        def with_growth_config(self, config):
            own = copy.copy(super().with_growth_config(config).config)
            for name in names:
                setattr(own, name, getattr(self.config, name))
            return type(self)(own)

    return Forgetful


class InPlace(Decoder):
    """It changes its own config."""

    def with_growth_config(self, config):
        self.config.hidden_size = config.d_model
        return super().with_growth_config(config)


class WrongName(Decoder):
    growth_axes: ClassVar = Decoder.growth_axes | {"ffn": "hiden"}


class WrongSource(Decoder):
    """Its experts say they come from a block that it does not have."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            if isinstance(layer.mlp, MLP):
                continue
            dims = (index("experts"), writes("ffn"), reads("width"))
            label(layer.mlp, up_proj=Label(dims, stacked_from="ffn.up.weight"))


class TwoStacks(Decoder):
    def __init__(self, config):
        super().__init__(config)
        label_blocks(self.model)


class OneBlockMore(Decoder):
    def growth_config(self):
        return dataclasses.replace(super().growth_config(), n_layers=5)


class OnlyHalf(Decoder):
    with_growth_config = None


@pytest.mark.parametrize(
    ("model_class", "operator", "message"),
    [
        (
            without("rms_norm_eps"),
            Widen(scale_factor=1.5),
            r"Forgetful\.with_growth_config builds .*norm=",
        ),
        (without("num_hidden_layers"), Deepen(), "n_layers=2 in its growth_config.*where 3 was"),
        (without("num_local_experts"), Upcycle(num_experts=4), "num_experts=0 in its growth_conf"),
        (InPlace, WIDEN, "InPlace.with_growth_config changes the model; it must leave"),
        (WrongName, WIDEN, "growth_axes: ffn stands for hiden, .* did you mean hidden?"),
        (
            WrongSource,
            Upcycle(num_experts=4),
            r"layers\.0\.mlp\.up_proj is labeled stacked_from='ffn\.up\.weight', and the old .*\.ffn",
        ),
        (TwoStacks, WIDEN, r"model and model\.layers are both marked with label_blocks"),
        (OneBlockMore, WIDEN, r"model\.layers holds 2 blocks, but the config has n_layers=5"),
        (
            OnlyHalf,
            WIDEN,
            "model=OnlyHalf: has a config of class DecoderConfig; give it the ModelC",
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_wrong_protocol_is_named(model_class, operator, message):
    with pytest.raises(ValueError, match=message):
        grow(decoder(model_class=model_class), [operator])


class Unmarked(Decoder):
    """Nothing says that its layers are the blocks."""

    def __init__(self, config):
        super().__init__(config)
        del self.model.layers.holds_blocks


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (Deepen(), r"model\.layers\.2\.\S+ has no source, .* with label_blocks"),
        (
            Upcycle(num_experts=4),
            r"layers\.0\.mlp\.gate_proj is labeled stacked_from=.*label_blocks",
        ),
    ],
)
def test_blocks_that_nobody_marked(operator, message):
    model = decoder(model_class=Unmarked)
    assert difference(model, grow(model, [WIDEN])) <= 1e-10
    with pytest.raises(ValueError, match=message):
        grow(model, [operator])


def test_its_parameters_are_counted():
    model = grow(decoder(), [Upcycle(num_experts=4)])
    report = parameter_report(model)
    assert report.total == sum(p.numel() for p in model.parameters())
    assert report.inactive == 2 * (4 - 2) * 3 * 16 * 24
    assert report.idle_experts == 4


class ReadsNumbers(Decoder):
    """Its constructor reads numbers of tensors, which the meta device does not have, and draws some."""

    def __init__(self, config):
        super().__init__(config)
        self.rates = [rate.item() for rate in torch.linspace(0, 1, config.num_hidden_layers)]
        self.offset = torch.full((1,), float(torch.rand(())) * 0 + 0.5)

    def forward(self, input_ids):
        out = super().forward(input_ids)
        out.logits = out.logits * self.rates[-1] + self.offset
        return out


def test_a_constructor_that_reads_numbers():
    model = decoder(model_class=ReadsNumbers)
    state = torch.random.get_rng_state()
    grown = grow(model, [WIDEN, Deepen()])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(grown.rates) == 3
    model.offset = model.offset.bfloat16()
    assert grow(model, [WIDEN]).offset.dtype is torch.bfloat16
    assert difference(model, grown) <= 1e-10


def test_the_precision_of_unsaved_buffers_is_kept():
    """The frequencies of the old decoder are those of fp32, converted; and so are the new ones."""
    model = decoder()
    torch.set_default_dtype(torch.float64)
    try:
        grown = grow(model, [Deepen(extra_layers=1)])
    finally:
        torch.set_default_dtype(torch.float32)
    for layer in grown.model.layers:
        assert torch.equal(layer.self_attn.frequencies, model.model.layers[0].self_attn.frequencies)


def test_configs_are_not_shared():
    model = decoder()
    grown = grow(model, [Deepen()])
    assert isinstance(grown.config, DecoderConfig)
    assert (model.config.num_hidden_layers, grown.config.num_hidden_layers) == (2, 3)
