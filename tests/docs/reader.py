"""Make what a reader of the documentation has: the folders and files that its commands name."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from growlm.checkpoint import save_model
from growlm.data import embedded_documents
from growlm.growth import Widen, grow
from growlm.huggingface import to_huggingface
from growlm.model import ModelConfig, TransformerLM
from growlm.training import Interrupted, run_plan
from tests.commands.processes import run_command
from tests.docs.pages import PLACEHOLDERS
from tests.training.stopping import SignalAt
from tests.training.tiny_run import TINY, tiny_config, tiny_run

MY_PACKAGE = """
import torch
from lightning.pytorch import Callback


class MyCallback(Callback):
    def __init__(self, every=1):
        self.every = every


class Lion(torch.optim.AdamW):
    def __init__(self, params, lr, beta2=0.99, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=(0.9, beta2), weight_decay=weight_decay)


def power(step, num_steps, exponent=1.0):
    return (1 - step / num_steps) ** exponent
"""


def make_folder(folder: Path) -> Path:
    """Write the files and folders that commands of the documentation name, under the names that stand for them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_package.py").write_text(MY_PACKAGE)
    stories = list(embedded_documents(0, 200))
    (folder / "TEXT_FILE.txt").write_text("\n\n".join(stories))
    rows = [f'{{"text": "{each.splitlines()[0]}", "lang": "en"}}' for each in stories]
    (folder / "JSONL_FILE.jsonl").write_text("\n".join(row for row in rows if row.count('"') == 8))
    (folder / "TEXT_FOLDER").mkdir()
    shutil.copy(folder / "TEXT_FILE.txt", folder / "TEXT_FOLDER" / "a.txt")
    config = ModelConfig.preset(
        "llama", vocab_size=1024, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_seq_len=256
    )
    model = TransformerLM(config)
    record = {"tokenizer": "embedded"}
    save_model(model, folder / "CHECKPOINT", record)
    save_model(model, folder / "OLD", record)
    save_model(grow(model, [Widen(scale_factor=1.5)]), folder / "NEW", record)
    to_huggingface(folder / "CHECKPOINT", folder / "HF_FOLDER")
    (folder / "TOKENIZER_FOLDER").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "HF_FOLDER" / name, folder / "TOKENIZER_FOLDER")
    return folder


def make_runs(folder: Path) -> None:
    """Add a finished run, a stopped one and a sweep."""
    tiny_run(folder / "RUN_DIR")
    with contextlib.suppress(Interrupted):
        run_plan(tiny_config(folder / "STOPPED_RUN_DIR"), [SignalAt(6)])
    sweep = [*TINY, "logger=none", "-m", "seed=0,1", "hydra.sweep.dir=SWEEP_DIR"]
    done = run_command("growlm.train", *sweep, folder=folder, streams=folder)
    assert done.returncode == 0, done.stderr


def fill_in(text: str, folder: Path) -> str:
    """Return a command with paths of this machine for names such as `RUN_DIR`."""
    for name in PLACEHOLDERS:
        ending = {"TEXT_FILE": ".txt", "JSONL_FILE": ".jsonl"}.get(name, "")
        text = re.sub(rf"\b(?<!STOPPED_){name}\b(?![_\w])", str(folder / f"{name}{ending}"), text)
    return text
