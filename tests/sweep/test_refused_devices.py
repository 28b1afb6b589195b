"""A sweep's job on several devices: refused with the command that runs it."""

import shlex

import pytest

from growlm.cli.free_text import quote_free_text
from growlm.config import load_config
from growlm.runtime.errors import UserError
from growlm.sweep.compose import compose_jobs
from growlm.sweep.job_devices import format_torchrun_command


def refused(*arguments):
    """The command in the message."""
    with pytest.raises(UserError) as caught:
        compose_jobs(["-m", *map(quote_free_text, arguments)])
    assert caught.value.key == "-m"
    return shlex.split(str(caught.value).partition("one after another: ")[2])


def test_the_first_job_on_several_devices_is_told_without_m():
    command = refused(
        "growth.noise_std=1e-3,1e-2",
        "trainer.devices=1,2",
        "logger=none",
        "hydra/launcher=joblib",
        "run_dir=a folder's name",
        "callbacks.sample_prompt=it's ${x}",
        "phases.moe.grow=[{upcycle: {num_experts: 8, top_k: 2}}]",
    )
    assert command[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "growlm.train"]
    overrides = command[5:]
    assert "-m" not in overrides
    config = load_config(*map(quote_free_text, overrides))
    assert (config.trainer.devices, config.growth.noise_std) == (2, 1e-3)
    assert config.run_dir == "a folder's name"
    assert config.phases["moe"].grow[0]["upcycle"].num_experts == 8
    assert config.callbacks.sample_prompt == "it's ${x}"


def test_an_experiment_may_ask_for_them(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ntrainer: {devices: 16}\ncluster: {devices_per_node: 8}\n"
    (tmp_path / "experiment" / "big.yaml").write_text(text)
    command = refused("experiment=big", "seed=1,2", "--config-dir", str(tmp_path))
    assert command[:3] == ["torchrun", "--nnodes", "2"]
    assert command[command.index("--nproc-per-node") + 1] == "8"
    assert command[-4:] == ["--config-dir", str(tmp_path), "experiment=big", "seed=1"]


def test_under_torchrun_it_is_as_many_as_it_started(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    command = refused("seed=1,2")
    assert command[1:3] == ["--nnodes", "2"]
    assert command[-1] == "seed=1"


def test_jobs_on_one_device_are_composed():
    _, _, sweep = compose_jobs(["-m", "seed=1,2", "trainer.devices=1"])
    assert len(sweep.jobs) == 2


@pytest.mark.parametrize(
    ("devices", "per_node", "shape"),
    [(8, None, (1, 8)), (8, 16, (1, 8)), (16, 8, (2, 8)), (12, 8, (2, 6)), (7, 4, (7, 1))],
)
def test_nodes_are_alike(devices, per_node, shape):
    command = shlex.split(format_torchrun_command([], devices, per_node))
    nodes = int(command[command.index("--nnodes") + 1]) if "--nnodes" in command else 1
    assert (nodes, int(command[command.index("--nproc-per-node") + 1])) == shape
