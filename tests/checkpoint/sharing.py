"""What the processes of `test_shared_states.py` do: `python sharing.py FOLDER STEP ...`, each step a function."""

import json
import resource
import signal
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from imitation import imitate_machine
from tiny_models import build, tiny_config

from growlm.checkpoint import save_model
from growlm.checkpoint.checkpoint_folder import new_folder
from growlm.checkpoint.resume_state import RunState, write_state
from growlm.distributed.dtensors import divided, is_sharded, own_part, rows_of
from growlm.distributed.startup import join_world
from growlm.huggingface.pretrained import open_pretrained
from growlm.runtime.exit_codes import exit_code_of, leave
from growlm.runtime.memory import release_memory

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
    rows = rows_of(tensor.shape[0], mesh.get_local_rank(), mesh.size())
    return divided(tensor[rows].clone(), tensor.shape, mesh)


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
    from growlm.model.fsdp import divided_states, shard

    model, states = trained_model()
    shard(model, mesh)
    return model, divided_states(states, mesh)


def write_random(folder, world, mesh):
    from growlm.checkpoint.distributed_checkpoint import write_parts

    for seed in range(8):
        tensors = random_tensors(seed)
        given = {
            name: shared(t, mesh) if t.ndim and index % 5 else t
            for index, (name, t) in enumerate(tensors.items())
        }
        with new_folder(folder / f"random-{world.size}-{seed}", world) as (partial, digests):
            digests |= write_parts(partial, "model", given, world)


def read_random(folder, world, mesh):
    """Whatever number of processes wrote it, and into whichever division."""
    from growlm.checkpoint.distributed_checkpoint import read_own_rows
    from growlm.checkpoint.safetensors_io import TensorFiles

    for path in sorted(folder.glob("random-*")):
        expected = random_tensors(int(path.name.rpartition("-")[2]))
        whole = [name for index, name in enumerate(expected) if index % 4 == 0]
        found = read_own_rows(TensorFiles(path, "model"), mesh, world, undivided=whole)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            if tensor.ndim and name not in whole:
                assert is_sharded(tensor)
                own = expected[name][rows_of(tensor.shape[0], world.rank, world.size)]
                assert_same(tensor.to_local(), own)
            else:
                assert not is_sharded(tensor)
                assert_same(tensor, expected[name])


def write_shared_state(folder, world, mesh):
    model, states = shared_model(mesh)
    _write(folder / f"shared-{world.size}", model, states, world)


def write_plain_state(folder, world, mesh):
    """As under DDP: every process has everything."""
    _write(folder / f"plain-{world.size}", *trained_model(), world)


def _write(run, model, states, world):
    record, sums = {"step": 3, "rank": world.rank}, {"x": torch.ones(2) * (world.rank + 1)}
    write_state(run / "000000003", 3, model, states, sums, record, {"a": {"n": 1}}, world)


def read_states(folder, world, mesh):
    """Every state that is there, plain and shared."""
    model, states = trained_model()
    for path in sorted(folder.glob("*/000000003")):
        state = RunState.open(path, world, is_checked=not world.is_first)
        assert state.record == {"step": 3, "rank": 0}
        assert state.tensors()["x"].tolist() == [1.0, 1.0]
        assert state.callbacks() == {"a": {"n": 1}}
        assert_same_tensors(state.model().state_dict(), model.state_dict())
        own = state.model(mesh)
        assert all(is_sharded(p) for p in own.parameters())
        assert_same_tensors(own.state_dict(), model.state_dict())
        for read in (state.optimizer_states(), state.optimizer_states(mesh)):
            assert read.keys() == states.keys()
            for name, kept in read.items():
                assert_same_tensors(kept, states[name])


def read_pretrained(folder, world, mesh):
    """An artefact and a state in parts, as `model=pretrained` begins with them."""
    model, states = trained_model()
    for path in (folder / "artefact", *sorted(folder.glob("shared-*/000000003"))):
        pretrained = open_pretrained(path, "model.path")
        found = pretrained.model(mesh=mesh, world=world)
        assert all(is_sharded(p) for p in found.parameters())
        assert_same_tensors(found.state_dict(), model.state_dict())
        for name, kept in pretrained.states(eight_bits=False, mesh=mesh).items():
            assert all(is_sharded(t) for t in kept.values() if t.ndim)
            assert_same_tensors(kept, states[name])


def save_shared_model(folder, world, mesh):
    model, states = shared_model(mesh)
    (folder / "tokens.json").write_text("{}")
    files = [folder / "tokens.json"]
    save_model(model, folder / "artefact", {"phase": "moe"}, states, files, world)


def measure(folder, world, mesh):
    """Print what writing and reading take at their peak, above what is there anyway, and how much that is."""
    from growlm.model.fsdp import sharded_model

    config = tiny_config(**(CONFIG | LARGE))
    model = sharded_model(config, 0, mesh)
    states = {
        name: {"step": torch.tensor(1.0), "exp_avg": p.detach() * 2, "exp_avg_sq": p.detach() ** 2}
        for name, p in model.named_parameters()
    }
    share = 3 * sum(own_part(p).nbytes for p in model.parameters())
    found = {"share": share, "tensor": max(p.nbytes for p in model.parameters())}
    state = folder / "run" / "000000001"
    writing = partial(write_state, state, 1, model, states, {}, {}, None, world)
    found["state"] = peak_of(writing)
    found["artefact"] = peak_of(partial(save_model, model, folder / "model", {}, states, (), world))
    del model, states, writing

    def read():
        opened = RunState.open(state, world, is_checked=True)
        return opened.model(mesh), opened.optimizer_states(mesh)

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


def limited(folder, world, mesh):
    """The disk of the last process is full from now on."""
    if world.rank == world.size - 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def limited_first(folder, world, mesh):
    """The disk of the first process is full from now on."""
    if world.is_first:
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
        with join_world("cpu", timedelta(seconds=60)) as world:
            from torch.distributed.device_mesh import init_device_mesh

            mesh = init_device_mesh("cpu", (world.size,))
            for step in steps:
                globals()[step](Path(folder), world, mesh)
        print(json.dumps("done"))
        return 0

    leave(exit_code_of(body))


if __name__ == "__main__":
    main(*sys.argv[1:])
