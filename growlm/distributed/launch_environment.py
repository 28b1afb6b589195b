"""Find out from the environment whether a launcher has started this process as one of several.

`torchrun` sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and so does Kubeflow.
SLURM's `srun`, `mpirun` and LSF's `jsrun` have variables of their own, from which these are set here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from growlm.runtime.errors import UserError

FIRST_PORT, NUM_PORTS = 20000, 12768
"""Ports to choose MASTER_PORT from: below those that Linux gives to outgoing connections."""


@dataclass(frozen=True)
class Launcher:
    """A launcher and the variables that it sets in every process; the first one that is set counts.

    Attributes:
        name: Name of the program.
        size: Number of processes.
        rank: Rank of the process.
        local_rank: Rank of the process on its machine.
        local_size: Number of processes on this machine.
        job: What identifies the job, the same in all of its processes.
        node: Index of the machine.
    """

    name: str
    size: tuple[str, ...]
    rank: str
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]
    job: tuple[str, ...]
    node: str = ""


SRUN = Launcher(
    "srun",
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
    "SLURM_PROCID",
    ("SLURM_LOCALID",),
    (),
    ("SLURM_JOB_ID", "SLURM_JOBID"),
    "SLURM_NODEID",
)
PMI = Launcher(
    "mpirun",
    ("PMI_SIZE",),
    "PMI_RANK",
    ("MPI_LOCALRANKID",),
    ("MPI_LOCALNRANKS",),
    ("PMI_ID", "LSB_JOBID"),
)
LAUNCHERS = (
    Launcher(
        "mpirun",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "LSB_JOBID"),
    ),
    PMI,
    Launcher(
        "jsrun",
        ("JSM_NAMESPACE_SIZE",),
        "JSM_NAMESPACE_RANK",
        ("JSM_NAMESPACE_LOCAL_RANK",),
        ("JSM_NAMESPACE_LOCAL_SIZE",),
        ("LSB_JOBID",),
    ),
    SRUN,
)
"""Launchers with variables of their own, in order of precedence: in a SLURM job, `mpirun` may use `srun`."""


def name_launcher() -> str:
    """Return the name of the program that has started the processes of this run, for messages."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    launcher = _find_launcher(os.environ)
    return "torchrun" if launcher is None else launcher.name


def adopt_launcher_variables() -> None:
    """Set the variables of `torchrun` from those of another launcher that has started this process.

    Raises:
        UserError: If the variables do not fit together, or more are needed.
        PeerFailedError: In processes other than the first one in that case, without a message.
    """
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return
    launcher = _find_launcher(environment)
    if launcher is None:
        _check_no_half(environment)
        return
    try:
        variables = _translate(launcher, environment)
    except UserError as error:
        raise _report_once(error, environment[launcher.rank]) from error
    for name, value in variables.items():
        environment.setdefault(name, value)


def check_num_devices(requested: int | None) -> None:
    """Check `trainer.devices` against the processes that a launcher has started, before they wait for each other.

    Raises:
        UserError: In the process that reports, if they differ.
        PeerFailedError: In the others, without a message.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if requested is None or requested == size or size == 1:
        return
    error = UserError("trainer.devices", requested, explain_num_processes(size, requested))
    raise _report_once(error, os.environ["RANK"])


def _report_once(error: UserError, rank: str) -> Exception:
    """Return the error for rank 0, and one without a message for the others, which find the same."""
    from growlm.distributed.process_group import PeerFailedError  # it imports torch

    return error if rank == "0" else PeerFailedError(2)


def explain_num_processes(started: int, requested: int) -> str:
    """Return what to do if a launcher has started another number of processes than `trainer.devices`."""
    launcher = name_launcher()
    reason = f"{launcher} started {started} processes; use trainer.devices={started}"
    if launcher != "srun":
        return reason
    others = "" if requested > 1 else f", or unset SLURM_PROCID for {started} runs of their own"
    return f"{reason}, or srun --ntasks={requested}{others}"


def describe_unused_tasks() -> str | None:
    """Return a note if SLURM has reserved several tasks and this process was started without `srun`."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks == "1" or "WORLD_SIZE" in os.environ or _find_launcher(os.environ) is not None:
        return None
    return (
        f"SLURM_NTASKS={tasks}, but this process was started without srun: training as one process."
    )


def _find_launcher(environment: Mapping[str, str]) -> Launcher | None:
    """Return the launcher that has started this process as one of several; None if there is none.

    Raises:
        UserError: If a process of `srun` lacks what tells it from the script of the job.
    """
    for launcher in LAUNCHERS:
        if launcher.rank not in environment or _read_int(launcher, launcher.size, environment) < 2:
            continue
        if (
            launcher is PMI
            and "SLURM_JOB_ID" in environment
            and "MPI_LOCALRANKID" not in environment
        ):
            continue  # set by srun
        if launcher is SRUN:
            # The script of a job has SLURM_PROCID=0 and SLURM_NTASKS, too, and so has a shell on a terminal.
            if "SLURM_PTY_PORT" in environment:
                continue
            if not any(name.startswith("SLURM_STEP") for name in environment):
                if environment["SLURM_PROCID"] == "0":
                    continue
                reason = (
                    "is set, but not SLURM_STEP_ID and SLURM_STEP_NUM_TASKS, which srun sets too"
                )
                raise UserError("SLURM_PROCID", environment["SLURM_PROCID"], reason)
        return launcher
    return None


def _check_no_half(environment: Mapping[str, str]) -> None:
    size = environment.get("WORLD_SIZE", "1")
    if size not in ("", "1"):
        reason = "RANK is not set; start the processes with torchrun, srun or mpirun, or unset WORLD_SIZE"
        raise UserError("WORLD_SIZE", size, reason)


def _read_int(launcher: Launcher, names: tuple[str, ...], environment: Mapping[str, str]) -> int:
    for name in names:
        if name in environment:
            if not environment[name].isdecimal():
                reason = f"must be a number, as {launcher.name} sets it"
                raise UserError(name, environment[name], reason)
            return int(environment[name])
    return -1


def _translate(launcher: Launcher, environment: Mapping[str, str]) -> dict[str, str]:
    size = _read_int(launcher, launcher.size, environment)
    rank = _read_int(launcher, (launcher.rank,), environment)
    local_rank = _read_int(launcher, launcher.local_rank, environment)
    local_size = _read_int(launcher, launcher.local_size, environment)
    if launcher is SRUN:
        local_size = _count_tasks_on_node(environment, size)
    given = environment.get("WORLD_SIZE", str(size))
    if given != str(size):
        reason = f"{launcher.name} started {size} processes; unset it"
        raise UserError("WORLD_SIZE", given, reason)
    if local_rank < 0 or local_size < 0:
        names = " and ".join(
            names[0] for names in (launcher.local_rank, launcher.local_size) if names
        )
        reason = f"{launcher.name} started {size} processes, but {names} are not set; use torchrun, or set RANK, "
        raise UserError(launcher.rank, rank, reason + "WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE")
    variables = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_PORT": str(_choose_port(launcher, environment)),
    }
    if environment.get(launcher.node, "").isdecimal():
        variables["GROUP_RANK"] = environment[launcher.node]
    if local_size == size:
        variables["MASTER_ADDR"] = "127.0.0.1"
    elif launcher is SRUN:
        variables["MASTER_ADDR"] = find_first_host(_get_node_list(environment))
    elif "MASTER_ADDR" not in environment:
        reason = "must be the name of rank 0's machine, as the processes are on several"
        raise UserError("MASTER_ADDR", "", reason)
    return variables


def _choose_port(launcher: Launcher, environment: Mapping[str, str]) -> int:
    """Return a port that all processes of the job choose, and other jobs on the same machine hardly."""
    job = next((environment[name] for name in launcher.job if name in environment), "")
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    digest = hashlib.sha256(f"{job}.{step}".encode()).digest()
    return FIRST_PORT + int.from_bytes(digest[:4]) % NUM_PORTS


def _get_node_list(environment: Mapping[str, str]) -> str:
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if nodes := environment.get(name):
            return nodes
    raise UserError("SLURM_STEP_NODELIST", "", "must be set; srun sets it")


def find_first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: `gpu[07-09,12],cpu1` -> `gpu07`."""
    first = re.match(r"[^,\s\[]*(\[[^\]]*\][^,\s\[]*)*", nodes.strip())
    assert first is not None  # it matches the empty text
    return re.sub(r"\[([^,\-\]]*)[^\]]*\]", r"\1", first[0])


def _count_tasks_on_node(environment: Mapping[str, str], size: int) -> int:
    """Return the tasks on this node, from SLURM's `2(x3),1`."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    if not text:
        num_nodes = _read_int(
            SRUN, ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"), environment
        )
        return size // max(1, num_nodes)
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            raise UserError("SLURM_STEP_TASKS_PER_NODE", text, "must be as srun sets it: 2(x3),1")
        counts += [int(found[1])] * int(found[2] or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else counts[-1]
