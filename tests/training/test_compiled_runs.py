"""`trainer.compile=true` through the growths of a plan."""

import os
import subprocess
import sys
from functools import partial

import pytest

from growlm.runtime.errors import UserError
from growlm.training import Interrupted, run_plan
from tests.distributed.on_devices import loss_differences, run_all
from tests.training.stopping import SignalAt, assert_same_run
from tests.training.tiny_run import TINY, rows, tiny_config, tiny_run

COMPILED = "trainer.compile=true"
SHORT = tuple(f"phases.{name}.steps=2" for name in ("dense", "moe", "wide", "deep"))
IN_FP32 = ("trainer.precision=32-true", "callbacks.log_every=1")
DYNAMO_WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor"
)


def losses(run_dir):
    return [row["loss"] for row in rows(run_dir)]


@DYNAMO_WARNINGS
def test_each_phase_is_compiled_once_for_its_own_shapes(tmp_path, monkeypatch, capfd):
    """Without inductor, which takes minutes; `test_four_growths_by_inductor` has it."""
    import torch._dynamo

    sizes = set()

    def backend(graph, inputs):
        # Inductor fails at a product of three sizes that it does not know (torch 2.13).
        assert not any(isinstance(value, torch.SymInt) for value in inputs)
        sizes.update(value.shape[-1] for value in inputs if value.dim() == 3)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    whole = tiny_run(tmp_path / "whole", *SHORT, *IN_FP32).run_dir
    # Blocks that are alike share their code, and what the phase before compiled does not count.
    limits = {"recompile_limit": 1, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(**limits):
        run = tiny_run(tmp_path / "run", *SHORT, *IN_FP32, COMPILED).run_dir
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    assert {16, 24} <= sizes  # both widths of the residual stream
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@DYNAMO_WARNINGS
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_four_growths_by_inductor(precision, tmp_path):
    """A real command, whose output is its user's: no line of the compiler's, no warning."""
    settings = [*TINY, *SHORT, "model.n_layers=1", f"trainer.precision={precision}", "logger=none"]
    command = [
        sys.executable,
        "-m",
        "growlm.train",
        *settings,
        COMPILED,
        f"run_dir='{tmp_path}/run'",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    whole = tiny_run(tmp_path / "whole", *settings[len(TINY) :]).run_dir
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.slow
@DYNAMO_WARNINGS
def test_a_compiled_run_resumes_to_the_bit(tmp_path):
    settings = ("~phases.wide", "~phases.deep", "model.n_layers=1", COMPILED)
    whole = tiny_run(tmp_path / "whole", *settings).run_dir
    with pytest.raises(Interrupted):
        run_plan(tiny_config(tmp_path / "run", *settings), [SignalAt(6)])
    run_plan(tiny_config(tmp_path / "run", *settings, f"resume='{tmp_path / 'run'}'"))
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@DYNAMO_WARNINGS
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes(strategy, tmp_path):
    settings = [
        *SHORT[:2],
        *IN_FP32,
        "~phases.wide",
        "~phases.deep",
        "model.n_layers=1",
        "trainer.validation_sequences=6",
    ]
    run_all([[str(tmp_path / "two"), *settings, f"trainer.strategy={strategy}", COMPILED]])
    run_plan(tiny_config(tmp_path / "one", *settings))
    assert max(loss_differences(tmp_path / "one", tmp_path / "two").values()) < 1e-4


@pytest.mark.slow
@DYNAMO_WARNINGS
def test_blocks_that_are_computed_again(tmp_path):
    settings = (*SHORT, *IN_FP32, "~phases.wide", "~phases.deep", "model.n_layers=1")
    whole = tiny_run(tmp_path / "whole", *settings).run_dir
    again = "trainer.activation_checkpointing=true"
    run = tiny_run(tmp_path / "run", *settings, COMPILED, again).run_dir
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CXX", "nope", "needs a C.. compiler on a CPU, but nope was not found"),
        ("PATH", "/nowhere", "needs a C.. compiler on a CPU, but .* was not found"),
    ],
)
def test_without_a_compiler_one_line_says_so_before_the_run(
    name, value, message, tmp_path, monkeypatch
):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"trainer.compile=true: {message}"):
        tiny_run(tmp_path / "run", COMPILED)
    assert not (tmp_path / "run").exists()
