"""What the processes of `test_shared_states.py` do: `python sharing.py FOLDER STEP ...`, each step a function."""

import json
import resource
import signal
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from growlm.checkpoint import save_model
from growlm.checkpoint.checkpoint_folder import atomic_folder
from growlm.checkpoint.resume_state import ResumeState, write_resume_state
from growlm.distributed.dtensors import from_local, get_local_tensor, get_shard_rows, is_sharded
from growlm.distributed.startup import init_distributed
from growlm.huggingface.pretrained import open_pretrained
from growlm.runtime.exit_codes import exit_process, run_and_get_exit_code
from growlm.runtime.memory import release_memory
from tests.machines.imitation import imitate_machine
from tests.model.tiny_models import build, tiny_config

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int64, torch.uint8)
LARGE = {
    "vocab_size": 16384,
    "d_model": 512,
    "head_dim": 128,
    "d_ff": 2048,
    "n_layers": 3,
    "num_experts": 8,
}
CONFIG = {"num_experts": 3, "top_k": 2, "vocab_size": 29, "router_bias_step": 0.1}


def random_tensors(seed):
    """Of all types and of shapes that few numbers divide; some without rows, one without entries."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index in range(12):
        ndim = int(torch.randint(0, 4, (), generator=generator))
        shape = [int(n) for n in torch.randint(1, 8, (ndim,), generator=generator)]
        if index == 11:
            shape = [0, 3]
        values = torch.randint(0, 250, shape, generator=generator)
        tensors[f"t{index}.x"] = values.to(DTYPES[index % len(DTYPES)])
    return tensors


def shared(tensor, mesh):
    """A tensor of which every process has its own rows."""
    rows = get_shard_rows(tensor.shape[0], mesh.get_local_rank(), mesh.size())
    return from_local(tensor[rows].clone(), tensor.shape, mesh)


def trained_model():
    """A model and what an optimizer would remember of it, whole."""
    model = build(tiny_config("default", **CONFIG), dtype=torch.float32)
    states = {
        name: {"step": torch.tensor(3.0), "exp_avg": p.detach() * 2, "exp_avg_sq": p.detach() ** 2}
        for name, p in model.named_parameters()
    }
    return model, states


def shared_model(mesh):
    """The same, by FSDP2's own means."""
    from growlm.model.fsdp import apply_fsdp, shard_optimizer_states

    model, states = trained_model()
    apply_fsdp(model, mesh)
    return model, shard_optimizer_states(states, mesh)


def write_random(folder, dist_context, mesh):
    from growlm.checkpoint.distributed_checkpoint import write_rank_shards

    for seed in range(8):
        tensors = random_tensors(seed)
        given = {
            name: shared(t, mesh) if t.ndim and index % 5 else t
            for index, (name, t) in enumerate(tensors.items())
        }
        with atomic_folder(folder / f"random-{dist_context.world_size}-{seed}", dist_context) as (
            partial,
            digests,
        ):
            digests |= write_rank_shards(partial, "model", given, dist_context)


def read_random(folder, dist_context, mesh):
    """Whatever number of processes wrote it, and into whichever division."""
    from growlm.checkpoint.distributed_checkpoint import read_sharded_tensors
    from growlm.checkpoint.safetensors_io import TensorFiles

    for path in sorted(folder.glob("random-*")):
        expected = random_tensors(int(path.name.rpartition("-")[2]))
        whole = [name for index, name in enumerate(expected) if index % 4 == 0]
        found = read_sharded_tensors(
            TensorFiles(path, "model"), mesh, dist_context, replicated=whole
        )
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            if tensor.ndim and name not in whole:
                assert is_sharded(tensor)
                own = expected[name][
                    get_shard_rows(tensor.shape[0], dist_context.rank, dist_context.world_size)
                ]
                assert_same(tensor.to_local(), own)
            else:
                assert not is_sharded(tensor)
                assert_same(tensor, expected[name])


def write_shared_state(folder, dist_context, mesh):
    model, states = shared_model(mesh)
    _write(folder / f"shared-{dist_context.world_size}", model, states, dist_context)


def write_plain_state(folder, dist_context, mesh):
    """As under DDP: every process has everything."""
    _write(folder / f"plain-{dist_context.world_size}", *trained_model(), dist_context)


def _write(run, model, states, dist_context):
    record, sums = (
        {"step": 3, "rank": dist_context.rank},
        {"x": torch.ones(2) * (dist_context.rank + 1)},
    )
    write_resume_state(
        run / "000000003", 3, model, states, sums, record, {"a": {"n": 1}}, dist_context
    )


def read_states(folder, dist_context, mesh):
    """Every state that is there, plain and shared."""
    model, states = trained_model()
    for path in sorted(folder.glob("*/000000003")):
        state = ResumeState.open(path, dist_context, is_checked=not dist_context.is_rank0)
        assert state.record == {"step": 3, "rank": 0}
        assert state.load_tensors()["x"].tolist() == [1.0, 1.0]
        assert state.load_callbacks() == {"a": {"n": 1}}
        assert_same_tensors(state.load_model().state_dict(), model.state_dict())
        own = state.load_model(mesh)
        assert all(is_sharded(p) for p in own.parameters())
        assert_same_tensors(own.state_dict(), model.state_dict())
        for read in (state.read_optimizer_states(), state.read_optimizer_states(mesh)):
            assert read.keys() == states.keys()
            for name, kept in read.items():
                assert_same_tensors(kept, states[name])


def read_pretrained(folder, dist_context, mesh):
    """An artefact and a state in parts, as `model=pretrained` begins with them."""
    model, states = trained_model()
    for path in (folder / "artefact", *sorted(folder.glob("shared-*/000000003"))):
        pretrained = open_pretrained(path, "model.path")
        found = pretrained.load_model(mesh=mesh, dist_context=dist_context)
        assert all(is_sharded(p) for p in found.parameters())
        assert_same_tensors(found.state_dict(), model.state_dict())
        for name, kept in pretrained.read_optimizer_states(use_8bit=False, mesh=mesh).items():
            assert all(is_sharded(t) for t in kept.values() if t.ndim)
            assert_same_tensors(kept, states[name])


def save_shared_model(folder, dist_context, mesh):
    model, states = shared_model(mesh)
    (folder / "tokens.json").write_text("{}")
    files = [folder / "tokens.json"]
    save_model(model, folder / "artefact", {"phase": "moe"}, states, files, dist_context)


def measure(folder, dist_context, mesh):
    """Print what writing and reading take at their peak, above what is there anyway, and how much that is."""
    from growlm.model.fsdp import create_sharded_model

    config = tiny_config(**(CONFIG | LARGE))
    model = create_sharded_model(config, 0, mesh)
    states = {
        name: {"step": torch.tensor(1.0), "exp_avg": p.detach() * 2, "exp_avg_sq": p.detach() ** 2}
        for name, p in model.named_parameters()
    }
    share = 3 * sum(get_local_tensor(p).nbytes for p in model.parameters())
    found = {"share": share, "tensor": max(p.nbytes for p in model.parameters())}
    state = folder / "run" / "000000001"
    writing = partial(write_resume_state, state, 1, model, states, {}, {}, None, dist_context)
    found["state"] = peak_of(writing)
    found["artefact"] = peak_of(
        partial(save_model, model, folder / "model", {}, states, (), dist_context)
    )
    del model, states, writing

    def read():
        opened = ResumeState.open(state, dist_context, is_checked=True)
        return opened.load_model(mesh), opened.read_optimizer_states(mesh)

    found["reading"] = peak_of(read)
    print(json.dumps(found))


def peak_of(action):
    """What something takes at its peak, above what is there when it begins; bytes."""
    release_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before


def memory(line):
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in status if x.startswith(line))


def limited(folder, dist_context, mesh):
    """The disk of the last process is full from now on."""
    if dist_context.rank == dist_context.world_size - 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def limited_first(folder, dist_context, mesh):
    """The disk of the first process is full from now on."""
    if dist_context.is_rank0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert_same(tensor.full_tensor() if is_sharded(tensor) else tensor, expected[name])


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


def main(folder, *steps):
    imitate_machine()

    def body():
        with init_distributed("cpu", timedelta(seconds=60)) as world:
            from torch.distributed.device_mesh import init_device_mesh

            mesh = init_device_mesh("cpu", (world.world_size,))
            for step in steps:
                globals()[step](Path(folder), world, mesh)
        print(json.dumps("done"))
        return 0

    exit_process(run_and_get_exit_code(body))


if __name__ == "__main__":
    main(*sys.argv[1:])
