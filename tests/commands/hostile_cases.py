"""Broken and hostile files, each with the command that meets it.

`python tests/commands/hostile_cases.py` runs every case in a process of its own, under limits of time and memory,
and prints a table of what was done, what was printed, the exit code and the peak memory.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures" / "format_1"
sys.path.insert(0, str(FIXTURES.parents[2]))

from growlm.storage.integrity import dump_checksummed_json, hash_file, write_manifest  # noqa: E402

CHECKPOINT = "gpt/checkpoints/moe_model_final"
DENSE = "gpt/checkpoints/dense_model"
STATE = "stopped/resume/000000010"
OLDER_STATE = "stopped/resume/000000009"
HUGE = "1" + "0" * 400
DEEP = "[" * 100_000
TEN_LEVELS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)
"""Nine levels of ten aliases: a billion values."""
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"

REPORT = ("report", "gpt", "out=page.html")
COMPARE = ("report", "gpt", "llama", "out=page.html")
SWEEP = ("report", "sweep", "out=page.html")
GENERATE = (
    "generate",
    f"checkpoint={CHECKPOINT}",
    "prompt=Once",
    "max_new_tokens=2",
    "device=cpu",
    "precision=32-true",
)
EVALUATE = (
    "evaluate",
    f"checkpoint={CHECKPOINT}",
    "data.documents=40",
    "sequence_length=32",
    "limit=4",
    "device=cpu",
)
VERIFY = ("verify", f"old={DENSE}", f"new={CHECKPOINT}")
GROW = ("grow", f"checkpoint={CHECKPOINT}", "out=grown", "grow=[{deepen: {extra_layers: 1}}]")
CONVERT = ("convert", "source=huggingface/llama", "out=converted", "to=growlm")
EXPORT = ("convert", "source=llama/checkpoints/dense_model", "out=converted", "to=huggingface")
RESUME = ("train", "resume=stopped", "data.cache=tokens", "trainer.memory_gb=2")
PRETRAINED = (
    "train",
    "phase_plan=dense",
    "model=pretrained",
    f"model.path={CHECKPOINT}",
    "tokenizer=bytes",
    "data.documents=40",
    "data.cache=tokens",
    "sequence_length=32",
    "phases.dense.steps=1",
    "logger=none",
    "run_dir=new",
)
PRETRAINED_ON_TEXT = (
    *(setting for setting in PRETRAINED if setting != "data.documents=40"),
    "data=text",
    "data.path=text.txt",
)


@dataclass(frozen=True)
class Case:
    """What is done to a copy of the fixtures, and what must come of it.

    Attributes:
        name: What was done, in words.
        damage: Does it, in the folder of the copy.
        command: What is run in that folder: a module of growlm and its arguments.
        names: What the message, or the page, must contain: the file, and the place in it.
        code: The exit code.
        hides: What neither may contain.
    """

    name: str
    damage: Callable[[Path], object]
    command: tuple[str, ...]
    names: tuple[str, ...] = ()
    code: int = 2
    hides: tuple[str, ...] = ("\x1b", "\x9b", "\x07", "\u202e", "Traceback")


def copy_fixtures(folder: Path) -> Path:
    """A copy that may be damaged."""
    for path in FIXTURES.iterdir():
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
    return folder


def fifo(name):
    """Put a FIFO in a file's place."""

    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def link(name, target):
    """Put a link in a file's place."""

    def damage(folder):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return damage


def zeros(name):
    """Put a link to an endless device in a file's place."""
    return link(name, "/dev/zero")


def secret(name, text):
    """Put a link to a file of somebody else's in a file's place."""

    def damage(folder):
        (folder / "secret").write_text(text)
        link(name, folder / "secret")(folder)

    return damage


def written(name, content):
    """Write other contents."""

    def damage(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return damage


def appended(name, text):
    """Write more at the end."""

    def damage(folder):
        with (folder / name).open("a") as file:
            file.write(text)

    return damage


def sparse(name, size):
    """Make a file as large as that, without its taking room."""
    return lambda folder: os.truncate(folder / name, size)


def set_value(name, *path_and_value, raw=False):
    """Change one value of a JSON file; `raw` values are JSON text."""
    *path, value = path_and_value

    def damage(folder):
        record = json.loads((folder / name).read_text())
        inner = record
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = "@@" if raw else value
        text = json.dumps(record, indent=2)
        (folder / name).write_text(text.replace('"@@"', value) if raw else text)

    return damage


def resealed(damage, where):
    """Whoever can write files can write their checksums."""

    def both(folder):
        damage(folder)
        reseal(folder / where)

    return both


def reseal(folder):
    """Write the manifest of a checkpoint or state, or the record of a run, anew."""
    if (folder / "resume" / "run.json").exists():
        record = json.loads((folder / "resume" / "run.json").read_text())
        record["config"] = hash_file(folder / "config.yaml")
        record.pop("sha256")
        (folder / "resume" / "run.json").write_text(dump_checksummed_json(record))
        return
    (folder / "manifest.json").unlink(missing_ok=True)
    write_manifest(folder, {})


def sealed_record(name, **changes):
    """Change a sealed record, and seal it again."""

    def damage(folder):
        record = json.loads((folder / name).read_text())
        record.pop("sha256")
        (folder / name).write_text(dump_checksummed_json({**record, **changes}))

    return damage


def row(**changes):
    """A line of a history, changed."""
    line = {
        "phase": "deep",
        "step": 5,
        "global_step": 17,
        "tokens": 1,
        "flops": 1,
        "time_s": 1.0,
        "loss": 1.0,
    }
    return json.dumps({**line, **changes}) + "\n"


def all_of(*damages):
    """Do several things."""

    def damage(folder):
        for each in damages:
            each(folder)

    return damage


def without_older_state(damage):
    """Leave a run with the one state that is damaged."""
    return all_of(lambda folder: shutil.rmtree(folder / OLDER_STATE, ignore_errors=True), damage)


HISTORY = "gpt/checkpoints/training_history.jsonl"

FROM_THE_ISSUE = [
    Case("history is a FIFO", fifo(HISTORY), REPORT, ("training_history.jsonl", "FIFO")),
    Case("history links to /dev/zero", zeros(HISTORY), REPORT, ("training_history.jsonl",)),
    Case("summary is a FIFO", fifo("gpt/summary.json"), REPORT, ("summary.json", "FIFO")),
    Case("summary links to /dev/zero", zeros("gpt/summary.json"), REPORT, ("summary.json",)),
    Case("config.json is a FIFO", fifo(f"{CHECKPOINT}/config.json"), GENERATE, ("config.json",)),
    Case(
        "config.json links to /dev/zero",
        zeros(f"{CHECKPOINT}/config.json"),
        GENERATE,
        ("config.json",),
    ),
    Case(
        "manifest.json is a FIFO",
        fifo(f"{CHECKPOINT}/manifest.json"),
        GENERATE,
        ("manifest.json",),
    ),
    Case(
        "manifest.json links to /dev/zero",
        zeros(f"{CHECKPOINT}/manifest.json"),
        VERIFY,
        ("manifest.json",),
    ),
    Case("config.json is a FIFO", fifo(f"{DENSE}/config.json"), VERIFY, ("config.json",)),
    Case(
        "nine levels of ten YAML aliases",
        all_of(
            appended("gpt/config.yaml", TEN_LEVELS + "\n"),
            appended("llama/config.yaml", TEN_LEVELS + "\n"),
        ),
        COMPARE,
        ("config.yaml", "alias"),
    ),
    Case(
        "a YAML alias of itself",
        appended("gpt/config.yaml", "a: &a [*a]\n"),
        COMPARE,
        ("config.yaml", "alias"),
    ),
    Case(
        "a loss of 10**400",
        appended(HISTORY, row(loss=0).replace('"loss": 0', f'"loss": {HUGE}')),
        REPORT,
        ("1 line of the history",),
        0,
    ),
    Case(
        "NaN as a layer's drift",
        set_value(
            "gpt/boundaries.json",
            0,
            "checks",
            "functional",
            "figures",
            "layers",
            0,
            "layer",
            float("nan"),
        ),
        REPORT,
        ("boundaries.json", "layer"),
    ),
    Case(
        "NaN as a jump, which growlm writes of a failed growth",
        set_value("gpt/boundaries.json", 0, "jump", float("nan")),
        REPORT,
        (),
        0,
    ),
    Case(
        "growth: 5",
        set_value("gpt/boundaries.json", 0, "growth", 5),
        REPORT,
        ("boundaries.json", "growth", "5"),
    ),
    Case(
        "phases: 5",
        set_value("gpt/summary.json", "phases", 5),
        REPORT,
        ("summary.json", "phases", "5"),
    ),
    Case(
        "phases: 5 in a config",
        all_of(
            appended("gpt/config.yaml", "phases: 5\n"),
            set_value("gpt/boundaries.json", 0, "operators", []),
        ),
        REPORT,
        ("config.yaml", "phases"),
    ),
    Case(
        "phase: [] in a history",
        appended(HISTORY, row(phase=[])),
        REPORT,
        ("1 line of the history",),
        0,
    ),
    Case(
        'a sealed manifest of {"x": 1}',
        written(f"{CHECKPOINT}/manifest.json", dump_checksummed_json({"x": 1})),
        GENERATE,
        ("manifest.json", "files"),
    ),
    Case(
        'a sealed manifest of {"files": [1]}',
        written(f"{CHECKPOINT}/manifest.json", dump_checksummed_json({"files": [1]})),
        GENERATE,
        ("manifest.json", "files"),
    ),
    Case(
        "escape sequences in a job's message",
        set_value("sweep/sweep.json", "jobs", 0, "message", f"bad {ESCAPES}end"),
        SWEEP,
        (r"bad \x1b]0;owned", r"\x1b[2J\x9b31m\u202eend"),
        0,
    ),
    Case(
        "a job's folder is ..",
        all_of(
            set_value("sweep/sweep.json", "jobs", 0, "folder", ".."),
            written("config.yaml", "name: outside\n"),
        ),
        SWEEP,
        ("sweep.json", "jobs[0].folder"),
    ),
]
"""The files of issue 25."""

MORE = [
    Case("config.yaml is a FIFO", fifo("gpt/config.yaml"), REPORT, ("config.yaml", "FIFO")),
    Case(
        "config.yaml links to a private file",
        secret("gpt/config.yaml", "token: hunter2\n"),
        REPORT,
        ("config.yaml", "link"),
    ),
    Case(
        "checkpoints/ links to a folder elsewhere",
        lambda folder: link("gpt/checkpoints", folder / "llama" / "checkpoints")(folder),
        REPORT,
        ("training_history.jsonl", "link"),
    ),
    Case(
        "a job's folder links out of its sweep",
        lambda folder: link("sweep/0_noise_std=0.001", folder / "gpt")(folder),
        SWEEP,
        ("config.yaml", "link"),
    ),
    Case(
        "the page's temporary file links to another file",
        secret("gpt/.report.html.partial", "precious"),
        ("report", "gpt"),
        (),
        0,
    ),
    Case(
        "a history of a terabyte of nothing",
        sparse(HISTORY, 2**40),
        REPORT,
        ("training_history.jsonl", "line"),
    ),
    Case(
        "a summary of a terabyte of nothing",
        sparse("gpt/summary.json", 2**40),
        REPORT,
        ("summary.json", "larger"),
    ),
    Case("100,000 open brackets", written("gpt/plan.json", DEEP), REPORT, ("plan.json", "nested")),
    Case(
        "100,000 open brackets as YAML",
        written("gpt/config.yaml", "a: " + DEEP),
        REPORT,
        ("config.yaml",),
    ),
    Case(
        "900 brackets in brackets",
        written("gpt/plan.json", "[" * 900 + "]" * 900),
        REPORT,
        ("plan.json", "nested"),
    ),
    Case(
        "a key twice",
        written("gpt/summary.json", '{"name": "a", "name": "b"}'),
        REPORT,
        ("summary.json", "name", "twice"),
    ),
    Case(
        "no UTF-8",
        written("gpt/config.yaml", b"name: \xff\xfe\n"),
        REPORT,
        ("config.yaml", "UTF-8"),
    ),
    Case(
        "steps of 10**400",
        set_value("gpt/plan.json", 0, "steps", HUGE, raw=True),
        REPORT,
        ("plan.json", "digits"),
    ),
    Case(
        "a time of 1e400",
        set_value("gpt/summary.json", "wall_time_s", "1e400", raw=True),
        REPORT,
        ("summary.json", "1e400"),
    ),
    Case("a time of 1e308", set_value("gpt/summary.json", "wall_time_s", 1e308), REPORT, (), 0),
    Case(
        "a number of 5,000 digits",
        written("gpt/summary.json", "[" + "1" * 5000 + "]"),
        REPORT,
        ("summary.json", "digits"),
    ),
    Case(
        "escape sequences as the name of a run",
        written("gpt/config.yaml", f'name: "{ESCAPES.encode("unicode_escape").decode()}"\n'),
        COMPARE,
        (),
        0,
    ),
    Case(
        "escape sequences as the name of a tensor",
        set_value(f"{CHECKPOINT}/config.json", "model", "norm", f"a{ESCAPES}"),
        ("generate", *GENERATE[1:]),
        ("config.json",),
    ),
    Case(
        "escape sequences as a key of config.json, sealed",
        resealed(set_value(f"{CHECKPOINT}/config.json", "model", f"a{ESCAPES}", 1), CHECKPOINT),
        GENERATE,
        ("config.json", r"\x1b"),
    ),
    Case(
        "a model of 5",
        resealed(set_value(f"{CHECKPOINT}/config.json", "model", 5), CHECKPOINT),
        GENERATE,
        ("config.json", "model"),
    ),
    Case(
        "a size of 10**400",
        resealed(
            set_value(f"{CHECKPOINT}/config.json", "model", "d_model", HUGE, raw=True), CHECKPOINT
        ),
        GENERATE,
        ("config.json", "digits"),
    ),
    Case(
        "a tokenizer of []",
        resealed(set_value(f"{CHECKPOINT}/config.json", "tokenizer", []), CHECKPOINT),
        GENERATE,
        ("config.json", "tokenizer"),
    ),
    Case(
        "a growth from 5",
        resealed(set_value(f"{CHECKPOINT}/config.json", "grown_from", 5), CHECKPOINT),
        VERIFY,
        ("grown_from",),
    ),
    Case(
        "a growth by 4,000 layers",
        resealed(
            set_value(
                f"{CHECKPOINT}/config.json",
                "grown_from",
                {"operators": [{"deepen": {"extra_layers": 4000}}]},
            ),
            CHECKPOINT,
        ),
        VERIFY,
        ("failed: functional",),  # the two were trained apart
        1,
    ),
    Case(
        "a growth by 10**30 experts",
        resealed(
            set_value(
                f"{CHECKPOINT}/config.json",
                "grown_from",
                {"operators": [{"upcycle": {"num_experts": 10**30}}]},
            ),
            CHECKPOINT,
        ),
        VERIFY,
        ("num_experts",),
    ),
    Case(
        "a manifest that names ../../../secret",
        all_of(
            written("secret", "private"),
            written(
                f"{STATE}/manifest.json",
                dump_checksummed_json({"files": {"../../../secret": {"bytes": 7, "sha256": "0"}}}),
            ),
        ),
        RESUME,
        ("manifest.json", "secret"),
    ),
    Case(
        "weights are a FIFO",
        fifo(f"{CHECKPOINT}/model.safetensors"),
        GENERATE,
        ("model.safetensors",),
    ),
    Case(
        "weights link out of their folder, no manifest",
        all_of(
            lambda folder: (folder / CHECKPOINT / "manifest.json").unlink(),
            lambda folder: shutil.move(folder / CHECKPOINT / "model.safetensors", folder),
            lambda folder: link(f"{CHECKPOINT}/model.safetensors", folder / "model.safetensors")(
                folder
            ),
        ),
        GENERATE,
        ("model.safetensors", "link"),
    ),
    Case(
        "an index is a FIFO",
        all_of(
            lambda folder: (folder / "huggingface/llama/model.safetensors").unlink(),
            fifo("huggingface/llama/model.safetensors.index.json"),
        ),
        CONVERT,
        ("index.json",),
    ),
    Case(
        "an index names a FIFO",
        all_of(
            lambda folder: (folder / "huggingface/llama/model.safetensors").unlink(),
            lambda folder: (folder / "huggingface/llama/manifest.json").unlink(),
            fifo("huggingface/llama/a.safetensors"),
            written(
                "huggingface/llama/model.safetensors.index.json",
                '{"weight_map": {"a": "a.safetensors"}}',
            ),
        ),
        CONVERT,
        ("a.safetensors", "FIFO"),
    ),
    Case(
        "tokenizer.json is a FIFO",
        fifo("huggingface/llama/tokenizer.json"),
        CONVERT,
        ("tokenizer.json", "FIFO"),
    ),
    Case(
        "tokenizer.json links to /dev/zero",
        zeros("huggingface/llama/tokenizer.json"),
        CONVERT,
        ("tokenizer.json",),
    ),
    Case(
        "tokenizer_config.json links to /dev/zero",
        zeros("huggingface/llama/tokenizer_config.json"),
        CONVERT,
        ("tokenizer_config.json",),
    ),
    Case(
        "generation_config.json is a FIFO",
        fifo("huggingface/llama/generation_config.json"),
        ("generate", "checkpoint=huggingface/llama", *GENERATE[2:]),
        ("generation_config.json", "FIFO"),
    ),
    Case(
        "hidden_size of 10**400",
        set_value("huggingface/llama/config.json", "hidden_size", HUGE, raw=True),
        CONVERT,
        ("config.json", "digits"),
    ),
    Case(
        "a config.json of Infinity",
        set_value("huggingface/llama/config.json", "rope_theta", float("inf")),
        CONVERT,
        ("config.json", "Infinity"),
    ),
    Case(
        "config.json is a FIFO",
        fifo("huggingface/llama/config.json"),
        CONVERT,
        ("config.json", "FIFO"),
    ),
    Case(
        "prompts_file is a FIFO",
        fifo("prompts.jsonl"),
        (*GENERATE[:2], "prompts_file=prompts.jsonl", *GENERATE[3:]),
        ("prompts.jsonl", "FIFO"),
    ),
    Case(
        "prompts_file links to /dev/zero",
        zeros("prompts.txt"),
        (*GENERATE[:2], "prompts_file=prompts.txt", *GENERATE[3:]),
        ("prompts.txt",),
    ),
    Case(
        "prompts_file is nested 100,000 deep",
        written("p.jsonl", DEEP),
        (*GENERATE[:2], "prompts_file=p.jsonl", *GENERATE[3:]),
        ("line 1", "nested"),
    ),
    Case("run.json is a FIFO", fifo("stopped/resume/run.json"), RESUME, ("run.json",)),
    Case(
        'a sealed run.json of {"x": 1}',
        written("stopped/resume/run.json", dump_checksummed_json({"x": 1})),
        RESUME,
        ("run.json", "missing"),
    ),
    Case(
        "run.json with data: []",
        sealed_record("stopped/resume/run.json", data=[]),
        RESUME,
        ("run.json", "data"),
    ),
    Case("config.yaml is a FIFO", fifo("stopped/config.yaml"), RESUME, ("config.yaml",)),
    Case(
        "nine levels of ten YAML aliases, sealed",
        resealed(appended("stopped/config.yaml", TEN_LEVELS + "\n"), "stopped"),
        RESUME,
        ("config.yaml", "alias"),
    ),
    Case(
        "a config.yaml of a list, sealed",
        resealed(written("stopped/config.yaml", "[1, 2]\n"), "stopped"),
        RESUME,
        ("config.yaml",),
    ),
    Case(
        "a config.yaml of half a line, sealed",
        resealed(written("stopped/config.yaml", "a: [1, {\n"), "stopped"),
        RESUME,
        ("config.yaml",),
    ),
    Case(
        "a run without a state, its history a link to another file",
        all_of(
            lambda folder: shutil.rmtree(folder / STATE),
            secret("stopped/checkpoints/training_history.jsonl", "precious"),
        ),
        RESUME,
        (),
        0,
    ),
    Case(
        "checkpoints/ links to a folder elsewhere",
        lambda folder: link("stopped/checkpoints", folder / "llama" / "checkpoints")(folder),
        RESUME,
        ("checkpoints", "link"),
    ),
    Case(
        "the run's lock links to another file",
        secret("stopped/resume/lock", "precious"),
        RESUME,
        ("stopped", "link"),
    ),
    Case(
        "state.json of {}, sealed",
        resealed(written(f"{STATE}/state.json", "{}"), STATE),
        RESUME,
        ("state.json", "phase"),
    ),
    Case(
        "state.json with a step of -1, sealed",
        resealed(set_value(f"{STATE}/state.json", "step", -1), STATE),
        RESUME,
        ("state.json", "step"),
    ),
    Case(
        "state.json of a phase that the plan lacks, sealed",
        resealed(set_value(f"{STATE}/state.json", "phase", "none"), STATE),
        RESUME,
        ("state.json", "phase"),
    ),
    Case(
        "state.json with a random state of 5, sealed",
        resealed(set_value(f"{STATE}/state.json", "random", "python", 5), STATE),
        RESUME,
        ("state.json", "random"),
    ),
    Case(
        "state.json with a boundary's check of no known status, sealed",
        resealed(
            set_value(
                f"{STATE}/state.json",
                "run",
                "boundaries",
                0,
                "report",
                "checks",
                "rope",
                "status",
                "x",
            ),
            STATE,
        ),
        RESUME,
        ("state.json", "status"),
    ),
    Case("state.json is a FIFO", fifo(f"{STATE}/state.json"), RESUME, ("state.json",)),
    Case(
        "progress.safetensors without a random state, sealed",
        resealed(
            lambda folder: shutil.copy(
                folder / DENSE / "model.safetensors", folder / STATE / "progress.safetensors"
            ),
            STATE,
        ),
        RESUME,
        ("progress",),
    ),
    Case(
        "the optimizer's state of other parameters, sealed",
        resealed(
            lambda folder: shutil.copy(
                folder / DENSE / "model.safetensors", folder / STATE / "optimizer.safetensors"
            ),
            STATE,
        ),
        RESUME,
        ("optimizer",),
    ),
    Case(
        "callbacks.pt of an unknown callback, sealed",
        resealed(lambda folder: _save_callbacks(folder / STATE / "callbacks.pt"), STATE),
        RESUME,
        ("callbacks.pt",),
    ),
    Case(
        "the history of a stopped run is a FIFO",
        fifo("stopped/checkpoints/training_history.jsonl"),
        RESUME,
        ("training_history.jsonl",),
    ),
    Case(
        "the state's history is 10**18 bytes, sealed",
        resealed(set_value(f"{STATE}/state.json", "run", "history", "bytes", 10**18), STATE),
        RESUME,
        ("training_history.jsonl",),
    ),
    Case(
        "optimizer.safetensors is a FIFO",
        fifo(f"{CHECKPOINT}/optimizer.safetensors"),
        GROW,
        ("optimizer.safetensors",),
    ),
    Case(
        "a header of no JSON, sealed",
        resealed(
            written(f"{CHECKPOINT}/model.safetensors", b"\x08" + b"\0" * 7 + b"{]{]{]{]"),
            CHECKPOINT,
        ),
        EVALUATE,
        ("model.safetensors",),
    ),
    Case(
        "a tensor of 2**62 rows, sealed",
        resealed(
            lambda folder: _huge_tensor(folder / CHECKPOINT / "model.safetensors"), CHECKPOINT
        ),
        GROW,
        ("model.safetensors",),
    ),
    Case(
        "an export's source with a key twice",
        resealed(
            written(
                "llama/checkpoints/dense_model/config.json",
                '{"format": "growlm/1", "format": "growlm/1"}',
            ),
            "llama/checkpoints/dense_model",
        ),
        EXPORT,
        ("config.json", "twice"),
    ),
    Case("config.json is a FIFO", fifo(f"{CHECKPOINT}/config.json"), PRETRAINED, ("config.json",)),
    Case(
        "data.path is a FIFO",
        fifo("text.txt"),
        PRETRAINED_ON_TEXT,
        ("text.txt",),
    ),
    Case(
        "data.path links to /dev/zero",
        zeros("text.txt"),
        PRETRAINED_ON_TEXT,
        ("text.txt",),
    ),
    Case(
        "a text of a sweep: jobs of 5",
        set_value("sweep/sweep.json", "jobs", 5),
        SWEEP,
        ("sweep.json", "jobs"),
    ),
    Case("sweep.json is a FIFO", fifo("sweep/sweep.json"), SWEEP, ("sweep.json", "FIFO")),
    Case(
        "sweep.json is a FIFO",
        fifo("sweep/sweep.json"),
        ("train", "-m", "seed=1,2", "hydra.sweep.dir=sweep"),
        ("sweep.json", "FIFO"),
    ),
    Case(
        "a job's number is []",
        set_value("sweep/sweep.json", "jobs", 1, "number", []),
        ("train", "-m", "seed=1,2", "hydra.sweep.dir=sweep"),
        ("sweep.json", "jobs[1].number"),
    ),
]
"""More of their kind."""


def _save_callbacks(path):
    import torch

    torch.save({"nobody": {"n": 1}}, path)


def _huge_tensor(path):
    header = json.dumps(
        {"embedding.weight": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 32]}}
    ).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 32)


CASES = FROM_THE_ISSUE + MORE
SECONDS = 180
BYTES = 2 * 2**30
"""Of resident memory, at which a process is stopped."""


def run_case(case: Case) -> tuple[int | str, str, int, float]:
    """Run a case in a process of its own: exit code, output, peak bytes, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        place = copy_fixtures(Path(folder))
        case.damage(place)
        module, *arguments = case.command
        out = Path(folder, "output")
        start = time.monotonic()
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"growlm.{module}", *arguments],
                cwd=place,
                env=_environment(),
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )
            stopped = None
            while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
                is_late = time.monotonic() - start > SECONDS
                if is_late or _resident(process.pid) > BYTES:
                    stopped = "hangs" if is_late else "eats memory"
                    process.kill()
                    ended = os.wait4(process.pid, 0)
                    break
                time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        seconds = time.monotonic() - start
        text = out.read_text(errors="backslashreplace").replace(f"{place}/", "")
        return stopped or process.returncode, text, ended[2].ru_maxrss * 1024, seconds


def measure_machine() -> None:
    """Measure the machine's speed, which takes more memory than a case may, so that no case does."""
    for precision in ("auto", "32-true"):
        command = ["growlm.plan", "phase_plan=dense", f"trainer.precision={precision}"]
        subprocess.run(
            [sys.executable, "-m", *command], env=_environment(), check=True, capture_output=True
        )


def _environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(FIXTURES.parents[2]),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(Path(tempfile.gettempdir()) / "hostile_cases_cache"),
    }


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def main() -> None:
    """Print the table, a line a case as they end."""
    wanted = sys.argv[1:]
    measure_machine()
    print("| done to the file | command | printed | exit code | peak memory |")
    print("|---|---|---|---|---|")
    for case in CASES:
        if wanted and not any(word in f"{case.name} {' '.join(case.command)}" for word in wanted):
            continue
        code, text, peak, _ = run_case(case)
        lines = [line for line in text.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("error:", "stopped:"))] or lines[-1:]
        shown = " ".join(told)[:300].encode("unicode_escape").decode().replace("|", "\\|")
        right = "" if code == case.code else f" (expected {case.code})"
        command = f"{case.command[0]}"
        print(
            f"| {case.name} | {command} | `{shown}` | {code}{right} | {peak / 1e6:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
