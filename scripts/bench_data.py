"""Measure the speed of tokenizing and batching, and the time that the token cache saves.

    TIKTOKEN_CACHE_DIR=... python scripts/bench_data.py FILE...      (about two minutes on two cores)
    python scripts/bench_data.py --json FILE                         (without files: the embedded stories)

Tokenizing is compared with tiktoken's `encode_ordinary`, document by document in one process, and with its
`encode_ordinary_batch` on as many threads as cores. The three run in turns, and the best round counts. CPU seconds
over wall seconds are the number of busy cores. The batch rate is compared with the rate that the quickstart's
dense model, by far the fastest, needs on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.table import Table

import growlm  # noqa: F401 - before torch: it sets how threads wait
from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.config.schema import DataConfig
from growlm.data import (
    DataListener,
    PackedDataModule,
    RunData,
    TextFiles,
    Tokenizer,
    embedded_documents,
    load_tokenizer,
    open_run_data,
    open_sources,
)
from growlm.data.tokenization.parallel_tokenization import tokenize_documents
from growlm.data.tokenization.tiktoken_encodings import TiktokenTokenizer
from growlm.planner.calibration import load_or_measure_calibration
from growlm.planner.forecast import forecast_plan
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.hardware import detect_machine

MEGABYTES = 16
"""Least amount of text to tokenize; files are repeated until they reach it."""
STORIES = 20_000
BATCH, LENGTH, BATCHES = 32, 256, 300


def time_variants(
    variants: dict[str, Callable[[], object]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Run the variants in turns and return the shortest wall time of each, with the number of busy cores."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, variant in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            variant()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best.get(name, (wall, cpu / wall)), (wall, cpu / wall))
    return best


def load_documents(files: list[Path]) -> dict[str, list[str]]:
    """Split each file into paragraphs, and into longer documents of ten; repeat them up to `MEGABYTES`."""
    if not files:
        return {"embedded stories": list(embedded_documents(1, STORIES))}
    found = {}
    for path in files:
        paragraphs = list(TextFiles(str(path), "text", "paragraph").read())
        longer = ["\n\n".join(paragraphs[i : i + 10]) for i in range(0, len(paragraphs), 10)]
        for kind, documents in (("paragraphs", paragraphs), ("tens of them", longer)):
            times = -(-MEGABYTES * 10**6 // sum(len(text.encode()) for text in documents))
            found[f"{path.name}, {kind}"] = documents * times
    return found


def measure_tokenizing(
    documents: list[str], tokenizer: Tokenizer, rounds: int
) -> dict[str, object]:
    """Measure the MB of text per second of growlm's pipeline and of tiktoken's own functions."""
    variants: dict[str, Callable[[], object]] = {
        "growlm": lambda: sum(
            len(part.tokens) for part in tokenize_documents(documents, tokenizer)
        ),
    }
    if isinstance(tokenizer, TiktokenTokenizer):
        encoding = tokenizer.encoding
        variants["plain"] = lambda: sum(len(encoding.encode_ordinary(text)) for text in documents)
        variants["batch"] = lambda: encoding.encode_ordinary_batch(
            documents, num_threads=os.cpu_count() or 1
        )
    size = sum(len(text.encode()) for text in documents)
    best = time_variants(variants, rounds)
    speeds = {name: size / wall / 1e6 for name, (wall, _) in best.items()}
    return {
        "megabytes_per_second": speeds,
        "cores": {name: cores for name, (_, cores) in best.items()},
        "documents": len(documents),
        "bytes": size,
    }


def open_data(settings: DataConfig, tokenizer: Tokenizer) -> RunData:
    """Open the data as a run does."""
    sources, counts = open_sources(settings, 0)
    return open_run_data(
        settings, tokenizer, sources, counts,
        seed=0, sequence_length=LENGTH, validation_samples=8, listener=DataListener(),
    )  # fmt: skip


def measure_first_sample(settings: DataConfig, rounds: int) -> dict[str, float]:
    """Measure the time to the first sample of the embedded stories: without cache, with it, and streamed."""
    tokenizer = load_tokenizer("embedded")

    def without_cache() -> None:
        with tempfile.TemporaryDirectory() as folder:
            open_data(replace(settings, cache=folder), tokenizer).train[0]

    open_data(settings, tokenizer)
    variants = {
        "first time": without_cache,
        "from the cache": lambda: open_data(settings, tokenizer).train[0],
        "streamed": lambda: open_data(replace(settings, streaming=True), tokenizer).train[0],
    }
    return {name: wall for name, (wall, _) in time_variants(variants, rounds).items()}


def measure_batch_rates(settings: DataConfig, rounds: int) -> dict[str, float]:
    """Measure the rate of the loader that training uses, from disk and streamed."""
    tokenizer = load_tokenizer("embedded")

    def read(streaming: bool) -> None:
        data = open_data(replace(settings, streaming=streaming), tokenizer)
        module = PackedDataModule(
            data.train, data.validation,
            first_sample=0, num_batches=BATCHES, batch_size=BATCH, validation_sequences=8,
        )  # fmt: skip
        assert sum(1 for _ in module.train_dataloader()) == BATCHES

    variants = {"from disk": lambda: read(False), "streamed": lambda: read(True)}
    return {name: BATCHES / wall for name, (wall, _) in time_variants(variants, rounds).items()}


def required_batches_per_second() -> float:
    """Estimate the rate of batches that the first phase of the quickstart needs, with the planner."""
    config = load_config()
    machine = detect_machine(config.trainer)
    table = forecast_plan(config, make_plan(config, load_tokenizer("embedded").vocab_size), machine)
    speed = load_or_measure_calibration(machine, lambda: None)
    tokens = table.phase_forecasts[0].phase.tokens_per_step
    return (
        tokens
        / table.phase_forecasts[0].workload.estimate_seconds(speed)["step"]
        / (BATCH * LENGTH)
    )


def main() -> None:
    """Measure everything and print the results; write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokenizer", action="append", choices=("embedded", "gpt2", "bytes"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = make_stdout_console()
    results: dict[str, object] = {}
    columns = ("documents", "mean bytes", "tokenizer", "growlm", "plain tiktoken", "its batch")
    table = Table(*columns, title="MB of text a second (cores busy)")
    for name in arguments.tokenizer or ("gpt2", "embedded"):
        try:
            tokenizer = load_tokenizer(name)
        except UserError as error:
            console.print(f"skipped: {error}")
            continue
        for what, documents in load_documents(arguments.files).items():
            found = measure_tokenizing(documents, tokenizer, arguments.rounds)
            results[f"{what}, {name}"] = found
            speeds, cores = found["megabytes_per_second"], found["cores"]
            shown = [
                f"{speeds[variant]:.1f} ({cores[variant]:.1f})"
                for variant in ("growlm", "plain", "batch")
            ]
            mean = round(found["bytes"] / found["documents"])
            table.add_row(what, str(mean), name, *shown)
    console.print(table)
    with tempfile.TemporaryDirectory() as folder:
        settings = DataConfig(cache=folder, documents=STORIES)
        results["seconds_to_first_sample"] = first_sample = measure_first_sample(settings, 2)
        results["batches"] = batch_rates = measure_batch_rates(settings, arguments.rounds)
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in first_sample.items())
    console.print(f"{STORIES:,} embedded stories until the first sample: {seconds}")
    results["wanted"] = required = required_batches_per_second()
    rates = ", ".join(f"{name} {value:,.0f}" for name, value in batch_rates.items())
    console.print(
        f"Batches of {BATCH} × {LENGTH} tokens a second: {rates}; "
        f"the quickstart's dense model takes {required:,.1f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
