"""Render the reports of the gallery from the histories in docs/gallery/runs.

    python scripts/render_gallery.py                  writes docs/gallery/NAME.html (`make docs` does)
    python scripts/render_gallery.py --train          trains the runs anew first: five to ten minutes on two cores
    python scripts/render_gallery.py --train --only sweep
    python scripts/render_gallery.py --screenshots    writes docs/images/gallery_NAME.png, too; needs chromium

Of each run the folder keeps what its report shows, without weights. Numbers are rounded to six digits, and loads
of experts to three; names of machines and folders are taken out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growlm.reporting.html import write_report
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit

ROOT = Path(__file__).resolve().parents[1]
GALLERY, IMAGES = ROOT / "docs" / "gallery", ROOT / "docs" / "images"
TRAIN = ("-m", "growlm.train")
KEPT = (
    "config.yaml",
    "plan.json",
    "boundaries.json",
    "summary.json",
    "provenance.json",
    "sweep.json",
    "checkpoints/training_history.jsonl",
)
"""Files of a run, or of a sweep, that its report is made of."""


@dataclass(frozen=True)
class GalleryRun:
    """Run or sweep of the gallery."""

    title: str
    command: tuple[str, ...]
    """Arguments of Python; they write into the folder `run`."""
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that make what the run starts from, in the same folder."""
    exit_code: int = 0


SHORT = ("phases.dense.steps=100", "phases.moe.steps=40", "phases.wide.steps=40")
RUNS = {
    "quickstart": GalleryRun("The quickstart plan", (*TRAIN, "run_dir=run")),
    "four_stage": GalleryRun(
        "Four stages",
        (
            *TRAIN,
            *("phase_plan=four_stage", "model=small", "model.d_model=96", "model.n_heads=4"),
            *("model.n_kv_heads=4", "model.head_dim=24", "model.d_ff=384", "tokenizer=embedded"),
            *(
                "phases.dense.steps=150",
                "phases.dense.lr=2e-3",
                "phases.moe.steps=60",
                "phases.moe.lr=2e-3",
            ),
            *("phases.medium_moe.steps=60", "phases.medium_moe.lr=1.5e-3"),
            *("phases.medium_moe.batch_size=8", "phases.large_moe.steps=60"),
            *("phases.large_moe.lr=1.5e-3", "phases.large_moe.batch_size=8"),
            *("sequence_length=128", "callbacks.sample_tokens=48", "run_dir=run"),
        ),
    ),
    "grown_llama": GalleryRun(
        "A grown Llama",
        (
            *TRAIN,
            *("phase_plan=grow_pretrained", "model.path=llama", "sequence_length=128"),
            *("phases.moe.steps=40", "phases.wide.steps=40", "phases.deep.steps=40"),
            *("phases.moe.lr=1e-3", "phases.wide.lr=1e-3", "phases.deep.lr=1e-3", "run_dir=run"),
        ),
        before=(
            (
                *TRAIN,
                *("phase_plan=dense", "model=small_llama", "phases.dense.steps=150"),
                *("logger=none", "run_dir=first"),
            ),
            (
                *("-m", "growlm.convert", "source=first/checkpoints/dense_model"),
                *("out=llama", "to=huggingface"),
            ),
        ),
    ),
    "sweep": GalleryRun(
        "A sweep of two settings",
        (
            *TRAIN,
            *("-m", "growth.noise_std=1e-5,1e-3,2e-2", "growth.scale_factor=1.5,2", "~phases.deep"),
            *("model.d_model=64", "model.head_dim=16", "model.d_ff=256", *SHORT),
            *("hydra.sweep.dir=run", "logger=none"),
        ),
    ),
    "failed_growth": GalleryRun(
        "A growth that failed",
        (
            "docs/gallery/wrong_operator.py",
            *("model.d_model=64", "model.head_dim=16", "model.d_ff=256", *SHORT),
            *("phases.deep.grow=[{stack_blocks: {}}]", "logger=none", "run_dir=run"),
        ),
        exit_code=1,
    ),
}


def train(name: str) -> None:
    """Train a run of the gallery in a temporary folder, and keep what its report shows.

    Raises:
        UserError: If a command does not end as it should.
    """
    run = RUNS[name]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "docs" / "gallery", Path(folder, "docs", "gallery"))
        for command, expected in (
            *((each, 0) for each in run.before),
            (run.command, run.exit_code),
        ):
            done = subprocess.run(
                [sys.executable, *command], cwd=folder, env=environment, check=False
            )
            if done.returncode != expected:
                reason = f"ended with {done.returncode} in place of {expected}"
                raise UserError(name, " ".join(command), reason)
        keep(Path(folder, "run"), GALLERY / "runs" / name)


def keep(source: Path, target: Path) -> None:
    """Copy the small files of a run or a sweep, without names of machines and folders."""
    shutil.rmtree(target, ignore_errors=True)
    replaced = {str(source.resolve().parent): ".", str(source.parent): "."}
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if not any(name == kept or name.endswith(f"/{kept}") for kept in KEPT):
            continue
        text = path.read_text()
        for old, new in replaced.items():
            text = text.replace(old, new)
        if path.suffix == ".json":
            text = json.dumps(_tidy(json.loads(text)), separators=(",", ":")) + "\n"
        elif path.suffix == ".jsonl":
            lines = [_tidy(json.loads(line)) for line in text.splitlines()]
            text = "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines)
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)


def _tidy(value: Any, digits: int = 6) -> Any:
    if isinstance(value, dict):
        private = (
            {"host": "a machine", "folder": "a checkout of growlm"} if "git_commit" in value else {}
        )
        return {
            key: private.get(key, _tidy(each, 3 if key == "expert_loads" else digits))
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_tidy(each, digits) for each in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def render(name: str, out: Path) -> None:
    """Write the report of a gallery's run; its folder is named as it is in the repository."""
    write_report([GALLERY / "runs" / name], out, title=RUNS[name].title)
    out.write_text(out.read_text().replace(f"{ROOT}/", ""))


def photograph(name: str) -> None:
    """Write the screenshot of a report, as few colors as do, so that it is small."""
    from PIL import Image

    target = IMAGES / f"gallery_{name}.png"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--no-first-run", "--virtual-time-budget=8000", f"--user-data-dir={folder}"),
            *("--window-size=1200,1250", f"--screenshot={target}"),
            (GALLERY / f"{name}.html").as_uri(),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError as error:
            raise UserError("--screenshots", name, "needs the program chromium") from error
    with Image.open(target) as image:
        small = image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)
    small.save(target, optimize=True)


def chosen(only: list[str] | None) -> Iterator[str]:
    """Yield the names to work on.

    Raises:
        UserError: If there is no run of a name.
    """
    for name in only or RUNS:
        if name not in RUNS:
            raise UserError("--only", name, f"must be one of {', '.join(RUNS)}")
        yield name


def main() -> int:
    """Train, render and photograph what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", action="store_true", help="train the runs anew")
    parser.add_argument("--screenshots", action="store_true", help="write the pictures of the page")
    parser.add_argument("--only", action="append", metavar="NAME", help="one of the runs")
    arguments = parser.parse_args()
    for name in list(chosen(arguments.only)):
        if arguments.train:
            train(name)
        render(name, GALLERY / f"{name}.html")
        if arguments.screenshots:
            photograph(name)
        print(f"docs/gallery/{name}.html")
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
