"""Measure growing a Hugging Face folder in one command, next to mergekit and to three commands.

    python scripts/bench_grow_folder.py --mergekit-python PYTHON    (a bf16 Llama of 374 M: 4 GB of disk)
    python scripts/bench_grow_folder.py --small                     (a model of 6 M, to try the script)
    python scripts/bench_grow_folder.py --large-layers 12           (also blocks of a 7B model, from a sparse file)
    python scripts/bench_grow_folder.py --json FILE --rounds 3 --folder DIR

mergekit (https://pypi.org/project/mergekit) has its own requirements, so it is run from an environment of its own:
`--mergekit-python` is the Python of one where `pip install mergekit` has been run. Without it, growlm is measured
alone. All sides run in turns, each in a new process; the best round counts. Memory is the largest sum of resident
memory of a process and its children, mapped files included.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from growlm.checkpoint.safetensors_io import DTYPE_NAMES, TensorInfo
from growlm.checkpoint.weight_validation import get_state_dict_shapes
from growlm.growth import Deepen, Operator, Upcycle, build_growth_map, operators_to_dicts
from growlm.huggingface.folders.prepared_folder import PreparedFolder, prepare_huggingface_folder
from growlm.model import ModelConfig, parameter_report
from growlm.model.keyed_rng import keyed_generator
from growlm.runtime.exit_codes import run_main_and_exit

POLL_SECONDS = 0.01
STACK: Operator = Deepen(extra_layers=8, placement="stack", init="copy")
EXPERTS = 4


def llama(d_model: int, d_ff: int, n_layers: int, vocab_size: int) -> ModelConfig:
    """Return the config of a Llama with heads of 64 channels."""
    sizes = {"d_model": d_model, "d_ff": d_ff, "n_layers": n_layers, "vocab_size": vocab_size}
    return ModelConfig.preset(
        "llama", **sizes, n_heads=d_model // 64, max_seq_len=2048, tie_embeddings=False
    )


MEDIUM, SMALL = llama(1024, 2816, 24, 32000), llama(192, 512, 10, 2000)


class RandomTensors:
    """Tensor source of random bf16 weights."""

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.folder, self.key = folder, "source"
        self._shapes = get_state_dict_shapes(config)

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._shapes)

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor."""
        return TensorInfo(name, torch.bfloat16, self._shapes[name])

    def read(self, name: str) -> torch.Tensor:
        """Draw a tensor."""
        numbers = torch.randn(self._shapes[name], generator=keyed_generator("bench", name))
        return (0.02 * numbers).bfloat16()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Draw a tensor and return some of its rows."""
        return self.read(name)[start:stop]


def prepare_llama(config: ModelConfig, folder: Path) -> PreparedFolder:
    """Return a random Llama of transformers' with a tokenizer, not written yet."""
    record = {"tokenizer": "bytes"}
    tensors = RandomTensors(config, folder)
    return prepare_huggingface_folder(folder, config, record, tensors, "source")


def write_sparse(prepared: PreparedFolder, folder: Path) -> None:
    """Write the config of a model, and a file with a header and no data: reading it gives zeros."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(prepared.content))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for info in prepared.infos:
        offsets = [start, start + info.nbytes]
        entry = {"dtype": DTYPE_NAMES[info.dtype], "shape": info.shape, "data_offsets": offsets}
        header[info.name], start = entry, offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    seconds: float
    cpu_seconds: float
    """Seconds of all cores, which the load of a shared machine changes less."""
    peak_bytes: int
    """Largest resident memory of its process tree."""


def measure_process(command: Sequence[str], log: Path) -> Usage:
    """Run a command that must succeed; return what it took."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(POLL_SECONDS)
    if process.returncode:
        failed = f"{' '.join(command)} failed with {process.returncode}:\n{log.read_text()[-3000:]}"
        print(failed, file=sys.stderr)
        raise SystemExit(1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(time.perf_counter() - start, cpu, peak)


def tree_bytes(pid: int) -> int:
    """Return the resident bytes of a process and all its children; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    return own + sum(tree_bytes(int(child)) for child in children)


def take_turns(
    sides: Mapping[str, Callable[[], Sequence[Sequence[str]]]],
    outputs: Mapping[str, Path],
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Run the commands of every side in turns; the folder that each writes is kept from the last round.

    Args:
        sides: Function that returns the commands of a side, by its name.
        outputs: Folder that each side writes.
        rounds: Number of turns.
    """
    turns: dict[str, list[list[Usage]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, commands in sides.items():
            shutil.rmtree(outputs[name], ignore_errors=True)
            log = outputs[name].with_suffix(".log")
            turns[name].append([measure_process(each, log) for each in commands()])
    return {
        name: {
            "seconds": min(sum(each.seconds for each in turn) for turn in taken),
            "cpu_seconds": min(sum(each.cpu_seconds for each in turn) for turn in taken),
            "peak_bytes": max(each.peak_bytes for turn in taken for each in turn),
        }
        for name, taken in turns.items()
    }


def count_differences(one: Path, other: Path, skipped: str = "nothing") -> tuple[int, list[str]]:
    """Return the number of tensors in a folder, and those whose bits differ in another one.

    Args:
        one: Folder with safetensors files.
        other: The other folder; experts may be one tensor for each kind, as in transformers' memory.
        skipped: Part of the names of tensors to leave out.
    """
    found = [
        {k: v for k, v in read_tensors(each).items() if skipped not in k} for each in (one, other)
    ]
    different = sorted(found[0].keys() ^ found[1].keys())
    for name in found[0].keys() & found[1].keys():
        tensors = [each[name]() for each in found]
        same_kind = tensors[0].dtype == tensors[1].dtype and tensors[0].shape == tensors[1].shape
        if not same_kind or not torch.equal(*(t.contiguous().view(torch.int16) for t in tensors)):
            different.append(name)
    return len(found[0]), different


def read_tensors(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Return a function that reads each tensor of a folder, by name, each expert's apart."""
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for file in folder.glob("*.safetensors"):
        for name in safe_open(file, "pt").keys():  # noqa: SIM118 - not a mapping
            found |= split_experts(name, partial(read_tensor, file, name))
    return found


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """Read a tensor of a file."""
    tensor: torch.Tensor = safe_open(file, "pt").get_tensor(name)
    return tensor


def split_experts(
    name: str, read: Callable[[], torch.Tensor]
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the tensors that one holds, under the names of a saved Mixtral."""
    block, _, rest = name.partition(".mlp.")
    prefix = f"{block}.block_sparse_moe"
    if rest == "gate.weight":
        return {f"{prefix}.gate.weight": read}
    if rest == "experts.down_proj":
        return {
            f"{prefix}.experts.{e}.w2.weight": partial(part_of, read, e) for e in range(EXPERTS)
        }
    if rest == "experts.gate_up_proj":
        return {
            f"{prefix}.experts.{expert}.{kind}.weight": partial(part_of, read, expert, half)
            for expert in range(EXPERTS)
            for half, kind in enumerate(("w1", "w3"))
        }
    return {name: read}


def part_of(read: Callable[[], torch.Tensor], expert: int, half: int | None = None) -> torch.Tensor:
    """Return an expert's part of a stack, or one half of its rows."""
    return read()[expert] if half is None else read()[expert].chunk(2)[half]


def grow_command(source: Path, out: Path, operator: Operator, *settings: str) -> list[str]:
    """Return the command that grows a folder by an operator."""
    growth = yaml.safe_dump(
        operators_to_dicts([operator]), default_flow_style=True, width=10**6
    ).strip()
    command = [sys.executable, "-m", "growlm.grow", f"checkpoint={source}", f"out={out}"]
    return [*command, f"grow={growth}", *settings]


def passthrough_config(source: Path, config: ModelConfig) -> dict[str, Any]:
    """Return mergekit's config of the blocks that `STACK` gives."""
    blocks = [origin.source for origin in build_growth_map(config, [STACK]).blocks]
    ranges: list[list[int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block:
            ranges[-1][1] += 1
        else:
            ranges.append([block, block + 1])
    slices = [{"sources": [{"model": str(source), "layer_range": each}]} for each in ranges]
    return {"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}


def experts_config(source: Path) -> dict[str, Any]:
    """Return mergekit's config of a Mixtral whose experts are copies of one model."""
    expert = {"source_model": str(source), "positive_prompts": [""]}
    shared = {"base_model": str(source), "gate_mode": "random", "dtype": "bfloat16"}
    return {**shared, "experts": [expert] * EXPERTS, "experts_per_token": 2}


def mergekit_command(python: Path, name: str, content: Mapping[str, Any], out: Path) -> list[str]:
    """Write a config of mergekit's beside the folder to create, and return the command."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(dict(content)))
    return [str(python.parent / name), str(file), str(out)]


def measure(folder: Path, config: ModelConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures by name."""
    source = folder / "source"
    prepare_llama(config, folder).write(source)
    figures: dict[str, Any] = {"parameters": parameter_report(config).total}
    out = {name: folder / name for name in ("stack", "chain", "stack_mergekit")}
    converted, grown = folder / "converted", folder / "grown"

    def chain() -> list[list[str]]:
        for path in (converted, grown):
            shutil.rmtree(path, ignore_errors=True)
        convert = [sys.executable, "-m", "growlm.convert"]
        return [
            [*convert, f"source={source}", f"out={converted}", "to=growlm"],
            grow_command(converted, grown, STACK),
            [*convert, f"source={grown}", f"out={out['chain']}", "to=huggingface"],
        ]

    sides: dict[str, Callable[[], Sequence[Sequence[str]]]] = {
        "stack": lambda: [grow_command(source, out["stack"], STACK)],
        "chain": chain,
    }
    python = arguments.mergekit_python
    if python is not None:
        passthrough = passthrough_config(source, config)
        sides["stack_mergekit"] = lambda: [
            mergekit_command(python, "mergekit-yaml", passthrough, out["stack_mergekit"])
        ]
    figures["deepen by 8 copies"] = take_turns(sides, out, arguments.rounds)
    for name in list(sides)[1:]:
        found = count_differences(out["stack"], out[name])
        figures[f"tensors, and those that differ from {name}"] = found
    for path in (converted, grown, *out.values()):
        shutil.rmtree(path, ignore_errors=True)
    upcycle: Operator = Upcycle(num_experts=EXPERTS)
    out = {name: folder / name for name in ("experts", "experts_mergekit")}
    sides = {"experts": lambda: [grow_command(source, out["experts"], upcycle)]}
    if python is not None:
        mixture = experts_config(source)
        sides["experts_mergekit"] = lambda: [
            mergekit_command(python, "mergekit-moe", mixture, out["experts_mergekit"])
        ]
    figures[f"{EXPERTS} experts"] = take_turns(sides, out, arguments.rounds)
    if python is not None:
        found = count_differences(out["experts"], out["experts_mergekit"], "block_sparse_moe.gate.")
        figures["tensors but routers, and those that differ from experts_mergekit"] = found
    for path in out.values():
        shutil.rmtree(path, ignore_errors=True)
    if arguments.large_layers:
        figures |= measure_large(folder, arguments.large_layers)
    return figures


def measure_large(folder: Path, n_layers: int) -> dict[str, Any]:
    """Return the figures of blocks of a 7B model, and of the plan for all 32 of them."""
    sparse, out = folder / "sparse", folder / "large"
    figures: dict[str, Any] = {}
    for layers in dict.fromkeys((n_layers, 32)):
        shutil.rmtree(sparse, ignore_errors=True)
        write_sparse(prepare_llama(llama(4096, 11008, layers, 32000), folder), sparse)
        name = f"7B shape, {layers} blocks"
        if layers == n_layers:
            command = grow_command(sparse, out, STACK)
            usage = measure_process(command, folder / "large.log")
            size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
            rate = {"bytes": size, "MB/s": size / usage.seconds / 1e6}
            figures[name] = asdict(usage) | rate
            shutil.rmtree(out)
        plan = grow_command(sparse, out, STACK, "dry_run=true")
        plan = [each for each in plan if not each.startswith("out=")]
        figures[f"{name}, dry_run"] = asdict(measure_process(plan, folder / "plan.log"))
    return figures


def main() -> None:
    """Measure everything and print the figures; write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit-python", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--large-layers", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="growlm-", dir=arguments.folder))
    try:
        figures = measure(folder, SMALL if arguments.small else MEDIUM, arguments)
    finally:
        shutil.rmtree(folder)
    table = Table("figure", "value")
    for name, value in figures.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for side, found in rows:
            table.add_row(f"{name} {side}".strip(), str(found))
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
