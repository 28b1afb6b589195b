"""The command as a real process: exit codes, one message, sweeps."""

import json
import signal
import time

import pytest
import yaml

from tests.commands.processes import CommandProcess, run_command
from tests.commands.wandb_file import wandb_run
from tests.training.stopping import slow
from tests.training.tiny_run import TINY


@pytest.fixture
def train(tmp_path, tmp_path_factory):
    """Run the command in the test's own folder."""

    def run(*arguments):
        streams = tmp_path_factory.mktemp("streams")
        return run_command("growlm.train", *arguments, folder=tmp_path, streams=streams)

    return run


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["trainer.precison=32-true"], "trainer.precison"),
        (["phases.dense.steps=ten"], "phases.dense.steps"),
        (["growth.scale_factor=1.3"], "growth.scale_factor=1.3"),
        (["phases.moe.grow.0.upcycle.top_k=9"], "phases.moe.grow.0.upcycle.top_k=9"),
        pytest.param(
            ["phases.dense.batch_size=0"], "phases.dense.batch_size=0", marks=pytest.mark.slow
        ),
        (["data=text", "data.path=no, such: 'file'.txt"], "data.path=no, such: 'file'.txt"),
        (["-m", "growth.scale_factor=1.3,1.4"], "growth.scale_factor=1.4"),
        (["-m", "growth.noise=1,2"], "growth.noise"),
    ],
)
def test_what_is_wrong_is_said_once_and_nothing_is_written(train, tmp_path, arguments, key):
    done = train(*arguments)
    assert done.returncode == 2
    assert key in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    jobs = 2 if "growth.scale_factor=1.4" in key else 1
    assert len(done.stderr.strip().splitlines()) == jobs
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scales", [(1.5,), pytest.param((1.5, 2), marks=pytest.mark.slow)])
def test_a_sweep_leaves_a_folder_and_a_wandb_run_per_job(scales, train, tmp_path):
    short = [o.replace("steps=4", "steps=1") for o in TINY]
    done = train(
        "-m",
        *short,
        "growth.noise_std=1e-5,2e-2",
        f"growth.scale_factor={','.join(map(str, scales))}",
    )
    assert done.returncode == 0, done.stderr
    (sweep,) = tmp_path.glob("outputs/*/*_quickstart_sweep")
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    settings = [(noise, scale) for noise in (1e-5, 2e-2) for scale in scales]
    assert [folder.name for folder in folders] == [
        f"{job}_noise_std={noise}" + (f"_scale_factor={scale}" if len(scales) > 1 else "")
        for job, (noise, scale) in enumerate(settings)
    ]
    runs = [wandb_run(folder) for folder in folders]
    assert len({run.run_id for run in runs}) == len(settings)
    assert {run.run_group for run in runs} == {sweep.name}
    assert [run.display_name for run in runs] == [folder.name for folder in folders]
    for folder, run, (noise, scale) in zip(folders, runs, settings, strict=True):
        sent = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert (sent["growth"]["noise_std"], sent["growth"]["scale_factor"]) == (noise, scale)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert float(config["growth"]["noise_std"]) == noise
        assert config["growth"]["scale_factor"] == scale
        assert len(json.loads((folder / "boundaries.json").read_text())) == 3
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["phases"][2]["name"] == "wide"
    assert "WARNING" not in done.stderr


def test_one_wrong_job_does_not_end_the_others(train, tmp_path):
    short = [o.replace("steps=4", "steps=1") for o in TINY]
    done = train("-m", *short, "logger=none", "growth.scale_factor=1.3,1.5")
    assert done.returncode == 2
    (sweep,) = tmp_path.glob("outputs/*/*_quickstart_sweep")
    assert [p.name for p in sweep.iterdir() if p.is_dir()] == ["1_scale_factor=1.5"]


def test_a_failed_growth_exits_with_1_and_keeps_its_record(train, tmp_path):
    overrides = [
        *TINY,
        "logger=none",
        "growth.noise_std=0",
        "growth.scale_factor=2",
        "run_dir=here",
    ]
    done = train(*overrides, "verification.require_symmetry_breaking=true")
    assert done.returncode == 1
    assert "symmetry" in done.stderr
    assert "Traceback" not in done.stderr
    boundaries = json.loads((tmp_path / "here" / "boundaries.json").read_text())
    assert boundaries[-1]["passed"] is False


def test_clean_up_leaves_folders_that_were_there(train, tmp_path):
    (tmp_path / "u" / "v").mkdir(parents=True)
    done = train("-m", "growth.scale_factor=1.3,1.4", "hydra.sweep.dir=u/v/s")
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "u").rglob("*")] == ["v"]


@pytest.mark.parametrize(
    "setting", ["run_dir=a_file/run", *slow("run_dir=/"), "hydra.run.dir=a_file/run"]
)
def test_a_run_folder_that_cannot_be_made(train, tmp_path, setting):
    (tmp_path / "a_file").touch()
    done = train(*TINY, "logger=none", setting)
    assert done.returncode == 2
    assert setting.partition("=")[0] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_the_folder_that_hydra_makes_is_the_runs_and_its_brackets_no_markup(train, tmp_path):
    short = [o.replace("steps=4", "steps=1") for o in TINY]
    done = train(*short, "logger=none", "hydra.run.dir=a[/b]c[bold]")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "a[").iterdir()] == ["b]c[bold]"]
    assert (tmp_path / "a[" / "b]c[bold]" / "summary.json").exists()


@pytest.mark.parametrize(
    ("sent", "code", "sweep"),
    [
        (signal.SIGTERM, 143, False),
        pytest.param(signal.SIGINT, 130, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, True, marks=pytest.mark.slow),
        (signal.SIGINT, 130, True),
    ],
)
def test_a_signal_ends_the_run_with_its_code(tmp_path, tmp_path_factory, sent, code, sweep):
    long = [o for o in TINY if "dense.steps" not in o]
    # Hydra wants -m before all overrides.
    arguments = ["-m", "seed=1,2"] if sweep else ["run_dir=here"]
    arguments = [*arguments, *long, "phases.dense.steps=100000", "logger=none"]
    streams = tmp_path_factory.mktemp("streams")
    process = CommandProcess("growlm.train", arguments, tmp_path, streams)
    deadline = time.monotonic() + 120
    while not any("step" in f.read_text() for f in tmp_path.rglob("training_history.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(sent)
    done = process.wait(60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    histories = list(tmp_path.rglob("training_history.jsonl"))
    assert len(histories) == 1  # in a sweep, the next job is not begun
