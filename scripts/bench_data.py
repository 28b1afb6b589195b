"""Data: how fast text becomes tokens, how fast tokens become batches, and what the cache saves.

    TIKTOKEN_CACHE_DIR=... python scripts/bench_data.py FILE...      (about two minutes on two cores)
    python scripts/bench_data.py --json FILE                         without files: on embedded stories

Tokenizing is shown beside tiktoken's own `encode_ordinary`, document by document in one process, and beside its
`encode_ordinary_batch` with as many threads as cores; the three take turns, and the best of the rounds counts. CPU
seconds over wall seconds say how many cores were busy. Batches are shown beside the rate at which the
quickstart's dense model, by far the fastest, takes them on this machine.
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
from growlm.runtime.hardware import detect_machine

MEGABYTES = 16
"""At least so much text: files are repeated up to it."""
STORIES = 20_000
BATCH, LENGTH, BATCHES = 32, 256, 300


def best_of(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """The shortest wall time of each way, which take turns, and how many cores were busy in it."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best.get(name, (wall, cpu / wall)), (wall, cpu / wall))
    return best


def documents_of(files: list[Path]) -> dict[str, list[str]]:
    """Documents of each file by paragraph, and all of them in longer ones; repeated until it is enough."""
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


def tokenizing(documents: list[str], tokenizer: Tokenizer, rounds: int) -> dict[str, object]:
    """Megabytes of text a second: growlm's pipeline, and tiktoken's own ways."""
    ways: dict[str, Callable[[], object]] = {
        "growlm": lambda: sum(
            len(part.tokens) for part in tokenize_documents(documents, tokenizer)
        ),
    }
    if isinstance(tokenizer, TiktokenTokenizer):
        encoding = tokenizer.encoding
        ways["plain"] = lambda: sum(len(encoding.encode_ordinary(text)) for text in documents)
        ways["batch"] = lambda: encoding.encode_ordinary_batch(
            documents, num_threads=os.cpu_count() or 1
        )
    size = sum(len(text.encode()) for text in documents)
    best = best_of(ways, rounds)
    speeds = {name: size / wall / 1e6 for name, (wall, _) in best.items()}
    return {
        "megabytes_per_second": speeds,
        "cores": {name: cores for name, (_, cores) in best.items()},
        "documents": len(documents),
        "bytes": size,
    }


def opened(settings: DataConfig, tokenizer: Tokenizer) -> RunData:
    """As a run does."""
    sources, counts = open_sources(settings, 0)
    return open_run_data(
        settings, tokenizer, sources, counts,
        seed=0, sequence_length=LENGTH, validation_samples=8, listener=DataListener(),
    )  # fmt: skip


def seconds_to_first_sample(settings: DataConfig, rounds: int) -> dict[str, float]:
    """Of a run on the embedded stories: the first time, with the cache, and streamed."""
    tokenizer = load_tokenizer("embedded")

    def first() -> None:
        with tempfile.TemporaryDirectory() as folder:
            opened(replace(settings, cache=folder), tokenizer).train[0]

    opened(settings, tokenizer)
    ways = {
        "first time": first,
        "from the cache": lambda: opened(settings, tokenizer).train[0],
        "streamed": lambda: opened(replace(settings, streaming=True), tokenizer).train[0],
    }
    return {name: wall for name, (wall, _) in best_of(ways, rounds).items()}


def batches_per_second(settings: DataConfig, rounds: int) -> dict[str, float]:
    """Of the loader that training uses, from disk and streamed."""
    tokenizer = load_tokenizer("embedded")

    def read(streaming: bool) -> None:
        data = opened(replace(settings, streaming=streaming), tokenizer)
        module = PackedDataModule(
            data.train, data.validation,
            first_sample=0, num_batches=BATCHES, batch_size=BATCH, validation_sequences=8,
        )  # fmt: skip
        assert sum(1 for _ in module.train_dataloader()) == BATCHES

    ways = {"from disk": lambda: read(False), "streamed": lambda: read(True)}
    return {name: BATCHES / wall for name, (wall, _) in best_of(ways, rounds).items()}


def wanted_batches_per_second() -> float:
    """What the quickstart's first phase takes, by the planner."""
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
    """Measure, print, write."""
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
            console.print(f"left out: {error}")
            continue
        for what, documents in documents_of(arguments.files).items():
            found = tokenizing(documents, tokenizer, arguments.rounds)
            results[f"{what}, {name}"] = found
            speeds, cores = found["megabytes_per_second"], found["cores"]
            shown = [
                f"{speeds[way]:.1f} ({cores[way]:.1f})" for way in ("growlm", "plain", "batch")
            ]
            mean = round(found["bytes"] / found["documents"])
            table.add_row(what, str(mean), name, *shown)
    console.print(table)
    with tempfile.TemporaryDirectory() as folder:
        settings = DataConfig(cache=folder, documents=STORIES)
        results["seconds_to_first_sample"] = ready = seconds_to_first_sample(settings, 2)
        results["batches"] = made = batches_per_second(settings, arguments.rounds)
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in ready.items())
    console.print(f"{STORIES:,} embedded stories until the first sample: {seconds}")
    results["wanted"] = wanted = wanted_batches_per_second()
    rates = ", ".join(f"{name} {value:,.0f}" for name, value in made.items())
    console.print(
        f"Batches of {BATCH} × {LENGTH} tokens a second: {rates}; the quickstart's dense model takes {wanted:,.1f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
