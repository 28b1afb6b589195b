"""Every file under examples/ runs, in at most 60 lines, and uses public names only."""

import ast
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from growlm.growth.operators.registry import available_operators
from growlm.growth.optimizer_state import MOMENT_POWERS
from tests.commands.processes import CommandProcess

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
PUBLIC = (
    "growlm.config",
    "growlm.growth",
    "growlm.model",
    "growlm.training",
    "growlm.verification",
)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_uses_public_names(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = {node.module for node in imported if node.module.startswith("growlm")}
    assert ours
    assert ours <= set(PUBLIC)


def run(name):
    runpy.run_path(str(EXAMPLES[0].with_name(f"{name}.py")), run_name="__main__")


def test_a_model_of_ones_own(capsys):
    run("own_model")
    out = capsys.readouterr().out
    assert "hidden_size=48" in out
    assert "num_hidden_layers=4" in out
    assert float(out.split()[-1]) < 1e-4


def test_an_own_operator(capsys, own_registry):
    run("own_operator")
    grown, difference = capsys.readouterr().out.splitlines()
    assert grown == "grown from 4 to 6 blocks"
    assert float(difference.split()[-1]) < 1e-5
    assert available_operators()["repeat_blocks"].operator_class.__name__ == "RepeatBlocks"


def test_a_plain_loop(capsys):
    run("plain_loop")
    lines = capsys.readouterr().out.splitlines()
    grown = [line for line in lines if line.startswith("grown")]
    assert len(grown) == 2
    assert all(float(line.split()[-1]) < 1e-4 for line in grown)
    losses = [float(line.split()[-1]) for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    before, after = losses[1], losses[2]  # the growth kept the loss, but for the batch
    assert abs(after - before) < 0.5


def test_llama_to_mixtral(capsys):
    run("llama_to_mixtral")
    out = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([.0-9]+)", out)]
    assert "LlamaForCausalLM of 147,776 -> MixtralForCausalLM of 706,496" in out
    assert float(re.search(r"same function: True; logits differ by ([-.e0-9]+)", out)[1]) < 1e-5
    assert losses[0] > losses[1] > losses[2] > losses[3]
    assert out.splitlines()[-1] == "saved and loaded as MixtralForCausalLM"


def printed(name, capsys):
    """Run an example, and return what it prints, words apart by one space."""
    runpy.run_path(str(EXAMPLES[0].with_name(f"{name}.py")), run_name="__main__")
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_own_callback(capsys):
    norms = [line for line in printed("own_callback", capsys) if line.startswith("norms:")]
    assert len([line for line in norms if line.endswith("parameters")]) == 4
    assert len([line for line in norms if "step" in line]) == 8


def test_own_optimizer(capsys, monkeypatch):
    monkeypatch.setitem(MOMENT_POWERS, "average", 1)  # taken out again at the end
    del MOMENT_POWERS["average"]
    said = " ".join(printed("own_optimizer", capsys))
    assert "its state is estimated at 1 times the size of the weights" in said
    assert "begins anew" not in said


def test_own_data_module(capsys):
    said = " ".join(printed("own_data_module", capsys))
    assert "a resumed run restores what its state_dict saves" in said
    assert "bits per byte are not reported" in said


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_lightning_module_on_two_processes(strategy, tmp_path):
    path = EXAMPLES[0].with_name("lightning_module.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = CommandProcess(path, [strategy], tmp_path, tmp_path, environment).wait()
    assert done.returncode == 0, done.stderr
    jumps = [float(jump) for jump in re.findall(r"jump ([-+.e0-9]+);", done.stdout)]
    assert len(jumps) == 2
    assert max(map(abs, jumps)) < 1e-4
    assert "failed" not in done.stdout


@pytest.mark.slow
def test_the_notebook(monkeypatch, capsys):
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    monkeypatch.chdir(EXAMPLES[0].parent)
    cells = json.loads(Path("grow_a_model.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    plt.close("all")
    out = capsys.readouterr().out
    assert out.count("same function: True") == 3
    assert names["losses"][-1] < names["losses"][0] / 3
    assert len(set(names["sizes"])) == 4
    assert "Once upon a time there was" in out
