"""Processes started as `srun`, `mpirun` and a job's script start them: one job, one process, or one message.

python -m pytest -n 0 -s -m slow tests/slow/test_launchers.py
"""

import json
import signal
import subprocess
import time

import pytest

from tests.slow.test_lost_output import ENVIRONMENT, LONG, TRAIN, lines_of_history, resume, states
from tests.training.tiny_run import TINY

pytestmark = pytest.mark.slow
JOB = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOBID": "77",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_NODELIST": "node[07-08]",
    "SLURM_NNODES": "1",
    "SLURM_SUBMIT_HOST": "login1",
}
"""What the script of a job and its steps have in common."""


def step(rank, size, name="train"):
    """The variables of a process of `srun`."""
    return JOB | {
        "SLURM_JOB_NAME": name,
        "SLURM_NTASKS": str(size),
        "SLURM_NPROCS": str(size),
        "SLURM_TASKS_PER_NODE": str(size),
        "SLURM_STEP_ID": "0",
        "SLURM_STEPID": "0",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": str(size),
        "SLURM_STEP_NODELIST": "node07",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURMD_NODENAME": "node07",
    }


def script(size, name="train"):
    """The variables of the script that `sbatch` starts."""
    return JOB | {
        "SLURM_JOB_NAME": name,
        "SLURM_NTASKS": str(size),
        "SLURM_NPROCS": str(size),
        "SLURM_TASKS_PER_NODE": str(size),
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }


def open_mpi(rank, size):
    return {
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(size),
        "OMPI_COMM_WORLD_NODE_RANK": str(rank),
        "PMIX_NAMESPACE": "prterun-node07-4711@1",
    }


def hydra_mpi(rank, size):
    return {
        "PMI_SIZE": str(size),
        "PMI_RANK": str(rank),
        "MPI_LOCALRANKID": str(rank),
        "MPI_LOCALNRANKS": str(size),
    }


def start(environments, *settings):
    return [
        subprocess.Popen(
            [*TRAIN, *settings],
            env=ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]


def finish(processes, timeout=240):
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
            process.wait()
    return [process.returncode for process in processes], outputs


@pytest.mark.parametrize("variables", [step, open_mpi, hydra_mpi])
def test_processes_of_a_launcher_are_one_run(variables, tmp_path):
    run_dir = tmp_path / "run"
    settings = [*TINY, "logger=none", f"run_dir={run_dir}"]
    codes, outputs = finish(start([variables(rank, 2) for rank in range(2)], *settings))
    assert codes == [0, 0], outputs
    assert "2 × cpu, ddp" in outputs[0][0]
    assert outputs[1][0] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert json.loads((run_dir / "summary.json").read_text())["device"] == "2 × cpu, ddp"


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_the_name_of_the_job_makes_no_difference(name, tmp_path):
    settings = [*TINY, "logger=none", f"run_dir={tmp_path / 'run'}", "trainer=fsdp"]
    codes, outputs = finish(start([step(rank, 2, name) for rank in range(2)], *settings))
    assert codes == [0, 0], outputs
    assert "2 × cpu, fsdp" in outputs[0][0]


@pytest.mark.parametrize("name", ["train", "bash", "interactive"])
def test_a_script_without_srun_is_one_process(name, tmp_path):
    settings = [*TINY, "logger=none", f"run_dir={tmp_path / 'run'}"]
    codes, outputs = finish(start([script(4, name)], *settings))
    assert codes == [0], outputs
    note = "SLURM_NTASKS=4, but this process was started without srun: training as one process."
    assert note in outputs[0][0]


def test_what_the_issue_has(tmp_path):
    environment = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train"}
    settings = [*TINY, "logger=none", f"run_dir={tmp_path / 'run'}"]
    codes, outputs = finish(start([environment], *settings))
    assert codes == [0], outputs


@pytest.mark.parametrize("devices", [1, 8])
def test_another_number_of_devices_is_one_message(devices, tmp_path):
    settings = [*TINY, "logger=none", f"run_dir={tmp_path / 'run'}", f"trainer.devices={devices}"]
    codes, outputs = finish(start([step(rank, 4) for rank in range(4)], *settings), timeout=240)
    assert codes == [2] * 4, outputs
    printed = "".join(out + err for out, err in outputs)
    assert printed.startswith(f"error: trainer.devices={devices}: srun started 4 processes; ")
    assert f"use trainer.devices=4, or srun --ntasks={devices}" in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_wrong_setting_is_one_message(tmp_path):
    settings = ["optimizer.learning=3", f"run_dir={tmp_path / 'run'}"]
    codes, outputs = finish(start([step(rank, 3) for rank in range(3)], *settings), timeout=240)
    assert codes == [2] * 3, outputs
    assert "".join(err for _, err in outputs).count("error: ") == 1


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_slurms_signals_write_a_state(sent, tmp_path):
    """SLURM sends them to every process of a step."""
    run_dir = tmp_path / "run"
    processes = start([step(rank, 2) for rank in range(2)], *LONG, f"run_dir={run_dir}")
    while len(lines_of_history(run_dir)) < 5:
        assert processes[0].poll() is None
        time.sleep(0.05)
    for process in processes:
        process.send_signal(sent)
    codes, outputs = finish(processes)
    assert codes == [128 + sent] * 2, outputs
    assert states(run_dir)
    assert outputs[0][1].startswith(f"stopped by {sent.name} after step")
    resume(run_dir)


def test_a_port_in_use_is_one_message(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"MASTER_PORT": str(taken.getsockname()[1])}
        settings = [*TINY, "logger=none", f"run_dir={tmp_path / 'run'}"]
        (process,) = start([step(0, 2) | port], *settings)
        codes, outputs = finish([process], timeout=100)
    assert codes == [2], outputs
    assert f"MASTER_PORT={port['MASTER_PORT']}: is in use on this machine" in outputs[0][1]
    assert "Traceback" not in outputs[0][1]
