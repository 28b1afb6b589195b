"""Set up and tear down the process group of a run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from growlm.distributed.launch_environment import name_launcher
from growlm.distributed.process_group import (
    PEER_LOST_MESSAGE,
    DistributedContext,
    PeerFailedError,
    PeerLostError,
)
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.exit_codes import get_exit_code, is_distributed, print_error

RANK0_ENDED_KEY = "ended"
WAITING_NOTICE_S = 15.0
"""Seconds after which a process says that it waits for the others."""
RANK0_ERROR_TIMEOUT_S = 10.0
"""Seconds that other ranks wait for rank 0 to fail too; once it has, they wait a tenth of this longer."""
PEER_LOST_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "timed out",
    "Broken pipe",
    "failed to connect",
    "recvBytes failed",
    "sendBytes failed",
    "remote process exited",
    "ncclRemoteError",
    "ncclSystemError",
    "Watchdog caught collective operation timeout",
)
"""Parts of torch's error messages that mean that another process does not respond."""


@contextmanager
def init_distributed(accelerator: str, timeout: timedelta) -> Iterator[DistributedContext]:
    """Initialize the process group of the run for the duration of the block.

    Args:
        accelerator: `cpu` or `gpu`.
        timeout: Longest time that a process may keep the others waiting in a step.

    Raises:
        UserError: If there are fewer GPUs than processes, or MASTER_ADDR or MASTER_PORT is missing.
        RunError: If a process group exists already, or rank 0 uses another accelerator.
        PeerLostError: If another process does not connect.
    """
    if not is_distributed():
        yield DistributedContext()
        return
    with translate_peer_errors():
        dist_context = _init_process_group(accelerator, timeout)
    try:
        yield dist_context
        dist_context.barrier()  # rank 0 may host the store and must not end first
    except PeerLostError:
        raise  # a lost process answers no further messages
    except BaseException as error:
        _await_rank0_error(dist_context, error)
        if accelerator == "cpu":  # NCCL would wait for what the others never send
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _init_process_group(accelerator: str, timeout: timedelta) -> DistributedContext:
    if dist.is_initialized():
        raise RunError("a torch process group is already initialized; a growlm run creates its own")
    numbers = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")}
    rank, size = numbers.values()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(name, "", "must be set, because RANK and WORLD_SIZE are")
    if accelerator == "gpu":
        if local_size > torch.cuda.device_count():
            num_gpus = torch.cuda.device_count()
            reason = f"{local_size} processes on this machine, which has {num_gpus} GPUs"
            if num_gpus == 1 and name_launcher() == "srun":
                reason = (
                    f"{local_size} processes on this machine, each of which sees 1 GPU; all must see all: use "
                    f"--gpus-per-node={local_size} in place of --gpus-per-task, or add --gpu-bind=none"
                )
            raise UserError("trainer.devices", size, reason)
        torch.cuda.set_device(local_rank)
    store = _connect(rank, size, timeout)
    # After a restart by `torchrun --max-restarts`, the store still has the keys of the previous attempt.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"growlm/{attempt}", store)
    _check_same_accelerator(store, rank, accelerator)
    dist.init_process_group(
        # Gloo handles CPU tensors, whatever the accelerator.
        "cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=torch.device("cuda", local_rank) if accelerator == "gpu" else None,
    )
    context_store = dist.PrefixStore("turns", store)
    return DistributedContext(rank, size, local_rank, local_size, timeout, context_store)


def _connect(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """Connect to the store on rank 0's machine; print a line if other processes do not come for a while."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    others = "the other processes" if rank == 0 else "process 0"
    text = f"waiting for {others} of this run ({size} in all, started by {name_launcher()}) at {address}"
    notice = threading.Timer(WAITING_NOTICE_S, print_error, [text])
    notice.daemon = True
    if rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0":
        notice.start()
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
        reason = "is in use on this machine; set MASTER_PORT to another port in all processes"
        raise UserError("MASTER_PORT", os.environ["MASTER_PORT"], reason) from error
    finally:
        notice.cancel()
    return store


def _check_same_accelerator(store: dist.Store, rank: int, accelerator: str) -> None:
    """Check that this process uses the same accelerator as rank 0: otherwise both would wait forever."""
    if rank == 0:
        store.set("accelerator", accelerator)
    elif (first := store.get("accelerator").decode()) != accelerator:
        raise RunError(f"trainer.accelerator is {accelerator} here, but {first} in process 0")


def _await_rank0_error(dist_context: DistributedContext, error: BaseException) -> None:
    """Wait for rank 0 to report the error first, since torch's launchers end all processes once one fails.

    Raises:
        PeerFailedError: If rank 0 has failed too and this is a `UserError`, which rank 0 has reported then.
        RunError: If rank 0 has not failed and this is a `UserError`, which nobody else would report.
    """
    assert dist_context.store is not None
    if dist_context.is_rank0:
        dist_context.store.set(RANK0_ENDED_KEY, "")
        return
    has_failed = False
    with suppress(PeerLostError):
        has_failed = dist_context.wait_for_key(RANK0_ENDED_KEY, RANK0_ERROR_TIMEOUT_S)
        time.sleep(RANK0_ERROR_TIMEOUT_S / 10 if has_failed else 0)
    if isinstance(error, UserError):
        if has_failed:
            raise PeerFailedError(get_exit_code(error)) from error
        raise RunError(f"only process {dist_context.rank}: {error}") from error


@contextmanager
def translate_peer_errors() -> Iterator[None]:
    """Turn torch errors about a lost process into a `PeerLostError`."""
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in PEER_LOST_SIGNS):
            raise
        first_line = str(error).strip().splitlines()[0]
        raise PeerLostError(f"{PEER_LOST_MESSAGE} ({first_line})") from error
