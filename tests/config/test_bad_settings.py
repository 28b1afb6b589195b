"""Every wrong setting: one message that names the key, before anything is written."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
import torch

from growlm.config import load_config, schema
from growlm.distributed.process_group import DistributedContext
from growlm.reporting import RunListener
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from growlm.training.run_setup import build_context, resolve_config

BAD = [
    (["trainer.precison=32-true"], "trainer.precison", "did you mean precision"),
    (["trainer=fsdp", "optimizer=muon"], "optimizer.name=muon", "use adamw or sgd"),
    (["phases.dense.stepz=3"], "phases.dense.stepz", "did you mean steps"),
    (["phases.dense.steps=ten"], "phases.dense.steps", "Integer"),
    (["phases.dense.steps=-1"], "phases.dense.steps=-1", "at least 0"),
    (["phases.dense.batch_size=0"], "phases.dense.batch_size=0", "at least 1"),
    (["phases.dense.accumulate=-1"], "phases.dense.accumulate=-1", "at least 1"),
    (["phases.dense.lr=0"], "phases.dense.lr=0", "greater than 0"),
    (["phases.dense.lr=nan"], "phases.dense.lr=nan", "finite"),
    (
        ["phases.dense.tokens=100", "phases.dense.steps=3"],
        "phases.dense=steps, tokens",
        "exactly one of steps, tokens, flops",
    ),
    (["phases.dense.steps=null"], "phases.dense=none", "exactly one of steps, tokens, flops"),
    (["phases.widn.steps=3"], "phases.widn.steps=3", "did you mean wide?"),
    (["phases.huge={steps: 3}"], "phases.huge", "the plan has dense, moe, wide, deep"),
    (["~phases.widn"], "override=~phases.widn", "did you mean wide?"),
    (["+phases.wide={steps: 3}"], "+phases.wide", "there is such a phase already"),
    (["+phases.more={stepz: 3}"], "phases.more.stepz", "did you mean steps?"),
    (["+phases.more={lr: 1e-3}"], "phases.more=none", "exactly one of steps, tokens, flops"),
    (["~phases.dense"], "phases.moe.grow", "first phase has no model to grow"),
    (["~phases"], "phases={}", "at least one phase"),
    (["phase_plan=dense", "growth.scale_factor=7"], "growth.scale_factor=7", "no phase"),
    (["phase_plan=dense", "growth={noise_std: 0}"], "growth.noise_std=0", "no phase"),
    (["phase_plan=dense", "recipe=copies"], "recipe=copies", "no phase of this plan uses it"),
    (["seqence_length=64"], "seqence_length", "did you mean sequence_length?"),
    (["phases.dense.optimizer_state=keep"], "phases.dense.optimizer_state=keep", "carry, reset"),
    (["phases.dense.grow=[{upcycle: {}}]"], "phases.dense.grow", "first phase"),
    (
        ["phases.moe.grow=[{}]"],
        "phases.moe.grow.0",
        "exactly one of upcycle, multiply_experts, widen",
    ),
    (["phases.moe.grow.0.upcycle.top_k=9"], "phases.moe.grow.0.upcycle.top_k=9", "num_experts=8"),
    (["phases.moe.grow.0.upcycle.top_k=1"], "phases.moe.grow.0.upcycle.top_k=1", "no gradient"),
    (["phases.moe.grow.0.upcycle.router_init=ones"], "router_init=ones", "normal, zeros"),
    (["phases.deep.grow=[{upcycle: {}}]"], "phases.deep.grow.0.upcycle", "upcycle a dense model"),
    (["growth.scale_factor=1.3"], "growth.scale_factor=1.3", "n_heads=4 times 1.3"),
    (["growth.scale_factor=0.5"], "growth.scale_factor=0.5", "at least 1"),
    (["growth.scale_factor=1"], "growth.scale_factor=1.0", "nothing would grow"),
    (["growth.noise_std=-1"], "growth.noise_std=-1.0", "at least 0"),
    (["growth.extra_layers=0"], "growth.extra_layers=0", "at least 1"),
    (
        ["phases.wide.save_as=dense_model"],
        "phases.wide.save_as=dense_model",
        "phases.dense.save_as",
    ),
    (["phases.wide.save_as=../up"], "phases.wide.save_as=../up", "letters, digits"),
    (["model.n_kv_heads=3"], "model.n_kv_heads=3", "divide n_heads=4"),
    (["model.head_dim=7"], "model.head_dim=7", "even"),
    (["model.norm.kind=batchnorm"], "model.norm.kind=batchnorm", "layernorm, rmsnorm"),
    (["model.vocab_size=100"], "model.vocab_size=100", "at least 1024"),
    (["model.d_model=0"], "model.d_model=0", "at least 1"),
    (["model.max_seq_len=64"], "sequence_length=128", "model.max_seq_len=64"),
    (["data=text"], "data.path", "file, a folder or a glob"),
    (["data=text", "data.path=/nowhere/at_all.txt"], "data.path=/nowhere/at_all.txt", "no such"),
    (["data=text", "data.path=/nowhere/*.parquet"], "data.path=/nowhere/*.parquet", "no such"),
    (["data=huggingface"], "data.name", "a dataset's name, or a folder"),
    (["data=huggingface", "data.name=./nowhere"], "data.name=./nowhere", "OWNER/NAME"),
    (["data=mixture"], "data.sources.mine.path", "a file, a folder or a glob"),
    (["data.source=mixture"], "data.sources={}", "at least one source"),
    (
        ["data=mixture", "~data.sources.mine", "data.sources.stories.weight=0"],
        "data.sources.stories.weight=0.0",
        "greater than 0",
    ),
    (
        ["data=mixture", "data.sources.mine.path=/nowhere.txt"],
        "data.sources.mine.path=/nowhere.txt",
        "no such file",
    ),
    (
        ["data=mixture", "data.sources.mine.source=embedded", "data.sources.mine.weight=1e9"],
        "data.sources.stories.weight",
        "less than one document in 10,000",
    ),
    (
        ["data=mixture", "data.sources.mine.source=mixture"],
        "mine.source=mixture",
        "mixtures cannot be nested",
    ),
    (["data=mixture", "data.sources.mine.wieght=2"], "data.sources.mine", "did you mean weight"),
    (
        ["data=mixture", "data.source=embedded"],
        "data.sources=stories, mine",
        "only data=mixture reads these",
    ),
    (
        ["data=mixture", "+data.sources.more={source: text, path: b.txt}"],
        "more",
        "add a new one in a file",
    ),
    (["data.shuffle_window=0"], "data.shuffle_window=0", "at least 1"),
    (["data.cache_gb=0"], "data.cache_gb=0.0", "greater than 0"),
    (["data.streaming=perhaps"], "data.streaming", "bool"),
    (["data.validation_every=1"], "data.validation_every=1", "at least 2"),
    (["data=stories"], "data=stories", "embedded"),
    (["tokenizer.name=bpe"], "tokenizer.name=bpe", "embedded, gpt2, bytes"),
    (["phase_plan=five_stage"], "phase_plan=five_stage", "four_stage"),
    (["schedule.name=linear"], "schedule.name=linear", "wsd, constant, cosine"),
    (["schedule.decay_fraction=2"], "schedule.decay_fraction=2.0", "at most 1"),
    (["optimizer.beta2=1"], "optimizer.beta2=1.0", "less than 1"),
    (["trainer.accelerator=tpu"], "trainer.accelerator=tpu", "auto, cpu, gpu"),
    (["logger.name=mlflow"], "logger.name=mlflow", "wandb, csv"),
    (["callbacks.log_every=0"], "callbacks.log_every=0", "at least 1"),
    (
        ["+callbacks.extra.x._target_=os.system"],
        "callbacks.extra.x._target_=os.system",
        "is not a Lightning Callback",
    ),
    (["+callbacks.extra.x.y=1"], "callbacks.extra.x", "_target_"),
    (
        ["+callbacks.extra.x._target_=growlm.model.ModelConfig"],
        "callbacks.extra.x",
        "is not a Lightning Callback",
    ),
    (
        ["+callbacks.extra.x._target_=growlm.nothing.Here"],
        "callbacks.extra.x._target_",
        "no such class",
    ),
    (
        ["callbacks.extra.x._target_=growlm.checkpoint.checkpoint_folder.shutil.rmtree"],
        "callbacks.extra.x._target_",
        "is not a Lightning Callback",
    ),
    (
        [
            "+callbacks.extra.x={_target_: lightning.pytorch.callbacks.Timer, duration: {_target_: os.sys}}"
        ],
        "callbacks.extra.x.duration._target_",
        "is neither a class nor a function",
    ),
    (
        ["+callbacks.extra.x._target_=lightning.pytorch.callbacks.lambda_function.pl.Trainer"],
        "callbacks.extra.x._target_",
        "there is no such class",
    ),
    (
        ["callbacks.extra.x={_target_: lightning.pytorch.callbacks.Timer, _recursive_: false}"],
        "callbacks.extra.x._recursive_",
        "known: _target_, _args_, _partial_",
    ),
    (
        ["callbacks.extra.x={_target_: lightning.pytorch.callbacks.Timer, hours: 3}"],
        "callbacks.extra.x.hours=3",
        "Timer has no such argument; known: duration",
    ),
    (
        ["callbacks.extra.x={_target_: lightning.pytorch.callbacks.Timer, duration: a}"],
        "callbacks.extra.x",
        "cannot be instantiated: ",
    ),
    (
        ["callbacks.extra.x={_target_: lightning.pytorch.callbacks.Timer, _partial_: true}"],
        "callbacks.extra.x._partial_=True",
        "is not a Lightning Callback",
    ),
    (
        [
            "callbacks.extra.x={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val_los}"
        ],
        "callbacks.extra.x=EarlyStopping",
        "monitor=val_los is not logged; a run logs train/loss and val/loss; did you mean val/loss?",
    ),
    (
        ["callbacks.extra._target_=a.Mine"],
        "callbacks.extra._target_=a.Mine",
        "callbacks.extra.NAME._target_=a.Mine",
    ),
    (
        ["callbacks.extra.x=a.Mine"],
        "callbacks.extra.x=a.Mine",
        "needs callbacks.extra.x._target_=a.Mine",
    ),
    (["trust=mine"], "trust=mine", "trust=[mine]"),
    (["logger=none", "logger._target_=a.B"], "logger._target_=a.B", "leave out logger=none"),
    (["optimizer=own"], "optimizer._target_=None", "must be given with optimizer=own"),
    (
        ["optimizer=sgd", "optimizer._target_=a.B"],
        "optimizer._target_=a.B",
        "override /optimizer: own",
    ),
    (["optimizer.bta1=2"], "optimizer.bta1=2", "did you mean beta1"),
    (["optimizer.beta1=high"], "optimizer.beta1", "Float"),
    (["schedule.power=2"], "schedule.power=2", "known: name, warmup_steps"),
    (["data.pth=a.txt"], "data.pth=a.txt", "did you mean path"),
    (["tokenizer.folder=a"], "tokenizer.folder=a", "known: name, path"),
    (["logger.projct=a"], "logger.projct=a", "did you mean project"),
    (
        ["optimizer._target_=torch.optim.RAdam", "phases.moe.optimizer_state=exact"],
        "phases.moe.optimizer_state=exact",
        "use carry or reset",
    ),
    (["trainer.max_time=90"], "trainer.max_time=90", "DD:HH:MM:SS"),
    (["trainer.max_time=00:01:30"], "trainer.max_time", "DD:HH:MM:SS"),
    (["trainer.on_nonfinite=ignore"], "trainer.on_nonfinite=ignore", "stop, skip"),
    (["trainer.memory_gb=0"], "trainer.memory_gb=0.0", "greater than 0"),
    (["trainer.memory_gb=1e-3"], "phases.dense", "trainer.memory_gb"),
    (["trainer.validate_every=-1"], "trainer.validate_every=-1", "at least 0"),
    (["trainer.precision=16-mixed"], "trainer.precision=16-mixed", "bf16-mixed, 32-true"),
    (["trainer.strategy=zero"], "trainer.strategy=zero", "auto, ddp, fsdp"),
    (
        ["trainer.devices=3", "phases.moe.batch_size=9", "phases.moe.accumulate=4"],
        "phases.dense.batch_size=16",
        "trainer.devices=3. Try: "
        "phases.dense.batch_size=18 phases.wide.batch_size=18 phases.deep.batch_size=18",
    ),
    (
        ["trainer.devices=64", "phases.moe.accumulate=8"],
        "phases.dense.batch_size=16",
        "phases.moe.batch_size=64 phases.moe.accumulate=2 phases.wide.batch_size=64",
    ),
    (["cluster=nowhere"], "cluster=nowhere", "dgx_h100"),
    (["cluster=dgx_h100", "cluster.mfu=2"], "cluster.mfu=2.0", "at most 1"),
    (
        ["cluster.peak_tflops=10"],
        "cluster.memory_gb_per_s=None",
        "must be set along with peak_tflops",
    ),
    (
        ["cluster.accelerator=gpu"],
        "cluster.peak_tflops=None",
        "must be set along with cluster.accelerator",
    ),
    (
        ["cluster=dgx_a100", "cluster.memory_gb=null"],
        "cluster.memory_gb=None",
        "must be set along with",
    ),
    (["checkpoint.every_minutes=-1"], "checkpoint.every_minutes=-1.0", "at least 0"),
    (["checkpoint.every_steps=-2"], "checkpoint.every_steps=-2", "at least 0"),
    (["checkpoint.every_step=2"], "checkpoint.every_step", "did you mean every_steps"),
    (["sequence_length=1"], "sequence_length=1", "at least 2"),
    (["name=a/b"], "name=a/b", "letters, digits"),
    (
        ["optimizer=sgd", "phases.moe.optimizer_state=asymmetric", "optimizer.beta1=0.9"],
        "optimizer.beta1",
        "no such setting",
    ),
    (
        ["optimizer=adafactor", "phases.moe.optimizer_state=exact"],
        "phases.moe.optimizer_state=exact",
        "adafactor",
    ),
    (["phases.dense.optimizer_state=reset"], "phases.dense.optimizer_state=reset", "first phase"),
    (["model.n_layers=5000"], "model.n_layers=5000", "at most 4096"),
    (["model.rope.theta=inf"], "model.rope.theta=inf", "finite"),
    (["logger.mode=online"], "logger.mode=online", "not logged in"),
    (["verification.probe_length=1"], "verification.probe_length=1", "at least 2"),
    (["seed=-1"], "seed=-1", "at least 0"),
    (["phases.dense.steps=["], "", "no viable alternative"),
]


def set_up(config):
    resolved, _ = resolve_config(config, DistributedContext(), RunListener(), lambda _: None)
    build_context(resolved, None, DistributedContext(), RunListener())


@pytest.mark.parametrize(
    ("overrides", "key", "reason"), BAD, ids=lambda v: v[0] if isinstance(v, list) else ""
)
def test_bad_setting(overrides, key, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no login in a netrc file
    with pytest.raises(UserError) as caught:
        set_up(load_config(*overrides))
    message = str(caught.value)
    assert key in message or caught.value.key.endswith(key.partition("=")[0])
    assert reason in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_every_number_has_limits():
    groups = [value for value in vars(schema).values() if dataclasses.is_dataclass(value)]
    for group in groups:
        types = get_type_hints(group)
        for field in dataclasses.fields(group):
            if {int, float} & {types[field.name], *get_args(types[field.name])}:
                assert "limits" in field.metadata, f"{group.__name__}.{field.name}"


def test_a_device_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load_config("trainer=gpu")
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu"):
        set_up(config)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"resume=.*nowhere: is not a run folder"):
        run_plan(load_config("resume=nowhere"))
    assert not list(tmp_path.iterdir())
