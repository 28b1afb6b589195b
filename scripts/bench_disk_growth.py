"""Measure the peak memory and time of growing a checkpoint on disk, next to copying files of the result's size.

    python scripts/bench_disk_growth.py                  (371.6 M to 2.156 B parameters: 27 GB of disk, 7 minutes)
    python scripts/bench_disk_growth.py --small          (a hundredth of that size)
    python scripts/bench_disk_growth.py --json FILE      (also writes the figures)
    python scripts/bench_disk_growth.py --folder DIR     (where the checkpoints go; they are removed at the end)

The script also compares the result with the same growth in memory, checks it with `growlm.verify`, and kills a
growth half way to see that no broken checkpoint is left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from growlm.checkpoint import load_model, save_model
from growlm.growth import Deepen, Widen, grow
from growlm.model import ModelConfig, TransformerLM
from growlm.model.keyed_rng import keyed_generator
from growlm.runtime.exit_codes import run_main_and_exit

GROW = "grow=[{widen: {scale_factor: 2}}, {deepen: {extra_layers: 4}}]"
OPERATORS = [Widen(scale_factor=2, new_channels="copies"), Deepen(extra_layers=4, init="identity")]
LARGE = ModelConfig(
    d_model=832, n_layers=7, n_heads=8, n_kv_heads=8, head_dim=104, d_ff=3328, num_experts=8
)
SMALL = ModelConfig(
    d_model=96, n_layers=7, n_heads=8, n_kv_heads=8, head_dim=12, d_ff=384, num_experts=8
)


def peak_bytes(command: list[str]) -> tuple[int, float]:
    """Run a command that must succeed; return its peak resident memory in bytes and its seconds."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    # /proc has the process's own peak; the one that wait4 reports starts at the parent's memory.
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:  # the process has ended, or there is no /proc (macOS): the peak stays 0
            break
        peak = max([peak, *(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))])
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"{command} failed with {process.returncode}")
    return peak, time.perf_counter() - start


def copy_seconds(source: Path, target: Path) -> float:
    """Copy the files of a checkpoint and flush them, as growing does."""
    start = time.perf_counter()
    target.mkdir()
    for file in source.glob("*.safetensors"):
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as copied:
            os.fsync(copied.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def killed_growth_leaves_nothing(small: Path, folder: Path) -> bool:
    """Kill a growth when it has written about half; return whether nothing that loads is left."""
    out = folder / "killed"
    command = [sys.executable, "-m", "growlm.grow", f"checkpoint={small}", f"out={out}", GROW]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().startswith("writing"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [path for path in folder.iterdir() if "killed" in path.name and path.is_dir()]
    loads = []
    for path in left:
        try:
            load_model(path)
            loads.append(path)
        except ValueError:
            shutil.rmtree(path)
    return not loads and not out.exists()


def tampering_is_noticed(small: Path, large: Path) -> str:
    """Change one router in the file itself; return the exit code and the last line of `growlm.verify`."""
    name = "blocks.1.feed_forward.router.weight"
    (file,) = [f for f in large.glob("*.safetensors") if name in safe_open(f, "pt").keys()]  # noqa: SIM118
    with file.open("r+b") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        start, end = json.loads(opened.read(length))[name]["data_offsets"]
        opened.seek(8 + length + start)
        values = torch.frombuffer(bytearray(opened.read(end - start)), dtype=torch.float32)
        opened.seek(8 + length + start)
        opened.write((values * 1.5).numpy().tobytes())
    command = [sys.executable, "-m", "growlm.verify", f"old={small}", f"new={large}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # The checksums already differ: the message is an error, on standard error.
    return f"exit {result.returncode}, {(result.stdout or result.stderr).splitlines()[-1]}"


def main() -> None:
    """Measure everything and print the figures; write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="growlm-", dir=arguments.folder))
    try:
        figures = measure(folder, SMALL if arguments.small else LARGE, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3g}" if isinstance(value, float) else str(value))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(folder: Path, config: ModelConfig, rounds: int) -> dict[str, object]:
    """Return all figures by name."""
    small, large = folder / "small", folder / "large"
    model = TransformerLM(config)
    save_model(model, small, {})
    baseline, _ = peak_bytes(["-c", "import growlm.grow"])
    command = ["-m", "growlm.grow", f"checkpoint={small}", f"out={large}", GROW]
    peak, growing, copying = 0, [], []
    for index in range(rounds):
        if index:
            shutil.rmtree(large)
        used, seconds = peak_bytes(command)
        peak = max(peak, used)
        growing.append(seconds)
        copying.append(copy_seconds(large, folder / "copy"))
    size = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    killed = killed_growth_leaves_nothing(small, folder)
    _, verifying = peak_bytes(["-m", "growlm.verify", f"old={small}", f"new={large}"])
    on_disk, _ = load_model(large)
    in_memory = grow(model, OPERATORS)
    tokens = torch.randint(config.vocab_size, (1, 16), generator=keyed_generator("bench"))
    with torch.no_grad():
        difference = (on_disk.eval()(tokens) - in_memory.eval()(tokens)).abs().max().item()
    parameters = sum(p.numel() for p in on_disk.parameters())
    del on_disk, in_memory, model
    noticed = tampering_is_noticed(small, large)
    return {
        "parameters": parameters,
        "bytes": size,
        "peak above import baseline, GB": (peak - baseline) / 1e9,
        "import baseline, GB": baseline / 1e9,
        "growing, s, best": min(growing),
        "copying, s, best": min(copying),
        "growing / copying, best": min(growing) / min(copying),
        "growing / copying, each round": ", ".join(
            f"{g / c:.2f}" for g, c in zip(growing, copying, strict=True)
        ),
        "logits on disk − in memory": difference,
        "killed half way leaves nothing that loads": killed,
        "growlm.verify passes, s": verifying,
        "growlm.verify on a tampered router": noticed,
    }


if __name__ == "__main__":
    run_main_and_exit(main)
