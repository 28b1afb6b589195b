"""One of two processes that train a tiny model for a step: prints what DDP and FSDP2 hand to each collective.

python counted_traffic.py RENDEZVOUS_FILE RANK MODEL_JSON
"""

import json
import sys
from collections import Counter

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from growlm.model import ModelConfig, TransformerLM
from growlm.model.fsdp import apply_fsdp
from growlm.runtime.exit_codes import exit_process


def main(place, rank, shape):
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=int(rank), world_size=2)
    config = ModelConfig(**json.loads(shape))
    tokens = torch.zeros(2, 9, dtype=torch.long)
    counted = {
        "ddp": ddp_step(config, tokens),
        "32-true": fsdp_step(config, tokens, bf16=False),
        "bf16-mixed": fsdp_step(config, tokens, bf16=True),
    }
    print(json.dumps(counted))
    dist.destroy_process_group()


def ddp_step(config, tokens):
    sizes = Counter()

    def counting(state, bucket):
        sizes["all_reduce"] += bucket.buffer().nbytes
        return allreduce_hook(state, bucket)

    model = DistributedDataParallel(TransformerLM(config))
    model.register_comm_hook(None, counting)
    model(tokens).sum().backward()
    return sizes


def fsdp_step(config, tokens, bf16):
    model = TransformerLM(config)
    apply_fsdp(model, init_device_mesh("cpu", (2,)))
    with Counting() as counting:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model.loss(tokens)
        loss.backward()
    return counting.sizes


class Counting(TorchDispatchMode):
    """Adds up the whole tensors that are gathered, and those that are summed and shared out."""

    def __init__(self):
        super().__init__()
        self.sizes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "_allgather_base_":
            self.sizes["all_gather"] += args[0].nbytes  # the output
        elif name == "_reduce_scatter_base_":
            self.sizes["reduce_scatter"] += args[1].nbytes  # the input
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_process(0)
