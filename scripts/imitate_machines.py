"""Run the tests as if on other processors, and print a table of the results.

    python scripts/imitate_machines.py                         all imitations, about 20 minutes on two cores
    python scripts/imitate_machines.py --only avx2 --only "two threads"
    python scripts/imitate_machines.py --list

Each imitation runs in its own process with one thing changed: the instructions that oneDNN, MKL or torch's own
kernels may use, the number of threads, or the contents of new memory. In all of them, models must be finite,
growth must be lossless and its seeded output equal to the golden values, and a resumed run must equal the
uninterrupted one bit for bit.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from growlm.runtime.exit_codes import run_main_and_exit

ROOT = Path(__file__).resolve().parents[1]
SUITE = (
    "tests/machines",
    "tests/model",
    "tests/growth",
    "tests/inference",
    "tests/verification",
    "tests/optim/test_exact_state.py",
    "tests/training/test_resume.py",
)
DEFAULT_TESTS, ALL_TESTS = "not slow and not gpu and not machines", "not slow and not gpu"
THOROUGH = ("as it is",)
"""Imitations that also run the tests marked `machines`: whole runs, each with and without NaN in new memory."""
IMITATIONS: dict[str, dict[str, str]] = {
    "as it is": {},
    "oneDNN: AVX512_CORE_BF16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "oneDNN: AVX512_CORE": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "oneDNN: AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "torch: avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch: default": {"ATEN_CPU_CAPABILITY": "default"},
    "MKL: another vendor's": {"MKL_CBWR": "COMPATIBLE"},
    "two threads": {"GROWLM_TEST_THREADS": "2"},
    "NaN in new memory": {"GROWLM_TEST_NAN_IN_NEW_MEMORY": "1"},
}
COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def run(imitation: str, paths: list[str]) -> tuple[bool, str, float]:
    """Run the tests under an imitation; return whether they passed, pytest's counts, and the seconds."""
    imitated = {name for variables in IMITATIONS.values() for name in variables}
    environment = {k: v for k, v in os.environ.items() if k not in imitated}
    tests = ALL_TESTS if imitation in THOROUGH else DEFAULT_TESTS
    command = [sys.executable, "-m", "pytest", "-m", tests]
    start = time.perf_counter()
    completed = subprocess.run(
        [*command, *paths],
        cwd=ROOT,
        env=environment | IMITATIONS[imitation],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    last = completed.stdout.strip().rpartition("\n")[2]
    counts = ", ".join(f"{number} {word}" for number, word in COUNTS.findall(last))
    if completed.returncode:
        print(completed.stdout[-20_000:], completed.stderr[-5_000:], sep="\n", file=sys.stderr)
    return completed.returncode == 0, counts or last, seconds


def main() -> int:
    """Run the chosen imitations and print the table; return 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="run imitations whose name contains WORD; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="list the imitations and exit")
    parser.add_argument(
        "paths", nargs="*", default=list(SUITE), help="tests to run instead of the default ones"
    )
    arguments = parser.parse_args()
    chosen = [
        name
        for name in IMITATIONS
        if not arguments.only or any(word in name for word in arguments.only)
    ]
    if arguments.list or not chosen:
        print("\n".join(IMITATIONS))
        return 0 if arguments.list else 2
    features = torch.cpu.get_capabilities()
    bf16 = [name for name, has in features.items() if has and name.endswith("bf16")]
    print(
        f"{features.get('cpu_name', 'CPU')}, {', '.join(bf16) or 'no bf16'}, torch {torch.__version__}"
    )
    print(f"{'imitation':26} {'seconds':>7}  result")
    all_passed = True
    for name in chosen:
        passed, counts, seconds = run(name, arguments.paths)
        all_passed &= passed
        print(f"{name:26} {seconds:7.0f}  {counts}", flush=True)
    return 0 if all_passed else 1


if __name__ == "__main__":
    run_main_and_exit(main)
