"""How the processes of a run meet, and part."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from growlm.distributed.process_group import (
    PEER_LOST_MESSAGE,
    DistributedContext,
    PeerFailedError,
    PeerLostError,
)
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.exit_codes import get_exit_code, is_distributed

RANK0_ENDED_KEY = "ended"
RANK0_ERROR_TIMEOUT_S = 10.0
"""Seconds that the others wait for the first process to fail too; and when it has, a tenth of them more."""
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
"""What torch's errors say when another process does not answer."""


@contextmanager
def init_distributed(accelerator: str, timeout: timedelta) -> Iterator[DistributedContext]:
    """Meet the other processes of the run, for the time of the block.

    Args:
        accelerator: `cpu` or `gpu`.
        timeout: How long any of them may keep the others waiting in a step.

    Raises:
        UserError: If there are fewer GPUs than processes, or the variables that say where to meet are missing.
        RunError: If this process has met others already, or is on another kind of device than the first.
        LostProcessError: If one of them does not come.
    """
    if not is_distributed():
        yield DistributedContext()
        return
    with translate_peer_errors():
        world = _init_process_group(accelerator, timeout)
    try:
        yield world
        world.barrier()  # the first one's machine may keep the store
    except PeerLostError:
        raise  # whoever is gone answers no farewell
    except BaseException as error:
        _await_rank0_error(world, error)
        if accelerator == "cpu":  # NCCL would wait for what the others never send
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _init_process_group(accelerator: str, timeout: timedelta) -> DistributedContext:
    if dist.is_initialized():
        raise RunError("this process belongs to a process group already; a run makes its own")
    numbers = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")}
    rank, size = numbers.values()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(name, "", "must say where the processes of RANK and WORLD_SIZE meet")
    if accelerator == "gpu":
        if local_size > torch.cuda.device_count():
            allowed = f"{local_size} processes run here, on {torch.cuda.device_count()} GPUs"
            raise UserError("trainer.devices", size, allowed)
        torch.cuda.set_device(local_rank)
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    # After `torchrun --max-restarts` has started all anew, the store has what the processes before left.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"growlm/{attempt}", store)
    _check_same_accelerator(store, rank, accelerator)
    dist.init_process_group(
        # Gloo for what lies in the machine's memory, whatever the accelerator.
        "cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=torch.device("cuda", local_rank) if accelerator == "gpu" else None,
    )
    turns = dist.PrefixStore("turns", store)
    return DistributedContext(rank, size, local_rank, local_size, timeout, turns)


def _check_same_accelerator(store: dist.Store, rank: int, accelerator: str) -> None:
    """Check that this process computes on what the first one does: unlike ones would wait for each other."""
    if rank == 0:
        store.set("accelerator", accelerator)
    elif (first := store.get("accelerator").decode()) != accelerator:
        raise RunError(f"trainer.accelerator is {accelerator} here, and {first} in process 0")


def _await_rank0_error(dist_context: DistributedContext, error: BaseException) -> None:
    """Torch's launchers end all processes as soon as one of them fails: let the first one say why.

    Raises:
        EndedElsewhereError: If it has failed too, and this is a user's error, which it has said then.
        RunError: If it has not, and nobody would say this one's.
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
        raise RunError(f"process {dist_context.rank} alone: {error}") from error


@contextmanager
def translate_peer_errors() -> Iterator[None]:
    """What torch says in the block of another process that has gone, as a `LostProcessError`."""
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in PEER_LOST_SIGNS):
            raise
        what = str(error).strip().splitlines()[0]
        raise PeerLostError(f"{PEER_LOST_MESSAGE} ({what})") from error
