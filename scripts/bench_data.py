"""Data: how fast text becomes tokens, and how fast tokens become batches.

    python scripts/bench_data.py                   (about a minute on two cores)
    python scripts/bench_data.py --json FILE

Tokenising is shown beside what reading or telling the stories alone takes, batches beside the rate at which the
quickstart's dense model, by far the fastest, takes them on this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from growlm.data.corpora import embedded_documents, text_documents
from rich.console import Console
from rich.table import Table

import growlm  # noqa: F401 - before torch: it sets how threads wait
from growlm.config import load_config
from growlm.data import PackedDataModule, PackedSamples, load_tokenizer, prepare_data
from growlm.errors import UserError
from growlm.training.calibration import calibration
from growlm.training.hardware import find_machine
from growlm.training.plan import make_plan
from growlm.training.planner import forecast

DOCUMENTS = 5_000
TOKENIZERS = ("embedded", "gpt2", "bytes")


def seconds_of(action: Callable[[], object], rounds: int) -> float:
    """The median over the rounds, after one to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def tokenising(source: str, path: str | None, tokenizer_name: str, rounds: int) -> dict[str, float]:
    """Documents to token arrays, end to end."""
    tokenizer = load_tokenizer(tokenizer_name)
    corpus = None

    def prepare() -> None:
        nonlocal corpus
        corpus = prepare_data(
            source=source, path=path, sample_by="paragraph", documents=DOCUMENTS, seed=0,
            validation_every=20, tokenizer=tokenizer,
        )  # fmt: skip

    seconds = seconds_of(prepare, rounds)
    assert corpus is not None
    tokens = len(corpus.train) + len(corpus.validation)
    size = corpus.train_bytes + corpus.validation_bytes
    return {"tokens_per_second": tokens / seconds, "bytes_per_second": size / seconds}


def reading(source: str, path: str | None, rounds: int) -> float:
    """Bytes per second of the documents alone."""

    def documents() -> int:
        texts = (
            embedded_documents(0, DOCUMENTS) if path is None else text_documents(path, "paragraph")
        )
        return sum(len(text.encode()) for text in texts)

    return documents() / seconds_of(documents, rounds)


def batches_per_second(rounds: int, batch_size: int = 32, length: int = 256) -> float:
    """Of the loader that training uses."""
    corpus = prepare_data(
        source="embedded", path=None, sample_by="paragraph", documents=DOCUMENTS, seed=0,
        validation_every=20, tokenizer=load_tokenizer("embedded"),
    )  # fmt: skip
    train = PackedSamples(corpus.train, length, seed=0)
    validation = PackedSamples(corpus.validation, length, seed=0, shuffle=False)
    data = PackedDataModule(
        train, validation, first_sample=0, num_batches=300, batch_size=batch_size, validation_sequences=8
    )  # fmt: skip
    return 300 / seconds_of(lambda: sum(1 for _ in data.train_dataloader()), rounds)


def wanted_batches_per_second() -> float:
    """What the quickstart's first phase takes, by the planner."""
    config = load_config()
    machine = find_machine(config.trainer)
    table = forecast(config, make_plan(config, load_tokenizer("embedded").vocab_size), machine)
    speed = calibration(machine, lambda: None)
    tokens = table.costs[0].phase.tokens_per_step
    return tokens / table.costs[0].work.seconds(speed)["step"] / (32 * 256)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    table = Table("documents", "tokenizer", "tokens/s", "MB/s", "MB/s, documents alone")
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "stories.txt"
        text.write_text("\n\n".join(embedded_documents(1, DOCUMENTS)))
        for source, path in (("embedded", None), ("text", str(text))):
            alone = reading(source, path, arguments.rounds)
            for name in TOKENIZERS:
                console.print(f"{source}, {name} ...")
                try:
                    found = tokenising(source, path, name, arguments.rounds)
                except UserError as error:
                    console.print(f"left out: {error}")
                    continue
                results[f"{source}, {name}"] = found | {"documents_alone": alone}
                table.add_row(
                    source, name, f"{found['tokens_per_second']:,.0f}",
                    f"{found['bytes_per_second'] / 1e6:.1f}", f"{alone / 1e6:.1f}",
                )  # fmt: skip
    console.print(table)
    made, wanted = batches_per_second(arguments.rounds), wanted_batches_per_second()
    results["batches"] = {"made": made, "wanted": wanted}
    console.print(
        f"Batches of 32 × 256 tokens: {made:,.0f} a second; the quickstart's dense model takes {wanted:,.1f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
