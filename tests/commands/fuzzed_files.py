"""Changes at random, by a seed, to the files of the fixtures, and a command that reads the changed file.

`python tests/commands/fuzzed_files.py FIRST LAST` prints what the changes of these seeds are.
"""

import json
import random
import sys
from pathlib import Path

import yaml

from growlm.storage.integrity import dump_checksummed_json
from tests.commands import hostile_cases as known
from tests.commands.hostile_cases import FIXTURES, reseal

DEEP = "[" * 100 + "]" * 100
VALUES = (
    "null",
    "[]",
    "{}",
    '"x"',
    "-1",
    "0",
    "1.5",
    "true",
    "1e400",
    "1e308",
    "NaN",
    "-Infinity",
    "1" + "0" * 400,
    "1" * 5000,
    DEEP,
    "[" * 100_000,
    json.dumps("h" * 2**21),
    json.dumps("\x1b[2J\x9b\u202e\n"),
    '"../../x"',
    '"\\u0000"',
    '"\\ud800"',
    "[null]",
    '{"a": {"b": []}}',
    "[1, 2, 3]",
    str(2**63),
)
"""Put in the place of a value, as JSON."""
PLACE = "@@ a value @@"

RESUME = (*known.RESUME, "reuse.folder=phase_cache")
CHECKPOINT = "llama/checkpoints/moe_model_final"


def commands_for(name: str) -> list[tuple[str, ...]]:
    """What reads a file of the fixtures."""
    top, *rest = Path(name).parts
    folder = str(Path(name).parent)
    if top == "huggingface":
        return [
            ("convert", f"source={folder}", "out=converted", "to=growlm"),
            ("generate", f"checkpoint={folder}", *known.GENERATE[2:]),
        ]
    if "checkpoints" in rest and rest[-1] != "training_history.jsonl":
        if top == "sweep":
            return []
        return [
            ("generate", f"checkpoint={folder}", *known.GENERATE[2:]),
            ("evaluate", f"checkpoint={folder}", *known.EVALUATE[2:]),
            ("grow", f"checkpoint={folder}", *known.GROW[2:]),
            ("convert", f"source={folder}", "out=converted", "to=huggingface"),
            ("verify", f"old={folder}", f"new={folder}"),
            ("train", *(f"model.path={folder}" if a.startswith("model.path=") else a
                        for a in known.PRETRAINED[1:])),
        ]  # fmt: skip
    if top in ("stopped", "stopped_fsdp"):
        resume = (*(a.replace("stopped", top) for a in RESUME), "trainer.strategy=auto")
        return [resume, ("report", top, "out=page.html")]
    if name == "sweep/sweep.json":
        return [known.SWEEP, ("train", "-m", "seed=1,2", "hydra.sweep.dir=sweep")]
    if top == "sweep":
        return [known.SWEEP]
    if top in ("gpt", "llama"):
        return [("report", top, "out=page.html"), known.COMPARE]
    return []


FILES = sorted(
    name
    for path in FIXTURES.rglob("*")
    if path.is_file() and commands_for(name := path.relative_to(FIXTURES).as_posix())
)
TEXTS = tuple(name for name in FILES if name.endswith((".json", ".jsonl", ".yaml")))


def change(seed: int, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Change a file of a copy of the fixtures: what was done, in words, and the command."""
    rng = random.Random(seed)
    names = TEXTS if rng.random() < 0.8 else FILES
    kind = rng.choice(sorted({Path(name).name for name in names}))
    name = rng.choice([name for name in names if Path(name).name == kind])
    command = rng.choice(commands_for(name))
    path = folder / name
    changes_value = name in TEXTS and rng.random() < 0.8
    what = (_change_value if changes_value else _change_bytes)(rng, path)
    if rng.random() < 0.7:
        what += _reseal(path)
    return f"{name}: {what}", command


def _change_value(rng: random.Random, path: Path) -> str:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines))
    content = yaml.safe_load(lines[number])
    places = list(_places(content))
    place = rng.choice(places)
    value = rng.choice(VALUES)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if rng.random() < 0.1 and isinstance(inner, dict):
        del inner[place[-1]]
        value = "removed"
    elif rng.random() < 0.1 and isinstance(inner, dict):
        inner[value[:50]] = inner.pop(place[-1])
        value = f"renamed {value}"
    else:
        inner[place[-1]] = PLACE
    lines[number] = json.dumps(content).replace(json.dumps(PLACE), value)
    path.write_text("\n".join(lines) + "\n")
    return f"{'.'.join(map(str, place))} = {value[:60]}"


def _places(content, before=()):
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*before, key)
        if isinstance(value, dict) or (isinstance(value, list) and len(value) < 50):
            yield from _places(value, (*before, key))


def _change_bytes(rng: random.Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        size = rng.randrange(len(data))
        path.write_bytes(data[:size])
        return f"cut to {size} bytes"
    flipped = []
    # The beginning of a file of tensors, its header, is worth more than its numbers.
    reach = min(len(data), 400) if rng.random() < 0.7 else len(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(reach)
        data[at] ^= 1 << rng.randrange(8)
        flipped.append(at)
    path.write_bytes(data)
    return f"flipped bits at {flipped}"


def _reseal(path: Path) -> str:
    """Write the checksums anew that the changed file is in, where there are any."""
    folder = path.parent
    if path.name == "config.yaml" and (folder / "resume" / "run.json").exists():
        reseal(folder)
    elif path.name == "manifest.json" or folder.name == "resume":
        try:
            record = json.loads(path.read_text())
            record.pop("sha256", None)
            path.write_text(dump_checksummed_json(record))
        except (ValueError, AttributeError, RecursionError):
            return ""
    elif (folder / "manifest.json").exists():
        reseal(folder)
    else:
        return ""
    return ", sealed"


if __name__ == "__main__":
    import shutil
    import tempfile

    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        place = Path(tempfile.mkdtemp())
        print(seed, *change(seed, known.copy_fixtures(place)))
        shutil.rmtree(place)
