"""Modules that are not growlm's: what their labels say is grown, and a mistake in them is named."""

import pytest
import torch
from torch import nn

from growlm.growth import Deepen, Upcycle, Widen, grow
from growlm.model import ModelConfig
from growlm.model.axes import Dim, Label, Role, index, label, reads, writes
from growlm.runtime.errors import UserError

CONFIG = ModelConfig(
    vocab_size=23,
    d_model=12,
    n_layers=2,
    n_heads=2,
    d_ff=20,
    norm={"kind": "rmsnorm"},
    tie_embeddings=False,
)
READS_STREAM = Label((writes("hidden"), reads("residual")))
WRITES_STREAM = Label((writes("residual"), reads("hidden")))


def norm(config):
    found = nn.RMSNorm(config.d_model, config.norm.eps)
    label(found, weight=Label((Dim(Role.GAIN, "residual"),)))
    return found


class Mixer(nn.Module):
    """A block that mixes tokens by a running mean, and channels by a hidden layer."""

    def __init__(self, config):
        super().__init__()
        self.norm = norm(config)
        self.into = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.out = nn.Linear(config.d_ff, config.d_model, bias=False)
        label(self.into, weight=READS_STREAM)
        label(self.out, weight=WRITES_STREAM)

    def forward(self, x):
        y = self.into(self.norm(x))
        mean = y.cumsum(1) / torch.arange(1, y.shape[1] + 1, dtype=y.dtype).unsqueeze(-1)
        return x + self.out(torch.tanh(mean))


class MeanLM(nn.Module):
    """A language model of mixers."""

    block = Mixer

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(self.block(config) for _ in range(config.n_layers))
        self.last = norm(config)
        self.logits = nn.Linear(config.d_model, config.vocab_size, bias=False)
        label(self.table, weight=Label((index("vocabulary"), writes("residual"))))
        label(self.logits, weight=Label((writes("vocabulary"), reads("residual"))))

    def forward(self, tokens):
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.last(x))


def made(model_class=MeanLM, config=CONFIG):
    torch.manual_seed(0)
    model = model_class(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def assert_same_function(one, other):
    tokens = torch.randint(CONFIG.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (one(tokens) - other(tokens)).abs().max() <= 1e-10


@pytest.mark.parametrize(
    "operators",
    [
        [Widen(scale_factor=2)],
        [Widen(scale_factor=1.5, new_channels="fresh")],
        [Widen(d_ff=32), Deepen(extra_layers=2, placement="stack")],
    ],
    ids=["x2", "x1.5", "hidden units, deeper"],
)
def test_it_grows_by_its_labels(operators):
    model = made()
    grown = grow(model, operators)
    assert type(grown) is MeanLM
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())
    assert_same_function(model, grown)


def test_an_optimizer_goes_along():
    model = made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.randint(CONFIG.vocab_size, (2, 9))
    for _ in range(3):
        model(tokens).logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    grown, new = grow(model, [Widen(scale_factor=2)], optimizer=optimizer)
    assert_same_function(model, grown)
    moment = new.state[grown.blocks[1].into.weight]["exp_avg"]
    assert moment.shape == grown.blocks[1].into.weight.shape
    assert moment.abs().max() > 0


class TiedLM(MeanLM):
    """Its head is its table: one parameter under two names."""

    def __init__(self, config):
        super().__init__(config)
        self.logits.weight = self.table.weight
        label(self.logits, weight=Label((index("vocabulary"), writes("residual"))))
        label(self.last, weight=Label((Dim(Role.GAIN, "residual"),), feeds_tied_head=True))


def test_one_parameter_under_two_names_stays_one():
    model = made(TiedLM)
    grown = grow(model, [Widen(scale_factor=1.5), Deepen(extra_layers=1)])
    assert grown.logits.weight is grown.table.weight
    assert_same_function(model, grown)


class SharedBlocks(MeanLM):
    """Both blocks are one."""

    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList([self.blocks[0]] * config.n_layers)


def test_blocks_that_share_parameters():
    model = made(SharedBlocks)
    optimizer = torch.optim.AdamW(model.parameters())
    grown, _ = grow(model, [Widen(scale_factor=2)], optimizer=optimizer)
    assert grown.blocks[0].into.weight is grown.blocks[1].into.weight
    assert_same_function(model, grown)
    with pytest.raises(ValueError, match="are one parameter, and the growth would part them"):
        grow(model, [Deepen(extra_layers=1)])


class Unlabeled(Mixer):
    def __init__(self, config):
        super().__init__(config)
        self.extra = nn.Linear(config.d_model, 3)


class Misnamed(Mixer):
    def __init__(self, config):
        super().__init__(config)
        label(self.into, weight=Label((writes("hiden"), reads("residual"))))


class TooWide(Mixer):
    def __init__(self, config):
        super().__init__(config)
        self.out = nn.Linear(config.d_ff + 1, config.d_model, bias=False)
        label(self.out, weight=WRITES_STREAM)


class OneDimension(Mixer):
    def __init__(self, config):
        super().__init__(config)
        label(self.into, weight=Label((writes("hidden"),)))


class TwoLabels(MeanLM):
    def __init__(self, config):
        super().__init__(config)
        self.logits.weight = self.table.weight


def of(block_class):
    return type("LM", (MeanLM,), {"block": block_class})


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (of(Unlabeled), r"blocks\.0\.extra\.weight has no axis label"),
        (of(Misnamed), r"blocks\.0\.into\.weight .* axis hiden, .*; did you mean hidden\?"),
        (of(TooWide), r"blocks\.0\.out\.weight has 21 channels on axis hidden, but .* has 20"),
        (of(OneDimension), r"blocks\.0\.into\.weight has 2 dimensions, but its label has 1"),
        (TwoLabels, r"table\.weight and logits\.weight are one parameter, .* two different labels"),
    ],
    ids=lambda value: value.block.__name__ if isinstance(value, type) else "",
)
def test_a_mistake_is_named(model_class, message):
    with pytest.raises(ValueError, match=message):
        grow(made(model_class), [Widen(scale_factor=2)])


def test_an_operator_that_finds_nothing_is_refused():
    with pytest.raises(UserError, match="operators=Upcycle: finds nothing to grow in MeanLM"):
        grow(made(), [Upcycle(num_experts=4)])


class NoConfig(nn.Module):
    pass


class Compiled(nn.Module):
    """As `torch.compile` wraps a module."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod, self.config = model, model.config


class TwoArguments(MeanLM):
    def __init__(self, config, depth):
        super().__init__(config)


def test_what_cannot_be_made_anew_is_refused():
    model = made()
    with pytest.raises(UserError, match=r"model=Compiled: wraps the model; grow model\._ori"):
        grow(Compiled(model), [Widen(scale_factor=2)])
    with pytest.raises(UserError, match=r"model=DataParallel: wraps the model; grow model\.module"):
        grow(nn.DataParallel(model), [Widen(scale_factor=2)])
    with pytest.raises(UserError, match="model=NoConfig: has no config; give it"):
        grow(NoConfig(), [Widen(scale_factor=2)])
    with pytest.raises(ValueError, match="TwoArguments cannot be made from its config alone"):
        grow(TwoArguments(CONFIG, 1), [Widen(scale_factor=2)])
