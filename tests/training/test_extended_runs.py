"""More steps for a run that was stopped or has finished: `resume=RUN_DIR phases.deep.steps=+500`."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.config.schema import ScheduleConfig
from growlm.reporting.run_history import RunHistoryWriter
from growlm.runtime.errors import RunError, UserError
from growlm.sweep.compose import compose_jobs
from growlm.training import Interrupted, run_plan
from growlm.training.resume.resume_from import find_run_to_resume
from growlm.training.resume.run_extension import _describe_rates, with_written_length
from growlm.training.run_folder import open_run_folder
from tests.training.stopping import SignalAt, assert_same_run, slow
from tests.training.tiny_run import tiny_config

PLAN = ("schedule=constant", "~phases.wide", "~phases.deep", "callbacks.sample_tokens=0")


def resume(run_dir, *overrides):
    return load_config(f"resume={run_dir}", *overrides)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has finished, which tests copy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return run_plan(tiny_config(folder, *PLAN, "~phases.moe")).run_dir


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def without_former_end(run_dir):
    """Cut the end of the phase, as it was before the run was extended, out of the history."""
    path = run_dir / "checkpoints" / "training_history.jsonl"
    lines = path.read_text().splitlines(True)
    ends = [i for i, line in enumerate(lines) if json.loads(line).get("event") == "phase_finished"]
    assert json.loads(lines[ends[-2] - 1])["event"] == "validation"
    del lines[ends[-2] - 1 : ends[-2] + 1]
    path.write_text("".join(lines))
    return run_dir


def test_a_finished_run_is_extended(run_dir, tmp_path, capsys):
    """It equals, to the bit, a run that had its last length from the start."""
    run_plan(resume(run_dir, "phases.dense.steps=+4"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "New length: dense steps=4 → steps=8. schedule=constant: the next step's" in printed
    assert "as in a run of this length from the start" in printed
    assert "Resuming dense after step 4 of 8" in printed
    assert read(run_dir / "summary.json")["phases"][0]["steps"] == 8
    assert OmegaConf.load(run_dir / "config.yaml").phases.dense.steps == 8
    assert read(run_dir / "plan.json")[0]["steps"] == 8
    whole = run_plan(tiny_config(tmp_path / "whole", *PLAN, "~phases.moe", "phases.dense.steps=8"))
    assert_same_run(without_former_end(run_dir), whole.run_dir)


@pytest.mark.slow
def test_stopped_extended_finished_and_extended_again(tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_plan(tiny_config(run_dir, *PLAN), [SignalAt(2)])
    with pytest.raises(
        Interrupted
    ):  # in the second phase, which begins two steps later than planned
        run_plan(resume(run_dir, "phases.dense.steps=+2"), [SignalAt(8)])
    with pytest.raises(UserError, match="dense has finished, and moe begins with what it trained"):
        run_plan(resume(run_dir, "phases.dense.steps=+4"))
    run_plan(resume(run_dir))  # without the override, under the new length
    assert [phase["steps"] for phase in read(run_dir / "summary.json")["phases"]] == [6, 4]
    run_plan(resume(run_dir, "phases.moe.steps=8"))
    whole = tmp_path / "whole"
    run_plan(tiny_config(whole, *PLAN, "phases.dense.steps=6", "phases.moe.steps=8"))
    assert_same_run(without_former_end(run_dir), whole)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("phases.dense.steps=3", "has done 4 steps already"),
        pytest.param(
            "phases.dense.steps=4",
            r"has finished; .* phases\.NAME\.steps=\+500",
            marks=pytest.mark.slow,
        ),
        pytest.param("phases.dense.steps=+0", "adds nothing", marks=pytest.mark.slow),
        pytest.param(
            "phases.dense.tokens=+1000",
            r"length is in steps; write phases\.dense\.steps=\+",
            marks=pytest.mark.slow,
        ),
        pytest.param("phases.dense.lr=0.1", "began with other settings", marks=pytest.mark.slow),
    ],
)
def test_what_is_refused_of_a_finished_run(override, reason, run_dir):
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=reason):
        run_plan(resume(run_dir, override))
    after = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    assert before.keys() == after.keys()
    assert [path.name for path in before if before[path] != after[path]] in ([], ["lock"])


@pytest.mark.slow
def test_a_run_that_kept_no_state(run_dir):
    shutil.rmtree(next((run_dir / "resume").glob("0*")))
    with pytest.raises(UserError, match=r"kept no state to train on from.*model=pretrained"):
        run_plan(resume(run_dir, "phases.dense.steps=+4"))
    assert (run_dir / "summary.json").exists()


@pytest.mark.slow
def test_killed_between_the_last_step_and_the_summary(finished, tmp_path, monkeypatch):
    def fail(*_):
        raise RunError("killed")

    run_dir = tmp_path / "run"
    monkeypatch.setattr(RunHistoryWriter, "run_finished", fail)
    with pytest.raises(RunError, match="killed"):
        run_plan(tiny_config(run_dir, *PLAN, "~phases.moe"))
    monkeypatch.undo()
    shutil.rmtree(run_dir / "checkpoints" / "dense_model")
    run_plan(resume(run_dir))
    text = (run_dir / "checkpoints" / "training_history.jsonl").read_text().splitlines(True)
    (run_dir / "checkpoints" / "training_history.jsonl").write_text("".join(text[:-1]))
    assert text[-1] == text[-2]  # the end of the phase was reached twice
    assert_same_run(run_dir, finished)


@pytest.mark.parametrize("stage", slow("record", "summary"))
def test_killed_while_it_is_extended(stage, run_dir, monkeypatch):
    """Whatever was written, the run can be resumed, and extended."""
    from growlm.training.resume import run_extension

    write = run_extension.atomic_write_text
    last = {"record": "run.json", "summary": None}[stage]

    def write_some(path, text):
        if path.name == "config.yaml":
            raise RunError("killed")
        write(path, text)
        if path.name == last:
            raise RunError("killed")

    monkeypatch.setattr(run_extension, "atomic_write_text", write_some)
    with pytest.raises(RunError, match="killed"):
        run_plan(resume(run_dir, "phases.dense.steps=+2"))
    monkeypatch.undo()
    assert (run_dir / "summary.json").exists() == (stage == "record")
    run_plan(resume(run_dir, "phases.dense.steps=+2"))
    assert read(run_dir / "summary.json")["phases"][0]["steps"] == 6


@pytest.mark.parametrize(
    "overrides",
    [["phases.dense.steps=+4"], ["phase_plan=dense", "resume=auto", "phases.dense.tokens=+1e3"]],
)
def test_a_plus_needs_a_run(overrides):
    with pytest.raises(
        UserError, match=r"phases\.dense\.\w+=\+\S+: adds to the length that a run has"
    ):
        load_config(*overrides)


@pytest.mark.parametrize("steps", ["+4", "+4,+8", "choice(+4,+8)", "8,+4", "range(+4,9)"])
def test_a_plus_is_refused_in_a_sweep(steps):
    with pytest.raises(
        UserError, match=r"phases\.dense\.steps=.*\+4.*: adds to .*leave out the plus"
    ):
        compose_jobs(["seed=1,2", f"phases.dense.steps={steps}"])


def test_a_plus_is_refused_inside_of_braces(finished):
    reason = r"^phases\S*=.*: cannot add .* write phases\.NAME\.steps=\+N"
    for override in ("phases.dense={steps: +4}", "phases={dense: {steps: +4}}"):
        for first in ([], [f"resume={finished}"]):
            with pytest.raises(UserError, match=reason):
                load_config(*first, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.dense.steps=+1.5", r"=\+1\.5: must add a whole number of steps, such as \+500$"),
        ("phases.dense.steps=+1e2", r"=\+1e2: must add a whole number of steps, such as \+100$"),
        ("phases.dens.steps=+4", r"=\+4: the run has no phase dens; did you mean dense\?$"),
    ],
)
def test_a_wrong_addition_is_shown_as_it_was_written(override, message, finished):
    with pytest.raises(UserError, match=rf"^phases\.dens\w*\.steps{message}"):
        resume(finished, override)


@pytest.mark.parametrize(
    ("choice", "instead"),
    [
        ("logger=csv", r"write logger\.name=csv instead of logger=csv"),
        ("data=text", "leave out data=text"),
        ("trainer=cpu", "write single keys instead of trainer=cpu"),
    ],
)
def test_a_plus_beside_a_choice_from_a_group(choice, instead, finished):
    with pytest.raises(UserError, match=rf"steps=\+4: adds to .* composes .*: {instead}$"):
        resume(finished, "phases.dense.steps=+4", choice)


def test_what_is_advised_in_place_of_a_choice_is_accepted(finished):
    config = resume(finished, "phases.dense.steps=+4", "logger.name=csv")
    assert find_run_to_resume(config) == finished
    assert (config.logger.name, config.phases["dense"].steps) == ("csv", 8)


def test_a_finished_run_without_a_state_is_not_told_to_add_steps(finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(next((run_dir / "resume").glob("0*")))
    with pytest.raises(UserError, match=r"^resume=/.*kept no state to train on from"):
        open_run_folder(run_dir)


def test_a_sum_is_shown_as_it_was_written():
    error = UserError("phases.dense.steps", 614, "dense has finished")
    given = ["seed=1", "phases.dense.steps=+4"]
    assert str(with_written_length(error, given)) == "phases.dense.steps=+4: dense has finished"
    assert with_written_length(error, ["phases.dense.steps=614"]) is error


class State:
    def __init__(self, step):
        self.record = {"phase": "dense", "step": step, "finished": False}


@pytest.fixture(scope="module")
def dense():
    return load_config("phase_plan=dense", "tokenizer=bytes", "phases.dense.lr=1e-3")


def plan_of(config, steps):
    phase = replace(config.phases["dense"], steps=steps)
    return make_plan(replace(config, phases={"dense": phase}), 257)


@pytest.mark.parametrize(
    ("schedule", "step", "said"),
    [
        ("constant", 100, r"0\.001 \(the last had 0\.001\), the last step's 0\.001; as in a run"),
        ("cosine", 100, r"0\.00055 \(the last had 0\.0001\d*\), .* 0\.0001\d*; the steps before"),
        ("cosine", 50, r"0\.000868 \(it would have been 0\.00055\)"),
        ("wsd", 100, r"0\.001 \(the last had 0\.000145\), .* 0\.00012\d; the steps before"),
        ("wsd", 50, r"0\.001 \(it would have been 0\.001\), .* 0\.00012\d; as in a run"),
    ],
)
def test_what_becomes_of_the_learning_rate(schedule, step, said, dense):
    before, after = plan_of(dense, 100), plan_of(dense, 200)
    settings = ScheduleConfig(name=schedule)
    assert re.search(said, _describe_rates(settings, before, after, State(step)))
