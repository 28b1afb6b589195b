"""A plan on a model of which only some blocks are mixtures: through growth, a stop, and out to Hugging Face."""

import pytest
import torch

from growlm.checkpoint import load_model
from growlm.huggingface import HuggingFaceTensors, to_huggingface
from growlm.training import Interrupted, run_plan
from tests.training.stopping import SignalAt, assert_same_run
from tests.training.tiny_run import rows, tiny_config

MIXED = (
    "model.num_experts=4",
    "model.expert_d_ff=24",
    "model.layers.mixture=[false,true]",
    "model.routing.bias_step=0.01",
    "phases.moe.grow=[{multiply_experts: {factor: 2}}]",
)


def test_it_is_trained_grown_stopped_and_resumed(tmp_path):
    whole = run_plan(tiny_config(tmp_path / "whole", *MIXED))
    stopped = tiny_config(tmp_path / "run", *MIXED)
    with pytest.raises(Interrupted):
        run_plan(stopped, [SignalAt(10)])
    resumed = run_plan(tiny_config(tmp_path / "run", *MIXED, f"resume='{tmp_path}/run'"))
    assert_same_run(whole.run_dir, resumed.run_dir)
    model, _ = load_model(whole.run_dir / "checkpoints" / "large_moe_final")
    assert model.config.mixtures == [1, 2]
    assert (model.config.d_ff, model.config.expert_d_ff) == (48, 40)
    loads = [row["expert_loads"] for row in rows(whole.run_dir) if "expert_loads" in row]
    assert {len(layers) for layers in loads} == {1, 2}
    to_huggingface(whole.run_dir / "checkpoints" / "large_moe_final", tmp_path / "hf")
    tensors = HuggingFaceTensors(tmp_path / "hf")
    assert all(torch.equal(tensors.read(name), value) for name, value in model.state_dict().items())
