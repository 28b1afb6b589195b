"""A run that goes on where bf16 or the GPU is missing, or was missing when it began."""

import pytest

from growlm.config.composing.resumed_config import resolve_resume_config
from growlm.runtime import hardware
from growlm.runtime.errors import UserError
from growlm.storage.integrity import dump_checksummed_json, read_checksummed_json
from growlm.training import Interrupted, run_plan
from growlm.training.resume import resume_from as resuming
from tests.training.stopping import SignalAt, assert_same_run, slow
from tests.training.tiny_run import tiny_config


@pytest.fixture
def bf16(monkeypatch):
    """Say whether this machine multiplies bf16."""

    def say(answer):
        for module in (hardware, resuming):
            monkeypatch.setattr(module, "has_native_bf16", lambda accelerator: answer)

    return say


def stop(run_dir, *overrides):
    with pytest.raises(Interrupted):
        run_plan(tiny_config(run_dir, *overrides), [SignalAt(6)])


def go_on(run_dir, *overrides):
    """As the command does: with the run's own settings."""
    config = tiny_config(run_dir, f"resume='{run_dir}'", *overrides)
    return run_plan(resolve_resume_config(config, [f"resume='{run_dir}'", *overrides]))


@pytest.mark.parametrize("named", [(), *slow(("trainer.precision=bf16-mixed",))])
def test_a_run_in_bf16_goes_on_without_it(named, bf16, tmp_path, capsys):
    bf16(True)
    whole = run_plan(tiny_config(tmp_path / "whole"))
    stop(tmp_path / "run")
    bf16(False)
    resumed = go_on(tmp_path / "run", *named)
    assert "bf16-mixed, as it began" in " ".join(capsys.readouterr().out.split())
    assert resumed.summary.precision == "bf16-mixed"
    assert_same_run(whole.run_dir, resumed.run_dir)


@pytest.mark.slow
def test_a_run_in_fp32_stays_in_it_where_there_is_bf16(bf16, tmp_path, capsys):
    bf16(False)
    whole = run_plan(tiny_config(tmp_path / "whole"))
    stop(tmp_path / "run")
    bf16(True)
    resumed = go_on(tmp_path / "run")
    assert "as it began" not in capsys.readouterr().out
    assert resumed.summary.precision == "32-true"
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_another_precision_is_refused_by_its_name(bf16, tmp_path):
    bf16(True)
    stop(tmp_path / "run")
    message = r"^trainer\.precision=32-true: the run began with bf16-mixed"
    with pytest.raises(UserError, match=message):
        go_on(tmp_path / "run", "trainer.precision=32-true")


@pytest.mark.slow
def test_the_newest_run_in_another_precision_is_not_the_one(bf16, tmp_path):
    bf16(True)
    stop(tmp_path / "run")
    precision = ("trainer.precision=32-true", "resume=auto")
    other = run_plan(tiny_config(tmp_path / "run", *precision))
    assert other.run_dir == tmp_path / "run_2"
    same = run_plan(tiny_config(tmp_path / "run", "resume=auto"))
    assert same.run_dir == tmp_path / "run"


def begun_on_a_gpu(run_dir):
    record = read_checksummed_json(run_dir / "resume" / "run.json", "resume", run_dir)
    (run_dir / "resume" / "run.json").write_text(
        dump_checksummed_json(record | {"accelerator": "gpu"})
    )


def test_a_run_on_a_gpu_goes_on_without_one_if_that_is_asked_for(tmp_path):
    stop(tmp_path / "run")
    begun_on_a_gpu(tmp_path / "run")
    message = r"^resume=.*run: the run began on a gpu; .* without one, use trainer\.accelerator=cpu"
    with pytest.raises(UserError, match=message):
        go_on(tmp_path / "run")
    resumed = go_on(tmp_path / "run", "trainer.accelerator=cpu")
    assert_same_run(run_plan(tiny_config(tmp_path / "whole")).run_dir, resumed.run_dir)


def test_a_run_on_a_cpu_stays_there_where_there_is_a_gpu(tmp_path, monkeypatch):
    stop(tmp_path / "run")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = tiny_config(tmp_path / "run", f"resume='{tmp_path / 'run'}'")
    assert resuming.restore_accelerator(config).trainer.accelerator == "cpu"
    assert resuming.restore_accelerator(tiny_config(tmp_path / "x")).trainer.accelerator == "auto"


@pytest.mark.slow
def test_phases_of_the_precision_that_auto_came_to_are_reused(bf16, tmp_path):
    bf16(True)
    reuse = ("reuse.phases=always", f"reuse.folder='{tmp_path}/phases'")
    run_plan(tiny_config(tmp_path / "first", *reuse))
    named = run_plan(tiny_config(tmp_path / "second", *reuse, "trainer.precision=bf16-mixed"))
    assert named.summary.reused.phases == ["dense", "moe", "wide"]
    other = run_plan(tiny_config(tmp_path / "third", *reuse, "trainer.precision=32-true"))
    assert other.summary.reused is None
