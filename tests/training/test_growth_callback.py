"""GrowthCallback grows the model of any LightningModule, and its optimizers, in Lightning's own loop."""

import copy
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback, ModelCheckpoint
from torch.utils.data import DataLoader

from growlm.config.phase_plan import make_plan
from growlm.growth import Deepen, Upcycle, Widen, grow
from growlm.model import TransformerLM
from growlm.optim.muon import MuonAdamW
from growlm.runtime.errors import UserError
from growlm.training import GrowthCallback, GrowthError, PhaseStage, PhaseState, fit_phases
from tests.model.tiny_models import build, random_tokens, tiny_config
from tests.training.tiny_run import tiny_config as plan_config

PLAN = [[], [Upcycle(4)], [Widen(1.5, new_channels="fresh"), Deepen(extra_layers=1)]]
STEPS = 3


def batches(config):
    return [random_tokens(config, batch=4, time=9, seed=seed) for seed in range(STEPS)]


class Module(LightningModule):
    """A user's module: its model lies where it likes, and its optimizers are its own."""

    def __init__(self, model, configure=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2)):
        super().__init__()
        self.net = torch.nn.ModuleDict({"lm": model.train()})
        self.bias = torch.nn.Parameter(torch.zeros(()))
        self.configure = configure

    def training_step(self, batch, batch_idx):
        return self.net.lm.loss(batch) + self.bias.square()

    def configure_optimizers(self):
        return self.configure(self)


def make_trainer(callbacks, steps=STEPS, **more):
    return Trainer(
        max_steps=steps,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False} | more,
    )


def loader(model):
    return DataLoader(batches(model.config), batch_size=None, num_workers=0)


@pytest.fixture(autouse=True)
def _quiet():
    """Lightning's advice about workers, and nothing else, is no error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*but have no logger configured.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
        yield


def train_plan(module, plan=PLAN, **settings):
    state, records = None, []
    for operators in plan:
        growth = GrowthCallback(
            operators, previous=state, attribute="net.lm", on_boundary=records.append, **settings
        )
        trainer = make_trainer([growth])
        trainer.fit(module, loader(module.net.lm))
        state = PhaseState.from_trainer(trainer)
    return state, records


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def several(module):
    matrices = [p for p in module.parameters() if p.ndim == 2]
    rest = [p for p in module.parameters() if p.ndim != 2]
    return torch.optim.SGD(
        [{"params": matrices[:2]}, {"params": [*matrices[2:], *rest], "lr": 1e-3}],
        lr=1e-2,
        momentum=0.9,
    )


def adafactor(module):
    return torch.optim.Adafactor(module.parameters(), lr=1e-2)


def muon(module):
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "orthogonal": True, "weight_decay": 0.0, "lr": 1e-2},
        {"params": rest, "orthogonal": False, "weight_decay": 0.0, "lr": 1e-2},
    ]
    return MuonAdamW(groups, 1e-2, 0.9, betas=(0.9, 0.95), eps=1e-8)


@pytest.mark.parametrize("configure", [adamw, several, adafactor, muon])
def test_it_trains_as_a_plain_loop_with_grow_does(configure):
    """Weights equal to the bit, whatever `configure_optimizers` returns."""
    module = Module(build(tiny_config()), configure)
    plain = copy.deepcopy(module)
    state, records = train_plan(module)
    assert [r.report.lossless and bool(r.report) for r in records] == [True, True]
    assert [(r.from_phase, r.to_phase) for r in records] == [
        ("phase 0", "phase 1"),
        ("phase 1", "phase 2"),
    ]
    model, optimizer = plain.net["lm"], configure(plain)
    moments = {}
    for index, operators in enumerate(PLAN):
        if index:
            kept = [p for p in optimizer.state if p is plain.bias]
            moments = {p: optimizer.state.pop(p) for p in kept}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p is not plain.bias]
            model, grown = grow(
                model, operators, 0, index, optimizer=optimizer, optimizer_state="carry"
            )
            plain.net["lm"] = model
            optimizer = configure(plain)
            for parameter in model.parameters():
                if parameter in grown.state:
                    optimizer.state[parameter] = grown.state[parameter]
            optimizer.state.update(moments)
        for batch in batches(model.config):
            loss = model.loss(batch) + plain.bias.square()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, module.net.lm.state_dict()[name]), name
    assert state.optimizer_states.keys() <= set(dict(model.named_parameters()))
    assert state.other_states.keys() == ({"bias"} if optimizer.state.get(plain.bias) else set())


def test_several_optimizers_by_hand_keep_their_moments():
    class Manual(Module):
        def __init__(self, model):
            super().__init__(model)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            table = list(self.net.lm.embedding.parameters())
            rest = [p for p in self.parameters() if p is not table[0]]
            return torch.optim.SGD(table, lr=0.1, momentum=0.9), torch.optim.AdamW(rest, lr=1e-2)

    module = Manual(build(tiny_config()))
    state, _ = train_plan(module)
    assert set(state.optimizer_names.values()) == {"SGD", "AdamW"}
    # Lightning counts the steps of both, so that three of them end in the second batch of each phase.
    assert float(state.optimizer_states["final_norm.weight"]["step"]) == 3 * 2
    assert "momentum_buffer" in state.optimizer_states["embedding.weight"]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_exact_trains_as_the_small_model_would_have(kind):
    """The losses of a widened model are those of one that never grew."""

    def configure(module):
        parameters = module.parameters()
        if kind == "sgd":
            return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
        return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, eps=1e-12)

    config = tiny_config(norm={"kind": "rmsnorm"})
    losses = {}
    for name, widen in (("small", []), ("grown", [Widen(2, noise_std=0, filler="zeros")])):
        module = Module(build(config).double(), configure)
        found = losses[name] = []
        module.on_train_batch_end = lambda out, *_, found=found: found.append(float(out["loss"]))
        train_plan(module, [[], widen, widen], optimizer_state="exact")
    assert losses["grown"] == pytest.approx(losses["small"], abs=1e-9)


def test_a_state_is_saved_and_loaded(tmp_path):
    """A phase that begins from the folder is the phase that begins in memory, scaled steps and all."""
    widen = Widen(2, new_channels="copies")
    results = []
    for through_disk in (False, True):
        module = Module(build(tiny_config()))
        state, _ = train_plan(module, [[], [widen]], optimizer_state="exact")
        if through_disk:
            state.save(tmp_path / "state")
            state = PhaseState.load(tmp_path / "state")
            assert state.phase_name == "phase 1"
            assert state.other_states.keys() == {"bias"}
        growth = GrowthCallback(
            [widen], previous=state, attribute="net.lm", optimizer_state="exact"
        )
        make_trainer([growth]).fit(module, loader(module.net.lm))
        results.append(module.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


def same_batches():
    """The same batch at every step, because Lightning reads a loader from its beginning after a resume."""
    return DataLoader(batches(tiny_config())[:1] * STEPS, batch_size=None)


@pytest.mark.parametrize("mode", ["carry", "exact", "asymmetric"])
def test_a_lightning_checkpoint_goes_on_inside_a_grown_phase(tmp_path, mode):
    results = []
    for stops in (False, True):
        module = Module(build(tiny_config()))
        state, _ = train_plan(module, [[]])
        state.save(tmp_path / f"state-{mode}-{stops}")
        previous = PhaseState.load(tmp_path / f"state-{mode}-{stops}")

        def growth(previous):
            return GrowthCallback(
                [Widen(2, new_channels="copies")],
                previous=previous,
                attribute="net.lm",
                optimizer_state=mode,
            )

        if not stops:
            make_trainer([growth(previous)]).fit(module, same_batches())
        else:
            saved = ModelCheckpoint(tmp_path / mode, every_n_train_steps=1, save_top_k=-1)
            trainer = make_trainer([growth(previous), saved], 1, enable_checkpointing=True)
            trainer.fit(module, same_batches())
            module = Module(build(tiny_config()))
            previous = PhaseState.load(tmp_path / f"state-{mode}-{stops}")
            trainer = make_trainer([growth(previous)])
            trainer.fit(module, same_batches(), ckpt_path=saved.best_model_path)
        results.append(module.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


def test_the_modules_own_model_grows_without_a_previous_phase():
    module = Module(build(tiny_config()))
    growth = GrowthCallback([Widen(2)], attribute="net.lm")
    make_trainer([growth]).fit(module, loader(module.net.lm))
    assert module.net.lm.config.d_model == 2 * tiny_config().d_model
    assert growth.boundary.report


class Tied(Module):
    def __init__(self, model):
        super().__init__(model)
        self.head = model.embedding


def trained_state(configure=adamw):
    module = Module(build(tiny_config()), configure)
    return module, train_plan(module, [[]])[0]


def fit(module, growth, before=(), **more):
    make_trainer([*before, growth], **more).fit(module, loader(build(tiny_config())))


def test_what_would_go_wrong_is_said():
    module, state = trained_state()
    at = {"attribute": "net.lm"}
    with pytest.raises(UserError, match="optimizer_state=keep: must be one of carry"):
        GrowthCallback([], optimizer_state="keep")
    with pytest.raises(UserError, match="attribute=model: Module has no model there"):
        fit(Module(build(tiny_config())), GrowthCallback([Widen(2)]))
    with pytest.raises(UserError, match="callbacks=Copied: has copied the model before it grew"):
        fit(module, GrowthCallback([Widen(2)], previous=state, **at), [Copied(module)])
    exact = GrowthCallback([Widen(2)], previous=state, optimizer_state="exact", **at)
    with pytest.raises(UserError, match=r"gradient_clip_val=1\.0: Lightning's clipping counts"):
        fit(module, exact, gradient_clip_val=1.0)
    with pytest.raises(UserError, match=r"attribute=head.weight: Tied also holds a part"):
        fit(Tied(build(tiny_config())), GrowthCallback([Widen(2)], **at))
    with pytest.raises(UserError, match=r"trainer=callbacks: the trainer has no GrowthCallback"):
        PhaseState.from_trainer(make_trainer([]))
    module.configure = several
    with pytest.raises(UserError, match=r"was AdamW and is SGD.*use optimizer_state=reset"):
        fit(module, GrowthCallback([Widen(2)], previous=state, **at))
    with pytest.raises(UserError, match="previous=phase 0: is empty"):
        fit(module, GrowthCallback([Widen(2)], previous=state, **at))
    with pytest.raises(UserError, match="previous=phase 0: is empty"):
        state.save("anywhere")


class Copied(EMAWeightAveraging):
    """Lightning's, as it is when its setup has run first."""

    def __init__(self, module):
        super().__init__()
        self._average_model = copy.deepcopy(module)

    def setup(self, *_, **__):
        pass


def test_a_state_without_a_rule_is_refused_before_anything_grows():
    module, state = trained_state(lambda m: torch.optim.Rprop(m.parameters(), lr=1e-3))
    growth = GrowthCallback([Widen(2)], previous=state, attribute="net.lm")
    with pytest.raises(UserError, match="optimizer=Rprop: no rule for its state"):
        fit(module, growth)
    assert state.model is module.net.lm
    growth = GrowthCallback([Widen(2)], previous=state, attribute="net.lm", optimizer_state="reset")
    fit(module, growth)
    assert module.net.lm.config.d_model == 2 * tiny_config().d_model


def test_a_growth_that_loses_something_leaves_the_module_as_it_was(monkeypatch):
    module, state = trained_state()
    old = module.net.lm
    monkeypatch.setattr(
        "growlm.growth.transforms.tensor_transforms.Split.share_exponent", lambda self, power: 0
    )
    growth = GrowthCallback([Widen(2, new_channels="copies")], previous=state, attribute="net.lm")
    with pytest.raises(GrowthError, match="functional"):
        fit(module, growth)
    assert module.net.lm is old
    assert not growth.boundary.report
    assert isinstance(old, TransformerLM)


def test_fit_phases_is_the_loop(capsys):
    module, again = Module(build(tiny_config())), Module(build(tiny_config()))
    train_plan(module)
    phases = [(STEPS, operators) for operators in PLAN]

    def factory(max_steps, callbacks):
        return make_trainer(callbacks, max_steps)

    state = fit_phases(factory, again, loader(again.net.lm), phases, attribute="net.lm")
    assert (state.phase_name, state.index) == ("phase 2", 2)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert capsys.readouterr().out.count("functional passed") == 2
    with pytest.raises(UserError, match=r"phases=\[\]: has no phase"):
        fit_phases(factory, again, loader(again.net.lm), [])
    with pytest.raises(UserError, match=r"trainer_factory=.* must give the Trainer the callbacks"):
        fit_phases(lambda **_: make_trainer([]), again, loader(again.net.lm), phases)


def test_the_stage_of_a_plan_trains_alone(tmp_path):
    """With a Trainer, a data module and Lightning's callbacks, as any LightningModule does."""
    config = plan_config(tmp_path)
    plan = make_plan(config, 257)
    stage = PhaseStage(plan, plan.phases[0], config.optimizer, config.schedule)
    batch = torch.randint(257, (4, 33), generator=torch.Generator().manual_seed(0))
    data = DataLoader([batch] * 8, batch_size=None)
    trainer = make_trainer(
        [ModelCheckpoint(tmp_path, monitor="val/loss")], 8, enable_checkpointing=True
    )
    trainer.fit(stage, data, data)
    assert trainer.callback_metrics["train/loss"] < 5.5
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(stage.validation_loss)
    assert trainer.validate(stage, data, verbose=False)[0]["val/loss"] < 5.5


def test_step_scaling_is_restored_after_the_optimizers_are_made_too():
    """As Lightning does it under FSDP2."""
    module, state = trained_state()
    arguments = {"attribute": "net.lm", "optimizer_state": "asymmetric"}
    growth = GrowthCallback([Widen(2)], previous=state, **arguments)
    fit(module, growth)
    saved = growth.state_dict()
    again, state = trained_state()
    resumed = GrowthCallback([Widen(2)], previous=state, **arguments)
    resumed.on_train_start = lambda *_: resumed.load_state_dict(saved)
    make_trainer([resumed], 1).fit(again, loader(again.net.lm))
    assert resumed.state_dict()["scaling"]["0"]["age"] == STEPS + 1


def test_an_optimizer_outside_the_model_may_not_change_its_class():
    module, state = trained_state()
    assert state.other_optimizer_names == {"bias": "AdamW"}

    def split(module):
        rest = [p for p in module.parameters() if p is not module.bias]
        return torch.optim.AdamW(rest), torch.optim.SGD([module.bias], lr=0.1)

    module.configure, module.automatic_optimization = split, False
    with pytest.raises(UserError, match="the optimizer of bias was AdamW and is SGD"):
        fit(module, GrowthCallback([Widen(2)], previous=state, attribute="net.lm"))
    assert state.other_states == {}


def test_a_mode_that_cannot_be_is_refused_while_the_previous_phase_is_whole():
    module, state = trained_state(adafactor)
    growth = GrowthCallback([Widen(2)], previous=state, attribute="net.lm", optimizer_state="exact")
    with pytest.raises(UserError, match=r"optimizer_state=exact: .* not for Adafactor"):
        fit(module, growth)
    assert state.model is module.net.lm
    assert state.optimizer_states


def test_fit_phases_keeps_the_callbacks_of_a_partial():
    module, seen = Module(build(tiny_config())), []
    counter = LambdaCallback(on_train_batch_end=lambda *_: seen.append(1))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    factory = partial(
        Trainer, accelerator="cpu", callbacks=[counter], enable_checkpointing=False, **quiet
    )
    fit_phases(factory, module, loader(module.net.lm), [(2, []), (1, [])], attribute="net.lm")
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        (Widen(2), r"operators=Widen\(.*: must be a list of operators, such as \[Widen\(...\)\]"),
        ([Widen], r"operators\[0\]=Widen: is a class; write Widen\(...\)"),
        (["widen"], r"operators\[0\]='widen': is no operator"),
    ],
)
def test_what_is_no_list_of_operators(operators, message):
    with pytest.raises(UserError, match=message):
        GrowthCallback(operators)
    with pytest.raises(UserError, match=message):
        grow(build(tiny_config()), operators)
