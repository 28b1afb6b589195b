"""What the variables of launchers come to: one of several processes, one alone, or a message."""

import os

import pytest

from growlm.distributed.launch_environment import (
    adopt_launcher_variables,
    check_num_devices,
    describe_unused_tasks,
    find_first_host,
)
from growlm.distributed.process_group import PeerFailedError
from growlm.runtime.errors import UserError

STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "interactive",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}
SCRIPT = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


@pytest.fixture
def adopt(monkeypatch):
    def adopt(variables):
        for name in list(os.environ):
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for name in (*NAMES, "GROUP_RANK", "MASTER_PORT"):  # so that they are gone after the test
            if name not in variables:
                monkeypatch.setenv(name, "")
                del os.environ[name]
        adopt_launcher_variables()
        return {name: os.environ.get(name) for name in NAMES}

    return adopt


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (STEP, ["5", "6", "1", "2", "gpu07"]),
        (STEP | {"MASTER_ADDR": "10.0.0.1"}, ["5", "6", "1", "2", "10.0.0.1"]),
        (
            STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"},
            ["5", "2", "1", "2", "127.0.0.1"],
        ),
        (OPEN_MPI | {"MASTER_ADDR": "node1"}, ["3", "4", "1", "2", "node1"]),
        # mpirun starts its daemons with srun, and srun may speak PMI
        (STEP | OPEN_MPI | {"MASTER_ADDR": "node1"}, ["3", "4", "1", "2", "node1"]),
        (STEP | {"PMI_SIZE": "6", "PMI_RANK": "5"}, ["5", "6", "1", "2", "gpu07"]),
        (
            {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            ["1", "2", "1", "2", "127.0.0.1"],
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", **STEP},
            ["1", "2", None, None, None],
        ),  # torchrun in srun
    ],
)
def test_one_of_several(adopt, variables, expected):
    assert list(adopt(variables).values()) == expected
    assert describe_unused_tasks() is None


@pytest.mark.parametrize(
    ("variables", "has_note"),
    [
        ({}, False),
        (SCRIPT, True),
        (SCRIPT | {"SLURM_JOB_NAME": "bash"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train"}, True),
        (SCRIPT | {"SLURM_NTASKS": "1"}, False),
        (STEP | {"SLURM_PTY_PORT": "4321"}, True),  # a shell that `srun --pty` has opened
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}, False),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_one_alone(adopt, variables, has_note):
    assert set(adopt(variables).values()) == {None}
    assert (describe_unused_tasks() is not None) == has_note
    check_num_devices(4)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4: RANK is not set"),
        (STEP | {"WORLD_SIZE": "3", "SLURM_PROCID": "0"}, "WORLD_SIZE=3: srun started 6 processes"),
        (SCRIPT | {"SLURM_PROCID": "2"}, "SLURM_PROCID=2: is set, but not SLURM_STEP_ID"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS=many: must be a number"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0"}, "MASTER_ADDR=: must be the name of rank 0's"),
        (
            {"PMI_SIZE": "2", "PMI_RANK": "0"},
            "PMI_RANK=0: mpirun started 2 processes, but MPI_LOCALRANKID and MPI_LOCALNRANKS are not",
        ),
    ],
)
def test_what_does_not_fit_is_named(adopt, variables, message):
    with pytest.raises(UserError) as refused:
        adopt(variables)
    assert str(refused.value).startswith(message)


def test_another_number_of_devices_is_reported_by_rank_0(adopt):
    adopt(STEP)
    with pytest.raises(PeerFailedError):
        check_num_devices(1)
    adopt(STEP | {"SLURM_PROCID": "0"})
    with pytest.raises(UserError, match=r"use trainer\.devices=6, or srun --ntasks=1, or unset"):
        check_num_devices(1)
    check_num_devices(6)
    check_num_devices(None)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[3,5-9]", "gpu3"),
        ("rack[1-2]-node[03-04]", "rack1-node03"),
        ("a1,a2", "a1"),
        ("a1 a2", "a1"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert find_first_host(nodes) == first


def test_steps_of_a_job_choose_other_ports(adopt):
    ports = set()
    for step in range(4):
        adopt(STEP | {"SLURM_STEP_ID": str(step)})
        ports.add(os.environ["MASTER_PORT"])
    assert len(ports) == 4
    assert all(20000 <= int(port) < 32768 for port in ports)
