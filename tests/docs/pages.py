"""Read the pages of the documentation: their blocks of code, and the commands in these.

Conventions, which docs/CONTRIBUTING.md describes: `<!-- needs: ... -->` above a block says what running it takes
that the test machine lacks, `<!-- fragment -->` that Python code is not a whole program. A line such as
`# my_conf/phase_plan/mine.yaml`, one of the first two, makes a block a file. `# exit code 2` behind a command is
the code that it returns.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\s*$")
MARK = re.compile(r"^<!-- (needs: [^>]+|fragment|run|tests) -->$")
FILE = re.compile(r"^# ([\w./-]+\.(?:yaml|py|txt|jsonl|toml))(?:[ :].*)?$")
LONG = "several minutes"
"""Mark of blocks that only the slow tests run."""
PLACEHOLDERS = (
    "STOPPED_RUN_DIR",
    "RUN_DIR",
    "SWEEP_DIR",
    "CHECKPOINT",
    "HF_FOLDER",
    "TEXT_FILE",
    "JSONL_FILE",
    "TEXT_FOLDER",
    "TOKENIZER_FOLDER",
    "OLD",
    "NEW",
    "OUT",
)
GROWLM = ("train", "plan", "grow", "verify", "generate", "evaluate", "convert", "report")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    mark: str
    """`needs: ...`, `fragment`, or nothing."""

    @property
    def needs(self) -> str | None:
        return self.mark.removeprefix("needs: ") if self.mark.startswith("needs: ") else None

    @property
    def file(self) -> str | None:
        """The file that the block is, if it is one."""
        found = [FILE.match(line) for line in self.text.split("\n", 2)[:2]]
        return next((each[1] for each in found if each), None)


@dataclass(frozen=True)
class Command:
    block: Block
    line: int
    text: str

    @property
    def exit_code(self) -> int:
        found = re.search(r"# exit code (\d+)", self.text)
        return int(found[1]) if found else 0

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def growlm(self) -> tuple[str, list[str]] | None:
        """The command of growlm and its arguments, whatever starts it."""
        words = self.words
        for place, word in enumerate(words):
            module = words[place + 1] if word == "-m" and place + 1 < len(words) else ""
            if module.startswith("growlm."):
                return module.removeprefix("growlm."), _until_pipe(words[place + 2 :])
            if word == "growlm" and place == 0:
                return (words[1] if len(words) > 1 else ""), _until_pipe(words[2:])
        return None

    def __str__(self) -> str:
        return f"{self.block.page}:{self.line} {self.text.strip()[:60]}"


def _until_pipe(words: list[str]) -> list[str]:
    ends = [place for place, word in enumerate(words) if word in ("|", "&&", ">", "&", "2>&1", ";")]
    return words[: ends[0]] if ends else words


def find_pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read_blocks(path: Path, root: Path = ROOT) -> list[Block]:
    """Return the blocks of a page.

    Raises:
        ValueError: If a block has no end.
    """
    lines, blocks, place = path.read_text().splitlines(), [], 0
    while place < len(lines):
        found = FENCE.match(lines[place])
        if found:
            above = MARK.match(lines[place - 1]) if place else None
            try:
                end = lines.index("```", place + 1)
            except ValueError:
                raise ValueError(f"{path}:{place + 1}: this block has no end") from None
            text = "\n".join(lines[place + 1 : end])
            page = path.relative_to(root).as_posix()
            mark = above[1] if above else ""
            blocks.append(Block(page, place + 1, found[1], text, mark))
            place = end
        place += 1
    return blocks


def read_commands(block: Block) -> list[Command]:
    """Return the commands of a block of shell, each in one line."""
    if block.language != "sh" or block.text.startswith(("#!", "#SBATCH")):
        return []  # a script for a cluster
    commands, start, text = [], 0, ""
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        start = start or number
        text += line.removesuffix("\\") if line.endswith("\\") else line
        if line.endswith("\\"):
            continue
        if text.strip() and not text.lstrip().startswith("#"):
            commands.append(Command(block, start, " ".join(text.split())))
        start, text = 0, ""
    return commands
